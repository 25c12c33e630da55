{{/* What all pods have, and what people add to them. Sections of the values that are meant for pods have the same keys; each is
     read here alone, and held against what the chart has itself. */}}

{{/* Labels that people may not set; call with (list "section of the values" section). */}}
{{- define "crescendo.checkPodLabels" -}}
{{- $at := index . 0 -}}
{{- range $key, $value := (index . 1).podLabels -}}
{{- if has $key (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "crescendo/pool") -}}
{{- fail (printf "%s.podLabels: %s is a label by which this chart finds its pods: leave it out" $at $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels and annotations of a pod; call with (list "section of the values" section "labels that select it"). No versions here:
     they would restart every process at every change of the chart. */}}
{{- define "crescendo.podMetadata" -}}
{{- include "crescendo.checkPodLabels" . -}}
{{- $section := index . 1 -}}
labels:
  {{- index . 2 | nindent 2 }}
  {{- with $section.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $section.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The sections of the values whose pods have a service account, by component, as JSON. */}}
{{- define "crescendo.accountSections" -}}
{{- $v := .Values -}}
{{- $sections := dict
      "controller" (dict "at" "controller" "account" $v.controller.serviceAccount)
      "curator" (dict "at" "curator" "account" $v.curator.serviceAccount)
      "trainer" (dict "at" "trainer" "account" $v.trainer.serviceAccount) -}}
{{- if $v.etcd.bundled.enabled -}}
{{- $_ := set $sections "etcd" (dict "at" "etcd.bundled" "account" $v.etcd.bundled.serviceAccount) -}}
{{- end -}}
{{- if $v.test.enabled }}{{- $_ := set $sections "test" (dict "at" "test" "account" $v.test.serviceAccount) }}{{- end -}}
{{- if $v.library.fetch.files }}{{- $_ := set $sections "fetch" (dict "at" "library.fetch" "account" $v.library.fetch.serviceAccount) }}{{- end -}}
{{- if eq $v.tls.source "generated" -}}
{{- $_ := set $sections "certificates" (dict "at" "tls.generated" "account" $v.tls.generated.serviceAccount) -}}
{{- end -}}
{{- $sections | toJson -}}
{{- end -}}

{{/* Name of a component's service account; call with (list $ "component"). */}}
{{- define "crescendo.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $section := get (include "crescendo.accountSections" $root | fromJson) (index . 1) -}}
{{- $section.account.name | default (printf "%s-%s" (include "crescendo.name" $root) (index . 1)) -}}
{{- end -}}

{{/* What every pod has. Only what makes certificates talks to the Kubernetes API and gets a token; service links would add
     CRESCENDO_* variables that the processes read as their own. A number that is null is left to the cluster. Call with
     (list $ "component"). */}}
{{- define "crescendo.podBase" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ include "crescendo.serviceAccount" . }}
automountServiceAccountToken: {{ eq (index . 1) "certificates" }}
enableServiceLinks: false
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- range $key := list "runAsUser" "runAsGroup" "fsGroup" }}
  {{- $number := get $root.Values.podSecurity $key }}
  {{- if $number }}
  {{ $key }}: {{ int64 $number }}
  {{- end }}
  {{- end }}
  # A large volume is not walked at every start.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* Where pods may run. They are spread evenly over nodes unless a constraint of the section says how; one without a selector is
     for the section's own pods. Call with (list section "labels that select them" "ScheduleAnyway"), without the last if they
     are not spread. */}}
{{- define "crescendo.where" -}}
{{- $section := index . 0 -}}
{{- $own := dict "matchLabels" (index . 1 | fromYaml) -}}
{{- $spread := list -}}
{{- $byNode := "" -}}
{{- if gt (len .) 2 }}{{- $byNode = index . 2 }}{{- end -}}
{{- range $section.topologySpreadConstraints -}}
{{- $spread = append $spread (merge (dict) . (dict "labelSelector" $own)) -}}
{{- if eq .topologyKey "kubernetes.io/hostname" }}{{- $byNode = "" }}{{- end -}}
{{- end -}}
{{- if $byNode -}}
{{- $spread = prepend $spread (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" $byNode "labelSelector" $own) -}}
{{- end -}}
{{- with $section.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $section $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with $spread }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "crescendo.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* A container's environment: the chart's, and what people add. A name twice is a warning of Helm 3, an error without the name
     of Helm 4, and no use to anybody. Call with (list "section of the values" section "the chart's"). */}}
{{- define "crescendo.env" -}}
{{- $at := index . 0 -}}
{{- $section := index . 1 -}}
{{- $seen := dict -}}
{{- range index . 2 | fromYamlArray }}{{- $_ := set $seen .name "is set by the chart already, by other values" }}{{- end -}}
{{- range $i, $entry := $section.extraEnv -}}
{{- with get $seen $entry.name -}}
{{- fail (printf "%s.extraEnv[%d].name: %s %s: leave it out" $at $i $entry.name .) -}}
{{- end -}}
{{- $_ := set $seen $entry.name "occurs twice" -}}
{{- end -}}
env:
  {{- index . 2 | nindent 2 }}
  {{- range $section.extraEnv }}
  - name: {{ .name }}
    {{- if hasKey . "secretName" }}
    valueFrom:
      secretKeyRef:
        name: {{ .secretName }}
        key: {{ .secretKey }}
    {{- else if hasKey . "valueFrom" }}
    valueFrom:
      {{- toYaml .valueFrom | nindent 6 }}
    {{- else }}
    value: {{ .value | quote }}
    {{- end }}
  {{- end }}
{{- with $section.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A container's mounts: the chart's, and what people add. Call as crescendo.env. */}}
{{- define "crescendo.mounts" -}}
{{- $at := index . 0 -}}
{{- $section := index . 1 -}}
{{- $seen := dict -}}
{{- range index . 2 | fromYamlArray }}{{- $_ := set $seen .mountPath "is where the chart mounts something itself: choose another" }}{{- end -}}
{{- range $i, $mount := $section.extraVolumeMounts -}}
{{- with get $seen $mount.mountPath -}}
{{- fail (printf "%s.extraVolumeMounts[%d].mountPath: %s %s" $at $i $mount.mountPath .) -}}
{{- end -}}
{{- $_ := set $seen $mount.mountPath "occurs twice: choose another" -}}
{{- end -}}
volumeMounts:
  {{- index . 2 | nindent 2 }}
  {{- with $section.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* A pod's volumes: the chart's, and what people add. Call with (list "section of the values" section "the chart's"), and with
     the name of a volume that a StatefulSet's claims make. */}}
{{- define "crescendo.volumes" -}}
{{- $at := index . 0 -}}
{{- $section := index . 1 -}}
{{- $seen := dict -}}
{{- $own := "is a volume of the chart itself: choose another name" -}}
{{- range index . 2 | fromYamlArray }}{{- $_ := set $seen .name $own }}{{- end -}}
{{- if gt (len .) 3 }}{{- $_ := set $seen (index . 3) $own }}{{- end -}}
{{- range $i, $volume := $section.extraVolumes -}}
{{- with get $seen $volume.name -}}
{{- fail (printf "%s.extraVolumes[%d].name: %s %s" $at $i $volume.name .) -}}
{{- end -}}
{{- $_ := set $seen $volume.name "occurs twice: choose another name" -}}
{{- end -}}
{{- range $i, $mount := $section.extraVolumeMounts -}}
{{- if not (hasKey $seen $mount.name) -}}
{{- fail (printf "%s.extraVolumeMounts[%d].name: there is no volume %s: add it to extraVolumes, or name one of %s" $at $i $mount.name (keys $seen | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
volumes:
  {{- index . 2 | nindent 2 }}
  {{- with $section.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Containers that people add. Unless they say otherwise they have as few rights as the chart's. Call with (list "section of the
     values" section "initContainers" "name of the chart's container"). */}}
{{- define "crescendo.extraContainers" -}}
{{- $at := index . 0 -}}
{{- $section := index . 1 -}}
{{- $kind := index . 2 -}}
{{- $seen := dict (index . 3) "is the chart's own container" -}}
{{- if eq $kind "sidecars" }}{{- range $section.initContainers }}{{- $_ := set $seen .name "is in initContainers too" }}{{- end }}{{- end -}}
{{- $containers := list -}}
{{- range $i, $container := get $section $kind -}}
{{- with get $seen $container.name -}}
{{- fail (printf "%s.%s[%d].name: %s %s: choose another name" $at $kind $i $container.name .) -}}
{{- end -}}
{{- $_ := set $seen $container.name "occurs twice" -}}
{{- $security := include "crescendo.containerSecurity" . | fromYaml -}}
{{- if hasKey $container "securityContext" }}{{- $security = dict }}{{- end -}}
{{- $containers = append $containers (merge (dict) $container $security) -}}
{{- end -}}
{{- with $containers }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "crescendo.initContainers" -}}
{{- with include "crescendo.extraContainers" (list (index . 0) (index . 1) "initContainers" (index . 2)) | trim }}
initContainers:
  {{- . | nindent 2 }}
{{- end }}
{{- end -}}
