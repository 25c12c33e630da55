{{/* Environment of each kind of container. What people add to it is held against it by crescendo.env. */}}
{{- define "crescendo.controllerEnv" -}}
{{- $name := include "crescendo.name" . -}}
{{- $c := .Values.controller -}}
{{ include "crescendo.serverEnv" (list . $c.port $c.metricsPort) }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: CRESCENDO_ADVERTISE_HOST
  value: $(POD_NAME).{{ $name }}-controller.{{ .Release.Namespace }}.svc
- name: CRESCENDO_STORE
  value: {{ include "crescendo.store" . | quote }}
- name: CRESCENDO_OBJECT_STORE
  value: {{ include "crescendo.objectStoreUrl" . | quote }}
{{- if include "crescendo.storeSecret" . }}
- name: CRESCENDO_STORE_CA
  value: /etc/crescendo/store/ca.crt
- name: CRESCENDO_STORE_CERT
  value: /etc/crescendo/store/tls.crt
- name: CRESCENDO_STORE_KEY
  value: /etc/crescendo/store/tls.key
{{- end }}
{{- with include "crescendo.accessEnv" . | trim }}{{ . | nindent 0 }}{{ end }}
# For the command line, when someone runs it in this pod.
- name: CRESCENDO_CONTROLLER
  value: {{ include "crescendo.controllers" . | quote }}
- name: CRESCENDO_SILENT_AFTER_SECONDS
  value: {{ $c.silentAfterSeconds | int | quote }}
- name: CRESCENDO_RANKS_LOST_AFTER_SECONDS
  value: {{ $c.ranksLostAfterSeconds | int | quote }}
- name: CRESCENDO_GROW_AFTER_SECONDS
  value: {{ $c.growAfterSeconds | int | quote }}
- name: CRESCENDO_MAX_FAILURES_IN_A_ROW
  value: {{ $c.maxFailuresInARow | int | quote }}
- name: CRESCENDO_UNIT_LEASE_SECONDS
  value: {{ $c.unitLeaseSeconds | int | quote }}
- name: CRESCENDO_LEADER_LEASE_SECONDS
  value: {{ $c.leaderLeaseSeconds | int | quote }}
- name: CRESCENDO_MAX_OPEN_JOBS
  value: {{ $c.maxOpenJobs | int | quote }}
- name: CRESCENDO_MAX_NODES
  value: {{ $c.maxNodes | int | quote }}
- name: CRESCENDO_MAX_CONCURRENT_CALLS
  value: {{ $c.maxConcurrentCalls | int | quote }}
- name: CRESCENDO_COLLECT_EVERY_HOURS
  value: {{ $c.collectEveryHours | int | quote }}
- name: CRESCENDO_COLLECT_GRACE_HOURS
  value: {{ $c.collectGraceHours | int | quote }}
- name: CRESCENDO_WEB_PAGE
  value: {{ $c.webPage | quote }}
{{- end -}}

{{/* Call with (list $ $pool). */}}
{{- define "crescendo.trainerEnv" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
{{ include "crescendo.serverEnv" (list $root $root.Values.trainer.port $root.Values.trainer.metricsPort) }}
{{ include "crescendo.nodeEnv" (list $root "trainer" $pool.labels $pool.drainSeconds) }}
{{- with include "crescendo.gpuEnv" $pool | trim }}{{ . | nindent 0 }}{{ end }}
# Ranks meet, and reduce gradients, by address.
- name: CRESCENDO_RANK_HOST
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: CRESCENDO_DEVICE
  value: {{ $pool.device }}
{{- if gt (int $pool.slots) 0 }}
- name: CRESCENDO_SLOTS
  value: {{ $pool.slots | int | quote }}
{{- end }}
- name: CRESCENDO_THREADS_PER_RANK
  value: {{ $pool.threadsPerRank | int | quote }}
{{- if gt (float64 $pool.peakTflops) 0.0 }}
- name: CRESCENDO_PEAK_TFLOPS
  value: {{ $pool.peakTflops | quote }}
{{- end }}
{{- if ne $root.Values.trainer.kernels "fused" }}
- name: CRESCENDO_KERNELS
  value: {{ $root.Values.trainer.kernels }}
{{- end }}
- name: CRESCENDO_SCRATCH
  value: /scratch
- name: CRESCENDO_CACHE_GIB
  value: {{ $pool.cacheGib | int | quote }}
{{- end -}}

{{/* Call with (list $ $pool). */}}
{{- define "crescendo.curatorEnv" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
{{ include "crescendo.serverEnv" (list $root $root.Values.curator.port $root.Values.curator.metricsPort) }}
{{ include "crescendo.nodeEnv" (list $root "curator" $pool.labels $pool.drainSeconds) }}
{{- with include "crescendo.gpuEnv" $pool | trim }}{{ . | nindent 0 }}{{ end }}
# One whose GPU does not work ends with the reason, instead of drawing on the CPU for days.
- name: CRESCENDO_DEVICE
  value: {{ ternary "cuda" "cpu" (gt (int $pool.gpus) 0) }}
- name: CRESCENDO_SHARD_CACHE_MIB
  value: {{ $pool.shardCacheMib | int | quote }}
- name: CRESCENDO_DRAWN_MIB
  value: {{ $pool.drawnMib | int | quote }}
- name: CRESCENDO_ENCODINGS_MIB
  value: {{ $pool.encodingsMib | int | quote }}
- name: CRESCENDO_CACHE_GIB
  value: {{ $pool.cacheGib | int | quote }}
# Of the volume: what is drawn and encoded outlives the container.
- name: CRESCENDO_SCRATCH
  value: /tmp/curator
{{- end -}}

{{- define "crescendo.etcdEnv" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end -}}
