{{/* Ways in from outside. */}}

{{/* Does this certificate's name stand for this host? A wildcard does for one label. Call with (list "name" "host"). */}}
{{- define "crescendo.covers" -}}
{{- $name := index . 0 -}}
{{- $host := index . 1 -}}
{{- if eq $name $host -}}
true
{{- else if and (hasPrefix "*." $name) (eq (trimPrefix "*" $name) (regexReplaceAll "^[^.]*" $host "")) -}}
true
{{- end -}}
{{- end -}}

{{/* Routes of the Gateway API had other versions before they were v1. Without a cluster it is v1. */}}
{{- define "crescendo.routeVersion" -}}
{{- $kind := .Values.external.gateway.kind -}}
{{- $found := "v1" -}}
{{- range list "v1alpha2" "v1alpha3" "v1" -}}
{{- if $.Capabilities.APIVersions.Has (printf "gateway.networking.k8s.io/%s/%s" . $kind) }}{{- $found = . }}{{- end -}}
{{- end -}}
{{- $found -}}
{{- end -}}

{{- define "crescendo.checkExternal" -}}
{{- $v := .Values -}}
{{- $e := $v.external -}}
{{- if $e.hosts -}}
{{- if ne (len $e.hosts) (int $v.controller.replicas) -}}
{{- fail (printf "external.hosts: are %d, and there are %d controllers (controller.replicas): give one for each, since only the leader answers and callers go through all" (len $e.hosts) (int $v.controller.replicas)) -}}
{{- end -}}
{{- if ne $v.tls.source "existingSecrets" -}}
{{- range $host := $e.hosts -}}
{{- $covered := "" -}}
{{- range include "crescendo.controllerNames" $ | fromJsonArray }}{{- $covered = printf "%s%s" $covered (include "crescendo.covers" (list . $host)) }}{{- end -}}
{{- if not $covered -}}
{{- fail (printf "external.hosts: %s is no name of the controllers' certificate: add it to tls.%s.controllerNames, or a wildcard for it" $host $v.tls.source) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.networkPolicy.enabled (not (or $v.networkPolicy.controllerClientNamespaces $v.networkPolicy.controllerClientCidrs)) -}}
{{- fail "networkPolicy.controllerClientNamespaces: is empty with external.hosts, and so is controllerClientCidrs: name the namespace of the ingress controller or gateway, or the addresses from which connections come, or nobody gets in" -}}
{{- end -}}
{{- end -}}
{{- range $key, $on := dict "ingress.enabled" $e.ingress.enabled "gateway.kind" $e.gateway.kind "service.nodePorts" $e.service.nodePorts -}}
{{- if and $on (not $e.hosts) -}}
{{- fail (printf "external.%s: is set without external.hosts: give a host name for each controller, or leave it out" $key) -}}
{{- end -}}
{{- end -}}
{{- if and (ne $e.service.type "ClusterIP") (not $e.hosts) -}}
{{- fail (printf "external.service.type: is %s without external.hosts: give a host name for each controller, which its certificate has to have" $e.service.type) -}}
{{- end -}}
{{- if and $e.service.nodePorts (ne (len $e.service.nodePorts) (len $e.hosts)) -}}
{{- fail (printf "external.service.nodePorts: are %d for %d hosts: give one for each, or none" (len $e.service.nodePorts) (len $e.hosts)) -}}
{{- end -}}
{{- if and $e.service.nodePorts (eq $e.service.type "ClusterIP") -}}
{{- fail "external.service.nodePorts: are given with external.service.type ClusterIP: set the type to NodePort or LoadBalancer, or leave them out" -}}
{{- end -}}
{{- if and (or $e.service.loadBalancerSourceRanges $e.service.loadBalancerClass) (ne $e.service.type "LoadBalancer") -}}
{{- fail (printf "external.service.loadBalancer%s: is given with external.service.type %s: set the type to LoadBalancer, or leave it out" (ternary "SourceRanges" "Class" (gt (len $e.service.loadBalancerSourceRanges) 0)) $e.service.type) -}}
{{- end -}}
{{- if and $e.gateway.kind (not $e.gateway.parentRefs) -}}
{{- fail "external.gateway.parentRefs: is empty with external.gateway.kind: name the gateway, such as [{name: public, namespace: gateways}]" -}}
{{- end -}}
{{- if and (eq $e.gateway.kind "GRPCRoute") (not $e.gateway.caConfigMap) -}}
{{- fail "external.gateway.caConfigMap: is empty with external.gateway.kind GRPCRoute: the gateway speaks TLS to the controllers and has to know their authority: name a ConfigMap with ca.crt, or use TLSRoute, which passes TLS through" -}}
{{- end -}}
{{- end -}}
