#!/usr/bin/env bash
# Unmodified client programs against a mesh of three processes. Each pushes through node 1 and pulls what it pushed through
# node 2 or 3; every manifest and blob is then fetched from every node and hashed. As root on Debian: what is missing is
# installed. CLIENTS_SKIP names clients that need not install here; docker, skopeo, crane, oras and helm cannot be skipped.
set -euo pipefail
# shellcheck source=deploy/test/lib.sh
source "$(dirname "$0")/lib.sh"

clients=(docker podman buildah skopeo crane oras regctl helm cosign)
for name in ${CLIENTS_SKIP:-}; do
  [[ $name =~ ^(podman|buildah|regctl|cosign)$ ]] || die "CLIENTS_SKIP: $name cannot be skipped"
done

# Nothing of the user's own settings, credentials or images is read or written; Go keeps its caches.
GOPATH=$(go env GOPATH) GOCACHE=$(go env GOCACHE)
export GOPATH GOCACHE
export HOME=$work/home XDG_RUNTIME_DIR=$work/run COSIGN_PASSWORD='' CONTAINERS_STORAGE_CONF=$work/storage.conf
unset XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME DOCKER_CONFIG REGISTRY_AUTH_FILE

install() {
  case $1 in
    docker) need dockerd docker.io && need docker docker.io ;;
    podman | buildah | skopeo) need "$1" ;;
    *) install_tool "$1" ;;
  esac
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
  get "http://${public[$1]}/v2/$2/manifests/$3" "$work/manifest"
  hash "$work/manifest"
}

equal() { [[ $1 == "$2" ]] || { say "got $1, want $2" && return 1; }; }

# referrer NODE REPOSITORY SUBJECT: the digests that the node's referrers API lists.
referrer() {
  get "http://${public[$1]}/v2/$2/referrers/$3" "$work/referrers"
  jq -r '.manifests[].digest' "$work/referrers"
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

# engine finds a Docker engine, or starts one of our own that leaves the machine's network alone.
engine() {
  local driver
  ! docker info >/dev/null 2>&1 || return 0
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

client_docker() {
  local from=${public[1]}/docker/image:v1 to=${public[2]}/docker/image:v1 id
  recipe "$work/docker"
  DOCKER_BUILDKIT=0 docker build --no-cache -t "$from" "$work/docker"
  docker push "$from"
  id=$(docker image inspect -f '{{.Id}}' "$from")
  docker image rm -f "$from"
  docker pull "$to" | tee "$work/pull"
  equal "$(grep -c 'Pull complete' "$work/pull")" 3
  equal "$(docker image inspect -f '{{.Id}}' "$to")" "$id"
  equal "$(docker image inspect -f '{{index .RepoDigests 0}}' "$to")" "${to%:v1}@$(digest 3 docker/image v1)"
  docker image rm -f "$to"
  compare 2 docker/image v1
}

client_podman() {
  local from=${public[1]}/podman/image:v1 to=${public[3]}/podman/image:v1
  recipe "$work/podman"
  podman build --network none -t "$from" "$work/podman"
  podman push --tls-verify=false --digestfile "$work/podman.digest" "$from"
  podman rmi --all --force
  podman pull --tls-verify=false "$to"
  equal "$(podman image inspect -f '{{.Digest}}' "$to")" "$(<"$work/podman.digest")"
  equal "$(digest 2 podman/image v1)" "$(<"$work/podman.digest")"
  compare 3 podman/image v1
}

client_buildah() {
  local from=${public[1]}/buildah/index:v1 to=${public[2]}/buildah/index arch container child
  buildah manifest create pair
  for arch in amd64 arm64; do
    container=$(buildah from --arch "$arch" scratch)
    head -c 1M /dev/urandom >"$work/$arch"
    buildah copy "$container" "$work/$arch" /content
    buildah config --arch "$arch" --os linux "$container"
    buildah commit --manifest pair --rm "$container"
  done
  buildah manifest push --all --tls-verify=false --digestfile "$work/buildah.digest" pair "docker://$from"
  equal "$(digest 3 buildah/index v1)" "$(<"$work/buildah.digest")"
  buildah rmi --all --force
  for arch in amd64 arm64; do
    child=$(jq -r --arg arch "$arch" '.manifests[] | select(.platform.architecture == $arch).digest' "$work/manifest")
    get "http://${public[3]}/v2/buildah/index/manifests/$child" "$work/child"
    equal "sha256:$(buildah pull -q --tls-verify=false --policy always --arch "$arch" "$to:v1")" "$(jq -r .config.digest "$work/child")"
  done
  compare 2 buildah/index v1
}

client_skopeo() {
  layout "$work/skopeo" 3 2 amd64 arm64
  skopeo copy --all --preserve-digests --dest-tls-verify=false "oci:$work/skopeo:v1" "docker://${public[1]}/skopeo/index:v1"
  skopeo copy --all --preserve-digests --src-tls-verify=false "docker://${public[3]}/skopeo/index:v1" "oci:$work/skopeo-out:v1"
  diff -r "$work/skopeo/blobs" "$work/skopeo-out/blobs"
  serves "${public[1]}" skopeo/index "$work/skopeo-out" v1
  compare 3 skopeo/index v1
}

client_crane() {
  local arch name=${public[1]}/crane
  for arch in amd64 arm64; do
    layer "$work/$arch.1" 1
    layer "$work/$arch.2" 2
    crane append --insecure --oci-empty-base -f "$work/$arch.1" -f "$work/$arch.2" -t "$name:$arch"
    crane mutate --insecure --set-platform "linux/$arch" -t "$name:$arch" "$name:$arch"
  done
  crane index append --insecure -m "$name:amd64" -m "$name:arm64" -t "$name:v1"
  crane validate --insecure --remote "${public[3]}/crane:v1"
  crane pull --insecure --format oci "${public[2]}/crane:v1" "$work/crane-out"
  serves "${public[1]}" crane "$work/crane-out" v1
  equal "$(crane ls --insecure "${public[2]}/crane" | sort | xargs)" "amd64 arm64 v1"
  compare 2 crane v1 amd64 arm64
}

client_oras() {
  local subject attached
  mkdir "$work/oras"
  cd "$work/oras"
  head -c 3M /dev/urandom >data.bin
  say '{"packages":[]}' >sbom.json
  oras push --plain-http --artifact-type application/vnd.example.data "${public[1]}/oras/data:v1" data.bin:application/octet-stream
  oras attach --plain-http --artifact-type application/vnd.example.sbom "${public[1]}/oras/data:v1" sbom.json:application/json
  oras discover --plain-http --format json "${public[2]}/oras/data:v1" >discovered
  subject=$(digest 3 oras/data v1)
  attached=$(referrer 3 oras/data "$subject")
  equal "$(jq -r '.referrers[].digest' discovered)" "$attached"
  oras pull --plain-http -o out "${public[2]}/oras/data:v1"
  oras pull --plain-http -o out "${public[2]}/oras/data@$attached"
  cmp data.bin out/data.bin
  cmp sbom.json out/sbom.json
  oras copy -r --from-plain-http --to-oci-layout "${public[3]}/oras/data:v1" "$work/oras-out:v1"
  serves "${public[1]}" oras/data "$work/oras-out" "$subject" "$attached"
  compare 2 oras/data v1 "$attached"
}

client_regctl() {
  local node subject attached
  for node in "${nodes[@]}"; do regctl registry set --tls disabled --skip-check "${public[node]}"; done
  layout "$work/regctl" 2 2 amd64 arm64
  regctl image copy "ocidir://$work/regctl:v1" "${public[1]}/regctl/index:v1"
  say signed | regctl artifact put --artifact-type application/vnd.example.note --subject "${public[1]}/regctl/index:v1"
  subject=$(digest 2 regctl/index v1)
  attached=$(referrer 2 regctl/index "$subject")
  regctl artifact list --format '{{range .Descriptors}}{{.Digest}}{{end}}' "${public[3]}/regctl/index:v1" >"$work/listed"
  equal "$(<"$work/listed")" "$attached"
  equal "$(regctl artifact get --subject "${public[3]}/regctl/index:v1" --filter-artifact-type application/vnd.example.note)" signed
  regctl image copy "${public[3]}/regctl/index:v1" "ocidir://$work/regctl-out:v1"
  serves "${public[1]}" regctl/index "$work/regctl-out" v1
  compare 3 regctl/index v1 "$attached"
}

client_helm() {
  mkdir -p "$work/helm/templates" "$work/helm-out"
  printf 'apiVersion: v2\nname: demo\nversion: 0.1.0\n' >"$work/helm/Chart.yaml"
  printf 'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: demo\n' >"$work/helm/templates/demo.yaml"
  helm package -d "$work" "$work/helm"
  helm push --plain-http "$work/demo-0.1.0.tgz" "oci://${public[1]}/charts"
  helm show chart --plain-http --version 0.1.0 "oci://${public[3]}/charts/demo" | grep -qx 'name: demo'
  helm pull --plain-http --version 0.1.0 -d "$work/helm-out" "oci://${public[2]}/charts/demo"
  cmp "$work/demo-0.1.0.tgz" "$work/helm-out/demo-0.1.0.tgz"
  compare 2 charts/demo 0.1.0
}

client_cosign() {
  local subject attached
  mkdir "$work/cosign"
  cd "$work/cosign"
  layer "$work/cosign/layer" 1
  crane append --insecure --oci-empty-base -f "$work/cosign/layer" -t "${public[1]}/cosign/image:v1"
  subject=$(digest 1 cosign/image v1)
  cosign generate-key-pair
  cosign sign --yes --key cosign.key --tlog-upload=false --use-signing-config=false --allow-http-registry "${public[1]}/cosign/image@$subject"
  cosign verify --key cosign.pub --insecure-ignore-tlog --private-infrastructure --allow-http-registry "${public[2]}/cosign/image:v1"
  attached=$(referrer 3 cosign/image "$subject")
  compare 2 cosign/image v1 "$attached"
}

# try NAME: installs and runs one client and prints its line; what the client said is shown only when it failed.
try() {
  local name=$1 log=$work/$1.out why='' status
  if ! install "$name" >"$log" 2>&1; then
    [[ " ${CLIENTS_SKIP:-} " != *" $name "* ]] || { say "skipped $name: does not install here" && return 0; }
    why="does not install"
  elif [[ $name == docker ]] && ! engine >>"$log" 2>&1; then
    why="no engine starts"
  else
    set +e # a subshell whose status is tested at once would not stop at its first error
    (set -e && "client_$name") >>"$log" 2>&1 </dev/null
    status=$?
    set -e
    ((status == 0)) || why="does not do what it should"
  fi
  if [[ -z $why ]]; then
    passed=$((passed + 1))
    say "ok $name: $(<"$work/summary")"
  else
    failed=$((failed + 1))
    say "FAIL $name: $why"
    tail -n 30 "$log" | sed 's/^/  /'
  fi
}

((EUID == 0)) || die "run as root: the clients build images and the engine is started here"
mkdir -p "$HOME" "$XDG_RUNTIME_DIR"
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/images" "$work/run" >"$CONTAINERS_STORAGE_CONF"
need curl
need jq
[[ -n ${FLOTILLA:-} ]] || build_all
mesh_start --replicas 3
passed=0 failed=0
for name in "${clients[@]}"; do try "$name"; done
mesh_stop
say "$passed passed, $failed failed"
((failed == 0))
