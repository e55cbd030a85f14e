#!/usr/bin/env bash
# Runs the distribution specification's conformance tool against a mesh of three processes, every single request going
# to the next of them. Each run gets a mesh of its own, since the tool wants an empty registry.
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

# run VERSION DATA: one mesh, one run of the tool; DATA is "sparse" or "complete".
run() {
  local version=$1 data=$2 out=$work/results-$1-$2 sparse=false flags=() status=0 counts
  [[ $data == complete ]] || { sparse=true && flags=(--allow-sparse); }
  mesh_start "${flags[@]}"
  free_port
  spawn balancer "$root/bin/balancer" -listen "127.0.0.1:$port" -backends "${public[1]},${public[2]},${public[3]}"
  await 10 curl -sf "http://127.0.0.1:$port/v2/" || die "the balancer does not answer"
  mkdir "$out"
  OCI_VERSION=$version OCI_REGISTRY=127.0.0.1:$port OCI_TLS=disabled OCI_RESULTS_DIR=$out OCI_LOG=error \
    OCI_CONFIGURATION=/dev/null OCI_API_BLOBS_UPLOAD_CANCEL=true OCI_API_BLOBS_DIGEST_HEADER=true \
    OCI_API_MANIFESTS_DIGEST_HEADER=true OCI_API_MANIFESTS_TAG_PARAM=true OCI_DATA_SPARSE=$sparse \
    timeout 600 conformance >"$out/out.txt" 2>&1 || status=$?
  end balancer
  mesh_stop
  counts=$(tally "$out/junit.xml") || { tail -n 20 "$out/out.txt" >&2 && return 1; }
  say "conformance $version $data: $counts"
  say "  $(sed -n 's/.*\(requests given\)/\1/p' "$work/balancer.log" | tail -n 1)"
  ((status == 0)) && [[ $counts =~ ^[1-9][0-9]*\ passed,\ 0\ failed,\ 0\ skipped$ ]]
}

if [[ -z ${FLOTILLA:-} ]]; then build_all; else (cd "$root" && go build -o bin/ ./cmd/balancer); fi
need curl
install_tool conformance
failed=0
for data in sparse complete; do
  for version in 1.1 dev; do
    run "$version" "$data" || failed=$((failed + 1))
  done
done
say "$((4 - failed)) passed, $failed failed"
((failed == 0))
