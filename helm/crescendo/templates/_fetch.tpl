{{/* How files get into the library. */}}
{{- define "crescendo.fetchData" -}}
fetch.sh: |
  {{- .Files.Get "files/fetch/fetch.sh" | nindent 2 }}
list: |
  {{- range .Values.library.fetch.files }}
  {{ .sha256 }} {{ .path }} {{ .url }}
  {{- end }}
{{- end -}}

{{- define "crescendo.fetchJob" -}}
{{- $made := printf "%s%s" (include "crescendo.fetchData" .) (include "crescendo.fetchPod" .) -}}
{{ include "crescendo.name" . }}-fetch-{{ $made | sha256sum | trunc 8 }}
{{- end -}}

{{- define "crescendo.fetchMounts" -}}
- name: fetch
  mountPath: /etc/crescendo/fetch
  readOnly: true
- name: library
  mountPath: {{ .Values.library.mountPath }}
  {{- with .Values.library.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- if .Values.library.fetch.headersSecret }}
- name: headers
  mountPath: /etc/crescendo/headers
  readOnly: true
{{- end }}
{{- end -}}

{{- define "crescendo.fetchVolumes" -}}
- name: fetch
  configMap:
    name: {{ include "crescendo.name" . }}-fetch
- name: library
  persistentVolumeClaim:
    claimName: {{ .Values.library.fetch.claim | default .Values.library.existingClaim }}
{{- with .Values.library.fetch.headersSecret }}
{{ include "crescendo.secretVolume" (list "headers" .) }}
{{- end }}
{{- end -}}

{{- define "crescendo.fetchPod" -}}
{{- $at := "library.fetch" -}}
{{- $f := .Values.library.fetch -}}
{{- $selector := include "crescendo.selector" (list . "fetch") -}}
metadata:
  {{- include "crescendo.podMetadata" (list $at $f $selector) | nindent 2 }}
spec:
  {{- include "crescendo.podBase" (list . "fetch") | nindent 2 }}
  {{- with include "crescendo.where" (list $f $selector) | trim }}{{ . | nindent 2 }}{{ end }}
  # The same pod again: it goes on from what it has.
  restartPolicy: OnFailure
  containers:
    - name: fetch
      image: {{ include "crescendo.fullImage" (list "library.fetch.image" $f.image) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [sh, /etc/crescendo/fetch/fetch.sh, /etc/crescendo/fetch/list, {{ .Values.library.mountPath }}{{ if $f.headersSecret }}, /etc/crescendo/headers/headers{{ end }}]
      {{- include "crescendo.env" (list $at $f "# No settings of the image's user.\n- name: CURL_HOME\n  value: /etc/crescendo/fetch") | nindent 6 }}
      resources:
        {{- toYaml $f.resources | nindent 8 }}
      {{- include "crescendo.containerSecurity" . | nindent 6 }}
      {{- include "crescendo.mounts" (list $at $f (include "crescendo.fetchMounts" .)) | nindent 6 }}
  {{- include "crescendo.volumes" (list $at $f (include "crescendo.fetchVolumes" .)) | nindent 2 }}
{{- end -}}

{{- define "crescendo.checkFetch" -}}
{{- $library := .Values.library -}}
{{- $f := $library.fetch -}}
{{- if and $f.files (not $library.existingClaim) -}}
{{- fail "library.existingClaim: is empty with library.fetch.files: name the claim that curators and trainers read, and that the files go into" -}}
{{- end -}}
{{- if and $f.claim (not $f.files) -}}
{{- fail "library.fetch.files: is empty with library.fetch.claim: list the files, or leave the claim out" -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $i, $file := $f.files -}}
{{- if hasKey $seen $file.path -}}
{{- fail (printf "library.fetch.files[%d].path: %s occurs twice: choose another" $i $file.path) -}}
{{- end -}}
{{- $_ := set $seen $file.path true -}}
{{- end -}}
{{- end -}}
