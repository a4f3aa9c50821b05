//! The names of conditions and reasons, each defined once, and the combinations that occur.

use std::fmt;

macro_rules! names {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident),* $(,)? }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$inner])* $variant,)*
        }

        impl $name {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the name in the status.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// A condition's `type`.
    ConditionType {
        /// The summary: the spec is accepted, a server is available, and storage, certificate and credentials allow
        /// pulls.
        Ready,
        /// The spec can be acted on.
        Accepted,
        /// At least one replica answers.
        Available,
        /// A change is on its way to the replicas.
        Progressing,
        /// Upstreams take the credentials that they are given.
        CredentialsValid,
        /// Upstreams answer.
        UpstreamReachable,
        /// There is room to store what is pulled.
        StorageReady,
        /// There is a certificate to serve with.
        TLSReady,
        /// Each node with an agent pulls through the mirror. Not part of Ready.
        NodesConfigured,
        /// Nothing is changed for now.
        Paused,
        /// Two operators cover the mirror's namespace.
        OperatorConflict,
    }
}

names! {
    /// A condition's `reason`.
    Reason {
        /// Ready: pulls are served.
        Serving,
        /// Accepted: the spec is acted on.
        SpecAccepted,
        /// Accepted is False: the spec contradicts itself, or the stored object is malformed.
        InvalidSpec,
        /// Accepted is False: the operator's policy does not allow what the spec asks for.
        NotAllowed,
        /// Accepted is False: a name that the mirror needs is taken by an object that is not the mirror's.
        NameConflict,
        /// Accepted is False: the Service was deleted, and another object has its address or node port.
        AddressTaken,
        /// Accepted is False: another mirror has the bucket and the prefix.
        BucketConflict,
        /// Accepted is False: an object that the spec names is not there.
        ReferenceNotFound,
        /// Accepted is False: an object that the spec names does not hold what it should.
        ReferenceMalformed,
        /// Available: at least one replica is ready.
        ReplicasReady,
        /// Available is False: none is.
        NoReadyReplicas,
        /// Available is False: none is asked for.
        ScaledToZero,
        /// Progressing: a change is on its way.
        RollingOut,
        /// Progressing is False: the API server keeps rejecting an object of the mirror.
        ApplyRejected,
        /// Progressing is False: every replica runs what the spec asks for.
        RolledOut,
        /// Progressing is False: what a new version of the operator brought waits for its turn, and why.
        UpgradeWaiting,
        /// Progressing is False: the mirror has not become ready with a new version in time; others wait for it.
        UpgradeFailed,
        /// CredentialsValid: every upstream took them.
        CredentialsAccepted,
        /// CredentialsValid or TLSReady is False: the Secret is not there.
        SecretNotFound,
        /// CredentialsValid is False: the Secret does not hold what its type asks for.
        SecretMalformed,
        /// CredentialsValid is False: an upstream refused them.
        UpstreamRejected,
        /// CredentialsValid is Unknown: an upstream gave no verdict.
        Unverified,
        /// CredentialsValid is Unknown: replicas have not taken them up yet.
        Loading,
        /// UpstreamReachable: all answer.
        Reachable,
        /// UpstreamReachable is False: one does not answer.
        Unreachable,
        /// UpstreamReachable is False: one was asked too often.
        RateLimited,
        /// StorageReady: there is a volume, and room in it.
        VolumeReady,
        /// StorageReady is False: a claim is not bound.
        ClaimPending,
        /// StorageReady is False: the storage class does not let claims grow.
        ResizeUnsupported,
        /// StorageReady is False: a claim would not follow the retention policy when the mirror is deleted.
        RetentionPolicyNotApplied,
        /// StorageReady is False: nothing can be stored even after eviction.
        Full,
        /// StorageReady is False: the store refuses the credentials for the bucket, or lacks the permission for them.
        BucketDenied,
        /// StorageReady is False: the store has no bucket of the name.
        BucketNotFound,
        /// StorageReady is False: the store does not answer, or with an error.
        BucketUnreachable,
        /// StorageReady, while a claim grows.
        Resizing,
        /// TLSReady: there is a certificate, and it is valid.
        CertificateReady,
        /// TLSReady, with a sixth of the certificate's life left: it was not renewed when it should have been.
        Expiring,
        /// TLSReady is False: the Secret does not hold a certificate with its key.
        Malformed,
        /// TLSReady is False: the certificate is no longer valid.
        Expired,
        /// TLSReady is False: the certificate is not valid yet.
        NotYetValid,
        /// NodesConfigured: the container runtime of each node has the files.
        AllNodesConfigured,
        /// NodesConfigured is False: no agent runs.
        AgentAbsent,
        /// NodesConfigured is False: a file of another program, or another mirror, decides about a registry on a node.
        Conflict,
        /// NodesConfigured is False: containerd is not configured to read the files.
        ConfigPathMissing,
        /// NodesConfigured is False: containerd's configuration names mirrors itself.
        InlineMirrors,
        /// NodesConfigured is False: an agent can't change the directory.
        ReadOnly,
        /// NodesConfigured is False: an agent can't configure the container runtime of a node.
        Unsupported,
        /// NodesConfigured is False: an agent does not manage the mirror.
        NotManaged,
        /// NodesConfigured is False: an agent does not answer the operator, or its report is not readable.
        AgentUnresponsive,
        /// NodesConfigured is False: the mirror does not answer on a node, which pulls from the registries.
        Bypassed,
        /// Paused, as the spec asks.
        PausedBySpec,
        /// OperatorConflict: another operator manages the mirror, and the one that reports it changes nothing.
        ManagedByAnother,
    }
}

names! {
    /// A condition's `status`.
    Truth {
        /// Yes.
        True,
        /// No.
        False,
        /// Not known.
        Unknown,
    }
}

/// The statuses of each condition, with their reasons. The operator writes no other combination.
pub const SAID: &[(ConditionType, Truth, &[Reason])] = &[
    (ConditionType::Ready, Truth::True, &[Reason::Serving]),
    (
        ConditionType::Ready,
        Truth::False,
        &[
            Reason::InvalidSpec,
            Reason::NotAllowed,
            Reason::NameConflict,
            Reason::AddressTaken,
            Reason::BucketConflict,
            Reason::ReferenceNotFound,
            Reason::ReferenceMalformed,
            Reason::ClaimPending,
            Reason::SecretNotFound,
            Reason::Malformed,
            Reason::Expired,
            Reason::NotYetValid,
            Reason::NoReadyReplicas,
            Reason::ScaledToZero,
            Reason::ApplyRejected,
            Reason::SecretMalformed,
            Reason::UpstreamRejected,
        ],
    ),
    (ConditionType::Accepted, Truth::True, &[Reason::SpecAccepted]),
    (
        ConditionType::Accepted,
        Truth::False,
        &[
            Reason::InvalidSpec,
            Reason::NotAllowed,
            Reason::NameConflict,
            Reason::AddressTaken,
            Reason::BucketConflict,
            Reason::ReferenceNotFound,
            Reason::ReferenceMalformed,
        ],
    ),
    (ConditionType::Available, Truth::True, &[Reason::ReplicasReady]),
    (
        ConditionType::Available,
        Truth::False,
        &[Reason::NoReadyReplicas, Reason::ScaledToZero],
    ),
    (ConditionType::Progressing, Truth::True, &[Reason::RollingOut]),
    (
        ConditionType::Progressing,
        Truth::False,
        &[
            Reason::RolledOut,
            Reason::ApplyRejected,
            Reason::UpgradeWaiting,
            Reason::UpgradeFailed,
        ],
    ),
    (
        ConditionType::CredentialsValid,
        Truth::True,
        &[Reason::CredentialsAccepted],
    ),
    (
        ConditionType::CredentialsValid,
        Truth::False,
        &[
            Reason::SecretNotFound,
            Reason::SecretMalformed,
            Reason::UpstreamRejected,
        ],
    ),
    (
        ConditionType::CredentialsValid,
        Truth::Unknown,
        &[Reason::Unverified, Reason::Loading],
    ),
    (
        ConditionType::UpstreamReachable,
        Truth::True,
        &[Reason::Reachable],
    ),
    (
        ConditionType::UpstreamReachable,
        Truth::False,
        &[Reason::Unreachable, Reason::RateLimited],
    ),
    (
        ConditionType::StorageReady,
        Truth::True,
        &[Reason::VolumeReady, Reason::Resizing],
    ),
    (
        ConditionType::StorageReady,
        Truth::False,
        &[
            Reason::ClaimPending,
            Reason::ResizeUnsupported,
            Reason::RetentionPolicyNotApplied,
            Reason::Full,
            Reason::BucketDenied,
            Reason::BucketNotFound,
            Reason::BucketUnreachable,
        ],
    ),
    (
        ConditionType::TLSReady,
        Truth::True,
        &[Reason::CertificateReady, Reason::Expiring],
    ),
    (
        ConditionType::TLSReady,
        Truth::False,
        &[
            Reason::SecretNotFound,
            Reason::Malformed,
            Reason::Expired,
            Reason::NotYetValid,
        ],
    ),
    (
        ConditionType::NodesConfigured,
        Truth::True,
        &[Reason::AllNodesConfigured],
    ),
    (
        ConditionType::NodesConfigured,
        Truth::False,
        &[
            Reason::AgentAbsent,
            Reason::Conflict,
            Reason::ConfigPathMissing,
            Reason::InlineMirrors,
            Reason::ReadOnly,
            Reason::Unsupported,
            Reason::NotManaged,
            Reason::AgentUnresponsive,
            Reason::Bypassed,
        ],
    ),
    (ConditionType::Paused, Truth::True, &[Reason::PausedBySpec]),
    (
        ConditionType::OperatorConflict,
        Truth::True,
        &[Reason::ManagedByAnother],
    ),
];

/// Returns each condition with each status and reason that it can have.
pub fn said() -> impl Iterator<Item = (ConditionType, Truth, Reason)> {
    let each = |(kind, truth, reasons): &'static (ConditionType, Truth, &[Reason])| {
        reasons.iter().map(|reason| (*kind, *truth, *reason))
    };
    SAID.iter().flat_map(each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_and_reasons_occur_once_at_least() {
        let all: Vec<_> = said().collect();
        for kind in ConditionType::ALL {
            assert!(all.iter().any(|said| said.0 == *kind), "{kind}");
        }
        for reason in Reason::ALL {
            assert!(all.iter().any(|said| said.2 == *reason), "{reason}");
        }
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn reasons_have_the_form_of_the_api_conventions() {
        for reason in Reason::ALL {
            let name = reason.as_str();
            assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
        }
    }

    /// A condition type and a reason print as the status shows them.
    #[test]
    fn names_print_as_in_status() {
        assert_eq!(ConditionType::CredentialsValid.to_string(), "CredentialsValid");
        assert_eq!(Reason::NameConflict.to_string(), "NameConflict");
    }
}
