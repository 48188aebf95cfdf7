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

{{- define "mail-token-broker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "mail-token-broker.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "mail-token-broker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mail-token-broker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mail-token-broker.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "mail-token-broker.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: mail-token-broker
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "mail-token-broker.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "mail-token-broker.identityFolder" -}}
/var/run/secrets/mailtoken.dev/identity
{{- end }}

{{- /* Arguments that differ from the broker's defaults, as a YAML list; empty when there are none. */ -}}
{{- define "mail-token-broker.args" -}}
{{- $args := list }}
{{- $metrics := .Values.metrics }}
{{- if or (ne $metrics.bindAddress "0.0.0.0") (ne (int $metrics.port) 8080) }}
{{- $host := contains ":" $metrics.bindAddress | ternary (printf "[%s]" $metrics.bindAddress) $metrics.bindAddress }}
{{- $args = append $args (printf "--metrics-addr=%s:%d" $host (int $metrics.port)) }}
{{- end }}
{{- range .Values.namespaces }}
{{- $args = append $args (printf "--namespace=%s" .) }}
{{- end }}
{{- if not .Values.leaderElection.enabled }}
{{- $args = append $args "--leader-elect=false" }}
{{- end }}
{{- if ne (int .Values.concurrency) 64 }}
{{- $args = append $args (printf "--concurrency=%d" (int .Values.concurrency)) }}
{{- end }}
{{- range .Values.allowPrivateCIDRs }}
{{- $args = append $args (printf "--allow-private-cidr=%s" .) }}
{{- end }}
{{- with .Values.egressProxy }}
{{- $args = append $args (printf "--egress-proxy=%s" .) }}
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
{{- if ne .Values.logFormat "json" }}
{{- $args = append $args (printf "--log-format=%s" .Values.logFormat) }}
{{- end }}
{{- $args = concat $args .Values.extraArgs }}
{{- if $args }}
{{- prepend $args "run" | toYaml }}
{{- end }}
{{- end }}

{{- define "mail-token-broker.env" -}}
{{- /* So that a container that starts again goes on at once with its pod's lease and claims. */ -}}
{{- $uid := dict "fieldRef" (dict "fieldPath" "metadata.uid") }}
{{- $env := list (dict "name" "POD_UID" "valueFrom" $uid) }}
{{- if ne .Values.logLevel "info" }}
{{- $env = append $env (dict "name" "RUST_LOG" "value" .Values.logLevel) }}
{{- end }}
{{- toYaml (concat $env .Values.extraEnv) }}
{{- end }}

{{- /* Combinations that the schema cannot refuse. */ -}}
{{- define "mail-token-broker.validate" -}}
{{- if and (not .Values.leaderElection.enabled) (gt (int .Values.replicaCount) 1) }}
{{- fail "leaderElection.enabled=false needs replicaCount=1" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) }}
{{- fail "metrics.serviceMonitor.enabled needs metrics.service.enabled" }}
{{- end }}
{{- if and .Values.metrics.prometheusRule.enabled (not .Values.metrics.serviceMonitor.enabled) }}
{{- fail "metrics.prometheusRule.enabled needs metrics.serviceMonitor.enabled: the alerts select by its job label" }}
{{- end }}
{{- end }}
