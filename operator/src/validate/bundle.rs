//! Certificates of an upstream's authorities.

use crds::{RegistryMirror, conditions::Reason, upstream::CaBundleReference};
use pem::{EncodeConfig, LineEnding, Pem};
use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{Error as NotPem, PemObject},
    },
};

use super::Rejection;
use crate::dereference::{Reference, References};

/// Certificates that were read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The file's name in the server's directory of certificates.
    pub file: String,
    /// The certificates, and nothing else that the admin's file holds.
    pub pem: Vec<u8>,
}

/// The bundle that an upstream refers to, if it refers to one.
///
/// # Errors
/// `ReferenceNotFound` and `ReferenceMalformed`: a server that starts without its authorities could not reach upstream
/// and would not say why.
pub fn of(upstream: &crds::Upstream, references: &References) -> Result<Option<Bundle>, Rejection> {
    let Some(reference) = upstream.tls.as_ref().and_then(|tls| tls.ca_bundle_ref.as_ref()) else {
        return Ok(None);
    };
    let pem = read(reference, references).map_err(|rejection| rejection.below("tls.caBundleRef"))?;
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
pub fn of_clients(mirror: &RegistryMirror, references: &References) -> Result<Option<Vec<u8>>, Rejection> {
    let Some(reference) = &mirror.spec.tls.client_ca_ref else {
        return Ok(None);
    };
    let pem = read(reference, references).map_err(|rejection| rejection.below("spec.tls.clientCARef"))?;
    Ok(Some(pem))
}

fn read(reference: &CaBundleReference, references: &References) -> Result<Vec<u8>, Rejection> {
    let target = Reference::from(reference);
    let key = &reference.key;
    let contents = references.get(&target).ok_or_else(|| Rejection {
        reason: Reason::ReferenceNotFound,
        message: format!(
            "there is no {target} in this namespace; create it with the key {key}, or correct the name"
        ),
    })?;
    let malformed = |message: String| Rejection {
        reason: Reason::ReferenceMalformed,
        message,
    };
    let pem = contents.get(key).ok_or_else(|| {
        malformed(format!(
            "{target} has no key {key}; it has {}",
            keys(&contents.data)
        ))
    })?;
    certificates(pem).map_err(|what| malformed(format!("{target}, key {key}: {what}")))
}

/// The certificates of a file of authorities, in PEM, and nothing else that it holds. Only what an authority's certificate
/// needs is looked at: whether it is the right one shows when upstream is asked.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<u8>, String> {
    let (mut roots, mut text) = (RootCertStore::empty(), String::new());
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    for (index, certificate) in sections(pem)?.into_iter().enumerate() {
        text += &pem::encode_config(&Pem::new("CERTIFICATE", certificate.to_vec()), config);
        roots
            .add(certificate)
            .map_err(|error| format!("certificate {} can't be used: {error}", index + 1))?;
    }
    if roots.is_empty() {
        return Err(
            "holds no certificate; it should hold one or more, each from -----BEGIN CERTIFICATE----- to \
                    -----END CERTIFICATE-----"
                .to_owned(),
        );
    }
    Ok(text.into_bytes())
}

/// The certificates of a file, whatever else it holds.
pub(super) fn sections(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    // What follows on such a line would be left out in silence.
    const RUN_TOGETHER: &[u8] = b"-----END CERTIFICATE----------BEGIN ";
    if pem.windows(RUN_TOGETHER.len()).any(|part| part == RUN_TOGETHER) {
        return Err(
            "one certificate ends and the next begins on the same line; put a line break between".to_owned(),
        );
    }
    let sections = CertificateDer::pem_slice_iter(pem).enumerate();
    sections
        .map(|(index, certificate)| {
            certificate.map_err(|error| format!("certificate {} is not PEM: {}", index + 1, not_pem(&error)))
        })
        .collect()
}

/// The error's own words hold lines of the file, which may be a private key that someone mixed up.
pub(super) fn not_pem(error: &NotPem) -> &'static str {
    match error {
        NotPem::MissingSectionEnd { .. } => "a section has no -----END line of the same name",
        NotPem::IllegalSectionStart { .. } => "a -----BEGIN line goes on after its name",
        NotPem::Base64Decode(_) => "a section is not base64",
        NotPem::SectionTooLarge => "a section is too large",
        _ => "it can't be read",
    }
}

/// A key of a Secret: letters, digits, `-`, `_` and `.`, so that a port's colon, or an IPv6 address', can't stay.
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

/// The keys of an object, for a message.
pub(crate) fn keys<V>(data: &std::collections::BTreeMap<String, V>) -> String {
    if data.is_empty() {
        return "no keys at all".to_owned();
    }
    data.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
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
    fn a_host_gives_a_file_name_that_a_secret_can_have(host: &str, file: &str) {
        assert_eq!(file_name(host), file);
    }

    #[test_case("-----BEGIN PRIVATE KEY----- aHVudGVyMg== -----END PRIVATE KEY-----\n"; "a key on one line")]
    #[test_case("-----BEGIN aHVudGVyMg==-----\nAAAA\n"; "a section without an end")]
    #[test_case("-----BEGIN CERTIFICATE-----\naHVudGVyMg==%%\n-----END CERTIFICATE-----\n"; "no base64")]
    fn what_is_no_pem_is_refused_without_a_byte_of_it(pem: &str) {
        let error = certificates(pem.as_bytes()).unwrap_err();
        let bytes = format!("{:?}", b"aHVudGVyMg==");
        let bytes = bytes.trim_matches(['[', ']']);
        assert!(error.contains("certificate 1 is not PEM"), "{error}");
        assert!(!error.contains("aHVud") && !error.contains(bytes), "{error}");
    }

    #[test]
    fn of_a_file_with_more_in_it_certificates_only_are_handed_out() {
        let (certificate, key) = pair();
        let windows = certificate.replace('\n', "\r\n");
        let file = format!("# roots\n{windows}junk\n{key}{certificate}");
        let handed_out = certificates(file.as_bytes()).unwrap();
        let lines = certificate.replace('\r', "");
        assert_eq!(String::from_utf8(handed_out).unwrap(), lines.repeat(2));
    }

    #[test]
    fn certificates_that_run_together_are_not_lost_in_silence() {
        let (certificate, _) = pair();
        let file = format!("{}{certificate}", certificate.trim_end());
        let error = certificates(file.as_bytes()).unwrap_err();
        assert!(error.contains("put a line break between"), "{error}");
    }

    #[test]
    fn a_file_of_a_thousand_authorities_is_taken() {
        let (certificate, _) = pair();
        let handed_out = certificates(certificate.repeat(1000).as_bytes()).unwrap();
        assert_eq!(CertificateDer::pem_slice_iter(&handed_out).count(), 1000);
    }

    #[test]
    fn what_is_no_certificate_is_refused_by_name() {
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
