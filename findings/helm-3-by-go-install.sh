#!/usr/bin/env bash
# One would guess: Helm 3 from its own tagged module, built by `go install`, is the Helm 3 of that version.
# What happens: without a cluster (helm template, helm lint, a dry run of the client) it takes Kubernetes to be 1.20, which ended
#   in 2022: charts that want a later one are refused, and templates that ask for the version choose APIs that are gone.
#   `helm version` does not show it: `helm template` has to be asked. The released binaries are linked with another number.
# Seen with: Helm 3.22.0, Go 1.26.
# Why it matters: a pipeline, a tool or a provider that builds Helm or links it as a library renders other manifests than
#   people do, or none.
# Reported: https://github.com/helm/helm/issues/11751 and 31508 (Helm 4's own release had it), and for a provider that links
#   Helm, https://github.com/hashicorp/terraform-provider-helm/pull/1868. The number is set by flags in Helm's Makefile alone.
set -euo pipefail

version=v3.22.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
command -v go >/dev/null || { echo "not run: Go is missing" >&2; exit 2; }

install() {
    GOBIN=$folder/$1 go install -trimpath -ldflags "$2" helm.sh/helm/v3/cmd/helm@$version 2>"$folder/log" ||
        { tail -n 5 "$folder/log" >&2; echo "not run: Helm cannot be built" >&2; exit 2; }
}
chart() {
    mkdir -p "$folder/$1/templates"
    printf 'apiVersion: v2\nname: %s\nversion: 1.0.0\nkubeVersion: "%s"\n' "$1" "$2" >"$folder/$1/Chart.yaml"
    # shellcheck disable=SC2016
    printf 'kind: ConfigMap\napiVersion: v1\ndata: {version: "{{ .Capabilities.KubeVersion }}"}\n' >"$folder/$1/templates/a.yaml"
}
seen() { "$folder/$1/helm" template "$folder/$2" 2>&1 | sed -n 's/^data: {version: "\(.*\)"}/\1/p; s/^Error: /refused: /p'; }

export HELM_CACHE_HOME=$folder/cache HELM_CONFIG_HOME=$folder/config HELM_DATA_HOME=$folder/data
chart any '>=1.0.0-0'
chart later '>=1.27.0-0'
install plain ''
install flags '-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=35'

echo "Helm $version, $(go version | cut -d' ' -f3)"
plain=$(seen plain any) refused=$(seen plain later) flags=$(seen flags later)
echo "  go install, asked for the version of Kubernetes:       $plain"
echo "  go install, a chart for Kubernetes 1.27 and later:     $refused"
echo "  with flags of the linker, the same chart:              $flags"
if [[ $plain == v1.20.* && $refused == *"incompatible with Kubernetes v1.20"* && $flags == v1.35.* ]]; then
    echo "as described: it takes Kubernetes to be 1.20"
else
    echo CHANGED
    exit 1
fi
