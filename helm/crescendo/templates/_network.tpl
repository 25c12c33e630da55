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

{{/* Scrapes from the namespaces of the monitoring; call with (list $ port). */}}
{{- define "crescendo.scrapes" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.networkPolicy.metricsNamespaces -}}
- from:
    - namespaceSelector:
        matchExpressions:
          - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}
  ports:
    - port: {{ index $ 1 }}
      protocol: TCP
{{- end -}}
{{- end -}}

{{- define "crescendo.dns" -}}
{{- $dns := .Values.networkPolicy.dns -}}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ $dns.namespace }}
      podSelector:
        matchLabels:
          {{- toYaml $dns.podLabels | nindent 10 }}
    {{- with include "crescendo.cidrs" $dns.cidrs | trim }}{{ . | nindent 4 }}{{ end }}
  ports:
    {{- range $dns.ports }}
    - port: {{ . }}
      protocol: UDP
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end -}}
