{{/* Start of every object's name. */}}
{{- define "crescendo.name" -}}
{{- $name := .Values.fullnameOverride | default .Release.Name -}}
{{- if gt (len $name) 24 -}}
{{- fail (printf "fullnameOverride: the name %q has %d characters, and node names are made from it: set fullnameOverride to one of at most 24" $name (len $name)) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* Labels that select the pods of a component; call with (list $ "component"). */}}
{{- define "crescendo.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: crescendo
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object of a component; call with (list $ "component"). */}}
{{- define "crescendo.labels" -}}
{{- $root := index . 0 -}}
{{ include "crescendo.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* An image below image.registry; call with (list $ "controller"). */}}
{{- define "crescendo.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- $repository := printf "%s/%s" $root.Values.image.registry $image.repository -}}
{{- if $image.digest -}}
{{ $repository }}@{{ $image.digest }}
{{- else -}}
{{ $repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Tags of the digests in values.yaml: who changes the tag alone would go on with the old image, without a word. */}}
{{- define "crescendo.tagsOfDigests" -}}
{{- dict
      "sha256:5ed4e32061aa061f970d6500629213e8579ef17571dcf9789074966acb9afad1" "v3.6.15"
      "sha256:935d9100e9ba842cdb060de42472c7ca90cfe9a7c96e4dacb55e79e560b3ff40" "8.17.0" | toJson -}}
{{- end -}}

{{/* An image by a full reference; call with (list "section of the values" image). */}}
{{- define "crescendo.fullImage" -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- $tag := get (include "crescendo.tagsOfDigests" . | fromJson) $image.digest -}}
{{- if and $tag (ne $tag $image.tag) -}}
{{- fail (printf "%s.digest: is that of the tag %s, and the tag is %s: set the digest to that of your tag, or to \"\" to go by the tag" (index . 0) $tag $image.tag) -}}
{{- end -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag }}
{{- end -}}
{{- end -}}

{{/* Environment of every Crescendo process; call with (list $ port metricsPort). */}}
{{- define "crescendo.serverEnv" -}}
{{- $root := index . 0 -}}
- name: CRESCENDO_LISTEN
  value: {{ printf "%s:%d" $root.Values.listenAddress (index . 1 | int) | quote }}
- name: CRESCENDO_METRICS_LISTEN
  value: {{ printf "%s:%d" $root.Values.listenAddress (index . 2 | int) | quote }}
- name: CRESCENDO_MAX_CONNECTIONS
  value: {{ $root.Values.maxConnections | int | quote }}
{{ include "crescendo.tlsEnv" $root }}
{{- if $root.Values.otlp.endpoint }}
- name: CRESCENDO_OTLP_ENDPOINT
  value: {{ $root.Values.otlp.endpoint | quote }}
- name: CRESCENDO_TRACE_SAMPLE
  value: {{ $root.Values.otlp.sample | quote }}
{{- end }}
- name: CRESCENDO_LOG_FORMAT
  value: {{ $root.Values.log.format }}
- name: CRESCENDO_LOG
  value: {{ $root.Values.log.filter | quote }}
{{- end -}}

{{/* Environment of every node; its name is its pod's, which a StatefulSet keeps. Others reach it by a name that its
     certificate has. Call with (list $ "component" labels drainSeconds). */}}
{{- define "crescendo.nodeEnv" -}}
{{- $root := index . 0 -}}
- name: CRESCENDO_NODE_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: CRESCENDO_ADVERTISE_HOST
  value: $(CRESCENDO_NODE_ID).{{ include "crescendo.name" $root }}-{{ index . 1 }}.{{ $root.Release.Namespace }}.svc
- name: CRESCENDO_DRAIN_SECONDS
  value: {{ index . 3 | int | quote }}
- name: CRESCENDO_CONTROLLER
  value: {{ include "crescendo.controllers" $root | quote }}
- name: CRESCENDO_LIBRARY_ROOT
  value: {{ $root.Values.library.mountPath }}
{{- with index . 2 }}
- name: CRESCENDO_LABELS
  value: {{ include "crescendo.joinLabels" . | quote }}
{{- end }}
{{- with include "crescendo.bucketEnv" $root | trim }}{{ . | nindent 0 }}{{ end }}
{{- end -}}

{{- define "crescendo.joinLabels" -}}
{{- $pairs := list -}}
{{- range $key, $value := . -}}
{{- $pairs = append $pairs (printf "%s=%s" $key $value) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* Address of every controller. Only the leader answers, and the callers try one after the other. */}}
{{- define "crescendo.controllers" -}}
{{- $name := include "crescendo.name" . -}}
{{- $addresses := list -}}
{{- range $i := until (int .Values.controller.replicas) -}}
{{- $addresses = append $addresses (printf "%s-controller-%d.%s-controller.%s.svc:%d" $name $i $name $.Release.Namespace (int $.Values.controller.port)) -}}
{{- end -}}
{{- join "," $addresses -}}
{{- end -}}

{{/* Value of --store. */}}
{{- define "crescendo.store" -}}
{{- if eq .Values.store.kind "embedded" -}}
embedded:/var/lib/crescendo/store
{{- else if .Values.etcd.bundled.enabled -}}
{{- $name := include "crescendo.name" . -}}
{{- $urls := list -}}
{{- range $i := until (int .Values.etcd.bundled.replicas) -}}
{{- $urls = append $urls (printf "https://%s-etcd-%d.%s-etcd.%s.svc:2379" $name $i $name $.Release.Namespace) -}}
{{- end -}}
etcd:{{ join "," $urls }}
{{- else -}}
etcd:{{ join "," .Values.etcd.external.endpoints }}
{{- end -}}
{{- end -}}

{{- define "crescendo.objectClaim" -}}
{{ .Values.objectStore.existingClaim | default (printf "%s-objects" (include "crescendo.name" .)) }}
{{- end -}}

{{/* The volumes that curators and trainers share. */}}
{{- define "crescendo.dataVolumes" -}}
{{- if eq .Values.objectStore.kind "volume" }}
- name: objects
  persistentVolumeClaim:
    claimName: {{ include "crescendo.objectClaim" . }}
{{- else }}
{{- with .Values.objectStore.s3.existingSecret }}
{{ include "crescendo.secretVolume" (list "object-store" .) }}
{{- end }}
{{- with .Values.objectStore.s3.caSecret }}
{{ include "crescendo.secretVolume" (list "object-store-ca" .) }}
{{- end }}
{{- end }}
- name: library
  {{- if .Values.library.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ .Values.library.existingClaim }}
    readOnly: true
  {{- else }}
  emptyDir:
    sizeLimit: 1Mi
  {{- end }}
{{- end -}}

{{- define "crescendo.dataMounts" -}}
{{- if eq .Values.objectStore.kind "volume" }}
- name: objects
  mountPath: {{ .Values.objectStore.mountPath }}
{{- else }}
{{- if .Values.objectStore.s3.existingSecret }}
- name: object-store
  mountPath: /etc/crescendo/object-store
  readOnly: true
{{- end }}
{{- if .Values.objectStore.s3.caSecret }}
- name: object-store-ca
  mountPath: /etc/crescendo/object-store-ca
  readOnly: true
{{- end }}
{{- end }}
- name: library
  mountPath: {{ .Values.library.mountPath }}
  readOnly: true
  {{- with .Values.library.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end -}}

{{/* Probes. The kubelet's gRPC probe cannot speak TLS, so they go to the HTTP server of the metrics, which answers for the
     process as a whole: a controller that stands by is healthy. */}}
{{- define "crescendo.probes" -}}
startupProbe:
  httpGet:
    path: /healthz
    port: metrics
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet:
    path: /healthz
    port: metrics
  periodSeconds: 5
  timeoutSeconds: 2
livenessProbe:
  httpGet:
    path: /healthz
    port: metrics
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/* The pools of curators or trainers with their defaults filled in, as JSON {"pools": [...]}; call with (list $ "trainer").
     By hand: merge would take a 0 for missing. */}}
{{- define "crescendo.pools" -}}
{{- $section := index (index . 0).Values (index . 1) -}}
{{- $pools := list -}}
{{- range $entry := $section.pools -}}
{{- $pool := deepCopy $entry -}}
{{- range $key, $value := $section.poolDefaults -}}
{{- if not (hasKey $pool $key) -}}
{{- $_ := set $pool $key $value -}}
{{- end -}}
{{- end -}}
{{- $pools = append $pools $pool -}}
{{- end -}}
{{- dict "pools" $pools | toJson -}}
{{- end -}}

{{/* Labels that select the pods of a pool; call with (list $ "component" "pool"). */}}
{{- define "crescendo.poolSelector" -}}
{{ include "crescendo.selector" . }}
crescendo/pool: {{ index . 2 }}
{{- end -}}

{{/* CPU, memory and devices of a pool's pods; call with the pool. The node's disk is asked for where the scratch folder is on it:
     a pod that fills a disk that was not its own is evicted. */}}
{{- define "crescendo.poolResources" -}}
{{- $pool := . -}}
resources:
  {{- range $kind := list "requests" "limits" }}
  {{ $kind }}:
    {{- toYaml (index $pool.resources $kind) | nindent 4 }}
    {{- if and (eq $kind "requests") (not $pool.scratchStorageClassName) (not (hasKey $pool.resources.requests "ephemeral-storage")) }}
    ephemeral-storage: {{ $pool.scratchSize }}
    {{- end }}
    {{- if gt (int $pool.gpus) 0 }}
    {{ $pool.gpuResource }}: {{ $pool.gpus | int | quote }}
    {{- end }}
    {{- if $pool.rdmaResource }}
    {{ $pool.rdmaResource }}: {{ $pool.rdmaDevices | int | quote }}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* The image asks for every GPU, which some container runtimes grant without a request: a pod that asks for none gets none.
     One that asks is told by the device plugin which it has. Call with the pool. */}}
{{- define "crescendo.gpuEnv" -}}
{{- if eq (int .gpus) 0 }}
- name: NVIDIA_VISIBLE_DEVICES
  value: void
{{- end }}
{{- end -}}

{{/* The scratch folder, which lives as long as the pod; call with (list "volume" $pool). */}}
{{- define "crescendo.scratchVolume" -}}
{{- $pool := index . 1 -}}
- name: {{ index . 0 }}
  {{- if $pool.scratchStorageClassName }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: {{ $pool.scratchStorageClassName }}
        resources:
          requests:
            storage: {{ $pool.scratchSize }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ $pool.scratchSize }}
  {{- end }}
{{- end -}}

{{/* Ranks that fit on a trainer; call with the pool. */}}
{{- define "crescendo.slots" -}}
{{- if gt (int .slots) 0 }}{{ int .slots }}{{ else }}{{ max 1 (int .gpus) }}{{ end -}}
{{- end -}}

{{/* A pool's number of pods, for people. */}}
{{- define "crescendo.count" -}}
{{- if kindIs "invalid" . }}however many{{ else }}{{ . }}{{ end -}}
{{- end -}}
