//! Certificates and keys in PEM (RFC 7468).

use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::x509;

/// Returns the certificates of a file, one or more, without anything else that it holds.
///
/// # Errors
/// The part of the file that is not PEM, without a byte of it; or the file holds no certificate.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    // The parser skips the rest of such a line, and the second certificate with it.
    const RUN_TOGETHER: &[u8] = b"-----END CERTIFICATE----------BEGIN ";
    if pem.windows(RUN_TOGETHER.len()).any(|part| part == RUN_TOGETHER) {
        return Err(
            "one certificate ends and the next begins on the same line; put a line break between".to_owned(),
        );
    }
    let sections = CertificateDer::pem_slice_iter(pem).enumerate();
    let certificates = sections
        .map(|(index, certificate)| {
            certificate.map_err(|error| format!("certificate {} is not PEM: {}", index + 1, reason(&error)))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() {
        return Err(
            "holds no certificate; it should hold one or more, each from -----BEGIN CERTIFICATE----- to \
                    -----END CERTIFICATE-----"
                .to_owned(),
        );
    }
    Ok(certificates)
}

/// Returns the first private key of a file (PKCS #8, PKCS #1 or SEC 1).
///
/// # Errors
/// The reason why there is none, without a byte of the file.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    /// Of PKCS #8 in the name of the section, of older formats in a header of it.
    const ENCRYPTED: &[u8] = b"ENCRYPTED";
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        if pem.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED) {
            return "the private key is encrypted, and no server knows its password; put it in without one"
                .to_owned();
        }
        match error {
            Error::NoItemsFound => "the key holds no private key in PEM".to_owned(),
            error => format!("the private key is not PEM: {}", reason(&error)),
        }
    })
}

/// Returns a certificate chain, which begins with the server's certificate, and its key for serving.
///
/// # Errors
/// They don't belong together, or servers can't use such a key.
pub fn pair(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, String> {
    let kind = chain.first().and_then(x509::public_key);
    CertifiedKey::from_der(chain, key, &super::provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            "the key is not that of the first certificate; a chain begins with the server's own".to_owned()
        }
        // The provider can't load the key, and says no more.
        rustls::Error::General(_) => format!(
            "the key can't be used (by its certificate, it is {}); servers can use RSA of 2048 to 8192 bits, ECDSA on \
             P-256, P-384 or P-521, and Ed25519",
            kind.as_deref().unwrap_or("of an unknown kind")
        ),
        error => format!("certificate and key can't be used together: {error}"),
    })
}

/// Returns the reason of an error of the parser. The text of the error itself holds lines of the file, which may be a
/// private key.
fn reason(error: &Error) -> &'static str {
    match error {
        Error::MissingSectionEnd { .. } => "a section has no -----END line of the same name",
        Error::IllegalSectionStart { .. } => "a -----BEGIN line has text after its name",
        Error::Base64Decode(_) => "a section is not base64",
        Error::SectionTooLarge => "a section is too large",
        _ => "it can't be read",
    }
}
