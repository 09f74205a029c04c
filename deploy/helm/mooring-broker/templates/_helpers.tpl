{{/* The release's objects are named after it, without saying mooring-broker twice. */}}
{{- define "broker.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "broker.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "broker.labels" -}}
{{ include "broker.selector" . }}
app.kubernetes.io/component: broker
app.kubernetes.io/part-of: mooring
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "broker.image" -}}
{{- $i := .Values.image -}}
{{- if $i.digest -}}
{{- printf "%s@%s" $i.repository $i.digest -}}
{{- else -}}
{{- printf "%s:%s" $i.repository (default .Chart.AppVersion $i.tag) -}}
{{- end -}}
{{- end -}}

{{- define "broker.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "broker.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Seconds of drain.spread and drain.grace. */}}
{{- define "broker.spread" -}}
{{- $v := .Values.drain.spreadSeconds -}}
{{- if kindIs "invalid" $v -}}{{- ternary 0 30 (empty .Values.etcd.endpoints) -}}{{- else -}}{{- int $v -}}{{- end -}}
{{- end -}}
{{- define "broker.grace" -}}
{{- $v := .Values.drain.graceSeconds -}}
{{- if kindIs "invalid" $v -}}{{- ternary 10 60 (empty .Values.etcd.endpoints) -}}{{- else -}}{{- int $v -}}{{- end -}}
{{- end -}}

{{/* broker.yaml: what the chart knows, and config over it. */}}
{{- define "broker.config" -}}
{{- $etcd := .Values.etcd -}}
{{- $c := dict
  "apiVersion" "mooring.dev/v1alpha1" "kind" "BrokerConfiguration"
  "dataDir" "/var/lib/mooring-broker/data"
  "healthAddress" (printf ":%d" (int .Values.ports.health))
  "front" (dict "listen" (printf ":%d" (int .Values.ports.front)))
  "egress" (dict "listen" (printf ":%d" (int .Values.ports.egress))
    "publicEndpoint" (printf "https://%s-egress.%s.svc:%d" (include "broker.fullname" .) .Release.Namespace (int .Values.egressService.port)))
  "drain" (dict "spread" (printf "%ss" (include "broker.spread" .)) "grace" (printf "%ss" (include "broker.grace" .)))
  "audit" (dict "path" "-")
  "log" (dict "format" "json")
-}}
{{- if $etcd.endpoints -}}
{{- $store := dict "endpoints" $etcd.endpoints -}}
{{- if $etcd.secretName -}}
{{- $_ := set $store "caFile" (printf "/etc/mooring/etcd/%s" $etcd.keys.ca) -}}
{{- $_ := set $store "certFile" (printf "/etc/mooring/etcd/%s" $etcd.keys.cert) -}}
{{- $_ := set $store "keyFile" (printf "/etc/mooring/etcd/%s" $etcd.keys.key) -}}
{{- end -}}
{{- if $etcd.prefix -}}{{- $_ := set $store "prefix" $etcd.prefix -}}{{- end -}}
{{- $_ := set $c "store" (dict "etcd" $store) -}}
{{- $_ := set $c "peer" (dict "listen" (printf ":%d" (int .Values.ports.peer))) -}}
{{- end -}}
{{- if .Values.kamaji.enabled -}}
{{- $k := dict "enabled" true "image" (include "broker.image" .)
  "brokerEndpoint" (printf "%s.%s.svc:%d" (include "broker.fullname" .) .Release.Namespace (int .Values.frontService.port)) -}}
{{- with .Values.kamaji.namespaces -}}{{- $_ := set $k "namespaces" . -}}{{- end -}}
{{- $_ := set $c "kamaji" $k -}}
{{- end -}}
{{- toYaml (mergeOverwrite $c (deepCopy .Values.config)) -}}
{{- end -}}

{{/* What the schema can't say. */}}
{{- define "broker.check" -}}
{{- $v := .Values -}}
{{- $c := $v.config -}}
{{- if not $c.front.publicEndpoint -}}
{{- fail "config.front.publicEndpoint is required: the host:port by which edge sites reach the front Service" -}}
{{- end -}}
{{- if and (gt (int $v.replicas) 1) (not $v.etcd.endpoints) -}}
{{- fail (printf "replicas is %d, but the embedded store is one broker's alone: set etcd.endpoints to an external etcd, or replicas to 1" (int $v.replicas)) -}}
{{- end -}}
{{- range $v.etcd.endpoints -}}
{{- if and (hasPrefix "https://" .) (not $v.etcd.secretName) -}}
{{- fail "etcd.secretName is required with https endpoints: a Secret with the CA's certificate and a client's certificate and key (etcd.keys)" -}}
{{- end -}}
{{- end -}}
{{- if and $v.etcd.endpoints $v.persistence.existingClaim -}}
{{- fail "persistence.existingClaim is the embedded store's, and with etcd.endpoints there is none: take one away" -}}
{{- end -}}
{{- if and (gt (int (include "broker.spread" .)) 0) (le (int (include "broker.grace" .)) (int (include "broker.spread" .))) -}}
{{- fail (printf "drain.graceSeconds (%s) must be more than drain.spreadSeconds (%s)" (include "broker.grace" .) (include "broker.spread" .)) -}}
{{- end -}}
{{- if and (not $v.etcd.endpoints) (gt (int (include "broker.spread" .)) 0) -}}
{{- fail "drain.spreadSeconds is for nodes that move to another broker, and on the embedded store there is none: leave it out" -}}
{{- end -}}
{{- range $key, $by := dict "dataDir" "persistence" "adminSocket" "nothing: it is where the subcommands look" "healthAddress" "ports.health" "drain" "drain" "store" "etcd" "peer" "ports.peer" -}}
{{- if hasKey $c $key -}}
{{- fail (printf "config.%s is set by the chart; its value for that is %s" $key $by) -}}
{{- end -}}
{{- end -}}
{{- if hasKey $c.front "listen" -}}{{- fail "config.front.listen is set by the chart; its value for that is ports.front" -}}{{- end -}}
{{- if and $c.egress (hasKey $c.egress "listen") -}}{{- fail "config.egress.listen is set by the chart; its value for that is ports.egress" -}}{{- end -}}
{{- if and $c.kamaji (hasKey $c.kamaji "enabled") -}}{{- fail "config.kamaji.enabled is set by the chart, with the rights for it; its value for that is kamaji.enabled" -}}{{- end -}}
{{- if and $c.kamaji (hasKey $c.kamaji "namespaces") -}}{{- fail "config.kamaji.namespaces is set by the chart, with the rights for it; its value for that is kamaji.namespaces" -}}{{- end -}}
{{- if and $v.kamaji.enabled (not $v.serviceAccount.create) (not $v.serviceAccount.name) -}}
{{- fail "kamaji.enabled gives rights to a ServiceAccount: serviceAccount.create, or the name of one that is there" -}}
{{- end -}}
{{- $ports := list (int $v.ports.front) (int $v.ports.egress) (int $v.ports.health) (int $v.ports.peer) -}}
{{- if ne (len ($ports | uniq)) 4 -}}
{{- fail (printf "ports: each has to be another one, got front %d, egress %d, health %d, peer %d" (index $ports 0) (index $ports 1) (index $ports 2) (index $ports 3)) -}}
{{- end -}}
{{- if and $v.frontService.nodePort (eq $v.frontService.type "ClusterIP") -}}
{{- fail "frontService.nodePort is for the types NodePort and LoadBalancer, not ClusterIP" -}}
{{- end -}}
{{- end -}}
