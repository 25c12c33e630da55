{{/* The certificates of a release, whoever makes them, as JSON {"leaves": [...]}: of which component, by which of the two
     authorities, under which names, with which roles, and for which end of a connection. */}}
{{- define "crescendo.leaves" -}}
{{- $name := include "crescendo.name" . -}}
{{- $ns := .Release.Namespace -}}
{{- $client := list "client auth" -}}
{{- $both := list "server auth" "client auth" -}}
{{- $node := list "urn:crescendo:role:node" -}}
{{- /* The command line in a controller's pod shows that pod's certificate, which says nothing of who calls. */}}
{{- $leaves := list
      (dict "of" "controller" "authority" "ca" "usages" $both "uris" list
        "names" (concat (list (printf "*.%s-controller.%s.svc" $name $ns) "localhost") (include "crescendo.controllerNames" . | fromJsonArray)))
      (dict "of" "curator" "authority" "ca" "usages" $both "uris" $node
        "names" (list (printf "*.%s-curator.%s.svc" $name $ns) "localhost"))
      (dict "of" "trainer" "authority" "ca" "usages" $both "uris" $node
        "names" (list (printf "*.%s-trainer.%s.svc" $name $ns) "localhost")) -}}
{{- if .Values.etcd.bundled.enabled -}}
{{- /* By name, not by wildcard: a member looks up the names of a peer's certificate to see whether its address is among them. */}}
{{- $members := list -}}
{{- range $i := until (int .Values.etcd.bundled.replicas) -}}
{{- $members = append $members (printf "%s-etcd-%d.%s-etcd.%s.svc" $name $i $name $ns) -}}
{{- end -}}
{{- $leaves = concat $leaves (list
      (dict "of" "etcd" "authority" "etcd-ca" "usages" $both "uris" list "names" (append $members "localhost"))
      (dict "of" "etcdClient" "authority" "etcd-ca" "usages" $client "uris" list "names" list)) -}}
{{- end -}}
{{- if .Values.test.enabled -}}
{{- $uris := list "urn:crescendo:role:submitter" (printf "urn:crescendo:tenant:%s" .Values.test.tenant) -}}
{{- $leaves = append $leaves (dict "of" "test" "authority" "ca" "usages" $client "uris" $uris "names" list) -}}
{{- end -}}
{{- dict "leaves" $leaves | toJson -}}
{{- end -}}

{{/* Further names of the controllers, by whoever makes their certificate. */}}
{{- define "crescendo.controllerNames" -}}
{{- (ternary .Values.tls.generated .Values.tls.certManager (eq .Values.tls.source "generated")).controllerNames | toJson -}}
{{- end -}}

{{/* With tls.source generated: Secrets that `crescendo certificates` writes, authorities first. */}}
{{- define "crescendo.authoritySecrets" -}}
{{- $name := include "crescendo.name" . -}}
{{- $secrets := list (printf "%s-ca" $name) -}}
{{- if .Values.etcd.bundled.enabled }}{{- $secrets = append $secrets (printf "%s-etcd-ca" $name) }}{{- end -}}
{{- $secrets | toJson -}}
{{- end -}}

{{- define "crescendo.generatedSecrets" -}}
{{- $secrets := include "crescendo.authoritySecrets" . | fromJsonArray -}}
{{- range (include "crescendo.leaves" . | fromJson).leaves -}}
{{- $secrets = append $secrets (include "crescendo.tlsSecret" (list $ .of)) -}}
{{- end -}}
{{- $secrets | toJson -}}
{{- end -}}

{{/* The file by which they are made. */}}
{{- define "crescendo.certificatePlan" -}}
{{- $name := include "crescendo.name" . -}}
{{- $lifetime := .Values.tls.generated.lifetime -}}
{{- $authorities := list -}}
{{- range include "crescendo.authoritySecrets" . | fromJsonArray -}}
{{- $authorities = append $authorities (dict "secret" . "commonName" . "lifetime" $.Values.tls.generated.authorityLifetime) -}}
{{- end -}}
{{- $certificates := list -}}
{{- range (include "crescendo.leaves" . | fromJson).leaves -}}
{{- $certificates = append $certificates (dict
      "secret" (include "crescendo.tlsSecret" (list $ .of))
      "authority" (printf "%s-%s" $name .authority)
      "commonName" (printf "%s-%s" $name (.of | kebabcase))
      "dnsNames" .names "uris" .uris "usages" .usages "lifetime" $lifetime
      "ipAddresses" (ternary (list "127.0.0.1") list (has "server auth" .usages))) -}}
{{- end -}}
{{- dict "authorities" $authorities "certificates" $certificates | toYaml -}}
{{- end -}}

{{/* The pod that makes what is due. */}}
{{- define "crescendo.certificatesPod" -}}
{{- $selector := include "crescendo.selector" (list . "certificates") -}}
metadata:
  {{- include "crescendo.podMetadata" (list "tls.generated" .Values.tls.generated $selector) | nindent 2 }}
spec:
  {{- include "crescendo.podBase" (list . "certificates") | nindent 2 }}
  {{- with include "crescendo.where" (list .Values.tls.generated $selector) | trim }}{{ . | nindent 2 }}{{ end }}
  restartPolicy: OnFailure
  activeDeadlineSeconds: 600
  containers:
    - name: certificates
      image: {{ include "crescendo.image" (list . "controller") }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [crescendo, certificates, renew, /etc/crescendo/certificates/plan.yaml]
      resources:
        requests: {cpu: 50m, memory: 64Mi}
        limits: {cpu: 500m, memory: 256Mi}
      {{- include "crescendo.containerSecurity" . | nindent 6 }}
      volumeMounts:
        - name: plan
          mountPath: /etc/crescendo/certificates
          readOnly: true
  volumes:
    - name: plan
      configMap:
        name: {{ include "crescendo.name" . }}-certificates
{{- end -}}
