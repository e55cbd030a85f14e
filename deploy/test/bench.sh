#!/usr/bin/env bash
# Measures flotilla beside the reference registry on this machine: start, idle memory, every workload of "flotilla bench"
# for a mesh of one and a mesh of three, and what only a mesh has. Ratios count; the machine's noise is in the spread.
# ROUNDS (5) is the number of rounds; BENCH_FLAGS goes to "flotilla bench", such as "--quick".
set -euo pipefail
# shellcheck source=deploy/test/lib.sh
source "$(dirname "$0")/lib.sh"
rounds=${ROUNDS:-5}
read -ra flags <<<"--rounds $rounds ${BENCH_FLAGS:-}"

# reference_start: the reference registry with a file system below it, deletes on, and nothing that costs it time.
reference_start() {
  free_port && reference=127.0.0.1:$port
  cat >"$work/reference.yml" <<END
version: 0.1
log: {accesslog: {disabled: true}, level: error}
storage:
  filesystem: {rootdirectory: $work/reference}
  delete: {enabled: true}
  cache: {blobdescriptor: inmemory}
http: {addr: "$reference", secret: bench}
END
  OTEL_TRACES_EXPORTER=none spawn reference registry serve "$work/reference.yml"
}

# alone_start: a mesh of one.
alone_start() {
  free_port && alone=127.0.0.1:$port
  spawn alone "$flotilla" serve --name alone --data "$work/alone" --listen "$alone" --peer-listen 127.0.0.1:0 --gossip-listen 127.0.0.1:0
}

answers() { curl -sf -o "$work/answer" "http://$1/v2/"; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
milliseconds() { echo $((($(date +%s%N) - $1) / 1000000)); }

# starts NAME: median time, in ms, from the start of an empty registry to its first 200 on /v2/. The asking costs some of it.
starts() {
  local i begun
  for ((i = 0; i < rounds; i++)); do
    rm -rf "${work:?}/$1"
    begun=$(date +%s%N)
    "$1_start"
    until answers "${!1}"; do :; done
    milliseconds "$begun" >>"$work/starts"
    end "$1" || true
  done
  median <"$work/starts"
  rm -f "$work/starts"
}

resident() { awk '/^VmRSS/ { printf "%.0f MiB", $2 / 1024 }' "/proc/${pid[$1]}/status"; }

# metric HOST NAME: one figure of a node.
metric() { curl -sf "http://$1/metrics" | awk -v name="$2" '$1 == name { printf "%.0f", $2 }'; }

# crowd HOST WORKLOAD: rates at 1, 8 and 64 clients, and what the reads cost the leader.
crowd() {
  local n before after report
  for n in 1 8 64; do
    before=$(metric "$1" flotilla_raft_read_rounds_total)
    report=$("$flotilla" bench --rounds "$rounds" --workloads "$2" --workers "$n" --json "http://$1")
    after=$(metric "$1" flotilla_raft_read_rounds_total)
    jq -r --arg n "$n" --arg rounds "$((after - before))" '.results[0] | "  \($n) clients: \(.median | round) requests/s (spread ±\(.spread_percent | round) %), " +
      "median \(.p50_ms) ms; \([.samples[].operations] | add) requests in the measured rounds, \($rounds) rounds to the leader in all"' <<<"$report"
  done
}

# pull HOST DIGEST: seconds to fetch a blob.
pull() { curl -sf -o /dev/null -w '%{time_total}\n' "http://$1/v2/bench/blobs/$2"; }

# holds I DIGEST: node I has the blob on its disk.
holds() { [[ -e $work/data/$1/blobs/sha256/${2:7:2}/${2#sha256:} ]]; }

# cold: how much longer a pull takes at a node that must fetch the blob than at one that has it.
cold() {
  local i digest lacks has
  for ((i = 0; i < 2 * rounds + 1; i++)); do
    head -c 256M /dev/urandom >"$work/blob"
    digest=$(hash "$work/blob")
    curl -sf -o /dev/null -X POST -H 'Content-Type: application/octet-stream' --data-binary "@$work/blob" "http://${public[1]}/v2/bench/blobs/uploads/?digest=$digest"
    has='' lacks=''
    for n in "${nodes[@]}"; do if holds "$n" "$digest"; then has=$n; else lacks=$n; fi; done
    [[ -n $lacks ]] || continue
    pull "${public[has]}" "$digest" >/dev/null
    printf '%s %s\n' "$(pull "${public[lacks]}" "$digest")" "$(pull "${public[has]}" "$digest")"
    curl -sf -o /dev/null -X DELETE "http://${public[1]}/v2/bench/blobs/$digest"
    rm -f "$work"/data/*/blobs/sha256/"${digest:7:2}/${digest#sha256:}"
  done | tail -n +2 | awk '{ print $1 / $2, $1, $2 }' | sort -n | awk '{ r[NR] = $1; f[NR] = $2; h[NR] = $3 } END {
    m = int((NR + 1) / 2); printf "  256 MiB: %.2f times as long (%.2f to %.2f, %d pairs; such as %.0f ms after %.0f ms)\n", r[m], r[1], r[NR], NR, f[m] * 1000, h[m] * 1000 }'
}

[[ -n ${FLOTILLA:-} ]] || build_all
need curl
need jq
install_tool registry

say "== start to the first 200 on /v2/, median of $rounds"
say "  reference: $(starts reference) ms"
say "  flotilla:  $(starts alone) ms"

say "== a mesh of one beside the reference registry"
reference_start
alone_start
await 30 answers "$reference"
await 30 curl -sf "http://$alone/readyz?write"
sleep 5
say "  idle memory: reference $(resident reference), flotilla $(resident alone)"
"$flotilla" bench "${flags[@]}" --pid "${pid[reference]}" --pid "${pid[alone]}" "reference=http://$reference" "flotilla=http://$alone"
say "  memory while 1 GiB is pushed and pulled, 8 at a time:"
"$flotilla" bench --rounds 1 --workloads push-parallel,pull-parallel --parts 16 --part-size 64MiB --workers 8 \
  --pid "${pid[alone]}" "flotilla=http://$alone"
end alone

say "== a mesh of three on this machine, which does the work three times, beside the reference registry"
mesh_start
"$flotilla" bench "${flags[@]}" --pid "${pid[reference]}" "reference=http://$reference" \
  "one-node=http://${public[1]}" "all-nodes=http://${public[1]},http://${public[2]},http://${public[3]}"
end reference || true
leader=$(curl -sf "http://${public[1]}/flotilla/v1/status" | jq -r '.leader as $l | .members[] | select(.id == $l) | .name')
follower=$((${leader#node} % 3 + 1))
say "== manifests by tag, linearizable, at a follower"
crowd "${public[follower]}" manifest-get
say "== manifest puts at a follower"
crowd "${public[follower]}" manifest-put
mesh_stop

say "== a pull at a node that lacks the blob, beside one that has it"
mesh_start --replicas 1
cold
mesh_stop
