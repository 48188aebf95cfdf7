{{- define "mail-token-broker.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "mail-token-broker.fullname" -}}
{{- $name := include "mail-token-broker.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* The full name with a suffix, at most 63 characters: "mail-token-broker.suffixed" (list $ "stop"). */ -}}
{{- define "mail-token-broker.suffixed" -}}
{{- $root := index . 0 }}{{ $suffix := index . 1 }}
{{- printf "%s-%s" (include "mail-token-broker.fullname" $root | trunc (int (sub 62 (len $suffix))) | trimSuffix "-") $suffix }}
{{- end }}

{{- /* The namespace of every namespaced object, except those in the namespaces that the broker watches. */ -}}
{{- define "mail-token-broker.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{- define "mail-token-broker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "mail-token-broker.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "mail-token-broker.leaseName" -}}
{{- .Values.leaderElection.leaseName | default (include "mail-token-broker.fullname" .) }}
{{- end }}

{{- /*
Merges maps into one YAML map with each key once; the last map wins: "mail-token-broker.merged" (list a b). A nil counts as
an empty map.
*/ -}}
{{- define "mail-token-broker.merged" -}}
{{- $all := dict }}
{{- range . }}
{{- range $key, $value := . }}
{{- $_ := set $all $key $value }}
{{- end }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{- /* The two labels that select objects of this release, with the user's values where commonLabels sets them. */ -}}
{{- define "mail-token-broker.selectorLabels" -}}
{{- $own := dict "app.kubernetes.io/name" (include "mail-token-broker.name" .) "app.kubernetes.io/instance" .Release.Name }}
{{- $given := pick .Values.commonLabels "app.kubernetes.io/name" "app.kubernetes.io/instance" }}
{{- include "mail-token-broker.merged" (list $own $given) }}
{{- end }}

{{- /* The labels that select pods: the same, with podLabels. */ -}}
{{- define "mail-token-broker.podSelectorLabels" -}}
{{- $own := include "mail-token-broker.selectorLabels" . | fromYaml }}
{{- $given := pick .Values.podLabels "app.kubernetes.io/name" "app.kubernetes.io/instance" }}
{{- include "mail-token-broker.merged" (list $own $given) }}
{{- end }}

{{- /* The labels of every object. A label that commonLabels sets has the user's value, and occurs once. */ -}}
{{- define "mail-token-broker.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" (.Chart.AppVersion | toString)
  "app.kubernetes.io/part-of" "mail-token-broker"
  "app.kubernetes.io/managed-by" .Release.Service }}
{{- include "mail-token-broker.merged" (list $own (include "mail-token-broker.selectorLabels" . | fromYaml) .Values.commonLabels) }}
{{- end }}

{{- /* The labels of every object and further maps; the last map wins: "mail-token-broker.labelsWith" (list $ map). */ -}}
{{- define "mail-token-broker.labelsWith" -}}
{{- $own := include "mail-token-broker.labels" (index . 0) | fromYaml }}
{{- include "mail-token-broker.merged" (prepend (rest .) $own) }}
{{- end }}

{{- /* The labels of an alert: its severity, and alertLabels, which win: "mail-token-broker.alertLabels" (list $ "critical"). */ -}}
{{- define "mail-token-broker.alertLabels" -}}
{{- include "mail-token-broker.merged" (list (dict "severity" (index . 1)) (index . 0).Values.metrics.prometheusRule.alertLabels) }}
{{- end }}

{{- /* Annotations as a field of metadata; nothing without annotations: "mail-token-broker.annotations" (list map map). */ -}}
{{- define "mail-token-broker.annotations" -}}
{{- with include "mail-token-broker.merged" . | fromYaml }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* global.imageRegistry replaces the registry in image.repository: the part before the first slash, if that part is a host. */ -}}
{{- define "mail-token-broker.image" -}}
{{- $image := .Values.image }}
{{- $repository := $image.repository }}
{{- with (.Values.global | default dict).imageRegistry }}
{{- $first := splitList "/" $repository | first }}
{{- if and (contains "/" $repository) (or (contains "." $first) (contains ":" $first) (eq $first "localhost")) }}
{{- $repository = trimPrefix (printf "%s/" $first) $repository }}
{{- end }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository }}
{{- end }}
{{- if $image.digest }}{{ $repository }}@{{ $image.digest }}{{ else }}{{ $repository }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* imagePullSecrets and those of global, each once, as a YAML list. global's may be plain names. */ -}}
{{- define "mail-token-broker.imagePullSecrets" -}}
{{- $all := list }}
{{- range concat .Values.imagePullSecrets ((.Values.global | default dict).imagePullSecrets | default list) }}
{{- $all = append $all (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- with $all | uniq }}{{ toYaml . }}{{ end }}
{{- end }}

{{- /* Whether the cluster is OpenShift, which chooses users and groups, and whose DNS pods listen on 5353: "true" or nothing. */ -}}
{{- define "mail-token-broker.onOpenShift" -}}
{{- if eq (toString .Values.openshift) "auto" }}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" }}true{{ end }}
{{- else if eq (toString .Values.openshift) "true" }}true
{{- end }}
{{- end }}

{{- /* A security context, without user and group on OpenShift, which chooses them: "…securityContext" (list $ context). */ -}}
{{- define "mail-token-broker.securityContext" -}}
{{- $context := index . 1 }}
{{- if include "mail-token-broker.onOpenShift" (index . 0) }}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" }}
{{- end }}
{{- toYaml $context }}
{{- end }}

{{- define "mail-token-broker.identityFolder" -}}
/var/run/secrets/mailtoken.dev/identity
{{- end }}

{{- define "mail-token-broker.trustFolder" -}}
/var/run/secrets/mailtoken.dev/trust
{{- end }}

{{- /* Whether the broker may read objects of the cluster: ClusterMailProviders and namespaces. "true" or nothing. */ -}}
{{- define "mail-token-broker.readsCluster" -}}
{{- if or (not .Values.namespaces) .Values.clusterMailProviders }}true{{ end }}
{{- end }}

{{- define "mail-token-broker.metricsAddress" -}}
{{- $address := .Values.metrics.bindAddress }}
{{- printf "%s:%d" (contains ":" $address | ternary (printf "[%s]" $address) $address) (int .Values.metrics.port) }}
{{- end }}

{{- /* Arguments that differ from the broker's defaults, as a YAML list; empty when there are none. */ -}}
{{- define "mail-token-broker.args" -}}
{{- $args := list }}
{{- if ne (int .Values.metrics.port) 8080 }}
{{- $args = append $args (printf "--metrics-addr=%s" (include "mail-token-broker.metricsAddress" .)) }}
{{- end }}
{{- range .Values.namespaces }}
{{- $args = append $args (printf "--namespace=%s" .) }}
{{- end }}
{{- if not .Values.leaderElection.enabled }}
{{- $args = append $args "--leader-elect=false" }}
{{- else if ne (include "mail-token-broker.leaseName" .) "mail-token-broker" }}
{{- $args = append $args (printf "--lease-name=%s" (include "mail-token-broker.leaseName" .)) }}
{{- end }}
{{- if ne (int .Values.concurrency) 64 }}
{{- $args = append $args (printf "--concurrency=%d" (int .Values.concurrency)) }}
{{- end }}
{{- range .Values.denyCIDRs }}
{{- $args = append $args (printf "--deny-cidr=%s" .) }}
{{- end }}
{{- range .Values.allowPrivateCIDRs }}
{{- $args = append $args (printf "--allow-private-cidr=%s" .) }}
{{- end }}
{{- range .Values.allowPrivateCIDRsForCluster }}
{{- $args = append $args (printf "--allow-private-cidr-cluster=%s" .) }}
{{- end }}
{{- with .Values.egressProxy }}
{{- $args = append $args (printf "--egress-proxy=%s" .) }}
{{- end }}
{{- range .Values.noProxy }}
{{- $args = append $args (printf "--no-proxy=%s" .) }}
{{- end }}
{{- if .Values.identityToken.audience }}
{{- $args = append $args (printf "--identity-token-file=%s/token" (include "mail-token-broker.identityFolder" .)) }}
{{- end }}
{{- if .Values.allowServiceAccountRef }}
{{- $args = append $args "--allow-service-account-ref" }}
{{- end }}
{{- if ne .Values.requestTimeout "10s" }}
{{- $args = append $args (printf "--request-timeout=%s" .Values.requestTimeout) }}
{{- end }}
{{- if not .Values.probe.enabled }}
{{- $args = append $args "--probe=false" }}
{{- end }}
{{- if ne .Values.logFormat "json" }}
{{- $args = append $args (printf "--log-format=%s" .Values.logFormat) }}
{{- end }}
{{- $args = concat $args .Values.extraArgs }}
{{- if $args }}
{{- prepend $args "run" | toYaml }}
{{- end }}
{{- end }}

{{- /* The environment, in which each name occurs once; extraEnv wins. */ -}}
{{- define "mail-token-broker.env" -}}
{{- /* With POD_UID, a restarted container continues immediately with its pod's lease and claims. */ -}}
{{- $uid := dict "fieldRef" (dict "fieldPath" "metadata.uid") }}
{{- $env := list (dict "name" "POD_UID" "valueFrom" $uid) }}
{{- /* The environment sets the value, so that extraArgs can override it with the flag. */ -}}
{{- if and (ne .Values.metrics.bindAddress "0.0.0.0") (eq (int .Values.metrics.port) 8080) }}
{{- $env = append $env (dict "name" "MTB_METRICS_ADDR" "value" (include "mail-token-broker.metricsAddress" .)) }}
{{- end }}
{{- if ne .Values.logLevel "info" }}
{{- $env = append $env (dict "name" "RUST_LOG" "value" .Values.logLevel) }}
{{- end }}
{{- if include "mail-token-broker.trustVolume" . }}
{{- /* Set both: with SSL_CERT_DIR alone, the broker would not read the system's own file. */ -}}
{{- $env = append $env (dict "name" "SSL_CERT_FILE" "value" "/etc/ssl/certs/ca-certificates.crt") }}
{{- $env = append $env (dict "name" "SSL_CERT_DIR" "value" (include "mail-token-broker.trustFolder" .)) }}
{{- end }}
{{- $given := list }}
{{- range .Values.extraEnv }}{{ $given = append $given .name }}{{ end }}
{{- $all := list }}
{{- range $env }}
{{- if not (has .name $given) }}{{ $all = append $all . }}{{ end }}
{{- end }}
{{- toYaml (concat $all .Values.extraEnv) }}
{{- end }}

{{- /* The source of the volume with the trust bundle; nothing without a bundle. */ -}}
{{- define "mail-token-broker.trustVolume" -}}
{{- $trust := .Values.trustBundle | default dict }}
{{- $configMap := $trust.configMap | default dict }}
{{- $secret := $trust.secret | default dict }}
{{- if $configMap.name }}
configMap:
  name: {{ $configMap.name }}
  items:
    - key: {{ $configMap.key | default "ca.crt" | quote }}
      path: trust-bundle.crt
{{- else if $secret.name }}
secret:
  secretName: {{ $secret.name }}
  items:
    - key: {{ $secret.key | default "ca.crt" | quote }}
      path: trust-bundle.crt
{{- end }}
{{- end }}

{{- /* A probe with the chart's handler and the user's settings: "mail-token-broker.probe" (list path settings). */ -}}
{{- define "mail-token-broker.probe" -}}
{{- $handler := dict "httpGet" (dict "path" (index . 0) "port" "metrics") }}
{{- toYaml (mergeOverwrite $handler (deepCopy (index . 1))) }}
{{- end }}

{{- /*
Whether Helm is connected to a cluster, which reports its kinds: "true" or nothing. "helm template" knows only groups and
versions.
*/ -}}
{{- define "mail-token-broker.knowsKinds" -}}
{{- if .Capabilities.APIVersions.Has "v1/Secret" }}true{{ end }}
{{- end }}

{{- /*
Whether to render the ValidatingAdmissionPolicy: "true" or nothing. "auto" renders it if the broker has rights in the whole
cluster. The cluster must have the API. Without a cluster, the chart assumes the API, which Kubernetes has since 1.30.
*/ -}}
{{- define "mail-token-broker.admissionPolicy" -}}
{{- $has := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" }}
{{- $served := or $has (not (include "mail-token-broker.knowsKinds" .)) }}
{{- $wanted := toString .Values.admissionPolicy.enabled }}
{{- if and $served (or (eq $wanted "true") (and (eq $wanted "auto") (include "mail-token-broker.readsCluster" .))) }}true{{ end }}
{{- end }}

{{- /* Rejects combinations that the schema cannot reject. */ -}}
{{- define "mail-token-broker.validate" -}}
{{- if and (not .Values.leaderElection.enabled) (gt (int .Values.replicaCount) 1) }}
{{- fail "leaderElection.enabled=false needs replicaCount=1" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) }}
{{- fail "metrics.serviceMonitor.enabled needs metrics.service.enabled" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled }}
{{- fail "metrics.serviceMonitor.enabled and metrics.podMonitor.enabled would scrape every pod twice: choose one" }}
{{- end }}
{{- $rule := .Values.metrics.prometheusRule }}
{{- if and $rule.enabled (not (or .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled $rule.job)) }}
{{- fail "metrics.prometheusRule.enabled needs metrics.serviceMonitor.enabled, metrics.podMonitor.enabled or metrics.prometheusRule.job: the alerts select by the job label" }}
{{- end }}
{{- $trust := .Values.trustBundle | default dict }}
{{- if and (($trust.configMap | default dict).name) (($trust.secret | default dict).name) }}
{{- fail "trustBundle.configMap and trustBundle.secret exclude each other: put all certificates into one of them" }}
{{- end }}
{{- if and .Values.clusterMailProviders (not .Values.namespaces) }}
{{- fail "clusterMailProviders=true needs namespaces; a broker of all namespaces always reads ClusterMailProviders" }}
{{- end }}
{{- if and .Values.noProxy (not .Values.egressProxy) }}
{{- range .Values.extraEnv }}{{ if eq .name "MTB_EGRESS_PROXY" }}{{ $_ := set $ "proxyByEnv" true }}{{ end }}{{ end }}
{{- if not $.proxyByEnv }}
{{- fail "noProxy needs egressProxy (or MTB_EGRESS_PROXY in extraEnv): without a proxy every connection is direct" }}
{{- end }}
{{- end }}
{{- end }}
