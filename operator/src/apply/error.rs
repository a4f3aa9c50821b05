//! Why an object is not as it should be.

use std::time::Duration;

use kube::core::Status;

use crate::{kind::Kind, validate::Rejection};

/// Why not everything could be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the user has to mend.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// What a retry may mend.
    #[error("{verb} {kind} {name}: {source}")]
    Cluster {
        /// What was tried.
        verb: &'static str,
        /// On what.
        kind: Kind,
        /// Of which name.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// What whoever rules the cluster has to mend: a policy, a webhook or a quota says no.
    #[error("the API server refuses {kind} {name}: {message}")]
    Forbidden {
        /// Of what.
        kind: Kind,
        /// Of which name.
        name: String,
        /// In the API server's words.
        message: String,
    },
    /// Admission gave something else back than what was applied.
    #[error(
        "{kind} {name} was changed on its way into the cluster; an admission webhook or policy sets a field of it"
    )]
    Altered {
        /// Of what.
        kind: Kind,
        /// Of which name.
        name: String,
    },
    /// Someone else keeps changing back what was applied.
    #[error(
        "{kind} {name} does not stay as it is applied, as someone else keeps changing it; it is left alone for {} s. \
         Who, says kubectl get {kind} {name} -o yaml --show-managed-fields",
        after.as_secs().max(1)
    )]
    Contested {
        /// Of what.
        kind: Kind,
        /// Of which name.
        name: String,
        /// When to try again.
        after: Duration,
    },
}

impl Error {
    /// When to try again, where that is known.
    pub fn after(&self) -> Option<Duration> {
        match self {
            Self::Contested { after, .. } => Some(*after),
            _ => None,
        }
    }

    /// Returns the API server's answer where it refused the request by a permission, a policy or validation.
    pub(super) fn refusal(&self) -> Option<&Status> {
        let Self::Cluster { source, .. } = self else {
            return None;
        };
        match source.as_ref() {
            kube::Error::Api(status) if matches!(status.code, 403 | 422) => Some(status),
            _ => None,
        }
    }

    pub(super) fn cluster(verb: &'static str, kind: Kind, name: &str, source: kube::Error) -> Self {
        Self::Cluster {
            verb,
            kind,
            name: name.to_owned(),
            source: Box::new(source),
        }
    }
}

/// Tells what the user, or who rules the cluster, has to mend from what passes.
pub(super) fn refused(kind: Kind, name: &str, source: kube::Error) -> Error {
    match source {
        kube::Error::Api(status) if is_forbidden(&status) && kind != Kind::PersistentVolumeClaim => {
            Error::Forbidden {
                kind,
                name: name.to_owned(),
                message: status.message,
            }
        }
        // Claims have reasons of their own.
        kube::Error::Api(status) if is_refusal(&status) && kind != Kind::PersistentVolumeClaim => {
            Rejection::invalid(format!(
                "the API server refuses {kind} {name}: {}",
                status.message
            ))
            .into()
        }
        source => Error::cluster("applying", kind, name, source),
    }
}

/// Whether the object was refused for what it is: by validation, a policy, a webhook or a quota. A 403 is also a matter
/// of the operator's own rights, or of a namespace that is about to go, which nobody but its message tells.
pub(super) fn is_refusal(status: &Status) -> bool {
    let rights = status.message.contains(" is forbidden: User ");
    let ending = status.message.contains("because it is being terminated");
    // One key twice in a list is an internal error, and so is a quantity that is none.
    let internal = [
        "failed to create typed patch object",
        "failed to convert new object",
    ];
    let untyped = status.code == 500 && internal.iter().any(|words| status.message.starts_with(words));
    untyped || status.code == 422 || status.code == 403 && !rights && !ending
}

/// Whether what refuses it are the cluster's rules, not those of the API: the spec may be well as it is. A policy may
/// answer as validation does.
fn is_forbidden(status: &Status) -> bool {
    let ruled = [" is forbidden: ", " denied the request"];
    is_refusal(status) && (status.code == 403 || ruled.iter().any(|words| status.message.contains(words)))
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
    fn an_object_is_refused_for_what_it_is(code: u16, message: &str) -> bool {
        is_refusal(&Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        })
    }

    fn answer(code: u16, message: &str) -> Error {
        let (code, message) = (code, message.to_owned());
        let status = Status {
            code,
            message,
            ..Status::default()
        };
        refused(Kind::Deployment, "hub", kube::Error::Api(Box::new(status)))
    }

    #[test_case(422, "configmaps \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"; "a policy")]
    #[test_case(403, "admission webhook \"w.example\" denied the request: no"; "a webhook")]
    #[test_case(403, "secrets \"x\" is forbidden: exceeded quota: q, requested: count/secrets=1"; "a quota")]
    fn what_the_clusters_rules_refuse_is_no_fault_of_the_spec(code: u16, message: &str) {
        assert!(matches!(answer(code, message), Error::Forbidden { .. }));
    }

    #[test]
    fn a_list_with_one_key_twice_is_for_the_user_to_mend() {
        let twice = answer(
            500,
            "failed to create typed patch object (…): .spec: duplicate entries for key",
        );
        assert!(matches!(twice, Error::Rejected(rejection) if rejection.reason == Reason::InvalidSpec));
        assert!(matches!(answer(500, "etcd is gone"), Error::Cluster { .. }));
    }
}
