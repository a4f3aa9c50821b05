//! The upstream's verdict on a credential before it is used.

use http::{HeaderMap, Method};

use super::Upstream;
use super::access::Access;
use super::error::Error;
use super::exchange::{Lane, Question};
use super::rest::Class;
use crate::credential::Credential;
use crate::credentials::CredentialVerdict;

impl Upstream {
    /// Shows a credential to the upstream as a login does; the one in use stays in use.
    pub async fn verify(&self, candidate: &Credential) -> CredentialVerdict {
        if *candidate == Credential::Anonymous {
            return CredentialVerdict::Accepted;
        }
        let access = Access::new(Ok(candidate.clone()), self.policy.clone(), self.clock.clone());
        let question = Question {
            class: Class::List,
            lane: Lane::Other,
            method: Method::GET,
            url: self.wire.url(""),
            headers: HeaderMap::new(),
            repository: None,
            follow: true,
        };
        let answer = self.converse(&access, &question).await;
        match answer {
            Ok(answer) => match answer.status().as_u16() {
                200..=299 => match access.kept_back(&answer.audience()) {
                    Some(reason) => CredentialVerdict::NoVerdict(reason),
                    None => CredentialVerdict::Accepted,
                },
                403 if answer.is_page() => CredentialVerdict::NoVerdict(
                    "upstream answered 403 with a page (text/html), as a firewall does and no registry"
                        .to_owned(),
                ),
                401 | 403 => verdict(&self.fault(&access, answer).await),
                code => CredentialVerdict::NoVerdict(format!("upstream answered {code}")),
            },
            Err(error) => verdict(&error),
        }
    }
}

fn verdict(error: &Error) -> CredentialVerdict {
    match error {
        Error::Denied { withheld: false, .. } => CredentialVerdict::Rejected(error.to_string()),
        _ => CredentialVerdict::NoVerdict(error.to_string()),
    }
}
