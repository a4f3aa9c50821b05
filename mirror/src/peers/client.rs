//! The HTTP client for all peers.

use std::time::Duration;

use reqwest::{Client, redirect};
use rustls::pki_types::ServerName;

use crate::config::PeerSettings;
use crate::tls::{self, TlsError};

/// For a connection to a peer, which is near.
const CONNECT: Duration = Duration::from_secs(1);

/// The reason why there is no client for peers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerClientError {
    /// The certificate, its key or the CAs of peers.
    #[error(transparent)]
    Files(#[from] TlsError),
    /// The client itself.
    #[error("cannot set up the HTTP client for other replicas (peers): {0}")]
    Http(#[from] reqwest::Error),
}

/// Returns the client, with the certificate and the CAs that the files have now. Blocks.
pub(super) fn load(settings: &PeerSettings) -> Result<Client, PeerClientError> {
    let builder = Client::builder()
        .user_agent(concat!("registry-mirror/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .http1_only()
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT)
        .tcp_user_timeout(Duration::from_secs(5))
        .pool_idle_timeout(Duration::from_secs(15));
    let Some(files) = &settings.tls else {
        // Plain HTTP, and the image has no certificates of a system.
        return Ok(builder.tls_certs_only([]).build()?);
    };
    let own = tls::key_pair(files.section, &files.certificate, &files.key)?;
    let trusted = tls::authorities(files.section, &files.client_cas)?;
    let hosts = settings.hosts().map(str::to_owned);
    let names = hosts.filter_map(|host| ServerName::try_from(host).ok()).collect();
    let config = tls::mutual_client_config(trusted, names, own).map_err(|error| TlsError::Unfit {
        section: files.section,
        path: files.certificate.clone(),
        reason: error.to_string(),
    })?;
    Ok(builder.tls_backend_preconfigured(config).build()?)
}
