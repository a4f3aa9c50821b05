//! X.509 certificates: validity, purpose, and the names of algorithms (RFC 5280).

use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use rustls::{CertificateError, ExtendedKeyPurpose};
use x509_parser::asn1_rs::{Any, BitString, FromDer};
use x509_parser::certificate::{Validity, X509Certificate};
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2sn};
use x509_parser::oid_registry::Oid;
use x509_parser::parse_x509_certificate;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::X509Version;

/// The name of the error of `rustls-webpki` that has no variant in `rustls`: a CA's certificate is not accepted as that of
/// a server or client.
pub(super) const CA_AS_END_ENTITY: &str = "CaUsedAsEndEntity";

/// A role in a TLS handshake for which a certificate is shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    Server,
    Client,
}

/// Checks the validity and the extended key usage (RFC 5280, section 4.2.1.12) of a certificate.
pub(super) fn check(
    certificate: &CertificateDer<'_>,
    purpose: Purpose,
    now: UnixTime,
) -> Result<(), CertificateError> {
    let (_, certificate) = parse_x509_certificate(certificate).map_err(|_| CertificateError::BadEncoding)?;
    check_validity(certificate.validity(), now)?;
    check_purpose(&certificate, purpose)
}

fn check_validity(validity: &Validity, now: UnixTime) -> Result<(), CertificateError> {
    let seconds = |timestamp: i64| {
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(timestamp).unwrap_or_default()))
    };
    let not_before = seconds(validity.not_before.timestamp());
    let not_after = seconds(validity.not_after.timestamp());
    if now < not_before {
        Err(CertificateError::NotValidYetContext {
            time: now,
            not_before,
        })
    } else if now > not_after {
        Err(CertificateError::ExpiredContext { time: now, not_after })
    } else {
        Ok(())
    }
}

fn check_purpose(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), CertificateError> {
    let usage = certificate
        .extended_key_usage()
        .map_err(|_| CertificateError::BadEncoding)?;
    let Some(usage) = usage.map(|extension| extension.value) else {
        return Ok(());
    };
    let (allowed, required) = match purpose {
        Purpose::Server => (usage.server_auth, ExtendedKeyPurpose::ServerAuth),
        Purpose::Client => (usage.client_auth, ExtendedKeyPurpose::ClientAuth),
    };
    if allowed || usage.any {
        return Ok(());
    }
    let other = [
        (usage.server_auth, ExtendedKeyPurpose::ServerAuth),
        (usage.client_auth, ExtendedKeyPurpose::ClientAuth),
    ];
    Err(CertificateError::InvalidPurposeContext {
        required,
        presented: other
            .into_iter()
            .filter_map(|(present, purpose)| present.then_some(purpose))
            .collect(),
    })
}

/// Returns the DNS names in `subjectAltName` of a certificate, without wildcards.
pub(super) fn dns_names(certificate: &CertificateDer<'_>) -> Vec<ServerName<'static>> {
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else {
        return Vec::new();
    };
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.iter().flat_map(|names| &names.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => ServerName::try_from((*name).to_owned()).ok(),
        _ => None,
    });
    names.collect()
}

/// Returns true if a certificate may issue others (RFC 5280, section 4.2.1.9): that of a CA, or one of version 1, which has
/// no extension to say so.
pub(super) fn may_issue(certificate: &CertificateDer<'_>) -> bool {
    parse_x509_certificate(certificate)
        .is_ok_and(|(_, certificate)| certificate.is_ca() || certificate.version() == X509Version::V1)
}

/// Returns whether the key of an anchor without name constraints signed the certificate.
pub(super) fn is_signed_by(
    certificate: &CertificateDer<'_>,
    anchor: &TrustAnchor<'_>,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> bool {
    let verified = || {
        let (_, parsed) = parse_x509_certificate(certificate).ok()?;
        let (_, issuer) = Any::from_der(parsed.issuer().as_raw()).ok()?;
        if issuer.data != &*anchor.subject || anchor.name_constraints.is_some() {
            return None;
        }
        // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }
        let (_, outer) = Any::from_der(certificate).ok()?;
        let (rest, _) = Any::from_der(outer.data).ok()?;
        let (_, algorithm) = Any::from_der(rest).ok()?;
        // SubjectPublicKeyInfo ::= SEQUENCE { algorithm, subjectPublicKey }
        let (rest, key_algorithm) = Any::from_der(&anchor.subject_public_key_info).ok()?;
        let (_, key) = BitString::from_der(rest).ok()?;
        let verifies = |known: &&&dyn SignatureVerificationAlgorithm| {
            let (id, key_id) = (known.signature_alg_id(), known.public_key_alg_id());
            (id.as_ref(), key_id.as_ref()) == (algorithm.data, key_algorithm.data)
        };
        let (message, signature) = (parsed.tbs_certificate.as_ref(), &parsed.signature_value.data);
        let mut known = algorithms.iter().filter(verifies);
        known
            .any(|known| known.verify_signature(&key.data, message, signature).is_ok())
            .then_some(())
    };
    verified().is_some()
}

/// Returns the end of a certificate's validity, in seconds since 1970.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Returns the name of a certificate's public key, such as `RSA of 1024 bits` or `ECDSA on secp256k1`.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let key = certificate.public_key();
    let curve = || {
        let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
        Some(name(&curve))
    };
    Some(match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA of {} bits", rsa.key_size()),
        Ok(PublicKey::EC(_)) => format!(
            "ECDSA on {}",
            curve().unwrap_or_else(|| "an unnamed curve".to_owned())
        ),
        _ => name(&key.algorithm.algorithm),
    })
}

/// Returns the name of an object identifier, or its numbers if it is unknown here.
pub(super) fn name(oid: &Oid<'_>) -> String {
    // Not in the registry of the parser.
    const MORE: [(&str, &str); 4] = [
        ("1.3.101.112", "Ed25519"),
        ("1.3.101.113", "Ed448"),
        ("1.3.132.0.10", "secp256k1"),
        ("1.3.132.0.33", "secp224r1"),
    ];
    let numbers = oid.to_id_string();
    let more = MORE
        .iter()
        .find(|(oid, _)| *oid == numbers)
        .map(|(_, name)| *name);
    match more.or_else(|| oid2sn(oid, oid_registry()).ok()) {
        Some(name) => name.to_owned(),
        None => format!("the algorithm {numbers}"),
    }
}
