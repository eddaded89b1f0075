{{- define "replaceme.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "replaceme.labels" -}}
app.kubernetes.io/name: replaceme
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Labels by which pods are found: (dict "root" $ "part" "api") */}}
{{- define "replaceme.selector" -}}
app.kubernetes.io/name: replaceme
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{/* Pods that stay are replaced when the settings change. */}}
{{- define "replaceme.checksum" -}}
checksum/settings: {{ include (print .Template.BasePath "/settings.yaml") . | sha256sum }}
{{- end -}}

{{- define "replaceme.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- end -}}

{{- define "replaceme.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
envFrom:
  - configMapRef: {name: {{ include "replaceme.name" . }}}
{{- end -}}

{{/* What every pod mounts; the key of KEDA stays outside. */}}
{{- define "replaceme.mounts" -}}
- {name: secrets, mountPath: /run/secrets, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .Values.calibration.claimName }}
- {name: calibration, mountPath: /calibration, readOnly: true}
{{- end }}
{{- if .Values.authorities.configMapName }}
- {name: authorities, mountPath: /authorities, readOnly: true}
{{- end }}
{{- end -}}

{{- define "replaceme.volumes" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ .Values.secretName }}
          items:
            - {key: replaceme_database_url, path: replaceme_database_url}
            - {key: replaceme_broker_url, path: replaceme_broker_url}
            - {key: replaceme_encryption_key, path: replaceme_encryption_key}
      {{- range list "replaceme_hub_read_token" "replaceme_hub_write_token" "replaceme_metrics_key" }}
      - secret:
          name: {{ $.Values.secretName }}
          optional: true
          items:
            - {key: {{ . }}, path: {{ . }}}
      {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- with .Values.calibration.claimName }}
- name: calibration
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- with .Values.authorities }}
{{- if .configMapName }}
- name: authorities
  configMap:
    name: {{ .configMapName }}
    items:
      - {key: {{ .key }}, path: all.crt}
{{- end }}
{{- end }}
{{- end -}}

{{/* A part of a quantity, in bytes: (dict "of" "100Gi" "part" 0.5) */}}
{{- define "replaceme.bytes" -}}
{{- $sizes := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- $unit := regexFind "[A-Za-z]*$" .of }}
{{- mulf (trimSuffix $unit .of | float64) (get $sizes $unit) .part | int64 }}
{{- end -}}

{{/* The pod of a worker: (dict "root" $ "name" NAME "worker" VALUES "once" true) */}}
{{- define "replaceme.worker" -}}
metadata:
  labels:
    {{- include "replaceme.selector" (dict "root" .root "part" (printf "worker-%s" .name)) | nindent 4 }}
    replaceme/role: worker
  annotations:
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    {{- if not .once }}
    {{- include "replaceme.checksum" .root | nindent 4 }}
    {{- end }}
spec:
  {{- include "replaceme.pod" .root | nindent 2 }}
  restartPolicy: {{ ternary "Never" "Always" .once }}
  # the drain, and 20 s to end the runner and to release the job
  terminationGracePeriodSeconds: {{ add .root.Values.drainSeconds 20 }}
  {{- with .worker.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .worker.nodeSelector }}
  nodeSelector: {{ toJson . }}
  {{- end }}
  {{- with .worker.tolerations }}
  tolerations: {{ toJson . }}
  {{- end }}
  containers:
    - name: worker
      image: {{ .worker.image }}
      imagePullPolicy: {{ .worker.pullPolicy }}
      {{- include "replaceme.container" .root | nindent 6 }}
      {{- if .once }}
      command: [python, -m, worker.once, --queues, {{ .worker.kind }}]
      {{- else }}
      command:
        [python, -m, celery, --quiet, -A, worker.app, worker, --pool, prefork, --concurrency, "1", --loglevel, INFO,
         --hostname, celery@$(POD_NAME), --queues, {{ .worker.kind }}]
      {{- end }}
      env:
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        - {name: REPLACEME_DRAIN_SECONDS, value: {{ .root.Values.drainSeconds | quote }}}
        {{- if not (or .once .root.Values.cache.claimName) }}
        # what outlives a job shares the pod's disk with the next one; beyond its limit the pod would be evicted
        {{- range $name, $part := dict "REPLACEME_HUB_CACHE_BYTES" 0.5 "REPLACEME_STATISTICS_CACHE_BYTES" 0.1 }}
        {{- if not (hasKey $.root.Values.settings $name) }}
        - {name: {{ $name }}, value: {{ include "replaceme.bytes" (dict "of" $.worker.disk "part" $part) | quote }}}
        {{- end }}
        {{- end }}
        {{- end }}
      resources:
        requests:
          cpu: {{ .worker.cpu | quote }}
          memory: {{ .worker.memory }}
          ephemeral-storage: {{ .worker.disk }}
        limits:
          memory: {{ .worker.memory }}
          {{- if .worker.gpus }}
          {{ .worker.gpuResource }}: {{ .worker.gpus }}
          {{- end }}
      volumeMounts:
        {{- include "replaceme.mounts" .root | nindent 8 }}
        - {name: data, mountPath: /data}
        {{- if .root.Values.cache.claimName }}
        - {name: cache, mountPath: /data/hub-cache, subPath: hub-cache}
        - {name: cache, mountPath: /data/cache/statistics, subPath: statistics}
        {{- end }}
  volumes:
    {{- include "replaceme.volumes" .root | nindent 4 }}
    - name: data
      emptyDir: {sizeLimit: {{ .worker.disk }}}
    {{- with .root.Values.cache.claimName }}
    - name: cache
      persistentVolumeClaim: {claimName: {{ . }}}
    {{- end }}
{{- end -}}
