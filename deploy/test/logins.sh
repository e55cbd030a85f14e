#!/usr/bin/env bash
# Unmodified client programs log in to a mesh of three processes that has accounts, with TLS at every node, behind a
# balancer with TLS that gives every single request to the next node. Each pushes and pulls what it may, and is refused
# what it may not; then come tokens, certificates and policy by curl, the audit log, and a search for secrets in whatever
# the nodes say. As root on Debian: what is missing is installed. All else happens in a network and mounts of the check's
# own, where the balancer has a name and an address that no client takes for a machine to trust without TLS.
set -euo pipefail
# shellcheck source=deploy/test/lib.sh
source "$(dirname "$0")/lib.sh"

clients=(docker podman skopeo helm crane oras regctl)

if [[ ${1:-} != apart ]]; then
  ((EUID == 0)) || die "run as root: clients are installed, a Docker engine is started and a network is made"
  for command in curl jq openssl ip/iproute2 unshare/util-linux; do need "${command%/*}" "${command#*/}"; done
  for name in "${clients[@]}"; do install "$name" || die "$name does not install"; done
  build_balanced
  trap - EXIT
  rmdir "$work"
  exec unshare --net --mount "$0" apart
fi

tag=1.0.0 # what charts have for versions

# apart: a network that nothing leaves, and a name in it.
apart() {
  unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy
  ip link set lo up
  ip address add 192.0.2.1/32 dev lo
  printf '127.0.0.1 localhost\n192.0.2.1 registry.test\n' >"$work/hosts"
  mount --bind "$work/hosts" /etc/hosts
  free_port
  host=registry.test:$port
}

# authority NAME: makes $work/NAME.crt, which signs others, and its key.
authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" \
    -keyout "$work/$1.key" -out "$work/$1.crt" 2>"$work/openssl.log"
}

# certificate AUTHORITY NAME USAGE [SAN]: makes $work/NAME.crt with that common name, signed by the authority, and its key.
certificate() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$work/$2.key" 2>"$work/openssl.log" |
    openssl x509 -req -CA "$work/$1.crt" -CAkey "$work/$1.key" -CAcreateserial -days 2 -out "$work/$2.crt" 2>>"$work/openssl.log" \
      -extfile <(printf 'basicConstraints=critical,CA:FALSE\nextendedKeyUsage=%s\n%s' "$3" "${4:+subjectAltName=$4}")
}

# start_mesh: the nodes and the balancer, with TLS. carol, who is known by her certificate alone, asks for the check.
start_mesh() {
  local name
  for name in registries people strangers; do authority "$name"; done
  certificate registries node serverAuth IP:127.0.0.1
  certificate registries registry.test serverAuth DNS:registry.test
  certificate people carol clientAuth
  certificate strangers mallory clientAuth
  scheme=https
  asking=(--cacert "$work/registries.crt" --cert "$work/carol.crt" --key "$work/carol.key")
  every=(--tls-cert "$work/node.crt" --tls-key "$work/node.key" --tls-client-ca "$work/people.crt" --audit-log -)
  mesh_start --replicas 3
  balance "192.0.2.1:${host#*:}" -tls-cert "$work/registry.test.crt" -tls-key "$work/registry.test.key" -ca "$work/registries.crt"
  await 10 curl -sf --cacert "$work/registries.crt" "https://$host/readyz" || die "the balancer does not answer"
  # The clients and the engine take these authorities for the system's.
  export SSL_CERT_FILE=$work/registries.crt FLOTILLA_CA=$work/registries.crt
}

# secret NAME: makes a password, in $work/NAME.secret.
secret() { openssl rand -hex 16 >"$work/$1.secret"; }

# accounts: root may do everything, bob nothing; ann and builder, a robot, may do what the document says, as carol may.
accounts() {
  local name
  for name in root ann bob wrong; do secret "$name"; done
  manage user add root --password-stdin <"$work/root.secret" | tee "$work/first"
  grep -q 'an administrator' "$work/first"
  for name in ann bob; do manage user add "$name" --password-stdin <"$work/$name.secret"; done
  manage robot add builder --expires 24h >"$work/builder.secret"
  cat >"$work/mesh.yaml" <<END
rules:
  - who: [ann, builder, carol]
    repositories: ["team/**", "public/**"]
    allow: [pull, push, list]
anonymous:
  pull: ["public/**"]
immutable:
  - repositories: ["team/release"]
    tags: ["v*"]
    except: ["*-rc*"]
END
  manage apply -f "$work/mesh.yaml"
  manage get | grep 'public/\*\*'
  say "a user that administers, two that do not, a robot, one document" >"$work/summary"
}

# What each client does: make something to push; log in, with a password on standard input; push it to a repository, and
# pull it from one, when it prints the digest; log out.

docker_make() {
  recipe "$work/docker"
  DOCKER_BUILDKIT=0 docker build --no-cache -t made "$work/docker"
  docker save -o "$work/docker.tar" made
}
docker_login() { docker login -u "$1" --password-stdin "$host"; }
docker_push() { docker load -i "$work/docker.tar" && docker tag made "$host/$1:$tag" && docker push "$host/$1:$tag"; }
docker_pull() {
  docker image ls -aq | sort -u | xargs -r docker image rm -f >&2
  docker pull "$host/$1:$tag" >&2
  docker image inspect -f '{{index .RepoDigests 0}}' "$host/$1:$tag" | sed 's/.*@//'
}
docker_logout() { docker logout "$host"; }

podman_make() {
  recipe "$work/podman"
  podman build --network none -t made "$work/podman"
  podman save -o "$work/podman.tar" made
}
podman_login() { podman login -u "$1" --password-stdin "$host"; }
podman_push() { podman load -i "$work/podman.tar" && podman push localhost/made "$host/$1:$tag"; }
podman_pull() {
  podman rmi --all --force >&2
  podman pull "$host/$1:$tag" >&2
  podman image inspect -f '{{.Digest}}' "$host/$1:$tag"
}
podman_logout() { podman logout "$host"; }

skopeo_make() { layout "$work/skopeo" 2 1 amd64 arm64; }
skopeo_login() { skopeo login -u "$1" --password-stdin "$host"; }
skopeo_push() { skopeo copy --all --preserve-digests "oci:$work/skopeo:v1" "docker://$host/$1:$tag"; }
skopeo_pull() { skopeo copy --all --preserve-digests "docker://$host/$1:$tag" "oci:$work/pulled/$1:v1" >&2 && pulled "$1"; }
skopeo_logout() { skopeo logout "$host"; }

helm_make() {
  mkdir -p "$work/helm/templates"
  printf 'apiVersion: v2\nname: helm\nversion: %s\n' "$tag" >"$work/helm/Chart.yaml"
  printf 'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: demo\n' >"$work/helm/templates/demo.yaml"
  helm package -d "$work" "$work/helm"
}
helm_login() { helm registry login -u "$1" --password-stdin "$host"; }
helm_push() { helm push "$work/helm-$tag.tgz" "oci://$host/${1%/helm}"; }
helm_pull() {
  mkdir -p "$work/pulled/$1"
  helm pull --version "$tag" -d "$work/pulled/$1" "oci://$host/$1" >"$work/helm.said" 2>&1 || { cat "$work/helm.said" && return 1; }
  cmp "$work/helm-$tag.tgz" "$work/pulled/$1/helm-$tag.tgz" || return
  sed -n 's/^Digest: //p' "$work/helm.said"
}
helm_logout() { helm registry logout "$host"; }

crane_make() { layout "$work/crane" 2 1 amd64; }
crane_login() { crane auth login -u "$1" --password-stdin "$host"; }
crane_push() { crane push "$work/crane" "$host/$1:$tag"; }
crane_pull() { crane pull --format oci "$host/$1:$tag" "$work/pulled/$1" && pulled "$1"; }
crane_logout() { crane auth logout "$host"; }

oras_make() { head -c 3M /dev/urandom >"$work/oras.bin"; }
oras_login() { oras login -u "$1" --password-stdin "$host"; }
oras_push() { (cd "$work" && oras push --artifact-type application/vnd.example.data "$host/$1:$tag" oras.bin:application/octet-stream); }
oras_pull() {
  oras pull -o "$work/pulled/$1" "$host/$1:$tag" >"$work/oras.said" || return
  cmp "$work/oras.bin" "$work/pulled/$1/oras.bin" || return
  sed -n 's/^Digest: //p' "$work/oras.said"
}
oras_logout() { oras logout "$host"; }

regctl_make() { layout "$work/regctl" 2 1 amd64 arm64; }
regctl_login() { regctl registry login -u "$1" --pass-stdin "$host"; }
regctl_push() { regctl image copy "ocidir://$work/regctl:v1" "$host/$1:$tag" >&2; }
regctl_pull() { regctl image copy "$host/$1:$tag" "ocidir://$work/pulled/$1:v1" >&2 && pulled "$1"; }
regctl_logout() { regctl registry logout "$host"; }

# pulled REPOSITORY: the digest of the one thing in the OCI layout of what was pulled.
pulled() { jq -er '.manifests | select(length == 1)[0].digest' "$work/pulled/$1/index.json"; }

# refused PATTERN COMMAND...: the command fails, and says why in such words.
refused() {
  local pattern=$1 status
  shift
  set +e
  (set -e && "$@") >"$work/refused" 2>&1
  status=$?
  set -e
  cat "$work/refused"
  ((status != 0)) || { say "was not refused: $*" && return 1; }
  grep -qiE "$pattern" "$work/refused" || { say "not refused with $pattern: $*" && return 1; }
}

# mistaken CLIENT ACCOUNT: logs in with a wrong password, and uses it: crane does not ask when it logs in.
mistaken() {
  "$1_login" "$2" <"$work/wrong.secret"
  "$1_push" "team/$1"
}

# story CLIENT ACCOUNT: what one client comes to see.
story() {
  local client=$1 account=$2 repo summary
  export HOME=$work/home/$client XDG_RUNTIME_DIR=$work/run/$client
  mkdir -p "$HOME" "$XDG_RUNTIME_DIR" "$work"/pulled/{team,public}
  "${client}_make"
  refused 'unauthorized|401|invalid username/password|authentication required' mistaken "$client" "$account"
  "${client}_login" "$account" <"$work/$account.secret"
  for repo in "team/$client" "public/$client"; do
    "${client}_push" "$repo"
    equal "$("${client}_pull" "$repo")" "$(digest 2 "$repo" "$tag")"
    compare 3 "$repo" "$tag"
  done
  summary=$(sed 's/; .*//' "$work/summary")
  "${client}_logout"
  rm -rf "$work/pulled/public/$client"
  equal "$("${client}_pull" "public/$client")" "$(digest 1 "public/$client" "$tag")"
  refused "unauthorized|401|authentication required|denied" "${client}_push" "public/new/$client"
  refused "unauthorized|401|authentication required|denied" "${client}_pull" "team/$client"
  "${client}_login" bob <"$work/bob.secret"
  refused "denied|403" "${client}_push" "public/new/$client" # where he may look
  refused "denied|403" "${client}_pull" "team/$client"
  "${client}_logout"
  say "wrong password refused; $account $summary and pulled them; bob refused; public pulled by nobody in particular" >"$work/summary"
}

# answers STATUS NODE PATH CURL-FLAGS...: the node answers with that status, to whoever the flags say.
answers() {
  local want=$1 node=$2 path=$3 got
  shift 3
  got=$(curl -sS --cacert "$work/registries.crt" -o "$work/answer" -w '%{http_code}' "$@" "https://${public[node]}$path")
  [[ $got == "$want" ]] || { say "node $node, $path: $got, want $want: $(head -c 300 "$work/answer")" && return 1; }
}

# bearer NAME TOKEN, basic ACCOUNT NAME: write $work/NAME.curl, which shows curl a token, or the account and the secret of
# that name.
bearer() { printf 'header = "Authorization: Bearer %s"\n' "$2" >"$work/$1.curl"; }
basic() { printf 'user = "%s:%s"\n' "$1" "$(<"$work/$2.secret")" >"$work/$2.curl"; }

scope='service=flotilla&scope=repository:team/crane:pull'

# check_tokens: what one node gives is good at the others, for what it was given for and no more.
check_tokens() {
  local manifest=/v2/team/crane/manifests/$tag node
  basic ann ann
  answers 200 1 "/token?$scope&offline_token=true" -K "$work/ann.curl"
  jq -er .access_token "$work/answer" >"$work/access.secret"
  jq -er .refresh_token "$work/answer" >"$work/refresh.secret"
  bearer access "$(<"$work/access.secret")"
  for node in "${nodes[@]}"; do
    answers 200 "$node" "$manifest" -K "$work/access.curl"
    answers 401 "$node" "/v2/team/oras/manifests/$tag" -K "$work/access.curl"
    answers 401 "$node" /v2/team/crane/blobs/uploads/ -X POST -K "$work/access.curl"
    answers 401 "$node" "$manifest"
  done
  answers 200 2 /token --data-urlencode grant_type=refresh_token --data-urlencode "refresh_token@$work/refresh.secret" \
    --data "service=flotilla" --data-urlencode scope=repository:team/crane:pull
  jq -er .access_token "$work/answer" >"$work/refreshed.secret"
  bearer refreshed "$(<"$work/refreshed.secret")"
  answers 200 3 "$manifest" -K "$work/refreshed.curl"
  manage logout-all
  for node in "${nodes[@]}"; do answers 401 "$node" "$manifest" -K "$work/refreshed.curl"; done
  answers 200 3 "/token?$scope" -K "$work/ann.curl"
  jq -er .access_token "$work/answer" >"$work/newer.secret"
  bearer newer "$(<"$work/newer.secret")"
  for node in "${nodes[@]}"; do answers 200 "$node" "$manifest" -K "$work/newer.curl"; done
  say "got at node 1, good at 2 and 3 for that repository and action; refreshed at 2; all refused after logout-all, new ones good" >"$work/summary"
}

# check_certificates: a certificate is an account.
check_certificates() {
  local node carol=(--cert "$work/carol.crt" --key "$work/carol.key")
  for node in "${nodes[@]}"; do
    answers 200 "$node" "/v2/team/docker/manifests/$tag" "${carol[@]}"
    answers 202 "$node" /v2/team/carol/blobs/uploads/ -X POST "${carol[@]}"
    answers 403 "$node" /v2/other/blobs/uploads/ -X POST "${carol[@]}"
    answers 403 "$node" /flotilla/v1/accounts "${carol[@]}"
    refused 'curl: \(' answers 200 "$node" /v2/ --cert "$work/mallory.crt" --key "$work/mallory.key"
  done
  say "carol pulls and pushes by certificate and is no administrator; one of another authority is not spoken to" >"$work/summary"
}

# check_policy: changes are in force at every node when the command returns.
check_policy() {
  local node
  basic builder builder
  for node in "${nodes[@]}"; do answers 200 "$node" /v2/team/docker/tags/list -K "$work/builder.curl"; done
  cp "$work/builder.secret" "$work/rotated.secret"
  manage robot rotate builder >"$work/builder.secret"
  for node in "${nodes[@]}"; do answers 401 "$node" /v2/team/docker/tags/list -K "$work/builder.curl"; done
  basic builder builder
  for node in "${nodes[@]}"; do answers 200 "$node" /v2/team/docker/tags/list -K "$work/builder.curl"; done

  layout "$work/release1" 1 1 amd64
  layout "$work/release2" 1 1 amd64
  skopeo login -u ann --password-stdin "$host" <"$work/ann.secret"
  skopeo copy "oci:$work/release1:v1" "docker://$host/team/release:v1"
  refused 'immutable' skopeo copy "oci:$work/release2:v1" "docker://$host/team/release:v1"
  skopeo copy "oci:$work/release2:v1" "docker://$host/team/release:v1-rc1"
  skopeo copy "oci:$work/release1:v1" "docker://$host/team/release:v1-rc1"

  manage get >"$work/before.yaml"
  sed 's/carol/caroline/' "$work/mesh.yaml" >"$work/changed.yaml"
  manage apply --dry-run -f "$work/changed.yaml" | grep caroline
  refused 'nonsense' manage apply -f - <<<'{"nonsense": []}'
  manage get | diff "$work/before.yaml" -
  sed 's/ann, //' "$work/mesh.yaml" | manage apply -f -
  for node in "${nodes[@]}"; do answers 403 "$node" /v2/team/docker/tags/list -K "$work/ann.curl"; done
  manage user remove ann
  for node in "${nodes[@]}"; do answers 401 "$node" /v2/team/docker/tags/list -K "$work/ann.curl"; done
  say "secret, rule and account are changed at every node when the command returns; immutable tags stay; dry runs and mistakes change nothing" >"$work/summary"
}

# noted FILTER: how many lines of the audit logs are such.
noted() { jq -s "map(select($1)) | length" "$work/audit"; }

# check_audit: the lines say who did what, and how it went.
check_audit() {
  local filter
  grep -h '^{' "$work"/node[123].log >"$work/audit"
  for filter in \
    '.account == "ann" and .action == "push" and .repository == "team/docker" and .reference == "1.0.0" and .status == 201' \
    '.account == "builder" and .action == "push" and .repository == "team/helm" and .status == 201' \
    '.account == "bob" and .action == "push" and .repository == "public/new/docker" and .status == 403' \
    '.account == "carol" and .action == "push" and .repository == "team/carol" and .status == 202' \
    '.account == "anonymous" and .action == "login" and .status == 401' \
    '.account == "operator" and .action == "admin" and .subject == "bob" and .status == 201' \
    '.account == "operator" and .subject == "builder" and .method == "POST" and .status == 200'; do
    (($(noted "$filter") > 0)) || { say "no line has $filter" && return 1; }
  done
  equal "$(noted '.account == "bob" and .status < 300 and .action == "push"')" 0
  equal "$(noted '(.request // "") == "" or (.remote // "") == "" or (.time // "") == ""')" 0
  say "$(noted true) lines, of pushes, refusals, logins and changes of accounts" >"$work/summary"
}

# check_secrets: what was secret in all this is in nothing that a node says, and no password is on its disk.
check_secrets() {
  local node name said=("$work"/node[123].log "$work/balancer.log")
  for node in "${nodes[@]}"; do
    ask -sf "https://${public[node]}/metrics" >"$work/said.metrics$node"
    ask -sf "https://${public[node]}/flotilla/v1/status" >"$work/said.status$node"
  done
  manage status --json >"$work/said.status"
  manage user list >"$work/said.users"
  manage robot list >"$work/said.robots"
  manage get >"$work/said.policy"
  grep -q bob "$work/said.users"
  said+=("$work"/said.*)
  for name in root ann bob wrong builder rotated; do
    cat "$work/$name.secret"
    for node in root ann bob builder; do printf '%s:%s' "$node" "$(<"$work/$name.secret")" | base64 -w 0 && say; done
  done >"$work/passwords"
  cat "$work/passwords" "$work"/{access,refresh,refreshed,newer}.secret "$work/data/1/mesh.secret" >"$work/secrets"
  say eyJhbGciOi >>"$work/secrets" # how every token begins, the clients' too
  grep -qF eyJhbGciOi "$work/access.secret"
  equal "$(grep -lFf "$work/secrets" "${said[@]}" || true)" ""
  equal "$(grep -rlFf "$work/passwords" "$work/data" || true)" ""
  say "none of $(wc -l <"$work/secrets") in $(cat "${said[@]}" | wc -l) lines of ${#said[@]} logs and answers, nor a password on a disk" >"$work/summary"
}

isolate
apart
start_mesh
try accounts accounts
own_engine >"$work/engine.out" 2>&1 || die "no Docker engine starts; $(tail -n 5 "$work/engine.out")"
for name in "${clients[@]}"; do
  case $name in
    docker | podman | skopeo) try "$name" story "$name" ann ;;
    *) try "$name" story "$name" builder ;;
  esac
done
for name in tokens certificates policy audit secrets; do try "$name" "check_$name"; done
end dockerd || true
end balancer
say "  $(sed -n 's/.*\(requests given\)/\1/p' "$work/balancer.log" | tail -n 1)"
mesh_stop
say "logins: $passed passed, $failed failed"
((failed == 0))
