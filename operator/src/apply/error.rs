//! The failures of an apply.

use std::time::Duration;

use kube::core::Status;

use crate::{cluster::error_message, kind::Kind, validate::Rejection};

/// A failure to apply an object.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The user has to correct the spec.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// A retry may succeed.
    #[error("{}: {}", self.what(), error_message(source))]
    Cluster {
        /// The operation that failed, as a past participle.
        operation: &'static str,
        /// The object's kind.
        kind: Kind,
        /// The object's name.
        name: String,
        /// The error of the request.
        source: Box<kube::Error>,
    },
    /// A policy, a webhook or a quota rejects the object: a cluster admin has to allow it.
    #[error("{kind} {name} rejected by the API server: {message}")]
    Forbidden {
        /// The object's kind.
        kind: Kind,
        /// The object's name.
        name: String,
        /// The message of the API server.
        message: String,
    },
    /// Admission changed the object.
    #[error(
        "{kind} {name} altered by an admission webhook or policy, which sets a field that the operator applies: exclude the \
         object from it"
    )]
    Altered {
        /// The object's kind.
        kind: Kind,
        /// The object's name.
        name: String,
    },
    /// An immutable object has to be replaced, and its deletion does not end.
    #[error(
        "{kind} {name} not replaced: it is immutable, and a finalizer keeps it after its deletion; kubectl get {kind} {name} -o \
         yaml shows metadata.finalizers: remove the finalizer, or let its controller do so"
    )]
    Kept {
        /// The object's kind.
        kind: Kind,
        /// The object's name.
        name: String,
    },
    /// Another field manager keeps changing fields that the operator applies.
    #[error(
        "{kind} {name} not kept as applied: another field manager keeps changing it, and the operator retries in {} s; kubectl \
         get {kind} {name} -o yaml --show-managed-fields names the manager",
        after.as_secs().max(1)
    )]
    Conflict {
        /// The object's kind.
        kind: Kind,
        /// The object's name.
        name: String,
        /// The delay of the retry.
        after: Duration,
    },
}

impl ApplyError {
    /// Returns the delay of the retry, if the failure determines it.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Conflict { after, .. } => Some(*after),
            _ => None,
        }
    }

    /// Returns the failed operation and its object, without the cause.
    pub fn what(&self) -> String {
        match self {
            Self::Cluster {
                operation,
                kind,
                name,
                ..
            } => format!("{kind} {name} not {operation}"),
            other => other.to_string(),
        }
    }

    /// Returns the response of the API server if a permission, a policy or validation rejected the request.
    pub(super) fn rejection(&self) -> Option<&Status> {
        let Self::Cluster { source, .. } = self else {
            return None;
        };
        match source.as_ref() {
            kube::Error::Api(status) if matches!(status.code, 403 | 422) => Some(status),
            _ => None,
        }
    }

    pub(super) fn cluster(operation: &'static str, kind: Kind, name: &str, source: kube::Error) -> Self {
        Self::Cluster {
            operation,
            kind,
            name: name.to_owned(),
            source: Box::new(source),
        }
    }
}

/// Classifies a failed apply: the user, a cluster admin, or a retry fixes it.
pub(super) fn classify(kind: Kind, name: &str, source: kube::Error) -> ApplyError {
    match source {
        kube::Error::Api(status) if is_forbidden(&status) && kind != Kind::PersistentVolumeClaim => {
            ApplyError::Forbidden {
                kind,
                name: name.to_owned(),
                message: status.message,
            }
        }
        // PVCs have reasons of their own.
        kube::Error::Api(status) if is_rejection(&status) && kind != Kind::PersistentVolumeClaim => {
            Rejection::invalid(format!(
                "{kind} {name} rejected by the API server: {}",
                status.message
            ))
            .into()
        }
        source => ApplyError::cluster("applied", kind, name, source),
    }
}

/// Returns the failure to replace an immutable object: after its deletion the API server takes it for an update.
pub(super) fn classify_replacement(kind: Kind, name: &str, error: ApplyError) -> ApplyError {
    match error {
        ApplyError::Rejected(rejection) if rejection.message.contains("field is immutable when") => {
            ApplyError::Kept {
                kind,
                name: name.to_owned(),
            }
        }
        error => error,
    }
}

/// Returns whether validation, a policy, a webhook or a quota rejected the object. A 403 also has other causes, which only
/// the message distinguishes: a missing permission of the operator, and a terminating namespace.
pub(super) fn is_rejection(status: &Status) -> bool {
    let is_permission = status.message.contains(" is forbidden: User ");
    let is_terminating = status.message.contains("because it is being terminated");
    // The API server answers a duplicate key in a list and an invalid quantity with an internal error.
    let internal = [
        "failed to create typed patch object",
        "failed to convert new object",
    ];
    let is_invalid = status.code == 500 && internal.iter().any(|start| status.message.starts_with(start));
    is_invalid || status.code == 422 || status.code == 403 && !is_permission && !is_terminating
}

/// Returns whether the rules of the cluster reject the object, and not those of the API: the spec may be valid. A policy may
/// answer with the status code of validation.
fn is_forbidden(status: &Status) -> bool {
    let policy = [" is forbidden: ", " denied the request"];
    is_rejection(status) && (status.code == 403 || policy.iter().any(|part| status.message.contains(part)))
}

#[cfg(test)]
mod tests {
    use crds::conditions::Reason;
    use test_case::test_case;

    use super::*;

    #[test_case(422, "ConfigMap \"x\" is invalid: data: Too long" => true; "validation")]
    #[test_case(422, "configmaps \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no" => true; "a policy")]
    #[test_case(403, "admission webhook \"w.example\" denied the request: no" => true; "a webhook")]
    #[test_case(403, "secrets \"x\" is forbidden: exceeded quota: q, requested: count/secrets=1" => true; "a quota")]
    #[test_case(403, "secrets \"x\" is forbidden: User \"system:serviceaccount:a:b\" cannot patch resource \"secrets\"" => false; "rights")]
    #[test_case(403, "secrets \"x\" is forbidden: unable to create new content in namespace a because it is being terminated" => false; "an end")]
    #[test_case(500, "failed to convert new object (m/hub; apps/v1, Kind=Deployment) to proper version: quantities must match" => true; "a quantity")]
    #[test_case(500, "failed calling webhook" => false; "a webhook that is away")]
    #[test_case(409, "conflict" => false)]
    fn rejection_is_no_transient_failure(code: u16, message: &str) -> bool {
        is_rejection(&Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        })
    }

    fn answer(code: u16, message: &str) -> ApplyError {
        let (code, message) = (code, message.to_owned());
        let status = Status {
            code,
            message,
            ..Status::default()
        };
        classify(Kind::Deployment, "hub", kube::Error::Api(Box::new(status)))
    }

    #[test_case(422, "configmaps \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"; "a policy")]
    #[test_case(403, "admission webhook \"w.example\" denied the request: no"; "a webhook")]
    #[test_case(403, "secrets \"x\" is forbidden: exceeded quota: q, requested: count/secrets=1"; "a quota")]
    fn policy_rejection_is_no_fault_of_the_spec(code: u16, message: &str) {
        assert!(matches!(answer(code, message), ApplyError::Forbidden { .. }));
    }

    #[test]
    fn duplicate_list_key_is_a_fault_of_the_spec() {
        let twice = answer(
            500,
            "failed to create typed patch object (…): .spec: duplicate entries for key",
        );
        assert!(matches!(twice, ApplyError::Rejected(rejection) if rejection.reason == Reason::InvalidSpec));
        assert!(matches!(answer(500, "etcd is gone"), ApplyError::Cluster { .. }));
    }
}
