# shellcheck shell=bash
# What the checks of this folder share: a work folder, processes that end with the script, a mesh of three real
# processes on loopback, and a look at the bytes that a node serves. Sourced under "bash -euo pipefail".

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=$root/.cache
work=$(mktemp -d "${TMPDIR:-/tmp}/flotilla-check.XXXXXX")
flotilla=${FLOTILLA:-$root/bin/flotilla} # FLOTILLA names a binary to check instead of this tree
declare -A pid=()                         # processes of ours that run, by name
nodes=(1 2 3)
every=()    # flags of every node
scheme=http # of the nodes' public ports
asking=()   # curl's flags for them: whom to trust, who asks
# shellcheck source=deploy/test/versions.env
source "$root/deploy/test/versions.env"

say() { printf '%s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# cleanup ends what runs, by pid, and removes the work folder; KEEP=1 leaves it, with every log, to look at.
cleanup() {
  local status=$? name
  trap - EXIT
  for name in "${!pid[@]}"; do end "$name" || true; done
  if [[ -n ${KEEP:-} ]]; then
    say "kept: $work" >&2
  else
    # dockerd may leave its data folder mounted on itself.
    awk -v at="$work/" 'index($2, at) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount || true
    rm -rf --one-file-system "$work" || say "left behind: $work" >&2
  fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# spawn NAME COMMAND...: runs a process that cleanup ends; what it says goes to $work/NAME.log.
spawn() {
  local name=$1
  shift
  "$@" >>"$work/$name.log" 2>&1 </dev/null &
  pid[$name]=$!
}

# end NAME [SIGNAL]: sends the signal and waits for the process, which has 30 s before it is killed.
end() {
  local p=${pid[$1]:-} status=0
  [[ -n $p ]] || return 0
  unset "pid[$1]"
  {
    kill -s "${2:-TERM}" "$p" || true
    timeout 30 tail --pid="$p" -s 0.05 -f /dev/null || kill -s KILL "$p" || true
    wait "$p" || status=$?
  } 2>/dev/null # bash has its own words about killed jobs
  return "$status"
}

# await SECONDS COMMAND...: repeats a command until it succeeds; fails at the deadline.
await() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# install_tool NAME: builds the program that versions.env names, once per version, and puts it first in PATH.
install_tool() {
  local folder=$cache/tools/${!1//[\/@]/_}
  if [[ ! -x $folder/$1 ]]; then
    (cd / && GOBIN=$folder CGO_ENABLED=0 GOFLAGS=-buildvcs=false go install -ldflags='-s -w' "${!1}") || return
  fi
  PATH=$folder:$PATH
}

# build_all builds flotilla and the balancer from this tree.
build_all() {
  make --no-print-directory -C "$root" build
}

# build_older TREE FILE: flotilla as a version was of the feature level before settings, which are the latest operations
# that can be asked for from outside. A mesh with such a member proposes none.
build_older() {
  local source=$1/metadata/propose.go level
  level=$(sed -n 's/^const levelSettings = //p' "$source")
  sed "s/^const FeatureLevel = .*/const FeatureLevel = $((level - 1))/" "$source" >"$2.go"
  printf '{"Replace":{"%s":"%s"}}' "$source" "$2.go" >"$2.json"
  CGO_ENABLED=0 go build -C "$1" -trimpath -overlay "$2.json" -o "$2" ./cmd/flotilla
}

# build_balanced builds what a check of a balanced mesh runs.
build_balanced() {
  if [[ -z ${FLOTILLA:-} ]]; then build_all; else (cd "$root" && go build -o bin/ ./cmd/balancer); fi
}

# free_port sets $port to the next port that nobody answers at, below the range that the system hands out itself.
next_port=$((20000 + RANDOM % 10000))
free_port() {
  while port=$((next_port++)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
}

# mesh_start FLAGS...: three nodes with empty folders. Node 1 founds, with the flags; the others join with its secret.
mesh_start() {
  local i
  founder=("$@")
  for i in "${nodes[@]}"; do
    free_port && public[i]=127.0.0.1:$port
    free_port && peer[i]=127.0.0.1:$port
    free_port && gossip[i]=127.0.0.1:$port
  done
  for i in "${nodes[@]}"; do
    node_start "$i"
    node_ready "$i"
  done
  # A mesh takes writes as soon as its first node is ready; the checks begin when it can also lose any node.
  for i in "${nodes[@]}"; do
    await 30 voters "$i" || die "node $i does not see three voters; $(tail -n 5 "$work/node$i.log")"
  done
}

# ask ARGUMENTS...: curl, as the check asks the nodes.
ask() { curl "${asking[@]}" "$@"; }

# voters I: node I takes writes and knows of three voters.
voters() {
  ask -sf "$scheme://${public[$1]}/readyz?write" >/dev/null || return
  (($(ask -sf "$scheme://${public[$1]}/flotilla/v1/status" | grep -oE '"role":"(leader|voter)"' | wc -l) == 3))
}

# node_start I: starts node I with the flags it always has.
node_start() {
  local i=$1 flags=("${founder[@]}")
  ((i == 1)) || flags=(--join "${gossip[1]}" --secret-file "$work/data/1/mesh.secret")
  spawn "node$i" "$flotilla" serve --name "node$i" --data "$work/data/$i" --listen "${public[i]}" \
    --peer-listen "${peer[i]}" --gossip-listen "${gossip[i]}" --advertise 127.0.0.1 "${every[@]}" "${flags[@]}"
}

# node_ready I: waits until the node serves.
node_ready() {
  await 30 ask -sf "$scheme://${public[$1]}/readyz" || die "node $1 is not ready; $(tail -n 5 "$work/node$1.log")"
}

mesh_stop() {
  local i
  for i in "${nodes[@]}"; do end "node$i" || die "node $i ended with status $?; $(tail -n 5 "$work/node$i.log")"; done
  rm -rf "$work/data"
}

# balance ADDRESS FLAGS...: starts the balancer before the mesh.
balance() {
  local listen=$1
  shift
  spawn balancer "$root/bin/balancer" -listen "$listen" -backends "$(IFS=, && echo "${public[*]}")" "$@"
}

# manage COMMAND...: one of flotilla's commands, with the mesh's secret, sent to node 1.
manage() { FLOTILLA_SERVER=$scheme://${public[1]} FLOTILLA_SECRET_FILE=$work/data/1/mesh.secret "$flotilla" "$@"; }

# get URL FILE: fetches a whole answer. 503 means "ask again", as it does to every client, for at most 15 s.
get() {
  local code deadline=$((SECONDS + 15))
  while :; do
    code=$(ask -sS --max-time 60 -o "$2" -w '%{http_code}' -H "Accept: $accept" "$1") || return
    [[ $code == 503 && $SECONDS -lt $deadline ]] || break
    sleep 0.1
  done
  [[ $code == 200 ]] || { say "GET $1: $code $(head -c 300 "$2")" >&2 && return 1; }
}
accept='application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json'
accept+=', application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, */*'

# hash FILE: the file's digest in the registry's notation.
hash() { printf 'sha256:%s\n' "$(sha256sum <"$1" | cut -d ' ' -f 1)"; }

# walk HOST REPOSITORY REFERENCE: fetches a manifest and all below it from one node, hashes every byte it got, and lists
# the digests. A reference by digest must get the bytes that it names.
walk() {
  local body children blobs digest found
  body=$(mktemp "$work/walk.XXXXXX")
  get "$scheme://$1/v2/$2/manifests/$3" "$body" || return
  found=$(hash "$body") || return
  [[ $3 != sha256:* || $3 == "$found" ]] || { say "$1: manifest $3 has bytes of $found" >&2 && return 1; }
  say "manifest $found"
  children=$(jq -r '.manifests[]?.digest' "$body") || return
  blobs=$(jq -r '.config.digest // empty, .layers[]?.digest' "$body" | sort -u) || return
  for digest in $children; do walk "$1" "$2" "$digest" || return; done
  for digest in $blobs; do
    get "$scheme://$1/v2/$2/blobs/$digest" "$body" || return
    found=$(hash "$body") || return
    [[ $found == "$digest" ]] || { say "$1: blob $digest has bytes of $found" >&2 && return 1; }
    say "blob $digest"
  done
  rm -f "$body"
}

# need COMMAND [PACKAGE]: installs a command that is missing from Debian's package of that name, as root.
need() {
  ! command -v "$1" >/dev/null || return 0
  [[ -n ${updated:-} ]] || apt-get update -qq || return
  updated=yes
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${2:-$1}" >/dev/null
}

# faults_tools installs what breaks networks and processes, where that can be done; the program says what it lacks.
faults_tools() {
  local command
  ((EUID == 0)) || return 0
  for command in ip/iproute2 tc/iproute2 nft/nftables strace mkfs.ext4/e2fsprogs nsenter/util-linux losetup/mount; do
    need "${command%/*}" "${command#*/}" || say "cannot install ${command%/*}" >&2
  done
}

# layer FILE MIB: writes a layer that no registry has seen, and prints the digests of its archive as stored and as unpacked.
layer() {
  local name
  name=$(mktemp -u content.XXXXXX)
  head -c "$(($2 << 20))" /dev/urandom >"$work/$name"
  tar -C "$work" -cf "$1.tar" "$name"
  gzip -1 -n <"$1.tar" >"$1"
  printf '%s %s\n' "$(hash "$1")" "$(hash "$1.tar")"
  rm -f "$work/$name" "$1.tar"
}

# keep FOLDER FILE: moves a file into the blobs of an OCI layout, then prints its digest and size.
keep() {
  local digest size
  digest=$(hash "$2")
  size=$(stat -c %s "$2")
  mv "$2" "$1/blobs/sha256/${digest#sha256:}"
  say "$digest $size"
}

# layout FOLDER LAYERS MIB ARCHITECTURE...: makes an OCI layout of fresh content, tagged v1; of one architecture an image,
# of several an index of images.
layout() {
  local folder=$1 count=$2 size=$3 arch i stored unpacked digest bytes layers ids platforms=() type=application/vnd.oci.image
  shift 3
  mkdir -p "$folder/blobs/sha256"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$folder/oci-layout"
  for arch; do
    layers='' ids=''
    for ((i = 0; i < count; i++)); do
      read -r stored unpacked < <(layer "$folder/next" "$size")
      read -r digest bytes < <(keep "$folder" "$folder/next")
      [[ $digest == "$stored" ]] || return
      layers+=,$(descriptor "$type.layer.v1.tar+gzip" "$digest" "$bytes")
      ids+=,\"$unpacked\"
    done
    printf '{"architecture":"%s","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[%s]}}' "$arch" "${ids#,}" >"$folder/next"
    read -r digest bytes < <(keep "$folder" "$folder/next")
    printf '{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%s]}' "$type.manifest.v1+json" \
      "$(descriptor "$type.config.v1+json" "$digest" "$bytes")" "${layers#,}" >"$folder/next"
    read -r digest bytes < <(keep "$folder" "$folder/next")
    platforms+=("$(descriptor "$type.manifest.v1+json" "$digest" "$bytes" '"platform":{"os":"linux","architecture":"'"$arch"'"}')")
  done
  if (($# > 1)); then
    printf '{"schemaVersion":2,"mediaType":"%s","manifests":[%s]}' "$type.index.v1+json" "$(IFS=, && echo "${platforms[*]}")" >"$folder/next"
    read -r digest bytes < <(keep "$folder" "$folder/next")
    type+=.index.v1+json
  else
    type+=.manifest.v1+json
  fi
  printf '{"schemaVersion":2,"manifests":[%s]}' \
    "$(descriptor "$type" "$digest" "$bytes" '"annotations":{"org.opencontainers.image.ref.name":"v1"}')" >"$folder/index.json"
}

# held FOLDER: the digests in an OCI layout.
held() { (cd "$1/blobs/sha256" && sha256sum -- * | awk '$1 != $2 { exit 1 } { print "sha256:" $1 }' | sort); }

# serves HOST REPOSITORY FOLDER REFERENCE...: the node serves below the references what the OCI layout holds, bit by bit,
# no more and no less.
serves() {
  local host=$1 repo=$2 folder=$3 reference
  shift 3
  for reference; do walk "$host" "$repo" "$reference" || return; done | cut -d ' ' -f 2 | sort -u >"$work/served" || return
  held "$folder" | diff - "$work/served"
}

# descriptor TYPE DIGEST SIZE [MORE]
descriptor() { printf '{"mediaType":"%s","digest":"%s","size":%s%s}' "$1" "$2" "$3" "${4:+,$4}"; }

# isolate has the clients neither read nor write the user's own settings, credentials and images; Go keeps its caches.
isolate() {
  GOPATH=$(go env GOPATH) GOCACHE=$(go env GOCACHE)
  export GOPATH GOCACHE
  export HOME=$work/home XDG_RUNTIME_DIR=$work/run COSIGN_PASSWORD='' CONTAINERS_STORAGE_CONF=$work/storage.conf
  unset XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME DOCKER_CONFIG REGISTRY_AUTH_FILE
  mkdir -p "$HOME" "$XDG_RUNTIME_DIR"
  printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/images" "$work/run" >"$CONTAINERS_STORAGE_CONF"
}

# install CLIENT: installs one that is missing.
install() {
  case $1 in
    docker) need dockerd docker.io && need docker docker.io ;;
    podman | buildah | skopeo) need "$1" ;;
    *) install_tool "$1" ;;
  esac
}

# engine finds a Docker engine, or starts one of our own.
engine() { docker info >/dev/null 2>&1 || own_engine; }

# own_engine starts a Docker engine that leaves the machine's network alone.
own_engine() {
  local driver
  export DOCKER_HOST=unix://$work/docker.sock
  for driver in overlay2 vfs; do
    spawn dockerd dockerd --host "$DOCKER_HOST" --data-root "$work/docker-data" --exec-root "$work/docker-exec" \
      --pidfile "$work/docker.pid" --storage-driver "$driver" --iptables=false --ip6tables=false --bridge=none
    ! await 30 docker info || return 0
    end dockerd || true
  done
  tail -n 20 "$work/dockerd.log"
  return 1
}

# recipe FOLDER: a build of three layers that needs neither a base image nor a network.
recipe() {
  local i
  mkdir "$1"
  say FROM scratch >"$1/Dockerfile"
  for i in 1 2 3; do
    head -c 2M /dev/urandom >"$1/file$i"
    say "COPY file$i /file$i" >>"$1/Dockerfile"
  done
}

# compare NODE REPOSITORY REFERENCE...: every node must serve the same digests below the references, each with the bytes
# that it names. Prints the line that says what went where.
compare() {
  local via=$1 repo=$2 reference node
  shift 2
  for node in "${nodes[@]}"; do
    for reference; do walk "${public[node]}" "$repo" "$reference"; done | sort -u >"$work/held.$node"
  done
  cmp "$work/held.1" "$work/held.2"
  cmp "$work/held.1" "$work/held.3"
  say "pushed $(count blob), $(count manifest); pulled via node $via equal" >"$work/summary"
}

# count KIND: how many of them the walk of node 1 found.
count() {
  local n
  n=$(grep -c "^$1 " "$work/held.1")
  if ((n == 1)); then say "1 $1"; else say "$n $1s"; fi
}

# digest NODE REPOSITORY REFERENCE: the digest of the manifest bytes that a node serves.
digest() {
  get "$scheme://${public[$1]}/v2/$2/manifests/$3" "$work/manifest"
  hash "$work/manifest"
}

equal() { [[ $1 == "$2" ]] || { say "got $1, want $2" && return 1; }; }

# try NAME COMMAND...: runs a check and prints its line, which ends in what the check wrote to $work/summary; what it said
# is shown only when it failed.
passed=0 failed=0
try() {
  local name=$1 status
  shift
  set +e # a subshell whose status is tested at once would not stop at its first error
  (set -e && "$@") >>"$work/$name.out" 2>&1 </dev/null
  status=$?
  set -e
  if ((status == 0)); then
    passed=$((passed + 1))
    say "ok $name: $(<"$work/summary")"
  else
    fail "$name" "does not do what it should"
  fi
}

# fail NAME WHY: prints the line of a check that failed, and the end of what it said.
fail() {
  failed=$((failed + 1))
  say "FAIL $1: $2"
  tail -n 30 "$work/$1.out" | sed 's/^/  /'
}
