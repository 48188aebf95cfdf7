{{- define "mail-token-relay.name" -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "mail-token-relay.selectorLabels" -}}
app.kubernetes.io/name: mail-token-relay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mail-token-relay.labels" -}}
{{ include "mail-token-relay.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "mail-token-relay.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* The ports of the protocols: the Service's, the container's, and the flag. */ -}}
{{- define "mail-token-relay.ports" -}}
{{- $all := dict
  "SMTP" (list (dict "name" "smtp" "port" 587 "target" 1587) (dict "name" "smtps" "port" 465 "target" 1465))
  "IMAP" (list (dict "name" "imap" "port" 143 "target" 1143) (dict "name" "imaps" "port" 993 "target" 1993))
  "POP3" (list (dict "name" "pop3" "port" 110 "target" 1110) (dict "name" "pop3s" "port" 995 "target" 1995)) }}
{{- $ports := list }}
{{- range .Values.protocols }}{{ $ports = concat $ports (get $all .) }}{{ end }}
{{- $ports | toJson }}
{{- end }}
