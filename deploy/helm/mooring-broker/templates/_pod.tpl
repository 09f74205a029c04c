{{- define "broker.pod" -}}
{{- $external := not (empty .Values.etcd.endpoints) -}}
serviceAccountName: {{ include "broker.serviceAccount" . }}
# The broker asks nothing of its own cluster but for Kamaji.
automountServiceAccountToken: {{ .Values.kamaji.enabled }}
terminationGracePeriodSeconds: {{ add (int (include "broker.grace" .)) 15 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
containers:
- name: broker
  image: {{ include "broker.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [serve]
  securityContext: {{- toYaml .Values.securityContext | nindent 4 }}
  env:
  - name: POD_IP
    valueFrom: {fieldRef: {fieldPath: status.podIP}}
  {{- if $external }}
  # In brackets for the sake of IPv6; they do IPv4 no harm.
  - name: MOORING_PEER_ADVERTISE
    value: "[$(POD_IP)]:{{ .Values.ports.peer }}"
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  ports:
  - {name: front-tcp, containerPort: {{ .Values.ports.front }}, protocol: TCP}
  - {name: front-udp, containerPort: {{ .Values.ports.front }}, protocol: UDP}
  - {name: egress, containerPort: {{ .Values.ports.egress }}, protocol: TCP}
  - {name: health, containerPort: {{ .Values.ports.health }}, protocol: TCP}
  {{- if $external }}
  - {name: peer, containerPort: {{ .Values.ports.peer }}, protocol: TCP}
  {{- end }}
  # The store may have to be recovered first: five minutes.
  startupProbe:
    httpGet: {path: /livez, port: health}
    periodSeconds: 2
    failureThreshold: 150
  livenessProbe:
    httpGet: {path: /livez, port: health}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  readinessProbe:
    httpGet: {path: /readyz, port: health}
    periodSeconds: 5
    timeoutSeconds: 3
    failureThreshold: 2
  resources: {{- toYaml .Values.resources | nindent 4 }}
  volumeMounts:
  - {name: config, mountPath: /etc/mooring/broker.yaml, subPath: broker.yaml, readOnly: true}
  - {name: data, mountPath: /var/lib/mooring-broker}
  - {name: run, mountPath: /run/mooring}
  {{- if and $external .Values.etcd.secretName }}
  - {name: etcd, mountPath: /etc/mooring/etcd, readOnly: true}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
- name: config
  configMap: {name: {{ include "broker.fullname" . }}}
- name: run
  emptyDir: {medium: Memory, sizeLimit: 16Mi}
{{- if or $external (not .Values.persistence.enabled) }}
- name: data
  emptyDir: {}
{{- else if .Values.persistence.existingClaim }}
- name: data
  persistentVolumeClaim: {claimName: {{ .Values.persistence.existingClaim }}}
{{- end }}
{{- if and $external .Values.etcd.secretName }}
- name: etcd
  secret: {secretName: {{ .Values.etcd.secretName }}, defaultMode: 0440}
{{- end }}
{{- with .Values.extraVolumes }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if not (kindIs "invalid" .Values.topologySpreadConstraints) }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 0 }}
{{- end }}
{{- else if gt (int .Values.replicas) 1 }}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "broker.selector" $ | nindent 6 }}
{{- end }}
{{- end }}
{{- end -}}
