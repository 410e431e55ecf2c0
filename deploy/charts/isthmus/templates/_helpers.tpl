{{/* Labels of an object: (dict "root" $ "component" "control"). */}}
{{- define "isthmus.labels" -}}
{{ include "isthmus.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: isthmus
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* What Services and controllers find their Pods by. */}}
{{- define "isthmus.selector" -}}
app.kubernetes.io/name: isthmus
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "isthmus.image" -}}
{{ printf "%s/%s:%s" .root.Values.image.registry .name (default .root.Chart.AppVersion .root.Values.image.tag) }}
{{- end }}

{{- define "isthmus.trustDomain" -}}
{{ default (printf "%s.isthmus.local" .Values.cluster) .Values.trustDomain }}
{{- end }}

{{- define "isthmus.controlAddress" -}}
isthmus-control.{{ .Release.Namespace }}.svc:7400
{{- end }}

{{/* An address of an environment variable, as it stands before a port: IPv6 is bracketed. */}}
{{- define "isthmus.host" -}}
{{ if eq .root.Values.ipFamily "IPv6" }}[${ {{- .name -}} }]{{ else }}${ {{- .name -}} }{{ end }}
{{- end }}

{{/* All addresses of a Pod. */}}
{{- define "isthmus.any" -}}
{{ if eq .Values.ipFamily "IPv6" }}[::]{{ else }}0.0.0.0{{ end }}
{{- end }}

{{- define "isthmus.log" -}}
log:
  level: {{ .Values.log.level }}
  format: {{ .Values.log.format }}
{{- end }}

{{/* Environment: who and where a Pod is, for ${NAME} in configurations, and what values add. */}}
{{- define "isthmus.env" -}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
{{- range $name, $value := .Values.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{/*
GOMEMLIMIT, of a container's resources: nine tenths of its limit of memory, as what the kernel holds for it counts too. The downward API
knows the whole limit only. What the container's other environment says of it wins: (dict "env" .Values.env "resources" .Values.control.resources).
*/}}
{{- define "isthmus.memory" -}}
{{- $limits := get .resources "limits" | default dict }}
{{- $limit := get $limits "memory" | default "" }}
{{- if not (kindIs "string" $limit) }}{{ $limit = $limit | int64 | toString }}{{ end }}
{{- if and $limit (not (hasKey .env "GOMEMLIMIT")) }}
{{- $units := dict "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- $unit := get $units (regexFind "[A-Za-z]+$" $limit) | default 1 }}
- {name: GOMEMLIMIT, value: {{ mulf (regexFind "^[0-9.]+" $limit | float64) $unit 0.9 | int64 | quote }}}
{{- end }}
{{- end }}

{{- define "isthmus.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "isthmus.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What gateways and node proxies show control, and what they know it by. */}}
{{- define "isthmus.identityVolumes" -}}
- name: token
  projected:
    sources:
    - serviceAccountToken:
        path: token
        audience: spiffe://{{ include "isthmus.trustDomain" . }}/isthmus/control
        expirationSeconds: 3600
# Control writes it when it first starts; until then the Pod waits.
- name: trust-bundle
  configMap: {name: isthmus-trust-bundle, optional: false}
{{- end }}

{{- define "isthmus.identityMounts" -}}
- {name: token, mountPath: /var/run/secrets/isthmus, readOnly: true}
- {name: trust-bundle, mountPath: /var/run/isthmus/trust, readOnly: true}
{{- end }}

{{- define "isthmus.spread" -}}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- topologyKey: {{ $key }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "isthmus.selector" $ | nindent 6 }}
{{- end }}
{{- end }}

{{/* Where a component may run: (dict "root" $ "of" .Values.gateway). */}}
{{- define "isthmus.placement" -}}
priorityClassName: {{ .of.priorityClassName }}
{{- with .of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .of.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}
