{{/* Name of the secret with a component's certificate: tls.crt, tls.key and ca.crt. Call with (list $ "controller"). */}}
{{- define "crescendo.tlsSecret" -}}
{{- $root := index . 0 -}}
{{- if ne $root.Values.tls.source "existingSecrets" -}}
{{ include "crescendo.name" $root }}-{{ index . 1 | kebabcase }}-tls
{{- else -}}
{{ index $root.Values.tls.existingSecrets (index . 1) }}
{{- end -}}
{{- end -}}

{{- define "crescendo.tlsEnv" -}}
- name: CRESCENDO_TLS_CERT
  value: /etc/crescendo/tls/tls.crt
- name: CRESCENDO_TLS_KEY
  value: /etc/crescendo/tls/tls.key
- name: CRESCENDO_TLS_CA
  value: /etc/crescendo/tls/ca.crt
{{- end -}}

{{/* A secret of this release or of its owner, with a certificate. Those that a Job fills are mounted once they have all files:
     the kubelet waits for files that are named. Call with (list $ "volume" "secret"). */}}
{{- define "crescendo.certificateVolume" -}}
{{- $root := index . 0 -}}
{{ include "crescendo.secretVolume" (list (index . 1) (index . 2)) }}
{{- if eq $root.Values.tls.source "generated" }}
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}, {key: ca.crt, path: ca.crt}]
{{- end }}
{{- end -}}

{{/* A secret as files that only this pod's user reads (the group of the volume is added to the mode). The whole folder is
     mounted: with subPath, files would not change when the secret does. Call with (list "volume" "secret"). */}}
{{- define "crescendo.secretVolume" -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0400
{{- end -}}

{{- define "crescendo.tlsVolume" -}}
{{ include "crescendo.certificateVolume" (list (index . 0) "tls" (include "crescendo.tlsSecret" .)) }}
{{- end -}}

{{- define "crescendo.tlsMount" -}}
- name: tls
  mountPath: /etc/crescendo/tls
  readOnly: true
{{- end -}}

{{/* Does etcd speak TLS with this controller? Then the secret with its client certificate, else nothing. */}}
{{- define "crescendo.storeSecret" -}}
{{- if eq .Values.store.kind "etcd" -}}
{{- if .Values.etcd.bundled.enabled -}}
{{ include "crescendo.tlsSecret" (list . "etcdClient") }}
{{- else -}}
{{ .Values.etcd.external.tls.existingSecret }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* How the controllers know people and services. */}}
{{- define "crescendo.accessEnv" -}}
{{- $v := .Values -}}
{{- if $v.auth.tokens.existingSecret }}
- name: CRESCENDO_AUTH_TOKENS
  value: /etc/crescendo/tokens/{{ $v.auth.tokens.key }}
{{- end }}
{{- with $v.auth.oidc }}
{{- if .issuer }}
- name: CRESCENDO_OIDC_ISSUER
  value: {{ .issuer | quote }}
- name: CRESCENDO_OIDC_AUDIENCE
  value: {{ .audience | quote }}
- name: CRESCENDO_OIDC_ROLE_CLAIM
  value: {{ .roleClaim | quote }}
- name: CRESCENDO_OIDC_TENANT_CLAIM
  value: {{ .tenantClaim | quote }}
{{- with .pageClientId }}
- name: CRESCENDO_OIDC_PAGE_CLIENT_ID
  value: {{ . | quote }}
- name: CRESCENDO_OIDC_PAGE_SCOPE
  value: {{ $v.auth.oidc.pageScope | quote }}
{{- end }}
- name: CRESCENDO_OIDC_FETCH_PAUSE_SECONDS
  value: {{ .fetchPauseSeconds | int | quote }}
{{- end }}
{{- end }}
- name: CRESCENDO_TENANTS
  value: /etc/crescendo/tenants/tenants.yaml
{{- if $v.controller.webhookSecret }}
- name: CRESCENDO_WEBHOOK_SECRETS
  value: /etc/crescendo/webhooks
{{- end }}
{{- if eq $v.audit.to "stdout" }}
- name: CRESCENDO_AUDIT_LOG
  value: "-"
{{- end }}
{{- end -}}

{{/* What every process that opens a bucket is told about it. Keys come from a file, or from the service account. */}}
{{- define "crescendo.bucketEnv" -}}
{{- if eq .Values.objectStore.kind "s3" }}
{{- with .Values.objectStore.s3 }}
- name: AWS_REGION
  value: {{ .region | quote }}
{{- if .endpoint }}
- name: AWS_ENDPOINT_URL_S3
  value: {{ .endpoint | quote }}
{{- if hasPrefix "http://" .endpoint }}
- name: AWS_ALLOW_HTTP
  value: "true"
{{- end }}
{{- end }}
{{- if .virtualHostedStyle }}
- name: AWS_VIRTUAL_HOSTED_STYLE_REQUEST
  value: "true"
{{- end }}
{{- if .disableBulkDelete }}
- name: AWS_DISABLE_BULK_DELETE
  value: "true"
{{- end }}
{{- if .existingSecret }}
- name: AWS_SHARED_CREDENTIALS_FILE
  value: /etc/crescendo/object-store/{{ .key }}
{{- end }}
{{- if .caSecret }}
- name: AWS_CA_BUNDLE
  value: /etc/crescendo/object-store-ca/ca.crt
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "crescendo.objectStoreUrl" -}}
{{- if eq .Values.objectStore.kind "s3" -}}
s3://{{ .Values.objectStore.s3.bucket }}{{ with .Values.objectStore.s3.prefix }}/{{ . }}{{ end }}
{{- else -}}
file://{{ .Values.objectStore.mountPath }}
{{- end -}}
{{- end -}}

{{/* Port of a URL, or that of its scheme. */}}
{{- define "crescendo.portOf" -}}
{{- $authority := regexReplaceAll "^[a-z]+://([^/]*).*$" . "${1}" -}}
{{- $port := regexFind ":[0-9]+$" $authority | trimPrefix ":" -}}
{{ $port | default (ternary "80" "443" (hasPrefix "http://" .)) }}
{{- end -}}

{{/* A way out to a server outside of this release, by its URL; call with (list url cidrs). */}}
{{- define "crescendo.egressTo" -}}
- ports:
    - port: {{ include "crescendo.portOf" (index . 0) }}
      protocol: TCP
  {{- with index . 1 }}
  to:
    {{- with include "crescendo.cidrs" . | trim }}{{ . | nindent 4 }}{{ end }}
  {{- end }}
{{- end -}}

{{/* Ways out that every process may need. */}}
{{- define "crescendo.commonEgress" -}}
{{- with .Values.otlp }}
{{- if .endpoint }}
{{ include "crescendo.egressTo" (list .endpoint .cidrs) }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "crescendo.bucketEgress" -}}
{{- if eq .Values.objectStore.kind "s3" }}
{{- with .Values.objectStore.s3 }}
# The bucket, and with a role of the service account the server that gives out its keys.
{{ include "crescendo.egressTo" (list (.endpoint | default "https://s3.amazonaws.com") .cidrs) }}
{{- end }}
{{- end }}
{{- end -}}
