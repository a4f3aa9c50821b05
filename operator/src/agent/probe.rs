//! The request by which a node finds out if a mirror answers.

use std::time::Duration;

use reqwest::{Certificate, Client, redirect::Policy};

use super::watch::Target;

const TIMEOUT: Duration = Duration::from_secs(1);

/// A request for `/v2/` of one mirror, with a connection of its own each time.
pub(super) struct Probe {
    /// Absent: the client could not be built, and every probe fails.
    client: Option<Client>,
    url: String,
}

impl Probe {
    pub(super) fn new(target: &Target) -> Self {
        let client = client(target.files.certificates.as_deref());
        if let Err(error) = &client {
            tracing::warn!(url = target.url, %error, "no client for the mirror");
        }
        Self {
            client: client.ok(),
            url: format!("{}/v2/", target.url),
        }
    }

    /// Returns whether the mirror answers. A request for a login and a rate limit count as answers; an error of the server
    /// and an answer that no registry gives do not.
    pub(super) async fn run(&self) -> bool {
        let Some(client) = &self.client else {
            return false;
        };
        let response = client.get(&self.url).send().await;
        response.is_ok_and(|response| matches!(response.status().as_u16(), 200 | 401 | 403 | 429))
    }
}

fn client(certificates: Option<&str>) -> reqwest::Result<Client> {
    let builder = Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .timeout(TIMEOUT)
        .pool_max_idle_per_host(0);
    match certificates {
        Some(pem) => builder
            .tls_certs_only(Certificate::from_pem_bundle(pem.as_bytes())?)
            .build(),
        // The runtime verifies the certificate with the CAs of the node, which the agent's image does not have. The
        // request and its answer carry nothing.
        None => builder.tls_danger_accept_invalid_certs(true).build(),
    }
}
