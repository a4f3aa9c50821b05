//! The upstream's verdict on a credential before it is used.

use http::{HeaderMap, Method};

use super::Upstream;
use super::auth::Authorizer;
use super::error::Error;
use super::rate_limit::RequestClass;
use super::request::{RequestPool, UpstreamRequest};
use crate::credential::Credential;
use crate::credentials::CredentialVerdict;

impl Upstream {
    /// Tries a credential at the upstream as a login does; the one in use stays in use.
    pub async fn verify(&self, candidate: &Credential) -> CredentialVerdict {
        if *candidate == Credential::Anonymous {
            return CredentialVerdict::Accepted;
        }
        let authorizer = Authorizer::new(Ok(candidate.clone()), self.policy.clone(), self.clock.clone());
        let request = UpstreamRequest {
            class: RequestClass::List,
            pool: RequestPool::Other,
            method: Method::GET,
            url: self.transport.url(""),
            headers: HeaderMap::new(),
            repository: None,
            follow: true,
        };
        let answer = self.send_authorized(&authorizer, &request).await;
        match answer {
            Ok(answer) => match answer.status().as_u16() {
                200..=299 => match authorizer.withheld_credentials_hint(&answer.audience()) {
                    Some(reason) => CredentialVerdict::NoVerdict(reason),
                    None => CredentialVerdict::Accepted,
                },
                403 if answer.is_page() => CredentialVerdict::NoVerdict(
                    "upstream answered 403 with a page (text/html), as a firewall does and no registry"
                        .to_owned(),
                ),
                401 | 403 => verdict(&self.response_error(&authorizer, answer).await),
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
