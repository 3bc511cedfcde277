{{- define "mesh.backbone" -}}
{{- if .Values.backbone -}}
{{ .Values.backbone }}
{{- else -}}
nats://mesh-nats.{{ .Release.Namespace }}.svc:4222?replicas={{ .Values.nats.replicas }}
{{- end -}}
{{- end -}}
