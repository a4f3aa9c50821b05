//! The action for each reason. The status, `doctor` and docs/api.md use this table.

use crate::conditions::Reason;

const ADVICE: &[(Reason, &str)] = &[
    (
        Reason::InvalidSpec,
        "correct the field or object that the message names; the objects stay as last applied",
    ),
    (
        Reason::NotAllowed,
        "change the spec, or have an admin of the operator change its policy",
    ),
    (
        Reason::AddressTaken,
        "free the address or node port, or set another one in spec.service.clusterIP or spec.service.nodePort",
    ),
    (
        Reason::BucketConflict,
        "set another prefix in spec.storage.objectStore, or delete the other mirror",
    ),
    (
        Reason::BucketDenied,
        "correct spec.storage.objectStore.credentials and what they name, or the policy of the bucket; pulls continue \
         without the bucket",
    ),
    (
        Reason::BucketNotFound,
        "create the bucket, or correct its name in spec.storage.objectStore; pulls continue without it",
    ),
    (
        Reason::BucketUnreachable,
        "check the network, the store and the endpoint in spec.storage.objectStore; pulls continue without the bucket",
    ),
    (
        Reason::ReferenceNotFound,
        "create the object that the message names, or correct the spec",
    ),
    (Reason::ReferenceMalformed, CORRECT),
    (
        Reason::NoReadyReplicas,
        "kubectl describe pod and kubectl logs have the cause",
    ),
    (
        Reason::ApplyRejected,
        "have the quota, policy, webhook or permission that the message names changed",
    ),
    (
        Reason::UpgradeWaiting,
        "wait; if the message names a mirror that did not become ready, check that mirror",
    ),
    (
        Reason::UpgradeFailed,
        "kubectl describe pod has the cause; to go back, set mirrorImage of the chart or run helm rollback",
    ),
    (
        Reason::SecretNotFound,
        "create the Secret, or correct its name in the spec; servers load it without a restart",
    ),
    (Reason::SecretMalformed, CORRECT),
    (
        Reason::UpstreamRejected,
        "correct the Secret; until then the last good credentials stay in use, if there are any",
    ),
    (
        Reason::Unverified,
        "check that the upstream is up and does not limit requests; servers retry",
    ),
    (
        Reason::Loading,
        "if this persists, check that the operator can reach port 5001 of the Pods (NetworkPolicy)",
    ),
    (
        Reason::Unreachable,
        "check the network, spec.upstreams[].proxyURL and the registry",
    ),
    (
        Reason::RateLimited,
        "give the upstream credentials, or credentials with a higher limit",
    ),
    (
        Reason::ClaimPending,
        "kubectl describe pvc has the cause: a storage class, a quota or a node",
    ),
    (
        Reason::ResizeUnsupported,
        "use a storage class with allowVolumeExpansion, or restore the previous size",
    ),
    (
        Reason::RetentionPolicyNotApplied,
        "do not delete the mirror before this condition is gone; the operator needs the permission to delete \
         PersistentVolumeClaims",
    ),
    (Reason::Full, "enlarge the volume, or pin less content"),
    (
        Reason::Expiring,
        "renew the certificate, or check its renewal: cert-manager, spec.paused, the condition Accepted",
    ),
    (Reason::Malformed, CORRECT),
    (
        Reason::Expired,
        "renew the certificate; servers load it without a restart",
    ),
    (
        Reason::NotYetValid,
        "store a certificate in the Secret that is valid now; servers load it without a restart",
    ),
    (
        Reason::AgentAbsent,
        "enable the node agent of the chart (nodeAgent.enabled), or set nodeConfiguration.mode to Publish and copy the \
         files",
    ),
    (
        Reason::AgentUnresponsive,
        "check the Pods of the agent and that the operator can reach their port; agent and operator need the same version",
    ),
    (
        Reason::NotManaged,
        "add the mirror's namespace to those of the agent (nodeAgent.namespaces)",
    ),
    (
        Reason::Conflict,
        "remove the file that the agent reports, or the registry from the other mirror",
    ),
    (
        Reason::ConfigPathMissing,
        "set config_path = \"/etc/containerd/certs.d\" in containerd's configuration and restart containerd",
    ),
    (
        Reason::InlineMirrors,
        "move registry.mirrors and registry.configs of containerd's configuration into hosts.toml files, set config_path, \
         and restart containerd",
    ),
    (
        Reason::ReadOnly,
        "mount the directory writable into the agent's Pod, or configure these nodes with registry-mirror node-config",
    ),
    (
        Reason::Unsupported,
        "configure these nodes with registry-mirror node-config, or exclude them from the agent's DaemonSet",
    ),
    (
        Reason::Bypassed,
        "check that the mirror answers at status.endpoint.url from these nodes; they return to it by themselves",
    ),
    (Reason::PausedBySpec, "set spec.paused to false to continue"),
    (
        Reason::ManagedByAnother,
        "uninstall one of the two operators, or give each its own namespaces (watchNamespaces)",
    ),
];

const CORRECT: &str = "correct the object that the message names; servers load it without a restart";

impl Reason {
    /// Returns the action for a fault; `None` if the reason is none, or its message always has the action.
    pub fn advice(self) -> Option<&'static str> {
        let row = ADVICE.iter().find(|(reason, _)| *reason == self);
        row.map(|(_, advice)| *advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_an_action() {
        let without = [
            Reason::Serving,
            Reason::SpecAccepted,
            Reason::ReplicasReady,
            Reason::RolledOut,
            Reason::RollingOut,
            Reason::CredentialsAccepted,
            Reason::Reachable,
            Reason::VolumeReady,
            Reason::AllNodesConfigured,
            Reason::Resizing,
            Reason::CertificateReady,
            Reason::ScaledToZero,
            // The message has it.
            Reason::NameConflict,
        ];
        for reason in Reason::ALL {
            assert_eq!(reason.advice().is_some(), !without.contains(reason), "{reason}");
        }
    }
}
