{{/* Contradictions between values that a schema cannot see, or cannot explain. Each names the value and what is right. */}}
{{- define "crescendo.check" -}}
{{- $v := .Values -}}
{{- $name := include "crescendo.name" . -}}
{{- if not $v.image.registry -}}
{{- fail "image.registry: is empty: set it to the registry that you pushed the images to, such as registry.example.com/crescendo" -}}
{{- end -}}
{{- $external := gt (len $v.etcd.external.endpoints) 0 -}}
{{- if eq $v.store.kind "embedded" -}}
{{- if gt (int $v.controller.replicas) 1 -}}
{{- fail (printf "controller.replicas: is %d with store.kind embedded, which one controller alone can use: set controller.replicas to 1, or store.kind to etcd" (int $v.controller.replicas)) -}}
{{- end -}}
{{- if $v.etcd.bundled.enabled -}}
{{- fail "etcd.bundled.enabled: is true with store.kind embedded: set etcd.bundled.enabled to false, or store.kind to etcd" -}}
{{- end -}}
{{- if $external -}}
{{- fail "etcd.external.endpoints: are given with store.kind embedded: leave them out, or set store.kind to etcd" -}}
{{- end -}}
{{- else -}}
{{- if and $v.etcd.bundled.enabled $external -}}
{{- fail "etcd.external.endpoints: are given while etcd.bundled.enabled is true: set etcd.bundled.enabled to false to use them, or leave them out" -}}
{{- end -}}
{{- if not (or $v.etcd.bundled.enabled $external) -}}
{{- fail "etcd.external.endpoints: are empty while etcd.bundled.enabled is false: give the URLs of your etcd, or set etcd.bundled.enabled to true" -}}
{{- end -}}
{{- end -}}
{{- if le (int $v.controller.ranksLostAfterSeconds) (int $v.controller.silentAfterSeconds) -}}
{{- fail (printf "controller.ranksLostAfterSeconds: is %d: it must be more than controller.silentAfterSeconds, which is %d" (int $v.controller.ranksLostAfterSeconds) (int $v.controller.silentAfterSeconds)) -}}
{{- end -}}
{{- if and $v.curator.autoscaling.enabled (lt (int $v.curator.autoscaling.maxReplicas) (int $v.curator.replicas)) -}}
{{- fail (printf "curator.autoscaling.maxReplicas: is %d: it must be at least curator.replicas, which is %d" (int $v.curator.autoscaling.maxReplicas) (int $v.curator.replicas)) -}}
{{- end -}}
{{- range $section, $ports := dict "controller" $v.controller "curator" $v.curator "trainer" $v.trainer -}}
{{- if eq (int $ports.port) (int $ports.metricsPort) -}}
{{- fail (printf "%s.metricsPort: is %d, as %s.port is: give it another port" $section (int $ports.metricsPort) $section) -}}
{{- end -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $i, $pool := (include "crescendo.pools" . | fromJson).pools -}}
{{- $at := printf "trainer.pools[%d] (%s)" $i $pool.name -}}
{{- if hasKey $seen $pool.name -}}
{{- fail (printf "%s.name: occurs twice: pools need different names" $at) -}}
{{- end -}}
{{- $_ := set $seen $pool.name true -}}
{{- if and (eq $pool.device "cpu") (gt (int $pool.gpus) 0) -}}
{{- fail (printf "%s.gpus: is %d with device cpu: set gpus to 0, or device to cuda" $at (int $pool.gpus)) -}}
{{- end -}}
{{- if and (eq $pool.device "cuda") (eq (int $pool.gpus) 0) -}}
{{- fail (printf "%s.gpus: is 0 with device cuda: set gpus to at least 1, or device to cpu" $at) -}}
{{- end -}}
{{- if and (gt (int $pool.gpus) 0) (gt (int $pool.slots) (int $pool.gpus)) -}}
{{- fail (printf "%s.gpus: is %d, fewer than its %d slots need: set gpus to at least %d, or slots to at most %d" $at (int $pool.gpus) (int $pool.slots) (int $pool.slots) (int $pool.gpus)) -}}
{{- end -}}
{{- if and $pool.rdmaResource (eq (int $pool.rdmaDevices) 0) -}}
{{- fail (printf "%s.rdmaDevices: is 0 with rdmaResource %s: set it to at least 1, or leave rdmaResource empty" $at $pool.rdmaResource) -}}
{{- end -}}
{{- if and (gt (int $pool.rdmaDevices) 0) (not $pool.rdmaResource) -}}
{{- fail (printf "%s.rdmaResource: is empty with rdmaDevices %d: name the resource, such as rdma/hca" $at (int $pool.rdmaDevices)) -}}
{{- end -}}
{{- range $kind := list "requests" "limits" -}}
{{- if hasKey (index $pool.resources $kind) $pool.gpuResource -}}
{{- fail (printf "%s.resources.%s: names %s: set gpus of the pool instead" $at $kind $pool.gpuResource) -}}
{{- end -}}
{{- end -}}
{{- if and $pool.hostNetwork $v.networkPolicy.enabled (not $v.networkPolicy.hostNetworkCidrs) -}}
{{- fail (printf "networkPolicy.hostNetworkCidrs: is empty while %s.hostNetwork is true: give the address ranges of the nodes, from which that pool's pods call controllers and curators" $at) -}}
{{- end -}}
{{- end -}}
{{- $rules := "" -}}
{{- range $path, $content := .Files.Glob "alerts/*.yaml" -}}
{{- $rules = printf "%s\n%s" $rules (toString $content) -}}
{{- end -}}
{{- range $v.monitoring.prometheusRule.disabledAlerts -}}
{{- if not (regexMatch (printf "alert: %s\\b" .) $rules) -}}
{{- fail (printf "monitoring.prometheusRule.disabledAlerts: %s is no alert of this chart: docs/runbooks has one file for each" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
