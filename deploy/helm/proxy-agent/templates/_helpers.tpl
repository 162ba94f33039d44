{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{- define "proxy-agent.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{- define "proxy-agent.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "proxy-agent.labels" -}}
{{ include "proxy-agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "proxy-agent.image" -}}
{{- with .Values.image }}
{{- if .registry }}{{ trimSuffix "/" .registry }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The environment: each flag as its variable. */}}
{{- define "proxy-agent.environment" -}}
PROXY_AGENT_IP_ADDRESS: {{ join "," .Values.vips | quote }}
PROXY_AGENT_PORT: {{ join "," .Values.ports | quote }}
{{- range $flag, $value := .Values.settings }}
PROXY_AGENT_{{ $flag | upper | replace "-" "_" }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{/* What init container and agent have in common. */}}
{{- define "proxy-agent.container" -}}
image: {{ include "proxy-agent.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [/usr/bin/proxy-agent]
envFrom:
  - configMapRef:
      name: {{ include "proxy-agent.name" . }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  readOnlyRootFilesystem: true
  {{- if eq .Values.security "privileged" }}
  privileged: true
  {{- else }}
  privileged: false
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
    add: [NET_ADMIN]
  seccompProfile:
    type: RuntimeDefault
  {{- end }}
volumeMounts:
  - name: run
    mountPath: /run/proxy-agent
  - name: xtables-lock
    mountPath: /run/xtables.lock
  {{- if eq .Values.security "privileged" }}
  - name: bpffs
    mountPath: /sys/fs/bpf
    mountPropagation: HostToContainer
  - name: cgroup
    mountPath: /sys/fs/cgroup
    readOnly: true
  {{- end }}
{{- end }}

{{- define "proxy-agent.probe" -}}
{{- if eq .Values.listen.at "loopback" }}
host: 127.0.0.1
{{- end }}
port: {{ .Values.listen.port }}
{{- end }}

{{/* HAProxy's part for this cluster. */}}
{{- define "proxy-agent.cluster" -}}
listen apiserver
{{- range $vip := .Values.vips }}
{{- range $.Values.ports }}
    bind {{ if contains ":" $vip }}[{{ $vip }}]{{ else }}{{ $vip }}{{ end }}:{{ . }}
{{- end }}
{{- end }}
{{- range $number, $server := .Values.proxy.apiServers }}
    server apiserver-{{ $number }} {{ $server }} check
{{- end }}
{{- end }}
