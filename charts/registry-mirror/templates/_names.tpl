{{/* The name of every object of a release. */}}
{{- define "registry-mirror.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "registry-mirror.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{/* The selector of the operator's Pods; it never changes. */}}
{{- define "registry-mirror.selector" -}}
app.kubernetes.io/name: registry-mirror
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Not the operator's own `managed-by`, by which it finds the objects of mirrors. */}}
{{- define "registry-mirror.ownLabels" -}}
{{ include "registry-mirror.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The chart's labels and commonLabels. */}}
{{- define "registry-mirror.labels" -}}
{{- include "registry-mirror.labelsAnd" (list . dict) -}}
{{- end -}}

{{/* The labels above and a user's, which can't override them: (list . LABELS). */}}
{{- define "registry-mirror.labelsAnd" -}}
{{- $all := first . -}}
{{- merge (include "registry-mirror.ownLabels" $all | fromYaml) (last . | default dict) ($all.Values.commonLabels | default dict) | toYaml -}}
{{- end -}}

{{- define "registry-mirror.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "registry-mirror.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount to use, or set serviceAccount.create=true" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "registry-mirror.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* "true" on OpenShift, which assigns users and groups to Pods and refuses fixed ones. */}}
{{- define "registry-mirror.openshift" -}}
{{- $openshift := .Values.openshift | toString -}}
{{- if or (eq $openshift "true") (and (ne $openshift "false") (.Capabilities.APIVersions.Has "security.openshift.io/v1")) -}}
true
{{- end -}}
{{- end -}}

{{/* The security context of the chart's own Pods. */}}
{{- define "registry-mirror.podSecurityContext" -}}
{{- $context := .Values.podSecurityContext | default dict -}}
{{- include "registry-mirror.openshift" . | eq "true" | ternary (omit $context "runAsUser" "runAsGroup" "fsGroup") $context | toYaml -}}
{{- end -}}

{{/* "true" where the API server is to check what the operator writes. Values that are reused from an older chart have none. */}}
{{- define "registry-mirror.admissionPolicies" -}}
{{- $enabled := (.Values.admissionPolicies | default dict).enabled | toString -}}
{{- $known := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1" -}}
{{- if or (eq $enabled "true") (and (ne $enabled "false") $known) -}}
true
{{- end -}}
{{- end -}}

{{/* Fails on values by their former names, but null: (list PATH VALUES (dict OLD NEW)). */}}
{{- define "registry-mirror.refuseRenamed" -}}
{{- $path := index . 0 -}}
{{- $values := index . 1 -}}
{{- range $old, $new := index . 2 -}}
{{- if not (kindIs "invalid" (index $values $old)) -}}
{{- printf "%s.%s is now %s.%s: set the new name and remove the old one from your values; --set %s.%s=null removes one that Helm reuses" $path $old $path $new $path $old | fail -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name of the node agent's objects. */}}
{{- define "registry-mirror.agent" -}}
{{- printf "%s-agent" (include "registry-mirror.fullname" . | trunc 49 | trimSuffix "-") -}}
{{- end -}}

{{- define "registry-mirror.agentSelector" -}}
{{- merge (dict "app.kubernetes.io/component" "node-agent") (include "registry-mirror.selector" . | fromYaml) | toYaml -}}
{{- end -}}

{{- define "registry-mirror.agentLabels" -}}
{{- merge (dict "app.kubernetes.io/component" "node-agent") (include "registry-mirror.labels" . | fromYaml) | toYaml -}}
{{- end -}}

{{/* The directories of a node's runtime: those that the agent writes, and read-only those with the configuration. */}}
{{- define "registry-mirror.agentPaths" -}}
{{- $agent := .Values.nodeAgent -}}
{{- if $agent.certsDir -}}
write: [{{ $agent.certsDir | quote }}]
{{- else if eq $agent.runtime "crio" -}}
read: [/etc/containers, /etc/crio]
write: [/etc/containers/certs.d, /etc/containers/registries.conf.d]
{{- else if eq $agent.runtime "containerd" -}}
read: [/etc/containerd]
write: [/etc/containerd/certs.d{{ if $agent.setConfigPath }}, /etc/containerd/conf.d{{ end }}]
{{- else -}}
write: [/var/lib/rancher/{{ $agent.runtime }}/agent/etc/containerd/certs.d]
{{- end -}}
{{- end -}}

{{/* The parts of the Pod that the agent and its cleanup share. */}}
{{- define "registry-mirror.agentPod" -}}
{{- $agent := .Values.nodeAgent -}}
{{- $paths := include "registry-mirror.agentPaths" . | fromYaml -}}
enableServiceLinks: false
# The mirror has to answer the node, not a Pod; and the agent works before the node's network plugin does.
hostNetwork: true
dnsPolicy: Default
terminationGracePeriodSeconds: 10
securityContext:
  # The directories are root's.
  runAsUser: 0
  runAsGroup: 0
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
{{- range $index, $path := $paths.read }}
  - name: read-{{ $index }}
    hostPath:
      path: {{ $path }}
      type: Directory
{{- end }}
{{- range $index, $path := $paths.write }}
  - name: write-{{ $index }}
    hostPath:
      path: {{ $path | quote }}
      type: DirectoryOrCreate
{{- end }}
{{- with $agent.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $agent.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $agent.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $agent.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* The parts of the container that the agent and its cleanup share. */}}
{{- define "registry-mirror.agentContainer" -}}
{{- $agent := .Values.nodeAgent -}}
{{- $paths := include "registry-mirror.agentPaths" . | fromYaml -}}
{{- with $agent.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $agent.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
{{- range $index, $path := $paths.read }}
  - name: read-{{ $index }}
    mountPath: /host{{ $path }}
    readOnly: true
{{- end }}
{{- range $index, $path := $paths.write }}
  - name: write-{{ $index }}
    mountPath: {{ printf "/host%s" $path | quote }}
{{- end }}
{{- end -}}
