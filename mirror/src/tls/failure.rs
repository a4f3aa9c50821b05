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

const USE_HTTP: &str =
    "the server does not speak TLS on this port: use its port for TLS, or http:// if it has none";
const USE_HTTPS: &str = "the server does not answer with HTTP on this port: use https:// if it speaks TLS there, else correct the port";

/// Returns a request's error and its causes in one line. The URL is left out: signed URLs are secrets.
pub(crate) fn describe(error: reqwest::Error) -> String {
    let is_plain = error.url().is_some_and(|url| url.scheme() == "http");
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        // Writing to a String can't fail.
        let _ = match tls_error(next) {
            Some(rustls::Error::InvalidCertificate(error)) => write!(text, ": {}", refusal(error)),
            Some(rustls::Error::InvalidMessage(_)) => write!(text, ": {USE_HTTP}"),
            _ if is_plain && is_no_http(next) => write!(text, ": {USE_HTTPS}"),
            _ => write!(text, ": {next}"),
        };
        cause = next.source();
    }
    text
}

/// Returns whether a request failed in TLS: a certificate was refused, or the other side does not speak TLS.
pub(crate) fn is_tls_failure(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(next) = cause {
        if tls_error(next).is_some() {
            return true;
        }
        cause = next.source();
    }
    false
}

/// Returns `true` if a handshake ended because the certificate of the other side is refused, or missing.
pub(crate) fn is_refused_certificate(error: &io::Error) -> bool {
    use rustls::Error as E;
    matches!(
        tls_error(error),
        Some(E::InvalidCertificate(_) | E::NoCertificatesPresented)
    )
}

/// Returns the error of TLS, which I/O errors may wrap.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    match error.downcast_ref::<rustls::Error>() {
        Some(error) => Some(error),
        None => tls_error(error.downcast_ref::<io::Error>()?.get_ref()?),
    }
}

/// Returns `true` if the first bytes of a server are no HTTP, such as an alert of TLS.
fn is_no_http(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<hyper::Error>();
    error.is_some_and(|error| error.is_parse() && !error.is_parse_too_large())
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
