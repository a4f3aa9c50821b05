//! The serving certificate, which the server reads again after a change; open connections keep the previous one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::server::ServerConfig;
use rustls::sign::SingleCertAndKey;
use tokio_rustls::TlsAcceptor;

use crate::config::http::Tls;
use crate::file_read::{self, MAX_FILE};
use crate::tls::{self, ClientVerifier, TrustedCertificates};

/// An error of the certificate files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is missing, unreadable, or no PEM.
    #[error("{}: {reason}; http.tls wants PEM files", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// The certificate and the key do not fit together.
    #[error("http.tls.certificate {} and its key can't be served: {reason}", path.display())]
    Unfit {
        /// The certificate.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
}

/// The certificate in force.
pub struct Certificates {
    settings: Tls,
    http2: bool,
    current: ArcSwap<ServerConfig>,
}

impl Certificates {
    /// Loads the files.
    pub fn load(settings: Tls, http2: bool) -> Result<Self, TlsError> {
        let current = ArcSwap::from(read(&settings, http2)?);
        Ok(Self {
            settings,
            http2,
            current,
        })
    }

    /// Loads the files again. After an error the previous certificate stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.store(read(&self.settings, self.http2)?);
        Ok(())
    }

    /// Returns an acceptor for a new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }
}

fn read(settings: &Tls, http2: bool) -> Result<Arc<ServerConfig>, TlsError> {
    let unfit = |reason: String| TlsError::Unfit {
        path: settings.certificate.clone(),
        reason,
    };
    let chain = load(&settings.certificate, tls::pem::certificates)?;
    let key = load(&settings.key, tls::pem::private_key)?;
    let versions: &[_] = if settings.only_tls13 {
        &[&rustls::version::TLS13]
    } else {
        rustls::ALL_VERSIONS
    };
    let builder = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(versions)
        .map_err(|error| unfit(error.to_string()))?;
    let builder = match verifier(settings)? {
        Some(verifier) => builder.with_client_cert_verifier(Arc::new(verifier)),
        None => builder.with_no_client_auth(),
    };
    let certified = tls::pem::pair(chain, key).map_err(unfit)?;
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = tls::alpn_protocols(http2);
    Ok(Arc::new(config))
}

fn verifier(settings: &Tls) -> Result<Option<ClientVerifier>, TlsError> {
    let Some(first) = settings.client_cas.first() else {
        return Ok(None);
    };
    let mut trusted = TrustedCertificates::empty();
    for path in &settings.client_cas {
        load(path, |pem| trusted.add_pem(pem))?;
    }
    ClientVerifier::new(trusted, settings.client_optional)
        .map(Some)
        .map_err(|error| TlsError::File {
            path: first.clone(),
            reason: error.to_string(),
        })
}

/// Reads a PEM file. The reasons of the parser contain no byte of it, because it may be a private key.
fn load<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, TlsError> {
    let pem = file_read::read(path, MAX_FILE).map_err(|error| error.to_string());
    pem.and_then(|pem| parse(&pem)).map_err(|reason| TlsError::File {
        path: path.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn files(directory: &std::path::Path) -> Tls {
        let issued = rcgen::generate_simple_self_signed(["mirror.test".into()]).unwrap();
        let tls = Tls {
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
            client_cas: Vec::new(),
            client_optional: false,
            only_tls13: true,
        };
        fs::write(&tls.certificate, issued.cert.pem()).unwrap();
        fs::write(&tls.key, issued.signing_key.serialize_pem()).unwrap();
        tls
    }

    #[test]
    fn broken_renewal_keeps_previous_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let settings = files(directory.path());
        let certificates = Certificates::load(settings.clone(), true).unwrap();
        let before = certificates.current.load_full();
        fs::write(&settings.certificate, "not PEM").unwrap();
        assert!(matches!(certificates.reload(), Err(TlsError::File { .. })));
        assert!(Arc::ptr_eq(&before, &certificates.current.load_full()));
        files(directory.path());
        certificates.reload().unwrap();
        assert!(!Arc::ptr_eq(&before, &certificates.current.load_full()));
    }

    /// A key that does not belong to the certificate is refused.
    #[test]
    fn key_of_other_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let settings = files(directory.path());
        let other = rcgen::KeyPair::generate().unwrap();
        fs::write(&settings.key, other.serialize_pem()).unwrap();
        assert!(matches!(
            Certificates::load(settings, false),
            Err(TlsError::Unfit { .. })
        ));
    }
}
