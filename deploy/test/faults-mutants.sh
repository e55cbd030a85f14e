#!/usr/bin/env bash
# Proves the checks: builds flotilla with one planted bug at a time, each a patch in cmd/faults/mutants, and expects the
# check that the patch names to catch it, with the words that it names. MUTANTS names some of them, separated by spaces.
set -euo pipefail
# shellcheck source=deploy/test/lib.sh
source "$(dirname "$0")/lib.sh"

need git
faults_tools
go build -C "$root" -trimpath -o "$work/faults" ./cmd/faults

# field NAME PATCH: a line "NAME: value" before the patch itself.
field() { sed -n "/^diff /q; s/^$1: //p" "$2"; }

# plant PATCH: a copy of this tree with the bug, in $tree.
plant() {
  rm -rf "$tree"
  mkdir "$tree"
  (cd "$root" && git ls-files -z | xargs -0 cp --parents --no-dereference -t "$tree")
  (cd "$tree" && git apply "$1")
}

# check: runs the check that is to catch the bug.
check() {
  local how
  read -ra how <<<"$1"
  case ${how[0]} in
    model) # stops at what it finds
      (cd "$tree" && FLOTILLA_MODEL_FOR=3m go test -count=1 -timeout 8m -run '^TestModel$' ./node)
      ;;
    test) (cd "$tree" && go test -count=1 "${how[@]:1}") ;;
    faults)
      (cd "$tree" && CGO_ENABLED=0 go build -trimpath -o "$work/flotilla" ./cmd/flotilla) || return
      [[ $1 != *upgrade* ]] || { build_older "$tree" "$work/older" && how+=(-old "$work/older"); } || return
      rm -rf "$work/run" && mkdir "$work/run"
      "$work/faults" -dir "$work/run" -flotilla "$work/flotilla" -seed 1 "${how[@]:1}"
      ;;
    *) die "no such check: $1" ;;
  esac
}

tree=$work/tree caught=0 missed=0
for patch in "$root"/cmd/faults/mutants/*.patch; do
  name=$(basename "$patch" .patch)
  [[ -z ${MUTANTS:-} || " $MUTANTS " == *" $name "* ]] || continue
  started=$SECONDS
  if ! plant "$patch" >"$work/$name.log" 2>&1; then
    result='MISSED (the patch does not apply any more)'
  elif check "$(field check "$patch")" >"$work/$name.log" 2>&1; then
    result=MISSED
  elif ! grep -qE -- "$(field words "$patch")" "$work/$name.log"; then
    result='MISSED (something else failed)'
  else
    result=caught
  fi
  if [[ $result == caught ]]; then caught=$((caught + 1)); else
    missed=$((missed + 1))
    tail -n 20 "$work/$name.log"
  fi
  say "$result: $name, $(field bug "$patch") ($((SECONDS - started)) s)"
done
say "$caught planted bugs caught, $missed missed"
((missed == 0 && caught > 0))
