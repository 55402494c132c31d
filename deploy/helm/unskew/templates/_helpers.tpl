{{- define "unskew.name" -}}
{{- printf "%s" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "unskew.labels" -}}
app.kubernetes.io/name: unskew
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "unskew.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
{{- end -}}

{{- define "unskew.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "unskew.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* What every pod has: who it is, and what it may not do. */}}
{{- define "unskew.pod" -}}
serviceAccountName: {{ include "unskew.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "unskew.container" -}}
image: {{ include "unskew.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/*
The volume of a state belongs to root and, by fsGroup, to the group of these pods, which may write to it. Nobody else is
in that group; without this umask unskew refuses a state that a group may replace.
*/}}
{{- define "unskew.stateEnv" -}}
- name: UNSKEW_UMASK
  value: "007"
{{- end -}}

{{- define "unskew.redisEnv" -}}
{{- if and (not .Values.redis.url) (not .Values.redis.existingSecret) -}}
{{- fail "redis: give redis.url, or redis.existingSecret if the URL has a password" -}}
{{- end -}}
- name: UNSKEW_REDIS_URL
{{- if .Values.redis.existingSecret }}
  valueFrom: {secretKeyRef: {name: {{ .Values.redis.existingSecret }}, key: {{ .Values.redis.secretKey | quote }}}}
{{- else }}
  value: {{ .Values.redis.url | quote }}
{{- end }}
- name: UNSKEW_PREFIX
  value: {{ .Values.prefix | quote }}
- name: UNSKEW_PIPELINE
  value: {{ .Values.pipelineName | quote }}
{{- end -}}

{{- define "unskew.tablesEnv" -}}
{{- range $name := list "log" "archive" "deadLetters" "registry" -}}
{{- $place := index $.Values.tables $name -}}
{{- if and (hasPrefix "/data/" $place) (not $.Values.tables.existingClaim) -}}
{{- fail (printf "tables.%s is a folder below /data: give tables.existingClaim, or an address in an object store" $name) -}}
{{- end -}}
{{- end -}}
- name: UNSKEW_LOG
  value: {{ .Values.tables.log | quote }}
- name: UNSKEW_ARCHIVE
  value: {{ .Values.tables.archive | quote }}
{{- with .Values.tables.deadLetters }}
- name: UNSKEW_DEAD_LETTERS
  value: {{ . | quote }}
{{- end }}
{{- with .Values.tables.registry }}
- name: UNSKEW_REGISTRY
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "unskew.definitionsPath" -}}
{{- $given := 0 -}}
{{- range (list .Values.definitions.existingConfigMap .Values.definitions.files .Values.definitions.path) -}}
{{- if . -}}{{- $given = add1 $given -}}{{- end -}}
{{- end -}}
{{- if ne (int $given) 1 -}}
{{- fail "definitions: give one of definitions.existingConfigMap, definitions.files and definitions.path" -}}
{{- end -}}
{{ .Values.definitions.path | default "/definitions" }}
{{- end -}}

{{- define "unskew.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.tables.existingClaim }}
- {name: data, mountPath: /data}
{{- end }}
{{- if not .Values.definitions.path }}
- {name: definitions, mountPath: /definitions, readOnly: true}
{{- end }}
{{- if .Values.kafka.configSecret }}
- {name: kafka, mountPath: /etc/unskew/kafka, readOnly: true}
{{- end }}
{{- end -}}

{{- define "unskew.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.tables.existingClaim }}
- name: data
  persistentVolumeClaim: {claimName: {{ .Values.tables.existingClaim }}}
{{- end }}
{{- if not .Values.definitions.path }}
- name: definitions
  configMap: {name: {{ .Values.definitions.existingConfigMap | default (printf "%s-definitions" (include "unskew.name" .)) }}}
{{- end }}
{{- if .Values.kafka.configSecret }}
- name: kafka
  secret: {secretName: {{ .Values.kafka.configSecret }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "unskew.credentials" -}}
{{- with .Values.tables.credentialsSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end -}}
