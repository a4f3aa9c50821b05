//! Verifiers that also accept a peer's certificate that is itself trusted.
//!
//! A certificate from the list of trusted ones needs no issuer; its validity, its purpose and its name are checked all the
//! same. All other certificates need a chain to a trusted one. Go accepts both for a server or client if they are those
//! of a CA (`CA:TRUE`), which simple recipes for private certificates make; here, if a trusted certificate issued them
//! directly.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::TrustedCertificates;
use super::x509::{CA_AS_END_ENTITY, Purpose, check, is_signed_by};

impl TrustedCertificates {
    /// Verifies that a certificate is trusted, or that a trusted one issued it; `chain` verifies the latter for
    /// certificates that are not those of a CA.
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        purpose: Purpose,
        now: UnixTime,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        chain: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.contains(certificate) {
            return Ok(check(certificate, purpose, now)?);
        }
        match chain() {
            Err(error) if is_ca_as_end_entity(&error) => {
                let signed = |anchor| is_signed_by(certificate, anchor, algorithms);
                if !self.anchors.roots.iter().any(signed) {
                    return Err(error);
                }
                Ok(check(certificate, purpose, now)?)
            }
            verified => verified,
        }
    }
}

fn is_ca_as_end_entity(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Other(other)) if other.to_string() == CA_AS_END_ENTITY)
}

/// Implements the methods for signatures, which are the same in both traits of rustls, with `self.algorithms`.
macro_rules! verify_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signature, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

/// A verifier of servers' certificates.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    trusted: Arc<TrustedCertificates>,
    /// The names that are accepted in place of the server's.
    names: Vec<ServerName<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(super) fn new(trusted: Arc<TrustedCertificates>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self {
            trusted,
            names: Vec::new(),
            algorithms,
        }
    }

    /// Accepts certificates for these names, too.
    pub(super) fn accepting(self, names: Vec<ServerName<'static>>) -> Self {
        Self { names, ..self }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let (trusted, algorithms) = (&self.trusted, self.algorithms.all);
        trusted.verify(end_entity, Purpose::Server, now, algorithms, || {
            let anchors = &trusted.anchors;
            verify_server_cert_signed_by_trust_anchor(&certificate, anchors, intermediates, now, algorithms)
        })?;
        let is_for = |name| verify_server_name(&certificate, name).is_ok();
        if !self.names.iter().any(is_for) {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!();
}

/// A verifier of clients' certificates.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    trusted: TrustedCertificates,
    is_optional: bool,
    /// `None` where no trusted certificate is that of a CA.
    chains: Option<Arc<dyn ClientCertVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    /// Returns a verifier; if `optional`, a client may come without a certificate.
    ///
    /// # Errors
    /// No certificate is trusted.
    pub(crate) fn new(trusted: TrustedCertificates, optional: bool) -> Result<Self, VerifierBuilderError> {
        let provider = super::provider();
        let algorithms = provider.signature_verification_algorithms;
        let anchors = Arc::new(trusted.anchors.clone());
        let chains = WebPkiClientVerifier::builder_with_provider(anchors, provider).build();
        let chains = match chains {
            Err(VerifierBuilderError::NoRootAnchors) if !trusted.digests.is_empty() => None,
            chains => Some(chains?),
        };
        Ok(Self {
            trusted,
            is_optional: optional,
            chains,
            algorithms,
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.is_optional
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.trusted.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // Refuses what all checks refuse, such as an unknown critical extension.
        ParsedCertificate::try_from(end_entity)?;
        self.trusted
            .verify(end_entity, Purpose::Client, now, self.algorithms.all, || {
                let chains = self.chains.as_ref().ok_or(CertificateError::UnknownIssuer)?;
                chains
                    .verify_client_cert(end_entity, intermediates, now)
                    .map(drop)
            })?;
        Ok(ClientCertVerified::assertion())
    }

    verify_signatures!();
}
