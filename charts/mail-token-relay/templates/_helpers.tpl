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

{{- /* global.imageRegistry replaces the registry in image.repository: the part before the first slash, if that part is a host. */ -}}
{{- define "mail-token-relay.image" -}}
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
{{- define "mail-token-relay.imagePullSecrets" -}}
{{- $all := list }}
{{- range concat .Values.imagePullSecrets ((.Values.global | default dict).imagePullSecrets | default list) }}
{{- $all = append $all (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- with $all | uniq }}{{ toYaml . }}{{ end }}
{{- end }}

{{- /* Whether the cluster is OpenShift, which chooses users and groups, and whose DNS pods listen on 5353: "true" or nothing. */ -}}
{{- define "mail-token-relay.onOpenShift" -}}
{{- if eq (toString .Values.openshift) "auto" }}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" }}true{{ end }}
{{- else if eq (toString .Values.openshift) "true" }}true
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

{{- /* The source of the volume with the trust bundle; nothing without a bundle. */ -}}
{{- define "mail-token-relay.trustVolume" -}}
{{- with .Values.trustBundle }}
{{- if and .configMap.name .secret.name }}{{ fail "trustBundle.configMap and trustBundle.secret exclude each other: put all certificates into one of them" }}{{ end }}
{{- if .configMap.name }}
configMap:
  name: {{ .configMap.name }}
  items: [{key: {{ .configMap.key | quote }}, path: trust-bundle.crt}]
{{- else if .secret.name }}
secret:
  secretName: {{ .secret.name }}
  defaultMode: 288
  items: [{key: {{ .secret.key | quote }}, path: trust-bundle.crt}]
{{- end }}
{{- end }}
{{- end }}
