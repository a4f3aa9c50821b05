//! The certificates that a mirror's servers present, to clients and to each other.

use std::collections::BTreeSet;

use super::{SecretFiles, rotation::LeafState, x509::StoredCertificate};
use crate::{observed::Validity, validate::serving};

/// The use of a certificate, which its extended key usage allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeafUse {
    /// Servers present it to clients.
    Serving,
    /// Servers present it to each other, as a server and as a client.
    Peers,
}

/// A certificate of servers. Has no `Debug`: it holds a private key.
pub(super) struct Leaf {
    pub(super) certificate: StoredCertificate,
    /// In PEM.
    pub(super) key: Vec<u8>,
}

impl Leaf {
    /// Loads the certificate that was issued to servers from these keys of a Secret, if it can be used.
    pub(super) fn load(files: &SecretFiles, [certificate, key, _]: [&str; 3]) -> Option<Self> {
        let (chain, key) = (files.get(certificate)?, files.get(key)?);
        serving::check(chain, key).ok()?;
        Some(Self {
            certificate: StoredCertificate::parse_all(chain).next()?,
            key: key.clone(),
        })
    }

    pub(super) fn validity(&self) -> Validity {
        self.certificate.validity
    }

    pub(super) fn issuer(&self) -> &[u8] {
        &self.certificate.issuer
    }

    /// Returns the state that decides on a renewal.
    pub(super) fn state(&self, names: &BTreeSet<String>, is_trusted: impl Fn(&[u8]) -> bool) -> LeafState {
        LeafState {
            validity: self.validity(),
            is_trusted: is_trusted(&self.certificate.issuer),
            names_match: self.certificate.names == *names,
        }
    }

    /// Returns the certificate in PEM.
    pub(super) fn to_pem(&self) -> String {
        self.certificate.to_pem()
    }
}
