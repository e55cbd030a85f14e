#!/usr/bin/env bash
# Renders the Helm chart as different people would install it, and holds what comes out against Kubernetes' own types:
# an unknown field, a value of the wrong type or a selector that selects nothing fails. No cluster is needed.
set -euo pipefail
# shellcheck source=deploy/test/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

install_tool helm
chart=$root/deploy/helm
helm lint --strict --quiet "$chart" || die "helm lint"
(cd "$root/.tools" && go build -o "$work/kubecheck" ./kubecheck)

passed=0 failed=0

# understood NAME FLAGS...: with these flags the chart renders, for the oldest and a new Kubernetes, and is understood.
understood() {
  local name=$1 version
  shift
  for version in 1.25.0 1.34.0; do
    if helm template release "$chart" --kube-version "$version" "$@" >"$work/out.yaml" && "$work/kubecheck" <"$work/out.yaml" >/dev/null; then
      passed=$((passed + 1))
    else
      failed=$((failed + 1))
      say "FAILED: $name, for Kubernetes $version"
    fi
  done
}

# refused NAME FLAGS...: with these flags the chart does not render.
refused() {
  local name=$1
  shift
  if helm template release "$chart" --kube-version 1.34.0 "$@" >/dev/null 2>&1; then
    failed=$((failed + 1))
    say "FAILED: $name was rendered"
  else
    passed=$((passed + 1))
  fi
}

# holds NAME PATTERN: what was rendered last has a line like this.
holds() {
  if grep -qE -- "$2" "$work/out.yaml"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    say "FAILED: $1"
  fi
}

understood "one node" --set nodes=1,founders=1
understood "everything" --set 'nodes=7,tls.secretName=tls,secret.existing=mesh,zone=paris,join[0]=berlin.example:5002' \
  --set 'ingress.enabled=true,ingress.className=nginx,ingress.tlsSecretName=tls,monitor.enabled=true' \
  --set 'service.type=NodePort,service.nodePort=30500,persistence.storageClass=fast,priorityClassName=high' \
  --set 'env.FLOTILLA_CACHE_SIZE=70%,nodeSelector.disk=ssd,podLabels.team=infra,podAnnotations.a=b'
holds "pods of a mesh in two clusters know both" 'FLOTILLA_JOIN, value: "release-flotilla-peers:5002,berlin.example:5002"'
understood "the defaults"
holds "all pods start at once" 'podManagementPolicy: Parallel'
holds "addresses are published before pods are ready" 'publishNotReadyAddresses: true'
holds "the first three found the mesh" 'FLOTILLA_EXPECT, value: "release-flotilla-0,release-flotilla-1,release-flotilla-2"'
holds "the disruption budget is one" 'maxUnavailable: 1'
holds "the secret is 32 bytes in base64" "^  secret: [A-Za-z0-9+/]{58,60}={0,2}$"

refused "more founders than nodes" --set nodes=1
refused "an unknown value" --set node=3
refused "a mesh of none" --set nodes=0,founders=0
refused "a zone that flotilla refuses" --set 'zone=new york'

say "helm: $passed passed, $failed failed"
((failed == 0))
