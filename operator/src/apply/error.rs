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

    pub(super) fn cluster(verb: &'static str, kind: Kind, name: &str, source: kube::Error) -> Self {
        Self::Cluster {
            verb,
            kind,
            name: name.to_owned(),
            source: Box::new(source),
        }
    }
}

/// Tells what the user wrote wrong from what passes.
pub(super) fn refused(kind: Kind, name: &str, source: kube::Error) -> Error {
    match source {
        kube::Error::Api(status) if is_for_the_user(&status, kind) => Rejection::invalid(format!(
            "the API server refuses {kind} {name}: {}",
            status.message
        ))
        .into(),
        source => Error::cluster("applying", kind, name, source),
    }
}

/// What is invalid, claims apart, which have reasons of their own. One key twice in a list is an internal error.
fn is_for_the_user(status: &Status, kind: Kind) -> bool {
    let untyped = status.code == 500 && status.message.starts_with("failed to create typed patch object");
    untyped || status.code == 422 && kind != Kind::PersistentVolumeClaim
}

#[cfg(test)]
mod tests {
    use crds::conditions::Reason;

    use super::*;

    #[test]
    fn a_list_with_one_key_twice_is_for_the_user_to_mend() {
        let answer = |code, message: &str| {
            let (code, message) = (code, message.to_owned());
            let status = Status {
                code,
                message,
                ..Status::default()
            };
            refused(Kind::Deployment, "hub", kube::Error::Api(Box::new(status)))
        };
        let twice = answer(
            500,
            "failed to create typed patch object (…): .spec: duplicate entries for key",
        );
        assert!(matches!(twice, Error::Rejected(rejection) if rejection.reason == Reason::InvalidSpec));
        assert!(matches!(answer(500, "etcd is gone"), Error::Cluster { .. }));
    }
}
