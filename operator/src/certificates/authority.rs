//! The certificate authorities of mirrors. Private keys are generated here only.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{
    CertificateError, CertificateLifetimes, SecretFiles,
    leaf::{Leaf, LeafUse},
    rotation::seconds,
    x509::StoredCertificate,
};
use crate::{observed::Validity, validate::serving};

/// The organization in the name of every CA, which distinguishes them from CAs of other programs.
const ORGANIZATION: &str = "registry-mirror";

/// The mirror that owns CAs.
pub(super) struct Owner {
    pub(super) namespace: String,
    pub(super) mirror: String,
}

impl Owner {
    /// Returns whether a CA is the mirror's.
    pub(super) fn has_issued(&self, ca: &StoredCertificate) -> bool {
        let [organization, unit, name] = &ca.owner;
        let number = name.strip_prefix(&self.name_prefix());
        organization == ORGANIZATION && *unit == self.namespace && number.is_some()
    }

    fn name_prefix(&self) -> String {
        format!("{} CA ", self.mirror)
    }
}

/// A CA that can sign. Has no `Debug`: it holds a private key.
pub(super) struct CertificateAuthority {
    certificate: StoredCertificate,
    /// In PEM.
    key: Vec<u8>,
}

impl CertificateAuthority {
    /// Creates a CA.
    pub(super) fn create(
        owner: &Owner,
        now: i64,
        lifetimes: &CertificateLifetimes,
    ) -> Result<Self, CertificateError> {
        let (params, key) = (ca_params(owner, now, lifetimes), KeyPair::generate()?);
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: parse(certificate.der())?,
            key: key.serialize_pem().into_bytes(),
        })
    }

    /// Loads a CA from these keys of a Secret, if it can be used.
    pub(super) fn load(data: &SecretFiles, [certificate, key]: [&str; 2]) -> Option<Self> {
        let (pem, key) = (data.get(certificate)?, data.get(key)?);
        serving::check(pem, key).ok()?;
        Some(Self {
            certificate: StoredCertificate::parse_all(pem).next()?,
            key: key.clone(),
        })
    }

    /// Writes the CA to these keys of a Secret.
    pub(super) fn write(&self, [certificate, key]: [&str; 2], data: &mut SecretFiles) {
        data.insert(certificate.to_owned(), self.certificate.to_pem().into_bytes());
        data.insert(key.to_owned(), self.key.clone());
    }

    pub(super) fn validity(&self) -> Validity {
        self.certificate.validity
    }

    pub(super) fn certificate(&self) -> &StoredCertificate {
        &self.certificate
    }

    /// Drops the private key and returns the certificate, which clients trust until it ends.
    pub(super) fn retire(self) -> StoredCertificate {
        self.certificate
    }

    /// Issues a certificate of servers for these names, with a key of its own.
    pub(super) fn issue(
        &self,
        names: &BTreeSet<String>,
        usage: LeafUse,
        now: i64,
        lifetimes: &CertificateLifetimes,
    ) -> Result<Leaf, CertificateError> {
        let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?;
        let validity = Validity::starting(now, seconds(lifetimes.serving));
        params.not_before = time(validity.not_before);
        params.not_after = time(validity.not_after.min(self.validity().not_after));
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::OrganizationName, ORGANIZATION);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if usage == LeafUse::Peers {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer()?)?;
        Ok(Leaf {
            certificate: parse(certificate.der())?,
            key: key.serialize_pem().into_bytes(),
        })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, CertificateError> {
        let key = KeyPair::from_pem(&String::from_utf8_lossy(&self.key))?;
        let der = CertificateDer::from_slice(&self.certificate.der);
        Ok(Issuer::from_ca_cert_der(&der, key)?)
    }
}

fn ca_params(owner: &Owner, now: i64, lifetimes: &CertificateLifetimes) -> CertificateParams {
    let mut params = CertificateParams::default();
    let validity = Validity::starting(now, seconds(lifetimes.ca));
    (params.not_before, params.not_after) = (time(validity.not_before), time(validity.not_after));
    let number = Timestamp::from_second(now)
        .unwrap_or_default()
        .strftime("%Y%m%d%H%M%S");
    let name = &mut params.distinguished_name;
    name.remove(DnType::CommonName);
    name.push(DnType::OrganizationName, ORGANIZATION);
    name.push(DnType::OrganizationalUnitName, owner.namespace.as_str());
    name.push(DnType::CommonName, format!("{}{number}", owner.name_prefix()));
    // A path length of 0: it signs certificates of servers only.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params
}

fn parse(der: &[u8]) -> Result<StoredCertificate, CertificateError> {
    StoredCertificate::parse(der).ok_or(CertificateError(rcgen::Error::CouldNotParseCertificate))
}

fn time(seconds: i64) -> OffsetDateTime {
    // The end of 9999, the last year that a certificate can name.
    const LAST: i64 = 253_402_300_799;
    OffsetDateTime::from_unix_timestamp(seconds.clamp(0, LAST)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
