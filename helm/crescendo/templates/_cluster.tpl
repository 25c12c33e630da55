{{/* What the cluster itself says while a release is installed or upgraded. `helm template` asks none: then nothing is known,
     every lookup is empty, and all of this says nothing. */}}

{{/* Is there a cluster? Every API server has this group, and the list that Helm takes in place of a cluster has not. */}}
{{- define "crescendo.connected" -}}
{{- if .Capabilities.APIVersions.Has "apiregistration.k8s.io/v1" }}true{{ end -}}
{{- end -}}

{{/* Bytes of a quantity such as 500Gi. */}}
{{- define "crescendo.bytes" -}}
{{- $units := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 -}}
{{- mulf (regexFind "^[0-9.]+(e[0-9]+)?" . | float64) (get $units (regexFind "[kMGTPEi]*$" .)) -}}
{{- end -}}

{{/* The line of a StatefulSet's replicas. For those that people or an autoscaler scale the number is null, and none is given: Helm
     4 would have it, and the next upgrade would fail once somebody else has set it. While Helm itself still has it from an earlier
     revision, or goes by what earlier revisions said (as releases of Helm 3 do for good), leaving the line out would set it to 1:
     then the number is the one that there is. Call with (list $ "name" number). */}}
{{- define "crescendo.replicas" -}}
{{- $root := index . 0 -}}
{{- if not (kindIs "invalid" (index . 2)) -}}
replicas: {{ index . 2 }}
{{- else -}}
{{- with lookup "apps/v1" "StatefulSet" $root.Release.Namespace (index . 1) -}}
{{- $applies := false -}}
{{- $has := false -}}
{{- range .metadata.managedFields -}}
{{- if eq .operation "Apply" -}}
{{- $applies = true -}}
{{- if hasKey (get .fieldsV1 "f:spec" | default dict) "f:replicas" }}{{- $has = true }}{{- end -}}
{{- end -}}
{{- end -}}
{{- if or $has (not $applies) -}}
replicas: {{ .spec.replicas }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Size and class of the object store's claim, as JSON: those of the values, or of the claim that is there already, which an
     earlier release of this name has left or this one has made. Its form is for good, and its size only grows. */}}
{{- define "crescendo.objectClaimSpec" -}}
{{- $create := .Values.objectStore.create -}}
{{- $spec := dict "accessModes" (list $create.accessMode) "resources" (dict "requests" (dict "storage" $create.size)) -}}
{{- with $create.storageClassName }}{{- $_ := set $spec "storageClassName" . }}{{- end -}}
{{- with lookup "v1" "PersistentVolumeClaim" .Release.Namespace (include "crescendo.objectClaim" .) -}}
{{- $size := .spec.resources.requests.storage -}}
{{- if gt (include "crescendo.bytes" $create.size | float64) (include "crescendo.bytes" $size | float64) -}}
{{- include "crescendo.checkGrowth" (list $ .) -}}
{{- $size = $create.size -}}
{{- end -}}
{{- $spec = dict "accessModes" .spec.accessModes "resources" (dict "requests" (dict "storage" $size)) -}}
{{- if include "crescendo.namesClass" . }}{{- $_ := set $spec "storageClassName" .spec.storageClassName }}{{- end -}}
{{- end -}}
{{- $spec | toJson -}}
{{- end -}}

{{/* Did whoever made this claim name its class? Then every revision has to, and otherwise none may: with the class in one of them
     alone, going back to another would take it away, which Kubernetes does not allow. A default class is set by the cluster. */}}
{{- define "crescendo.namesClass" -}}
{{- range .metadata.managedFields -}}
{{- if and (ne .manager "kube-controller-manager") (hasKey (get .fieldsV1 "f:spec" | default dict) "f:storageClassName") }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* Can this claim become larger? Call with (list $ claim). */}}
{{- define "crescendo.checkGrowth" -}}
{{- $root := index . 0 -}}
{{- $claim := index . 1 -}}
{{- $wanted := $root.Values.objectStore.create.size -}}
{{- $says := printf "objectStore.create.size: is %s, and the claim %s has %s and cannot grow:" $wanted $claim.metadata.name $claim.spec.resources.requests.storage -}}
{{- $back := printf "set the size back, or copy its content to a larger claim of your own and name that in objectStore.existingClaim" -}}
{{- if ne (get ($claim.status | default dict) "phase") "Bound" -}}
{{- fail (printf "%s it has no volume yet: set the size back, or delete the claim" $says) -}}
{{- end -}}
{{- if $root.Values.clusterChecks -}}
{{- $name := get $claim.spec "storageClassName" | default "" -}}
{{- if not (get (lookup "storage.k8s.io/v1" "StorageClass" "" $name | default dict) "allowVolumeExpansion") -}}
{{- fail (printf "%s its storage class %q does not allow it (allowVolumeExpansion): %s" $says $name $back) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What values ask of the cluster, and it has not got. */}}
{{- define "crescendo.checkCluster" -}}
{{- if include "crescendo.connected" . -}}
{{- include "crescendo.checkKinds" . -}}
{{- include "crescendo.checkVolumes" . -}}
{{- if .Values.clusterChecks -}}
{{- include "crescendo.checkClasses" . -}}
{{- include "crescendo.checkPodSecurity" . -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "crescendo.checkKinds" -}}
{{- if and (eq .Values.tls.source "certManager") (not (.Capabilities.APIVersions.Has "cert-manager.io/v1")) -}}
{{- fail "tls.source: is certManager, and this cluster has no cert-manager.io/v1: install cert-manager first (https://cert-manager.io), or set tls.source to generated, which needs nothing else, or to existingSecrets, with certificates of your own" -}}
{{- end -}}
{{- range $i, $pool := (include "crescendo.pools" (list . "trainer") | fromJson).pools -}}
{{- if and (gt (int $pool.maxReplicas) 0) (not ($.Capabilities.APIVersions.Has "keda.sh/v1alpha1")) -}}
{{- fail (printf "trainer.pools[%d] (%s).maxReplicas: is %d, and this cluster has no keda.sh/v1alpha1: install KEDA first (https://keda.sh), or set it to 0" $i $pool.name (int $pool.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- with .Values.external.gateway.kind -}}
{{- $has := $.Capabilities.APIVersions -}}
{{- $route := or ($has.Has (printf "gateway.networking.k8s.io/v1/%s" .)) (and (eq . "TLSRoute") (or ($has.Has "gateway.networking.k8s.io/v1alpha3/TLSRoute") ($has.Has "gateway.networking.k8s.io/v1alpha2/TLSRoute"))) -}}
{{- if not $route -}}
{{- fail (printf "external.gateway.kind: is %s, and this cluster has none of gateway.networking.k8s.io: install the Gateway API's definitions that have it first (TLSRoute is among the standard ones from 1.5), or leave it empty" .) -}}
{{- end -}}
{{- end -}}
{{- range $kind := list "podMonitor" "prometheusRule" -}}
{{- if and (get $.Values.monitoring $kind).enabled (not ($.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}
{{- fail (printf "monitoring.%s.enabled: is true, and this cluster has no monitoring.coreos.com/v1: install the Prometheus operator first, or set it to false" $kind) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a StatefulSet has for good. */}}
{{- define "crescendo.checkVolumes" -}}
{{- $name := include "crescendo.name" . -}}
{{- $ns := .Release.Namespace -}}
{{- $v := .Values -}}
{{- if $v.etcd.bundled.enabled -}}
{{- with lookup "apps/v1" "StatefulSet" $ns (printf "%s-etcd" $name) -}}
{{- $members := int .spec.replicas -}}
{{- if and (gt $members 0) (ne $members (int $v.etcd.bundled.replicas)) -}}
{{- fail (printf "etcd.bundled.replicas: is %d, and this release has %d members: the number cannot be changed: set it back" (int $v.etcd.bundled.replicas) $members) -}}
{{- end -}}
{{- include "crescendo.checkEtcdVersion" (list $ (first .spec.template.spec.containers).image) -}}
{{- include "crescendo.checkClaims" (list $ . "etcd.bundled.persistence" $v.etcd.bundled.persistence) -}}
{{- end -}}
{{- end -}}
{{- with lookup "apps/v1" "StatefulSet" $ns (printf "%s-controller" $name) -}}
{{- $has := ternary "embedded" "etcd" (hasKey .spec "volumeClaimTemplates") -}}
{{- if ne $has $v.store.kind -}}
{{- fail (printf "store.kind: is %s, and this release has %s: jobs do not move from one to the other: set it back, or install another release" $v.store.kind $has) -}}
{{- end -}}
{{- if eq $has "embedded" -}}
{{- include "crescendo.checkClaims" (list $ . "store.embedded" $v.store.embedded) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Version of an etcd image, such as 3.6.15; nothing if its reference does not say it. */}}
{{- define "crescendo.etcdVersion" -}}
{{- $digest := regexFind "sha256:[0-9a-f]{64}$" . -}}
{{- $tag := get (include "crescendo.tagsOfDigests" . | fromJson) $digest | default (regexFind "[^:/]+$" (regexReplaceAll "@.*$" . "")) -}}
{{- regexFind "^3[.][0-9]+[.][0-9]+" (trimPrefix "v" $tag) -}}
{{- end -}}

{{/* etcd goes from one minor version to the next, and never back, and to 3.6 from a 3.5 that has mended its list of members; else
     members would not start. Call with (list $ "image that runs"). */}}
{{- define "crescendo.checkEtcdVersion" -}}
{{- $runs := include "crescendo.etcdVersion" (index . 1) -}}
{{- $wanted := include "crescendo.etcdVersion" (include "crescendo.fullImage" (list "etcd.bundled.image" (index . 0).Values.etcd.bundled.image)) -}}
{{- if and $runs $wanted -}}
{{- $from := splitList "." $runs -}}
{{- $steps := sub (index (splitList "." $wanted) 1 | int) (index $from 1 | int) -}}
{{- if or (lt $steps 0) (gt $steps 1) -}}
{{- fail (printf "etcd.bundled.image: is etcd %s, and this release has %s: it goes to the next minor version and not back: docs/operations.md has the way" $wanted $runs) -}}
{{- end -}}
{{- if and (eq $steps 1) (eq (index $from 1) "5") (lt (index $from 2 | int) 26) -}}
{{- fail (printf "etcd.bundled.image: is etcd %s, and this release has %s: to 3.6 it goes from 3.5.26 or later: set the tag to the newest v3.5 and the digest to \"\" first: docs/operations.md has the way" $wanted $runs) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Size and class of a StatefulSet's claims. Call with (list $ statefulset "section of the values" section). */}}
{{- define "crescendo.checkClaims" -}}
{{- $root := index . 0 -}}
{{- $set := index . 1 -}}
{{- $at := index . 2 -}}
{{- $wanted := index . 3 -}}
{{- $template := first $set.spec.volumeClaimTemplates -}}
{{- $class := get $template.spec "storageClassName" | default "" -}}
{{- if ne $class $wanted.storageClassName -}}
{{- fail (printf "%s.storageClassName: is %q, and the claims of StatefulSet %s are of class %q for good: set it back" $at $wanted.storageClassName $set.metadata.name $class) -}}
{{- end -}}
{{- $size := $template.spec.resources.requests.storage -}}
{{- if lt (include "crescendo.bytes" $wanted.size | float64) (include "crescendo.bytes" $size | float64) -}}
{{- fail (printf "%s.size: is %s, and the claims of StatefulSet %s have %s: volumes do not shrink: set it back" $at $wanted.size $set.metadata.name $size) -}}
{{- end -}}
{{- if gt (include "crescendo.bytes" $wanted.size | float64) (include "crescendo.bytes" $size | float64) -}}
{{- $ns := $root.Release.Namespace -}}
{{- $patch := printf "{\"spec\":{\"resources\":{\"requests\":{\"storage\":%q}}}}" $wanted.size -}}
{{- $claims := list -}}
{{- range $i := until (int $set.spec.replicas) -}}
{{- $claims = append $claims (printf "pvc/%s-%s-%d" $template.metadata.name $set.metadata.name $i) -}}
{{- end -}}
{{- fail (printf "%s.size: is %s, and the claims of StatefulSet %s have %s, which Helm cannot change: make them larger with `for c in %s; do kubectl -n %s patch $c -p '%s'; done`, take the StatefulSet away but not its pods with `kubectl -n %s delete statefulset %s --cascade=orphan`, and upgrade again" $at $wanted.size $set.metadata.name $size (join " " $claims) $ns $patch $ns $set.metadata.name) -}}
{{- end -}}
{{- end -}}

{{/* Classes by name. A pod or claim of a class that is not there waits without a word in Helm's output. */}}
{{- define "crescendo.checkClasses" -}}
{{- $v := .Values -}}
{{- $storage := list -}}
{{- $runtime := list -}}
{{- $priority := list (list "controller.priorityClassName" $v.controller.priorityClassName) -}}
{{- if $v.test.enabled }}{{- $priority = append $priority (list "test.priorityClassName" $v.test.priorityClassName) }}{{- end -}}
{{- if eq $v.tls.source "generated" }}{{- $priority = append $priority (list "tls.generated.priorityClassName" $v.tls.generated.priorityClassName) }}{{- end -}}
{{- if $v.library.fetch.files }}{{- $priority = append $priority (list "library.fetch.priorityClassName" $v.library.fetch.priorityClassName) }}{{- end -}}
{{- if eq $v.store.kind "embedded" }}{{- $storage = append $storage (list "store.embedded.storageClassName" $v.store.embedded.storageClassName) }}{{- end -}}
{{- if $v.etcd.bundled.enabled -}}
{{- $storage = append $storage (list "etcd.bundled.persistence.storageClassName" $v.etcd.bundled.persistence.storageClassName) -}}
{{- $priority = append $priority (list "etcd.bundled.priorityClassName" $v.etcd.bundled.priorityClassName) -}}
{{- end -}}
{{- if and (eq $v.objectStore.kind "volume") (not $v.objectStore.existingClaim) -}}
{{- $storage = append $storage (list "objectStore.create.storageClassName" $v.objectStore.create.storageClassName) -}}
{{- end -}}
{{- range $of := list "curator" "trainer" -}}
{{- range $i, $pool := (include "crescendo.pools" (list $ $of) | fromJson).pools -}}
{{- $at := printf "%s.pools[%d] (%s)" $of $i $pool.name -}}
{{- $storage = append $storage (list (printf "%s.scratchStorageClassName" $at) $pool.scratchStorageClassName) -}}
{{- $runtime = append $runtime (list (printf "%s.runtimeClassName" $at) $pool.runtimeClassName) -}}
{{- $priority = append $priority (list (printf "%s.priorityClassName" $at) $pool.priorityClassName) -}}
{{- end -}}
{{- end -}}
{{- include "crescendo.checkClass" (list "storage.k8s.io/v1" "StorageClass" $storage) -}}
{{- include "crescendo.checkClass" (list "node.k8s.io/v1" "RuntimeClass" $runtime) -}}
{{- include "crescendo.checkClass" (list "scheduling.k8s.io/v1" "PriorityClass" $priority) -}}
{{- end -}}

{{- define "crescendo.checkClass" -}}
{{- $kind := index . 1 -}}
{{- $there := lookup (index . 0) $kind "" "" -}}
{{- /* A dry run asks for the groups of the API and for no objects. */}}
{{- if hasKey $there "items" -}}
{{- $names := list -}}
{{- range $there.items }}{{- $names = append $names .metadata.name }}{{- end -}}
{{- range index . 2 -}}
{{- if and (index . 1) (not (has (index . 1) $names)) -}}
{{- fail (printf "%s: there is no %s %s in this cluster, but %s (clusterChecks: false installs all the same)" (index . 0) $kind (index . 1) (join ", " $names | default "none at all")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The level that the namespace enforces. All pods of the chart are of the level `restricted`, but for those on the node's network. */}}
{{- define "crescendo.checkPodSecurity" -}}
{{- $ns := .Release.Namespace -}}
{{- with lookup "v1" "Namespace" "" $ns -}}
{{- $level := get (.metadata.labels | default dict) "pod-security.kubernetes.io/enforce" -}}
{{- range $i, $pool := (include "crescendo.pools" (list $ "trainer") | fromJson).pools -}}
{{- if and $pool.hostNetwork (has $level (list "restricted" "baseline")) -}}
{{- fail (printf "trainer.pools[%d] (%s).hostNetwork: is true, and namespace %s enforces the Pod Security level %s, which lets no such pod in: allow it with `kubectl label namespace %s pod-security.kubernetes.io/enforce=privileged --overwrite`, or install into another namespace (clusterChecks: false installs all the same)" $i $pool.name $ns $level $ns) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
