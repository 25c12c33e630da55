{{/* Volumes of each kind of pod, and where its container mounts them. What people add to them is held against it by crescendo.mounts
     and crescendo.volumes. */}}
{{- define "crescendo.controllerMounts" -}}
- name: tmp
  mountPath: /tmp
{{ include "crescendo.tlsMount" . }}
- name: tenants
  mountPath: /etc/crescendo/tenants
  readOnly: true
{{- if include "crescendo.storeSecret" . }}
- name: store-tls
  mountPath: /etc/crescendo/store
  readOnly: true
{{- end }}
{{- if .Values.auth.tokens.existingSecret }}
- name: tokens
  mountPath: /etc/crescendo/tokens
  readOnly: true
{{- end }}
{{- if .Values.controller.webhookSecret }}
- name: webhooks
  mountPath: /etc/crescendo/webhooks
  readOnly: true
{{- end }}
{{- if eq .Values.store.kind "embedded" }}
- name: store
  mountPath: /var/lib/crescendo/store
{{- end }}
{{- end -}}

{{- define "crescendo.controllerVolumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{ include "crescendo.tlsVolume" (list . "controller") }}
- name: tenants
  configMap:
    name: {{ include "crescendo.name" . }}-tenants
{{- with include "crescendo.storeSecret" . }}
{{- if $.Values.etcd.bundled.enabled }}
{{ include "crescendo.certificateVolume" (list $ "store-tls" .) }}
{{- else }}
{{ include "crescendo.secretVolume" (list "store-tls" .) }}
{{- end }}
{{- end }}
{{- with .Values.auth.tokens.existingSecret }}
{{ include "crescendo.secretVolume" (list "tokens" .) }}
{{- end }}
{{- with .Values.controller.webhookSecret }}
{{ include "crescendo.secretVolume" (list "webhooks" .) }}
{{- end }}
{{- end -}}

{{- define "crescendo.trainerMounts" -}}
- name: tmp
  mountPath: /tmp
- name: scratch
  mountPath: /scratch
- name: shared-memory
  mountPath: /dev/shm
{{ include "crescendo.tlsMount" . }}
{{- with include "crescendo.dataMounts" . | trim }}{{ . | nindent 0 }}{{ end }}
{{- end -}}

{{/* Call with (list $ $pool). */}}
{{- define "crescendo.trainerVolumes" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
{{ include "crescendo.scratchVolume" (list "scratch" $pool) }}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ $pool.sharedMemorySize }}
{{ include "crescendo.tlsVolume" (list $root "trainer") }}
{{- with include "crescendo.dataVolumes" $root | trim }}{{ . | nindent 0 }}{{ end }}
{{- end -}}

{{- define "crescendo.curatorMounts" -}}
- name: tmp
  mountPath: /tmp
{{ include "crescendo.tlsMount" . }}
{{- with include "crescendo.dataMounts" . | trim }}{{ . | nindent 0 }}{{ end }}
{{- if .Values.test.enabled }}
- name: test-subjects
  mountPath: /opt/crescendo/test-subjects
  readOnly: true
{{- end }}
{{- end -}}

{{/* Call with (list $ $pool). */}}
{{- define "crescendo.curatorVolumes" -}}
{{- $root := index . 0 -}}
{{ include "crescendo.scratchVolume" (list "tmp" (index . 1)) }}
{{ include "crescendo.tlsVolume" (list $root "curator") }}
{{- with include "crescendo.dataVolumes" $root | trim }}{{ . | nindent 0 }}{{ end }}
{{- if $root.Values.test.enabled }}
- name: test-subjects
  configMap:
    name: {{ include "crescendo.name" $root }}-test-subjects
{{- end }}
{{- end -}}

{{- define "crescendo.etcdMounts" -}}
- name: data
  mountPath: /var/lib/etcd
{{ include "crescendo.tlsMount" . }}
{{- end -}}
