//! Reads CA certificates.

use crds::{RegistryMirror, conditions::Reason, upstream::CaBundleReference};
use mirror::tls::TrustedCertificates;
use pem::{EncodeConfig, LineEnding, Pem};

use super::Rejection;
use crate::{
    dereference::{Reference, References},
    kind::Kind,
};

/// Parsed and checked CA certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The name of the file in the certificate directory of servers.
    pub file: String,
    /// The certificates, without anything else in the admin's file.
    pub pem: Vec<u8>,
}

/// Returns the bundle that an upstream names, if it names one. `field` is the upstream's place in the spec.
///
/// # Errors
/// `ReferenceNotFound` and `ReferenceMalformed`: a server without the CA certificates could not connect to the
/// upstream, and would not say why.
pub fn resolve(
    upstream: &crds::Upstream,
    field: &str,
    references: &References,
) -> Result<Option<Bundle>, Rejection> {
    let Some(reference) = upstream.tls.as_ref().and_then(|tls| tls.ca_bundle_ref.as_ref()) else {
        return Ok(None);
    };
    let pem = read(reference, &format!("{field}.tls.caBundleRef"), references)?;
    Ok(Some(Bundle {
        file: file_name(&upstream.host),
        pem,
    }))
}

/// The file in the servers' directory with the CAs of clients.
pub const CLIENT_CA: &str = "client-ca.crt";

/// Returns the certificates of the CAs that sign clients' certificates, if clients need one.
///
/// # Errors
/// `ReferenceNotFound` and `ReferenceMalformed`: a missing CA never opens the mirror, and servers keep the one they have.
pub fn resolve_client_ca(
    mirror: &RegistryMirror,
    references: &References,
) -> Result<Option<Vec<u8>>, Rejection> {
    let Some(reference) = &mirror.spec.tls.client_ca_ref else {
        return Ok(None);
    };
    read(reference, "spec.tls.clientCARef", references).map(Some)
}

/// Returns the certificates of a reference, which `field` of the spec has.
pub(super) fn read(
    reference: &CaBundleReference,
    field: &str,
    references: &References,
) -> Result<Vec<u8>, Rejection> {
    let target = Reference::from(reference);
    if target.kind == Kind::Secret {
        let allowed = references.not_the_operators(&target.name);
        allowed.map_err(|rejection| rejection.below(field))?;
    }
    let key = &reference.key;
    let contents = references.get(&target).ok_or_else(|| Rejection {
        reason: Reason::ReferenceNotFound,
        message: references.not_found(&target, &format!("the key {key}"), &format!("{field}.name")),
    })?;
    let malformed = |message: String| Rejection {
        reason: Reason::ReferenceMalformed,
        message: format!("{field}: {message}"),
    };
    let pem = contents
        .get(key)
        .ok_or_else(|| malformed(format!("{target} has no key {key}: add it, or correct the key")))?;
    certificates(pem).map_err(|what| malformed(format!("{target}, key {key}: {what}")))
}

/// Returns the certificates of a CA bundle in PEM, without anything else that it holds. What the server loads is accepted:
/// whether a certificate is the right one shows when the server connects to the upstream.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<u8>, String> {
    let mut text = String::new();
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    for certificate in TrustedCertificates::empty().add_pem(pem)? {
        text += &pem::encode_config(&Pem::new("CERTIFICATE", certificate.to_vec()), config);
    }
    Ok(text.into_bytes())
}

/// Returns the file name for a host. A key of a Secret may contain letters, digits, `-`, `_` and `.`, and no colon.
fn file_name(host: &str) -> String {
    let host: String = host
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
                c
            } else {
                '_'
            }
        })
        .collect();
    format!("ca-{host}.crt")
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    use test_case::test_case;

    use super::*;

    /// A certificate and its key, in PEM.
    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test_case("docker.io", "ca-docker.io.crt")]
    #[test_case("registry.example.com:5000", "ca-registry.example.com_5000.crt")]
    #[test_case("[::1]:5000", "ca-___1__5000.crt")]
    fn host_gives_a_valid_secret_key(host: &str, file: &str) {
        assert_eq!(file_name(host), file);
    }

    #[test_case("-----BEGIN PRIVATE KEY----- aHVudGVyMg== -----END PRIVATE KEY-----\n"; "a key on one line")]
    #[test_case("-----BEGIN aHVudGVyMg==-----\nAAAA\n"; "a section without an end")]
    #[test_case("-----BEGIN CERTIFICATE-----\naHVudGVyMg==%%\n-----END CERTIFICATE-----\n"; "no base64")]
    fn malformed_pem_is_refused_without_its_content(pem: &str) {
        let error = certificates(pem.as_bytes()).unwrap_err();
        let bytes = format!("{:?}", b"aHVudGVyMg==");
        let bytes = bytes.trim_matches(['[', ']']);
        assert!(error.contains("certificate 1 is not PEM"), "{error}");
        assert!(!error.contains("aHVud") && !error.contains(bytes), "{error}");
    }

    #[test]
    fn only_certificates_of_a_file_are_copied() {
        let (certificate, key) = pair();
        let windows = certificate.replace('\n', "\r\n");
        let file = format!("# roots\n{windows}junk\n{key}{certificate}");
        let bundle = certificates(file.as_bytes()).unwrap();
        let lines = certificate.replace('\r', "");
        assert_eq!(String::from_utf8(bundle).unwrap(), lines.repeat(2));
    }

    /// Certificates without a line break between them are refused.
    #[test]
    fn joined_certificates_are_refused() {
        let (certificate, _) = pair();
        let file = format!("{}{certificate}", certificate.trim_end());
        let error = certificates(file.as_bytes()).unwrap_err();
        assert!(error.contains("put a line break between"), "{error}");
    }

    /// A bundle of a thousand CAs is accepted.
    #[test]
    fn bundle_of_a_thousand_cas_is_accepted() {
        let (certificate, _) = pair();
        let bundle = certificates(certificate.repeat(1000).as_bytes()).unwrap();
        assert_eq!(CertificateDer::pem_slice_iter(&bundle).count(), 1000);
    }

    /// The server trusts such a certificate itself, without its issuer.
    #[test]
    fn servers_own_certificate_is_accepted() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        let mut ca = rcgen::CertificateParams::new(vec!["hub".to_owned()]).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let self_signed = ca.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(ca, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["hub".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap().pem();
        for pem in [self_signed, leaf] {
            assert!(certificates(pem.as_bytes()).is_ok(), "{pem}");
        }
    }

    #[test]
    fn file_without_certificate_is_refused() {
        assert!(certificates(b"").unwrap_err().contains("holds no certificate"));
        assert!(
            certificates(b"hello")
                .unwrap_err()
                .contains("holds no certificate")
        );
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(
            certificates(broken.as_bytes())
                .unwrap_err()
                .contains("certificate 1 can't be used")
        );
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        assert!(
            certificates(cut.as_bytes())
                .unwrap_err()
                .contains("certificate 1 is not PEM")
        );
    }
}
