{{/* Pods of this release's components; call with (list $ "component" ...). */}}
{{- define "crescendo.peers" -}}
{{- $root := index . 0 -}}
{{- range rest . }}
- podSelector:
    matchLabels:
      {{- include "crescendo.selector" (list $root .) | nindent 6 }}
{{- end }}
{{- end -}}

{{- define "crescendo.cidrs" -}}
{{- range . }}
- ipBlock:
    cidr: {{ . }}
{{- end }}
{{- end -}}

{{/* A scrape from the monitoring namespace; call with (list $ port). */}}
{{- define "crescendo.scrapes" -}}
{{- $root := index . 0 -}}
- from:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ $root.Values.networkPolicy.metricsNamespace }}
  ports:
    - port: {{ index . 1 }}
      protocol: TCP
{{- end -}}

{{- define "crescendo.dns" -}}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ .Values.networkPolicy.dns.namespace }}
      podSelector:
        matchLabels:
          {{- toYaml .Values.networkPolicy.dns.podLabels | nindent 10 }}
  ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end -}}
