#!/usr/bin/env bash
# A laboratory of networks: every host is a network namespace with a shaped link, runs one node, and pulls the same image at
# the same instant through it. Times are given as multiples of what the slowest link needs for the image's bytes; headers
# of Ethernet, IP and TCP alone make that 1.045. Bytes are counted on the wire, as multiples of the image.
#
#   lab.sh [RUN...]    the runs named, else all: see the table below
#
# LAB_ROUNDS (1) repeats each run and takes the medians. Needs root and iproute2. Where no namespace can be made it says
# INCOMPLETE and fails, unless LAB_OPTIONAL=1. All interfaces live in namespaces named after this process and go with it.
set -euo pipefail
# shellcheck source=deploy/test/lib.sh
source "$(dirname "$0")/lib.sh"

# Name, pulling hosts, Mbit/s of each host, MiB, layers, seconds between starts, fault, sites of hosts ("-": one), Mbit/s
# between sites; then what must hold: slowest, bytes out of the seed, all bytes out per host, first byte, each line. The
# fault "gateway" kills the node of the last site that takes the image over the line; "copies" is none: all nodes own
# blobs, three copies of each, and what their push sends counts too. In "slowfirst" the slow host asks 0.2 s before the
# others. In "idle" nobody pulls, and the line is kbit/s for each node of the site.
runs='
n2        2 100 64 1 0 -    -   -   1.10 1.10 1.08 0.25 -
n4        4 100 64 1 0 -    -   -   1.10 1.10 1.08 0.25 -
n8        8 100 64 1 0 -    -   -   1.10 1.10 1.08 0.25 -
n16      16  50 64 1 0 -    -   -   1.10 1.10 1.08 -    -
layers    8 100 64 8 0 -    -   -   1.20 -    -    -    -
apart     8 100 64 1 3 -    -   -   1.12 1.30 -    -    -
killed    8 100 64 1 0 kill -   -   1.35 -    -    -    -
slow      8 100 64 1 0 slow -   -   1.25 -    -    -    -
slowfirst 8 100 64 1 0 slowfirst - - 1.25 -   -    -    -
sites2    7 100 32 1 0 -    4,4 20  1.08 -    -    -    1.06
sites3   11 100 32 1 0 -    4,4,4 20 1.08 -   -    -    1.06
gone2     7 100 32 1 0 gateway 4,4 20 -   -   -    -    1.11
gone3    11 100 32 1 0 gateway 4,4,4 20 - -   -    -    1.11
push2     7 100 32 1 0 copies 4,4 20 -    -   -    -    1.06
push3    11 100 32 1 0 copies 4,4,4 20 -  -   -    -    1.06
cut       7 100 32 1 0 cut  4,4 20  5.90 -    -    -    1.08
idle     11 100 0  0 0 idle 4,4,4 20 -   -    -    -    8
'
lab=flotilla-lab-$$
hosts=() # h0 is the seed: it alone owns blobs, but for "copies"

trap 'status=$?; lab_down; (exit $status); cleanup' EXIT

# on HOST COMMAND...: runs a command in a host.
on() {
  local host=$1
  shift
  ip netns exec "$lab-$host" "$@"
}

# shape NAMESPACE DEVICE MBIT: what leaves through the device. The burst is larger than any packet that the kernel cuts later.
shape() { tc -n "$1" qdisc replace dev "$2" root tbf rate "${3}mbit" burst 256kb latency 60ms; }

# wire NAMESPACE DEVICE: bytes that left through the device, headers included.
wire() { tc -n "$1" -s qdisc show dev "$2" | awk '/Sent/ { print $2; exit }'; }

# lab_up: a bridge for each site, all bridges joined to the first, and a namespace for each host.
lab_up() {
  local site count i=0 host
  hosts=() lines=()
  declare -gA site_of=()
  ip netns add "$lab-core"
  for count in ${sites//,/ }; do
    site=${#site_names[@]}
    site_names+=("$site")
    ip -n "$lab-core" link add "br$site" type bridge stp_state 0
    ip -n "$lab-core" link set "br$site" up
    for ((; count > 0; count--, i++)); do
      host=h$i
      hosts+=("$host")
      site_of[$host]=$site
      ip netns add "$lab-$host"
      ip -n "$lab-core" link add "p$host" type veth peer name eth0 netns "$lab-$host"
      ip -n "$lab-core" link set "p$host" master "br$site" up
      ip -n "$lab-$host" link set lo up
      ip -n "$lab-$host" addr add "$(address "$host")/24" dev eth0
      ip -n "$lab-$host" link set eth0 up
      ip -n "$lab-$host" route add default dev eth0
      shape "$lab-$host" eth0 "$rate"
      shape "$lab-core" "p$host" "$rate"
    done
    ((site > 0)) || continue
    ip -n "$lab-core" link add "to$site" type veth peer name "from$site"
    ip -n "$lab-core" link set "to$site" master br0 up
    ip -n "$lab-core" link set "from$site" master "br$site" up
    shape "$lab-core" "to$site" "$thin"
    shape "$lab-core" "from$site" "$thin"
    lines+=("to$site" "from$site")
  done
}

address() { echo "10.77.0.$((10 + ${1#h}))"; }

# lab_down ends the nodes and removes what lab_up made.
lab_down() {
  local name
  for name in "${!pid[@]}"; do end "$name" KILL || true; done
  for name in $(ip netns list 2>/dev/null | awk '{ print $1 }' | grep "^$lab-" || true); do ip netns del "$name" || true; done
  rm -rf "$work/data"
  site_names=()
}

# nodes_up: a node on each host. The first founds, and owns all blobs unless all do.
nodes_up() {
  local host flags
  for host in "${hosts[@]}"; do
    flags=(--join "$(address h0):5002" --secret-file "$work/data/h0/mesh.secret")
    [[ $host != h0 ]] || flags=()
    [[ $fault == copies ]] || if [[ $host == h0 ]]; then flags=(--replicas 1); else flags+=(--weight 0); fi
    spawn "$host" ip netns exec "$lab-$host" "$flotilla" serve --name "$host" --data "$work/data/$host" --listen :5000 \
      --peer-listen :5001 --gossip-listen :5002 --advertise "$(address "$host")" --zone "site${site_of[$host]}" "${flags[@]}"
    [[ $host != h0 ]] || await 30 on h0 curl -sf http://127.0.0.1:5000/readyz || die "the seed is not ready"
  done
  for host in "${hosts[@]}"; do
    await 60 on "$host" curl -sf http://127.0.0.1:5000/readyz || die "$host is not ready; $(tail -n 5 "$work/$host.log")"
  done
}

# put FILE: pushes a blob to the seed and prints its descriptor.
put() {
  local digest location
  digest=$(hash "$1")
  location=$(on h0 curl -sSf -X POST -D - -o /dev/null http://127.0.0.1:5000/v2/lab/image/blobs/uploads/ | tr -d '\r' | awk 'tolower($1) == "location:" { print $2 }')
  [[ $location == http* ]] || location=http://127.0.0.1:5000$location
  [[ $location == *\?* ]] && location+="&digest=$digest" || location+="?digest=$digest"
  on h0 curl -sSf -T "$1" -H 'Content-Type: application/octet-stream' -o /dev/null "$location"
  descriptor "$2" "$digest" "$(stat -c %s "$1")"
}

# push_image: an image of fresh content, as large and in as many layers as the run wants.
push_image() {
  local i layers='' config type=application/vnd.oci.image
  for ((i = 0; i < layer_count; i++)); do
    head -c "$((mib * 1048576 / layer_count))" /dev/urandom >"$work/layer"
    layers+=,$(put "$work/layer" "$type.layer.v1.tar")
  done
  printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}' >"$work/config"
  config=$(put "$work/config" "$type.config.v1+json")
  printf '{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%s]}' "$type.manifest.v1+json" "$config" "${layers#,}" >"$work/manifest"
  on h0 curl -sSf -T "$work/manifest" -H "Content-Type: $type.manifest.v1+json" -o /dev/null http://127.0.0.1:5000/v2/lab/image/manifests/v1
  rm -f "$work/layer"
}

# counters: bytes out of every host, then over every line in each direction.
counters() {
  local device
  for device in "${hosts[@]}"; do echo "$device $(wire "$lab-$device" eth0)"; done
  for device in ${lines[@]+"${lines[@]}"}; do echo "$device $(wire "$lab-core" "$device")"; done
}

# gateway: the host of the last site that got most bytes from the seed.
gateway() {
  local host
  for host in "${hosts[@]}"; do
    [[ ${site_of[$host]} == "${site_of[h$n]}" ]] || continue
    echo "$(on "$host" ss -tniH dst "$(address h0)" | grep -o 'bytes_received:[0-9]*' | awk -F : '{ n += $2 } END { print n + 0 }') $host"
  done | sort -n | awk 'END { print $2 }'
}

# measure: one round of the run that is set. Prints slowest, median, seed out, all out per puller, first byte, busiest line.
measure() {
  local start at host i=0 failed=0 bytes=$((mib * 1048576)) limit victim=- status
  case $fault in kill | slow*) victim=h$((n / 2)) ;; esac
  lab_up
  [[ $fault != slow* ]] || { shape "$lab-$victim" eth0 "$((rate / 4))" && shape "$lab-core" "p$victim" "$((rate / 4))"; }
  nodes_up
  counters >"$work/before"
  push_image
  limit=$(awk -v b="$bytes" -v r="$([[ $thin == - ]] && echo "$rate" || echo "$thin")" 'BEGIN { print b * 8 / r / 1e6 }')
  rm -f "$work"/pull.*
  [[ $fault == copies ]] || counters >"$work/before"
  start=$(($(date +%s%N) + 1000000000 + 40000000 * n))
  for host in "${hosts[@]:1}"; do
    at=$((start + i++ * gap * 1000000000))
    [[ $fault != slowfirst || $host == "$victim" ]] || at=$((at + 200000000))
    spawn "pull.$host" ip netns exec "$lab-$host" timeout 180 "$root/bin/puller" -at "$at" http://127.0.0.1:5000/v2/lab/image v1
  done
  [[ $fault == - ]] || sleep "$(awk -v s="$start" -v n="$(date +%s%N)" -v l="$limit" 'BEGIN { print (s - n) / 1e9 + l / 2 }')"
  case $fault in
  gateway) victim=$(gateway) && { end "$victim" KILL || true; } ;;
  kill) end "$victim" KILL || true ;;
  cut) cut_lines 60 ;;
  esac
  for host in "${hosts[@]:1}"; do
    status=0
    { wait "${pid[pull.$host]}"; } 2>/dev/null || status=$?
    unset "pid[pull.$host]"
    [[ $host != "$victim" ]] || { rm -f "$work/pull.$host.log" && continue; }
    ((status == 0)) || { failed=1 && say "  $host failed: $(tail -n 1 "$work/pull.$host.log")" >&2; }
  done
  counters >"$work/after"
  ((failed == 0)) || return
  cat "$work"/pull.*.log | sort -k 2n | awk -v limit="$limit" -v bytes="$bytes" '
    FILENAME ~ /before$/ { before[$1] = $2; next }
    FILENAME ~ /after$/ {
      out = ($2 - before[$1]) / bytes
      if ($1 !~ /^h/) { if (out > line) line = out } else { all += out; if ($1 == "h0") seed = out }
      next
    }
    { first[++k] = $1 / 1e9; last[k] = $2 / 1e9 }
    END {
      for (i = 2; i <= k; i++) for (j = i; j > 1 && first[j] < first[j - 1]; j--) { t = first[j]; first[j] = first[j - 1]; first[j - 1] = t }
      printf "%.3f %.3f %.3f %.3f %.3f %.3f\n", last[k] / limit, last[int((k + 1) / 2)] / limit, seed, all / k, first[int((k + 1) / 2)], line
    }' "$work/before" "$work/after" -
}

# cut_lines SECONDS: nothing passes between the sites for so long.
cut_lines() {
  local device
  for device in "${lines[@]}"; do ip -n "$lab-core" link set "$device" down; done
  sleep "$1"
  for device in "${lines[@]}"; do ip -n "$lab-core" link set "$device" up; done
}

# measure_idle: what a mesh that nobody uses sends over the lines, in the columns of measure: kbit/s for each node of the
# site in the last, nothing in the others.
measure_idle() {
  local seconds=${LAB_IDLE:-300}
  lab_up
  nodes_up
  sleep 30 # what is said once at the start
  counters >"$work/before"
  sleep "$seconds"
  counters | awk -v seconds="$seconds" -v nodes="${sites##*,}" '
    NR == FNR { before[$1] = $2; next }
    $1 !~ /^h/ { rate = ($2 - before[$1]) * 8 / 1000 / seconds / nodes; if (rate > most) most = rate }
    END { printf "0 0 0 0 0 %.2f\n", most }' "$work/before" -
}

# medians: of each column.
medians() {
  awk '{ for (i = 1; i <= NF; i++) v[i, NR] = $i }
    END {
      for (i = 1; i <= NF; i++) {
        for (a = 2; a <= NR; a++) for (b = a; b > 1 && v[i, b] < v[i, b - 1]; b--) { t = v[i, b]; v[i, b] = v[i, b - 1]; v[i, b - 1] = t }
        printf "%s%s", v[i, int((NR + 1) / 2)], i < NF ? " " : "\n"
      }
    }'
}

# judge VALUES... -- BOUNDS...: whether each value keeps its bound.
judge() {
  local values=("${@:1:5}") bounds=("${@:6:5}") i verdict=ok
  for i in "${!values[@]}"; do
    [[ ${bounds[i]} == - ]] || awk -v a="${values[i]}" -v b="${bounds[i]}" 'BEGIN { exit !(a <= b) }' || verdict="MISSED (${values[i]} > ${bounds[i]})"
  done
  say "$verdict"
}

if ! { ((EUID == 0)) && need ip iproute2 && need tc iproute2 && ip netns add "$lab-try" 2>/dev/null; }; then
  say "INCOMPLETE: nothing was measured: no network namespace can be made here"
  [[ ${LAB_OPTIONAL:-} == 1 ]]
  exit
fi
ip netns del "$lab-try"
need curl
if [[ -z ${FLOTILLA:-} ]]; then build_all; else (cd "$root" && go build -o bin/ ./cmd/puller); fi
site_names=()
played=0 missed=0
say "| run | slowest / limit | rounds | median | seed out / B | all out / (N B) | first byte s | busiest line / B | |"
say "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
while read -r name n rate mib layer_count gap fault sites thin must; do
  [[ -n $name ]] || continue
  (($# == 0)) || [[ " $* " == *" $name "* ]] || continue
  [[ $sites != - ]] || sites=$((n + 1))
  played=$((played + 1))
  rm -f "$work/rounds"
  broken=0
  for ((round = 0; round < ${LAB_ROUNDS:-1}; round++)); do
    if [[ $fault == idle ]]; then measure_idle; else measure; fi >>"$work/rounds" || { say "  a round of $name failed" >&2 && broken=1; }
    lab_down
  done
  [[ -s $work/rounds ]] || { say "| $name | failed |" && missed=$((missed + 1)) && continue; }
  read -r slowest median seed all first line < <(medians <"$work/rounds")
  read -ra bounds <<<"$must"
  verdict=$(judge "$slowest" "$seed" "$all" "$first" "$line" "${bounds[@]}")
  ((broken == 0)) || verdict="FAILED in some round"
  [[ $verdict == ok ]] || missed=$((missed + 1))
  say "| $name | $slowest | $(cut -d ' ' -f 1 "$work/rounds" | sort -n | tr '\n' ' ')| $median | $seed | $all | $first | $line | $verdict |"
done <<<"$runs"
say "$((played - missed)) runs passed, $missed failed"
((missed == 0))
