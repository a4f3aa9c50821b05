//! Messages about a peer's certificate, with the cause and what to do.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use jiff::Timestamp;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::FromDer;

use super::x509;

const TRUST_IT: &str =
    "add the CA, or the certificate itself, to the upstream's CA file or to the CAs of the system";

/// Returns a request's error and its causes in one line. The URL is left out: signed URLs are secrets.
pub(crate) fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        // Writing to a String can't fail.
        let _ = match certificate_error(next) {
            Some(error) => write!(text, ": {}", refusal(error)),
            None => write!(text, ": {next}"),
        };
        cause = next.source();
    }
    text
}

/// Returns whether a request failed in TLS: a certificate was refused, or the other side does not speak TLS.
pub(crate) fn is_tls_failure(error: &reqwest::Error) -> bool {
    fn is_tls(error: &(dyn Error + 'static)) -> bool {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error.is::<rustls::Error>() || inner.is_some_and(|inner| is_tls(inner))
    }
    let mut cause = error.source();
    while let Some(next) = cause {
        if is_tls(next) {
            return true;
        }
        cause = next.source();
    }
    false
}

/// Returns the error of a server's certificate, which I/O errors may wrap.
fn certificate_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    match error.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(error)) => Some(error),
        Some(_) => None,
        None => certificate_error(error.downcast_ref::<io::Error>()?.get_ref()?),
    }
}

fn refusal(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        E::UnknownIssuer => {
            format!("the certificate of the server was not issued by a trusted CA: {TRUST_IT}")
        }
        E::NotValidForNameContext { expected, presented } if presented.is_empty() => format!(
            "the certificate of the server is not valid for {:?}: it has no subjectAltName, and a name in its \
             Common Name does not count; issue a certificate with the name in subjectAltName",
            expected.to_str()
        ),
        E::ExpiredContext { not_after, .. } => format!(
            "the certificate of the server expired at {}: renew it, or correct the clock of this machine",
            date(*not_after)
        ),
        E::NotValidYetContext { not_before, .. } => format!(
            "the certificate of the server is not valid before {}: correct the clock of this machine, or issue another",
            date(*not_before)
        ),
        E::UnsupportedSignatureAlgorithmContext {
            signature_algorithm_id,
            ..
        } => unsupported(&algorithm(signature_algorithm_id)),
        E::UnsupportedSignatureAlgorithmForPublicKeyContext {
            signature_algorithm_id,
            public_key_algorithm_id,
        } => unsupported(&format!(
            "{} and a key of {}",
            algorithm(signature_algorithm_id),
            algorithm(public_key_algorithm_id)
        )),
        E::Other(other) => unusable(&other.to_string()).unwrap_or_else(|| refused(error)),
        error => refused(error),
    }
}

fn refused(error: &CertificateError) -> String {
    format!("the certificate of the server was refused: {error}")
}

fn unsupported(algorithm: &str) -> String {
    format!(
        "a certificate of the server is signed with {algorithm}, which is not supported: issue it with RSA of 2048 to \
         8192 bits, ECDSA on P-256, P-384 or P-521, or Ed25519, and SHA-256, SHA-384 or SHA-512"
    )
}

/// Errors that `rustls` has no words for.
fn unusable(name: &str) -> Option<String> {
    let reason = match name {
        x509::CA_AS_END_ENTITY => format!("is that of a CA, and not itself trusted: {TRUST_IT}"),
        "UnsupportedCertVersion" => {
            "is not of X.509 version 3: issue it with extensions, at least subjectAltName".to_owned()
        }
        _ => return None,
    };
    Some(format!("the certificate of the server {reason}"))
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds)
        .map_or_else(|_| format!("{seconds} s after 1970"), |time| time.to_string())
}

/// Returns the name of an `AlgorithmIdentifier` (RFC 5280, section 4.1.1.2), without the header of its sequence in DER.
fn algorithm(der: &[u8]) -> String {
    let Ok((parameters, oid)) = Oid::from_der(der) else {
        return "an algorithm that can't be read".to_owned();
    };
    match Oid::from_der(parameters) {
        Ok((_, curve)) => format!("{} on {}", x509::name(&oid), x509::name(&curve)),
        Err(_) => x509::name(&oid),
    }
}
