#!/usr/bin/env bash
# Kills (kill -9) the node that a "skopeo copy" talks to, at seeded moments spread over the whole copy. Where the copy
# exited 0, every surviving node must serve the image bit by bit; a repeat through a survivor must succeed within 15 s; the
# killed node comes back with the flags it had before the next round. The run goes on until KILLS kills (50) met a copy that
# ran; kills just after a copy's end come on top. KILL_SEED repeats a run's choices.
set -euo pipefail
# shellcheck source=deploy/test/lib.sh
source "$(dirname "$0")/lib.sh"

kills=${KILLS:-50}
span=$((kills * 13 / 10)) # rounds that cover the copy and three tenths beyond it
seed=${KILL_SEED:-$RANDOM}
limit=15000 # milliseconds for the repeat
acknowledged=() times=() running=0 exited0=0 again=0
declare -A failures=() # rounds of which something did not hold

now() { say $((${EPOCHREALTIME/[.,]/} / 1000)); }

# push NODE TAG: sets the command that copies the image of this round.
push() {
  push=(skopeo copy --preserve-digests --dest-tls-verify=false "oci:$work/image:v1" "docker://${public[$1]}/kill/image:$2")
}

# fresh makes an image of 24 MiB in four layers that no node has seen.
fresh() { rm -rf "$work/image" && layout "$work/image" 4 6 amd64; }

# measure sets $duration to how long an undisturbed copy takes now: the median over the nodes.
measure() {
  local i start took=()
  for i in "${nodes[@]}"; do
    fresh
    push "$i" "undisturbed-$1-$i"
    start=$(now)
    "${push[@]}" >"$work/measure.log" 2>&1 || die "an undisturbed copy fails: $(tail -n 3 "$work/measure.log")"
    took+=($(($(now) - start)))
  done
  mapfile -t took < <(printf '%s\n' "${took[@]}" | sort -n)
  duration=${took[1]}
}

# fail ROUND WHY...
fail() {
  failures[$1]=yes
  say "  FAIL: round $*"
}

# round N SLOT: one kill. The slots divide the span evenly: some kills must meet an answer just given, or little would be
# claimed of copies that exited 0.
round() {
  local n=$1 moment victim other survivors start took tries=0 status=0 ran=yes refused='' i
  victim=${nodes[RANDOM % ${#nodes[@]}]}
  moment=$((duration * (1000 * $2 + RANDOM % 1000) / (1000 * kills)))
  survivors=()
  for i in "${nodes[@]}"; do ((i == victim)) || survivors+=("$i"); done
  other=$((RANDOM % 2))
  fresh
  push "$victim" "$n"
  spawn copy "${push[@]}"
  sleep "$((moment / 1000)).$(printf %03d $((moment % 1000)))"
  kill -0 "${pid[copy]}" 2>/dev/null || ran=no
  end "node$victim" KILL || true
  end copy 0 || status=$?
  [[ $ran == no ]] || running=$((running + 1))
  if ((status == 0)); then
    exited0=$((exited0 + 1))
    acknowledged+=("$n $(jq -r '.manifests[0].digest' "$work/image/index.json")")
    for i in "${survivors[@]}"; do
      serves "${public[i]}" kill/image "$work/image" "$n" >"$work/serves.log" 2>&1 ||
        fail "$n" "the copy exited 0 but node $i does not serve it: $(tail -n 3 "$work/serves.log")"
    done
  fi
  push "${survivors[other]}" "$n"
  start=$(now)
  while tries=$((tries + 1)) && ! timeout 15 "${push[@]}" >"$work/repeat.log" 2>&1; do
    ((tries > 1)) || refused="; first refused: $(tail -n 1 "$work/repeat.log")"
    (($(now) - start < limit)) || break
    sleep 0.2
  done
  took=$(($(now) - start))
  times+=("$took")
  ((tries == 1)) || again=$((again + 1))
  ((took < limit)) || fail "$n" "the repeat through node ${survivors[other]} took $took ms: $(tail -n 2 "$work/repeat.log")"
  serves "${public[survivors[1 - other]]}" kill/image "$work/image" "$n" >"$work/serves.log" 2>&1 ||
    fail "$n" "node ${survivors[1 - other]} does not serve the repeat: $(tail -n 3 "$work/serves.log")"
  say "round $n: node $victim killed at $moment of $duration ms (copy running: $ran, exit $status); repeat $took ms, tries $tries$refused"
  node_start "$victim"
  node_ready "$victim"
}

# shuffle puts the slots into a seeded order.
shuffle() {
  local i j swap
  for ((i = 0; i < span; i++)); do slots[i]=$i; done
  for ((i = span - 1; i > 0; i--)); do
    j=$((RANDOM % (i + 1)))
    swap=${slots[i]} slots[i]=${slots[j]} slots[j]=$swap
  done
}

# remembered: every image whose copy exited 0 has its name on every node at the end, the killed ones included.
remembered() {
  local i entry tag digest
  for i in "${nodes[@]}"; do
    for entry in "${acknowledged[@]}"; do
      read -r tag digest <<<"$entry"
      { get "http://${public[i]}/v2/kill/image/manifests/$tag" "$work/manifest" && [[ $(hash "$work/manifest") == "$digest" ]]; } ||
        fail "$tag" "node $i has lost its image"
    done
  done
}

for command in curl jq skopeo; do need "$command"; done
[[ -n ${FLOTILLA:-} ]] || build_all
RANDOM=$seed
say "seed $seed (KILL_SEED=$seed repeats these moments)"
slots=()
shuffle
mesh_start --replicas 3
for ((n = 1; running < kills && n <= 3 * span; n++)); do
  ((n % 5 != 1)) || measure "$n"
  round "$n" "${slots[(n - 1) % span]}"
done
rounds=$((n - 1))
remembered
mesh_stop
mapfile -t times < <(printf '%s\n' "${times[@]}" | sort -n)
say "$rounds kills, $running while the copy ran, the rest after its end; $exited0 copies exited 0;" \
  "repeat median ${times[rounds / 2]} ms, max ${times[rounds - 1]} ms, $again needed more than one try"
say "$((rounds - ${#failures[@]})) passed, ${#failures[@]} failed"
((${#failures[@]} == 0 && running >= kills))
