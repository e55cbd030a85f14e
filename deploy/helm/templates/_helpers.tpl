{{- define "flotilla.name" -}}
{{- if contains "flotilla" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-flotilla" (.Release.Name | trunc 41 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "flotilla.selector" -}}
app.kubernetes.io/name: flotilla
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "flotilla.labels" -}}
{{ include "flotilla.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "flotilla.peers" -}}
{{ include "flotilla.name" . }}-peers
{{- end -}}

{{- define "flotilla.secret" -}}
{{ .Values.secret.existing | default (printf "%s-mesh" (include "flotilla.name" .)) }}
{{- end -}}

{{- /* The names of the first nodes: a pod's name is its node's. */ -}}
{{- define "flotilla.founders" -}}
{{- $names := list -}}
{{- range $i := until (int .Values.founders) -}}
{{- $names = append $names (printf "%s-%d" (include "flotilla.name" $) $i) -}}
{{- end -}}
{{ join "," $names }}
{{- end -}}
