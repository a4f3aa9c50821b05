//! TLS for every connection: the provider of cryptography, trusted certificates, and the checks of a peer's certificate.

mod failure;
mod files;
pub mod pem;
mod verifier;
mod x509;

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DistinguishedName, RootCertStore};
use sha2::{Digest, Sha256};

pub(crate) use failure::{describe, is_refused_certificate, is_tls_failure};
pub use files::TlsError;
pub(crate) use files::{authorities, key_pair};
pub(crate) use verifier::ClientVerifier;
use verifier::ServerVerifier;
pub(crate) use x509::not_after;

/// Returns the provider of cryptography, and makes it the default of the process if there is none.
pub fn provider() -> Arc<CryptoProvider> {
    if let Some(provider) = CryptoProvider::get_default() {
        return provider.clone();
    }
    // Fails only if another thread was faster.
    let _ = aws_lc_rs::default_provider().install_default();
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()))
}

/// A set of trusted certificates. Each is itself accepted as the certificate of a peer, and those of CAs are trust anchors
/// for what they issued, like in Go's `crypto/x509`.
#[derive(Clone, Debug)]
pub struct TrustedCertificates {
    /// The certificates of CAs.
    anchors: RootCertStore,
    /// The names of all certificates.
    subjects: Vec<DistinguishedName>,
    /// SHA-256 digests of the certificates in DER.
    digests: HashSet<[u8; 32]>,
}

impl TrustedCertificates {
    /// Returns a set without any certificate.
    pub fn empty() -> Self {
        Self {
            anchors: RootCertStore::empty(),
            subjects: Vec::new(),
            digests: HashSet::new(),
        }
    }

    /// Returns the CAs of the system (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured). They are read once: to read
    /// hundreds of files for each upstream would take most of the start.
    pub fn system() -> Arc<Self> {
        static SYSTEM: LazyLock<Arc<TrustedCertificates>> = LazyLock::new(|| {
            let mut system = TrustedCertificates::empty();
            for certificate in rustls_native_certs::load_native_certs().certs {
                // One certificate that can't be parsed must not cost all others, and an image may have none.
                let _ = system.add(&certificate);
            }
            Arc::new(system)
        });
        SYSTEM.clone()
    }

    /// Adds a certificate.
    ///
    /// # Errors
    /// The certificate can't be parsed.
    pub(crate) fn add(&mut self, certificate: &CertificateDer<'static>) -> Result<(), rustls::Error> {
        // The store knows what can be used at all.
        let mut parsed = RootCertStore::empty();
        parsed.add(certificate.clone())?;
        self.subjects.extend(parsed.subjects());
        if x509::may_issue(certificate) {
            self.anchors.extend(parsed.roots);
        }
        self.digests.insert(Sha256::digest(certificate).into());
        Ok(())
    }

    /// Adds the certificates of a PEM file, one or more, and returns them.
    ///
    /// # Errors
    /// The file holds no certificate, or one that can't be parsed.
    pub fn add_pem(&mut self, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
        let certificates = pem::certificates(pem)?;
        for (index, certificate) in certificates.iter().enumerate() {
            self.add(certificate)
                .map_err(|error| format!("certificate {} can't be used: {error}", index + 1))?;
        }
        Ok(certificates)
    }

    fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        self.digests
            .contains(&<[u8; 32]>::from(Sha256::digest(certificate)))
    }
}

/// Returns the settings of a client that trusts these certificates and offers HTTP/1.1, and HTTP/2 if `http2` is set.
///
/// # Errors
/// The provider of the process speaks no version of TLS.
pub fn client_config(trusted: Arc<TrustedCertificates>, http2: bool) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    let verifier = ServerVerifier::new(trusted, provider.signature_verification_algorithms);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn_protocols(http2);
    Ok(config)
}

/// Returns the settings of a client that presents a certificate, and accepts certificates of these CAs that are for the
/// server's address, for one of `names`, or for a name of its own certificate. It speaks TLS 1.3 and HTTP/1.1.
///
/// # Errors
/// The provider of the process does not speak TLS 1.3.
pub(crate) fn mutual_client_config(
    trusted: TrustedCertificates,
    mut names: Vec<ServerName<'static>>,
    own: CertifiedKey,
) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    names.extend(own.cert.first().into_iter().flat_map(x509::dns_names));
    let algorithms = provider.signature_verification_algorithms;
    let verifier = ServerVerifier::new(Arc::new(trusted), algorithms).accepting(names);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = alpn_protocols(false);
    Ok(config)
}

/// Returns the protocols for ALPN (RFC 7301), the preferred one first.
pub(crate) fn alpn_protocols(http2: bool) -> Vec<Vec<u8>> {
    let offered = http2.then(|| b"h2".to_vec());
    offered.into_iter().chain([b"http/1.1".to_vec()]).collect()
}
