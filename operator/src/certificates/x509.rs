//! The parts of an X.509 certificate that the rotation needs.

use std::{collections::BTreeSet, net::IpAddr};

use pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, parse_x509_certificate, x509::X509Name,
};

use crate::observed::Validity;

/// A certificate of a mirror's Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredCertificate {
    pub(super) der: Vec<u8>,
    pub(super) validity: Validity,
    /// The names and addresses in `subjectAltName`.
    pub(super) names: BTreeSet<String>,
    /// The subject, in DER.
    pub(super) subject: Vec<u8>,
    /// The issuer, in DER.
    pub(super) issuer: Vec<u8>,
    /// The organization, the organizational unit and the common name of the subject.
    pub(super) owner: [String; 3],
}

impl StoredCertificate {
    /// Parses a certificate in DER.
    pub(super) fn parse(der: &[u8]) -> Option<Self> {
        let (_, parsed) = parse_x509_certificate(der).ok()?;
        let validity = parsed.validity();
        Some(Self {
            der: der.to_vec(),
            validity: Validity {
                not_before: validity.not_before.timestamp(),
                not_after: validity.not_after.timestamp(),
            },
            names: names(&parsed),
            subject: parsed.subject().as_raw().to_vec(),
            issuer: parsed.issuer().as_raw().to_vec(),
            owner: owner(parsed.subject()),
        })
    }

    /// Parses the certificates of a PEM file, without those that are malformed.
    pub(super) fn parse_all(pem: &[u8]) -> impl Iterator<Item = Self> {
        CertificateDer::pem_slice_iter(pem).filter_map(|der| Self::parse(&der.ok()?))
    }

    pub(super) fn to_pem(&self) -> String {
        let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
        pem::encode_config(&Pem::new("CERTIFICATE", self.der.clone()), config)
    }
}

fn names(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.iter().flat_map(|names| &names.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(octets) => address(octets).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(octets).map(IpAddr::from);
    v4.or(v6).ok()
}

fn owner(subject: &X509Name<'_>) -> [String; 3] {
    let first = |text: Option<&str>| text.unwrap_or_default().to_owned();
    [
        first(
            subject
                .iter_organization()
                .next()
                .and_then(|name| name.as_str().ok()),
        ),
        first(
            subject
                .iter_organizational_unit()
                .next()
                .and_then(|name| name.as_str().ok()),
        ),
        first(
            subject
                .iter_common_name()
                .next()
                .and_then(|name| name.as_str().ok()),
        ),
    ]
}
