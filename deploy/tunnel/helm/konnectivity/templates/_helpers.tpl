{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{- define "konnectivity.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{/* Of a part: (list . "agent"). */}}
{{- define "konnectivity.selector" -}}
{{- $part := index . 1 }}
{{- with index . 0 -}}
app.kubernetes.io/name: {{ .Chart.Name }}-{{ $part }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- end }}

{{- define "konnectivity.release" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "konnectivity.labels" -}}
{{ include "konnectivity.selector" . }}
{{ include "konnectivity.release" (index . 0) }}
{{- end }}

{{- define "konnectivity.image" -}}
{{- with .Values.image }}
{{- if .registry }}{{ trimSuffix "/" .registry }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* Flags of a map, as arguments. Numbers of values are floats, and large ones would be written as 1e+06. */}}
{{- define "konnectivity.settings" -}}
{{- range $flag, $value := . }}
{{- if kindIs "float64" $value }}{{ $value = int64 $value }}{{ end }}
- {{ printf "--%s=%v" $flag $value | quote }}
{{- end }}
{{- end }}

{{- define "konnectivity.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "konnectivity.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "konnectivity.spread" -}}
- topologyKey: kubernetes.io/hostname
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "konnectivity.selector" . | nindent 6 }}
{{- end }}

{{- define "konnectivity.agentEnvironment" -}}
PROXY_SERVER_HOST: {{ join "," .Values.agent.servers | quote }}
PROXY_SERVER_PORT: {{ .Values.agent.port | toString | quote }}
{{- end }}
