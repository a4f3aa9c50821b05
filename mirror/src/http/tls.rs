//! The serving certificate, read again whenever it changed; connections keep what they began with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

use crate::config::http::Tls;

/// Certificate files that can't be served from.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not there, not readable, or not PEM.
    #[error("{}: {reason}; http.tls wants PEM files", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The parts don't fit together.
    #[error("http.tls.certificate {} and its key can't be served: {reason}", path.display())]
    Unfit {
        /// The certificate.
        path: PathBuf,
        /// Why.
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
    /// Reads the files.
    pub fn load(settings: Tls, http2: bool) -> Result<Self, TlsError> {
        let current = ArcSwap::from(read(&settings, http2)?);
        Ok(Self {
            settings,
            http2,
            current,
        })
    }

    /// Reads the files again. With an error the old certificate stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.store(read(&self.settings, self.http2)?);
        Ok(())
    }

    /// For one new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }
}

fn read(tls: &Tls, http2: bool) -> Result<Arc<ServerConfig>, TlsError> {
    let unfit = |reason: String| TlsError::Unfit {
        path: tls.certificate.clone(),
        reason,
    };
    let chain = certificates(&tls.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| broken(&tls.key, &error))?;
    let versions: &[_] = if tls.only_tls13 {
        &[&rustls::version::TLS13]
    } else {
        rustls::ALL_VERSIONS
    };
    let builder = ServerConfig::builder_with_protocol_versions(versions);
    let builder = match verifier(tls)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| unfit(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if http2 {
        config.alpn_protocols.insert(0, b"h2".to_vec());
    }
    Ok(Arc::new(config))
}

type Verifier = Arc<dyn rustls::server::danger::ClientCertVerifier>;

fn verifier(tls: &Tls) -> Result<Option<Verifier>, TlsError> {
    let Some(first) = tls.client_cas.first() else {
        return Ok(None);
    };
    let mut roots = RootCertStore::empty();
    for path in &tls.client_cas {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| broken(path, &error))?;
        }
    }
    let mut builder = WebPkiClientVerifier::builder(Arc::new(roots));
    if tls.client_optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map(Some).map_err(|error| broken(first, &error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| broken(path, &error))?;
    if certificates.is_empty() {
        return Err(TlsError::File {
            path: path.to_owned(),
            reason: "no certificate in it".into(),
        });
    }
    Ok(certificates)
}

fn broken(path: &Path, reason: &impl ToString) -> TlsError {
    TlsError::File {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
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
    fn a_broken_renewal_keeps_the_certificate_in_force() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
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

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
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
