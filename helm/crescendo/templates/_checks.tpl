{{/* Contradictions between values that a schema cannot see, or cannot explain. Each names the value and what is right. */}}
{{- define "crescendo.check" -}}
{{- $v := .Values -}}
{{- $name := include "crescendo.name" . -}}
{{- if not $v.image.registry -}}
{{- fail "image.registry: is empty: set it to the registry that you pushed the images to, such as registry.example.com/crescendo" -}}
{{- end -}}
{{- $external := gt (len $v.etcd.external.endpoints) 0 -}}
{{- if eq $v.store.kind "embedded" -}}
{{- if gt (int $v.controller.replicas) 1 -}}
{{- fail (printf "controller.replicas: is %d with store.kind embedded, which one controller alone can use: set controller.replicas to 1, or store.kind to etcd" (int $v.controller.replicas)) -}}
{{- end -}}
{{- if $v.etcd.bundled.enabled -}}
{{- fail "etcd.bundled.enabled: is true with store.kind embedded: set etcd.bundled.enabled to false, or store.kind to etcd" -}}
{{- end -}}
{{- if $external -}}
{{- fail "etcd.external.endpoints: are given with store.kind embedded: leave them out, or set store.kind to etcd" -}}
{{- end -}}
{{- else -}}
{{- if and $v.etcd.bundled.enabled $external -}}
{{- fail "etcd.external.endpoints: are given while etcd.bundled.enabled is true: set etcd.bundled.enabled to false to use them, or leave them out" -}}
{{- end -}}
{{- if not (or $v.etcd.bundled.enabled $external) -}}
{{- fail "etcd.external.endpoints: are empty while etcd.bundled.enabled is false: give the URLs of your etcd, or set etcd.bundled.enabled to true" -}}
{{- end -}}
{{- end -}}
{{- $https := 0 -}}
{{- range $v.etcd.external.endpoints }}{{- if hasPrefix "https://" . }}{{- $https = add1 $https }}{{- end }}{{- end -}}
{{- if and $external (gt (int $https) 0) (lt (int $https) (len $v.etcd.external.endpoints)) -}}
{{- fail "etcd.external.endpoints: are partly http and partly https: use one of them for all" -}}
{{- end -}}
{{- if and (gt (int $https) 0) (not $v.etcd.external.tls.existingSecret) -}}
{{- fail "etcd.external.tls.existingSecret: is empty with https endpoints: name a secret with ca.crt, tls.crt and tls.key" -}}
{{- end -}}
{{- if and $v.etcd.external.tls.existingSecret (eq (int $https) 0) -}}
{{- fail "etcd.external.tls.existingSecret: is given without https endpoints: leave it out, or begin etcd.external.endpoints with https://" -}}
{{- end -}}
{{- $secrets := $v.tls.existingSecrets -}}
{{- $wanted := list "controller" "curator" "trainer" -}}
{{- if $v.etcd.bundled.enabled }}{{- $wanted = concat $wanted (list "etcd" "etcdClient") }}{{- end -}}
{{- if $v.test.enabled }}{{- $wanted = append $wanted "test" }}{{- end -}}
{{- range $wanted -}}
{{- if and (eq $v.tls.source "existingSecrets") (not (index $secrets .)) -}}
{{- fail (printf "tls.existingSecrets.%s: is empty with tls.source existingSecrets: name a secret with tls.crt, tls.key and ca.crt" .) -}}
{{- end -}}
{{- end -}}
{{- range $of, $secret := $secrets -}}
{{- if and $secret (ne $v.tls.source "existingSecrets") -}}
{{- fail (printf "tls.existingSecrets.%s: is given with tls.source %s, which makes the secrets itself: leave it out, or set tls.source to existingSecrets" $of $v.tls.source) -}}
{{- end -}}
{{- end -}}
{{- if ge (int $v.tls.certManager.renewBeforeHours) (int $v.tls.certManager.durationHours) -}}
{{- fail (printf "tls.certManager.renewBeforeHours: is %d: it must be less than tls.certManager.durationHours, which is %d" (int $v.tls.certManager.renewBeforeHours) (int $v.tls.certManager.durationHours)) -}}
{{- end -}}
{{- if and $v.auth.oidc.issuer (not $v.auth.oidc.audience) -}}
{{- fail "auth.oidc.audience: is empty with auth.oidc.issuer: name the audience, or tokens that were made for other services would be let in" -}}
{{- end -}}
{{- if and $v.auth.oidc.audience (not $v.auth.oidc.issuer) -}}
{{- fail "auth.oidc.issuer: is empty with auth.oidc.audience: give the issuer's URL, or leave the audience out" -}}
{{- end -}}
{{- $s3 := $v.objectStore.s3 -}}
{{- if and (eq $v.objectStore.kind "s3") (not $s3.bucket) -}}
{{- fail "objectStore.s3.bucket: is empty with objectStore.kind s3: name the bucket, or set objectStore.kind to volume" -}}
{{- end -}}
{{- if and (eq $v.objectStore.kind "volume") $s3.bucket -}}
{{- fail "objectStore.s3.bucket: is given with objectStore.kind volume: set objectStore.kind to s3, or leave it out" -}}
{{- end -}}
{{- if and (eq $v.objectStore.kind "s3") $v.objectStore.existingClaim -}}
{{- fail "objectStore.existingClaim: is given with objectStore.kind s3: leave it out, or set objectStore.kind to volume" -}}
{{- end -}}
{{- if and $s3.existingSecret $s3.serviceAccountAnnotations -}}
{{- fail "objectStore.s3.serviceAccountAnnotations: are given beside objectStore.s3.existingSecret, whose keys would be used: leave one of them out" -}}
{{- end -}}
{{- range $tenant, $limits := merge (dict "default" $v.tenants.default) $v.tenants.listed -}}
{{- if and (hasKey $limits "burst") (not (hasKey $limits "callsPerSecond")) -}}
{{- fail (printf "tenants: burst of %s says nothing without callsPerSecond: give both" $tenant) -}}
{{- end -}}
{{- end -}}
{{- if hasKey $v.tenants.default "queue" -}}
{{- fail "tenants.default.queue: tenants that are not listed are in the queue called default: leave it out" -}}
{{- end -}}
{{- range $tenant, $limits := $v.tenants.listed -}}
{{- if and $limits.queue (not (hasKey $v.tenants.queues $limits.queue)) -}}
{{- fail (printf "tenants.listed.%s.queue: there is no queue %s below tenants.queues: %s" $tenant $limits.queue (keys $v.tenants.queues | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- $entries := dict "tenants.default" $v.tenants.default -}}
{{- range $tenant, $entry := $v.tenants.listed }}{{- $_ := set $entries (printf "tenants.listed.%s" $tenant) $entry }}{{- end -}}
{{- range $path, $entry := $entries -}}
{{- range $index, $webhook := $entry.webhooks | default list -}}
{{- $here := regexMatch "^http://(localhost|127([.][0-9]+){3}|\\[::1\\])(:[0-9]+)?(/|$)" $webhook.url -}}
{{- if not (or $here $webhook.allowHttp (hasPrefix "https://" $webhook.url)) -}}
{{- fail (printf "%s.webhooks[%d].url: is http to another machine: use https, or say allowHttp: true beside it" $path $index) -}}
{{- end -}}
{{- if and $webhook.secret (not $v.controller.webhookSecret) -}}
{{- fail (printf "%s.webhooks[%d].secret: is %s, and there are no secrets to sign with: set controller.webhookSecret to a secret with that key" $path $index $webhook.secret) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $queue := $v.tenants.queues -}}
{{- range $device, $slots := $queue.guaranteed -}}
{{- if and (hasKey ($queue.max | default dict) $device) (lt (int (get $queue.max $device)) (int $slots)) -}}
{{- fail (printf "tenants.queues.%s.max.%s: %d is less than the %d that it is sure of" $name $device (int (get $queue.max $device)) (int $slots)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $device, $there := $v.tenants.clusterSlots -}}
{{- $sure := 0 -}}
{{- range $v.tenants.queues -}}
{{- $sure = add $sure (int (get (.guaranteed | default dict) $device | default 0)) -}}
{{- end -}}
{{- if gt (int $sure) (int $there) -}}
{{- fail (printf "tenants.clusterSlots.%s: the queues are sure of %d, and there are %d" $device (int $sure) (int $there)) -}}
{{- end -}}
{{- end -}}
{{- $beginnings := dict -}}
{{- range $class, $entry := $v.tenants.classes -}}
{{- $from := printf "%d" (int $entry.from) -}}
{{- if hasKey $beginnings $from -}}
{{- fail (printf "tenants.classes.%s.from: %s is that of class %s too: each class begins at its own priority" $class $from (get $beginnings $from)) -}}
{{- end -}}
{{- $_ := set $beginnings $from $class -}}
{{- end -}}
{{- if le (int $v.controller.ranksLostAfterSeconds) (int $v.controller.silentAfterSeconds) -}}
{{- fail (printf "controller.ranksLostAfterSeconds: is %d: it must be more than controller.silentAfterSeconds, which is %d" (int $v.controller.ranksLostAfterSeconds) (int $v.controller.silentAfterSeconds)) -}}
{{- end -}}
{{- range $section, $ports := dict "controller" $v.controller "curator" $v.curator "trainer" $v.trainer -}}
{{- if eq (int $ports.port) (int $ports.metricsPort) -}}
{{- fail (printf "%s.metricsPort: is %d, as %s.port is: give it another port" $section (int $ports.metricsPort) $section) -}}
{{- end -}}
{{- end -}}
{{- range $of := list "curator" "trainer" -}}
{{- $seen := dict -}}
{{- range $i, $pool := (include "crescendo.pools" (list $ $of) | fromJson).pools -}}
{{- $at := printf "%s.pools[%d] (%s)" $of $i $pool.name -}}
{{- if hasKey $seen $pool.name -}}
{{- fail (printf "%s.name: occurs twice: pools need different names" $at) -}}
{{- end -}}
{{- $_ := set $seen $pool.name true -}}
{{- if lt (int $pool.terminationGracePeriodSeconds) (add 15 (int $pool.drainSeconds) | int) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds: is %d: it must be at least %d, 15 more than drainSeconds" $at (int $pool.terminationGracePeriodSeconds) (add 15 (int $pool.drainSeconds))) -}}
{{- end -}}
{{- range $kind := list "requests" "limits" -}}
{{- if hasKey (index $pool.resources $kind) $pool.gpuResource -}}
{{- fail (printf "%s.resources.%s: names %s: set gpus of the pool instead" $at $kind $pool.gpuResource) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $curators := 0 -}}
{{- range $i, $pool := (include "crescendo.pools" (list . "curator") | fromJson).pools -}}
{{- $at := printf "curator.pools[%d] (%s)" $i $pool.name -}}
{{- /* Null is however many there are, and one to begin with. */}}
{{- $curators = add $curators (ternary 1 (int $pool.replicas) (kindIs "invalid" $pool.replicas)) -}}
{{- if gt (int $pool.gpus) 1 -}}
{{- fail (printf "%s.gpus: is %d: a curator computes on one GPU: set gpus to 1, and replicas to the number of GPUs, which is %d" $at (int $pool.gpus) (mul (int $pool.gpus) (int $pool.replicas))) -}}
{{- end -}}
{{- if gt (int $pool.maxReplicas) 0 -}}
{{- if lt (int $pool.maxReplicas) (int $pool.replicas) -}}
{{- fail (printf "%s.maxReplicas: is %d: it must be at least replicas, which is %d, or 0 for no autoscaler" $at (int $pool.maxReplicas) (int $pool.replicas)) -}}
{{- end -}}
{{- if eq (int $pool.replicas) 0 -}}
{{- fail (printf "%s.replicas: is 0 with maxReplicas %d, and an autoscaler keeps one at least: set replicas to at least 1" $at (int $pool.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq (int $curators) 0 -}}
{{- fail "curator.pools: have no curator, and nothing is trained without: set replicas of one pool to at least 1" -}}
{{- end -}}
{{- range $i, $pool := (include "crescendo.pools" (list . "trainer") | fromJson).pools -}}
{{- $at := printf "trainer.pools[%d] (%s)" $i $pool.name -}}
{{- if and (eq $pool.device "cpu") (gt (int $pool.gpus) 0) -}}
{{- fail (printf "%s.gpus: is %d with device cpu: set gpus to 0, or device to cuda" $at (int $pool.gpus)) -}}
{{- end -}}
{{- if and (eq $pool.device "cuda") (eq (int $pool.gpus) 0) -}}
{{- fail (printf "%s.gpus: is 0 with device cuda: set gpus to at least 1, or device to cpu" $at) -}}
{{- end -}}
{{- if and (gt (int $pool.gpus) 0) (gt (int $pool.slots) (int $pool.gpus)) -}}
{{- fail (printf "%s.gpus: is %d, fewer than its %d slots need: set gpus to at least %d, or slots to at most %d" $at (int $pool.gpus) (int $pool.slots) (int $pool.slots) (int $pool.gpus)) -}}
{{- end -}}
{{- include "crescendo.checkScale" (list $ $at $pool) -}}
{{- if and $pool.rdmaResource (eq (int $pool.rdmaDevices) 0) -}}
{{- fail (printf "%s.rdmaDevices: is 0 with rdmaResource %s: set it to at least 1, or leave rdmaResource empty" $at $pool.rdmaResource) -}}
{{- end -}}
{{- if and (gt (int $pool.rdmaDevices) 0) (not $pool.rdmaResource) -}}
{{- fail (printf "%s.rdmaResource: is empty with rdmaDevices %d: name the resource, such as rdma/hca" $at (int $pool.rdmaDevices)) -}}
{{- end -}}
{{- if and $pool.hostNetwork $v.networkPolicy.enabled (not $v.networkPolicy.hostNetworkCidrs) -}}
{{- fail (printf "networkPolicy.hostNetworkCidrs: is empty while %s.hostNetwork is true: give the address ranges of the nodes, from which that pool's pods call controllers and curators" $at) -}}
{{- end -}}
{{- end -}}
{{- $rules := "" -}}
{{- range $path, $content := .Files.Glob "alerts/*.yaml" -}}
{{- $rules = printf "%s\n%s" $rules (toString $content) -}}
{{- end -}}
{{- range $v.monitoring.prometheusRule.disabledAlerts -}}
{{- if not (regexMatch (printf "alert: %s\\b" .) $rules) -}}
{{- fail (printf "monitoring.prometheusRule.disabledAlerts: %s is no alert of this chart: docs/runbooks has one file for each" .) -}}
{{- end -}}
{{- end -}}
{{- include "crescendo.checkAccounts" . -}}
{{- include "crescendo.checkExternal" . -}}
{{- include "crescendo.checkFetch" . -}}
{{- include "crescendo.checkCluster" . -}}
{{- end -}}

{{- define "crescendo.checkAccounts" -}}
{{- $s3 := .Values.objectStore.s3 -}}
{{- range $component, $section := include "crescendo.accountSections" . | fromJson -}}
{{- if $section.account.name -}}
{{- if $section.account.annotations -}}
{{- fail (printf "%s.serviceAccount.annotations: are given beside serviceAccount.name, an account that exists already: annotate that one, or leave its name out" $section.at) -}}
{{- end -}}
{{- if and (has $component (list "curator" "trainer")) $s3.serviceAccountAnnotations -}}
{{- fail (printf "objectStore.s3.serviceAccountAnnotations: are given beside %s.serviceAccount.name, an account that exists already: annotate that one, or leave its name out" $section.at) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A trainer pool that follows the queues; call with (list $ "section of the values" pool). */}}
{{- define "crescendo.checkScale" -}}
{{- $v := (index . 0).Values -}}
{{- $at := index . 1 -}}
{{- $pool := index . 2 -}}
{{- if gt (int $pool.maxReplicas) 0 -}}
{{- if kindIs "invalid" $pool.replicas -}}
{{- fail (printf "%s.replicas: is null with maxReplicas %d: set it to the least number of trainers, such as 0" $at (int $pool.maxReplicas)) -}}
{{- end -}}
{{- if lt (int $pool.maxReplicas) (int $pool.replicas) -}}
{{- fail (printf "%s.maxReplicas: is %d: it must be at least replicas, which is %d, or 0 for a fixed number" $at (int $pool.maxReplicas) (int $pool.replicas)) -}}
{{- end -}}
{{- if not $v.trainer.autoscaling.prometheusUrl -}}
{{- fail (printf "trainer.autoscaling.prometheusUrl: is empty with %s.maxReplicas %d: give the URL of the Prometheus that scrapes the controllers" $at (int $pool.maxReplicas)) -}}
{{- end -}}
{{- if not $v.tenants.queues -}}
{{- fail (printf "tenants.queues: is empty with %s.maxReplicas %d, and what jobs want is counted by queue: have one, such as {default: {}}" $at (int $pool.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- range $pool.scaleByQueues -}}
{{- if eq (int $pool.maxReplicas) 0 -}}
{{- fail (printf "%s.scaleByQueues: is given without maxReplicas: set that, or leave it out" $at) -}}
{{- end -}}
{{- if not (hasKey $v.tenants.queues .) -}}
{{- fail (printf "%s.scaleByQueues: there is no queue %s below tenants.queues: %s" $at . (keys $v.tenants.queues | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
