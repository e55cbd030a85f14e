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

# referrer NODE REPOSITORY SUBJECT: the digests that the node's referrers API lists.
referrer() {
  get "http://${public[$1]}/v2/$2/referrers/$3" "$work/referrers"
  jq -r '.manifests[].digest' "$work/referrers"
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

# prepare NAME: installs a client and starts what it needs.
prepare() { install "$1" && { [[ $1 != docker ]] || engine; }; }

((EUID == 0)) || die "run as root: the clients build images and the engine is started here"
isolate
need curl
need jq
[[ -n ${FLOTILLA:-} ]] || build_all
mesh_start --replicas 3
for name in "${clients[@]}"; do
  if prepare "$name" >"$work/$name.out" 2>&1; then
    try "$name" "client_$name"
  elif [[ " ${CLIENTS_SKIP:-} " == *" $name "* ]]; then
    say "skipped $name: does not install here"
  else
    fail "$name" "does not install, or its engine does not start"
  fi
done
mesh_stop
say "$passed passed, $failed failed"
((failed == 0))
