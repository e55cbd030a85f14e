#!/usr/bin/env bash
# Runs the distribution specification's conformance tool against a mesh of three processes, every single request going
# to the next of them. Each run gets a mesh of its own, since the tool wants an empty registry. Two runs have accounts: the
# tool logs in, and must pass as many as without.
set -euo pipefail
# shellcheck source=deploy/test/lib.sh
source "$(dirname "$0")/lib.sh"

# tally FILE: counts the test cases of a JUnit file by status, and tells why the first of those that did not pass failed.
# The tool writes one element a line and escapes what it quotes, so lines are enough.
tally() {
  awk '
    function show(s) {
      gsub(/&#xA;|&#x9;/, " ", s); gsub(/&#34;/, "\"", s); gsub(/&#39;/, "\047", s)
      gsub(/&lt;/, "<", s); gsub(/&gt;/, ">", s); gsub(/&amp;/, "\\&", s)
      return s
    }
    /<testcase / {
      status = $0; sub(/.* status="/, "", status); sub(/".*/, "", status)
      name = $0; sub(/.* name="/, "", name); sub(/.*<testcase name="/, "", name); sub(/".*/, "", name)
      sub(/^OCI Conformance Test\//, "", name)
      if (status == "passed") passed++
      else if (status == "skipped") skipped++
      else failed++
      told += status != "passed"
      if (status != "passed" && told <= 40) print "  " status ": " show(name) > "/dev/stderr"
    }
    /<system-out>/ && status != "passed" && told <= 40 {
      why = $0; sub(/.*<system-out>/, "", why); sub(/<\/system-out>.*/, "", why)
      print "    " substr(show(why), 1, 400) > "/dev/stderr"
    }
    END {
      if (told > 40) print "  and " told - 40 " more" > "/dev/stderr"
      printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
    }' "$1"
}

# account NAME PASSWORD: gives the mesh an administrator, and an account that may do what a rule says.
account() {
  manage user add root --password-stdin <<<"$2-root"
  manage user add "$1" --password-stdin <<<"$2"
  manage apply -f - <<<"rules: [{who: [$1], repositories: ['**'], allow: [pull, push, delete, list]}]"
}

# run VERSION DATA [NAME PASSWORD]: one mesh, one run of the tool; DATA is "sparse" or "complete". Leaves its counts in $counts.
run() {
  local version=$1 data=$2 out=$work/results-$1-$2${3:+-$3} sparse=false flags=() status=0
  [[ $data == complete ]] || { sparse=true && flags=(--allow-sparse); }
  mesh_start "${flags[@]}"
  [[ -z ${3:-} ]] || account "$3" "$4" >/dev/null || die "no account can be made"
  free_port
  balance "127.0.0.1:$port"
  await 10 curl -sf "http://127.0.0.1:$port/readyz" || die "the balancer does not answer"
  mkdir "$out"
  OCI_VERSION=$version OCI_REGISTRY=127.0.0.1:$port OCI_TLS=disabled OCI_RESULTS_DIR=$out OCI_LOG=error \
    OCI_USERNAME=${3:-} OCI_PASSWORD=${4:-} \
    OCI_CONFIGURATION=/dev/null OCI_API_BLOBS_UPLOAD_CANCEL=true OCI_API_BLOBS_DIGEST_HEADER=true \
    OCI_API_MANIFESTS_DIGEST_HEADER=true OCI_API_MANIFESTS_TAG_PARAM=true OCI_DATA_SPARSE=$sparse \
    timeout 600 conformance >"$out/out.txt" 2>&1 || status=$?
  end balancer
  mesh_stop
  counts=$(tally "$out/junit.xml") || { tail -n 20 "$out/out.txt" >&2 && return 1; }
  say "conformance $version $data${3:+, logged in}: $counts"
  say "  $(sed -n 's/.*\(requests given\)/\1/p' "$work/balancer.log" | tail -n 1)"
  ((status == 0)) && [[ $counts =~ ^[1-9][0-9]*\ passed,\ 0\ failed,\ 0\ skipped$ ]]
}

build_balanced
need curl
install_tool conformance
failed=0
for version in 1.1 dev; do
  run "$version" sparse || failed=$((failed + 1))
  run "$version" complete || failed=$((failed + 1))
  open=$counts
  { run "$version" complete tester "$(head -c 16 /dev/urandom | base64)" && [[ $counts == "$open" ]]; } || failed=$((failed + 1))
done
say "$((6 - failed)) passed, $failed failed"
((failed == 0))
