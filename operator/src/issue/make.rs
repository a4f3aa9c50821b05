//! Making authorities and certificates: the one place where keys are drawn.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{
    Error, Files, Terms,
    certificate::Certificate,
    decide::{Span, Standing, seconds},
};
use crate::validate::serving;

/// In every authority's name, so that it can be told from those of others.
const ORGANIZATION: &str = "registry-mirror";

/// Whose certificates they are.
pub(super) struct Owner {
    pub(super) namespace: String,
    pub(super) mirror: String,
}

impl Owner {
    /// Whether an authority is the mirror's.
    pub(super) fn made(&self, authority: &Certificate) -> bool {
        let [organization, unit, name] = &authority.owner;
        let number = name.strip_prefix(&self.stem());
        organization == ORGANIZATION && *unit == self.namespace && number.is_some()
    }

    fn stem(&self) -> String {
        format!("{} CA ", self.mirror)
    }
}

/// An authority that can sign. Has no `Debug`: it holds a private key.
pub(super) struct Authority {
    certificate: Certificate,
    /// In PEM.
    key: Vec<u8>,
    /// Of the same key, signed by the authority before: for clients that know only that one.
    cross: Option<Certificate>,
}

impl Authority {
    /// One that nobody knows yet.
    pub(super) fn first(owner: &Owner, now: i64, terms: &Terms) -> Result<Self, Error> {
        let (params, key) = (authority(owner, now, terms), KeyPair::generate()?);
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: made(certificate.der())?,
            key: key.serialize_pem().into_bytes(),
            cross: None,
        })
    }

    /// The next one, which this one vouches for until it ends itself.
    pub(super) fn successor(&self, owner: &Owner, now: i64, terms: &Terms) -> Result<Self, Error> {
        let mut params = authority(owner, now, terms);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        params.not_after = time(
            self.span()
                .ends
                .min(Span::from(now, seconds(terms.authority)).ends),
        );
        params.use_authority_key_identifier_extension = true;
        let cross = params.signed_by(&key, &self.issuer()?)?;
        Ok(Self {
            certificate: made(certificate.der())?,
            key: key.serialize_pem().into_bytes(),
            cross: Some(made(cross.der())?),
        })
    }

    /// One that is kept in a Secret's keys, if it can be used.
    pub(super) fn read(files: &Files, [certificate, key, cross]: [&str; 3]) -> Option<Self> {
        let (pem, key) = (files.get(certificate)?, files.get(key)?);
        serving::check(pem, key).ok()?;
        let first = |pem: &[u8]| Certificate::all(pem).next();
        Some(Self {
            certificate: first(pem)?,
            key: key.clone(),
            cross: files.get(cross).and_then(|pem| first(pem)),
        })
    }

    /// As it is kept.
    pub(super) fn write(&self, [certificate, key, cross]: [&str; 3], files: &mut Files) {
        files.insert(certificate.to_owned(), self.certificate.pem().into_bytes());
        files.insert(key.to_owned(), self.key.clone());
        let vouched = self.cross.as_ref().map(|cross| cross.pem().into_bytes());
        files.extend(vouched.map(|pem| (cross.to_owned(), pem)));
    }

    pub(super) fn span(&self) -> Span {
        self.certificate.span
    }

    pub(super) fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// It signs no more; clients go on trusting it until it ends.
    pub(super) fn retire(self) -> Certificate {
        self.certificate
    }

    /// A certificate for these names, with a key of its own.
    pub(super) fn issue(&self, names: &BTreeSet<String>, now: i64, terms: &Terms) -> Result<Leaf, Error> {
        let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?;
        let span = Span::from(now, seconds(terms.serving));
        (params.not_before, params.not_after) = (time(span.starts), time(span.ends.min(self.span().ends)));
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::OrganizationName, ORGANIZATION);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer()?)?;
        Ok(Leaf {
            certificate: made(certificate.der())?,
            key: key.serialize_pem().into_bytes(),
        })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Error> {
        let key = KeyPair::from_pem(&String::from_utf8_lossy(&self.key))?;
        let der = CertificateDer::from_slice(&self.certificate.der);
        Ok(Issuer::from_ca_cert_der(&der, key)?)
    }
}

/// What clients are shown. Has no `Debug`: it holds a private key.
pub(super) struct Leaf {
    certificate: Certificate,
    /// In PEM.
    pub(super) key: Vec<u8>,
}

impl Leaf {
    /// The one that servers were handed, if it can be used.
    pub(super) fn read(files: &Files) -> Option<Self> {
        let [certificate, key, _] = serving::OWN;
        let (chain, key) = (files.get(certificate)?, files.get(key)?);
        serving::check(chain, key).ok()?;
        Some(Self {
            certificate: Certificate::all(chain).next()?,
            key: key.clone(),
        })
    }

    pub(super) fn span(&self) -> Span {
        self.certificate.span
    }

    pub(super) fn issuer(&self) -> &[u8] {
        &self.certificate.issuer
    }

    pub(super) fn standing(&self, names: &BTreeSet<String>, trusts: impl Fn(&[u8]) -> bool) -> Standing {
        Standing {
            span: self.span(),
            is_trusted: trusts(&self.certificate.issuer),
            names_fit: self.certificate.names == *names,
        }
    }

    /// With what leads clients to the authority before, while that one is good, in PEM.
    pub(super) fn chain(&self, authority: &Authority, now: i64) -> String {
        let cross = authority.cross.as_ref();
        let cross = cross.filter(|cross| {
            cross.span.ends > now && self.certificate.issuer == authority.certificate.subject
        });
        [Some(&self.certificate), cross]
            .into_iter()
            .flatten()
            .map(Certificate::pem)
            .collect()
    }
}

fn authority(owner: &Owner, now: i64, terms: &Terms) -> CertificateParams {
    let mut params = CertificateParams::default();
    let span = Span::from(now, seconds(terms.authority));
    (params.not_before, params.not_after) = (time(span.starts), time(span.ends));
    let number = Timestamp::from_second(now)
        .unwrap_or_default()
        .strftime("%Y%m%d%H%M%S");
    let name = &mut params.distinguished_name;
    name.remove(DnType::CommonName);
    name.push(DnType::OrganizationName, ORGANIZATION);
    name.push(DnType::OrganizationalUnitName, owner.namespace.as_str());
    name.push(DnType::CommonName, format!("{}{number}", owner.stem()));
    // It signs what servers show, and the authority after it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params
}

/// What was just made can be read.
fn made(der: &[u8]) -> Result<Certificate, Error> {
    Certificate::read(der).ok_or(Error(rcgen::Error::CouldNotParseCertificate))
}

fn time(seconds: i64) -> OffsetDateTime {
    // Year 9999 is the last that a certificate can name.
    const LAST: i64 = 253_402_300_799;
    OffsetDateTime::from_unix_timestamp(seconds.clamp(0, LAST)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
