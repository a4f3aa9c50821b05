//! The CAs and the serving certificate that a mirror has in its Secrets.

use crds::RegistryMirror;
use kube::ResourceExt;

use super::{
    SecretFiles,
    authority::{CertificateAuthority, Owner},
    leaf::Leaf,
    x509::StoredCertificate,
};
use crate::{
    dereference::{Contents, References},
    observed::Validity,
    validate::serving,
};

/// The keys of the CA that signs: its certificate and its private key.
const CURRENT: [&str; 2] = ["tls.crt", "tls.key"];
/// The keys of the CA that clients trust already and that signs next.
const NEXT: [&str; 2] = ["next.crt", "next.key"];
/// The key of all CA certificates that clients trust.
const TRUSTED: &str = "ca.crt";

/// The usable parts of a mirror's Secrets. Has no `Debug`: it holds private keys.
pub(super) struct CaState {
    pub(super) owner: Owner,
    pub(super) current: Option<CertificateAuthority>,
    pub(super) next: Option<CertificateAuthority>,
    /// CAs that sign no more and that clients may still trust.
    pub(super) retired: Vec<StoredCertificate>,
    pub(super) leaf: Option<Leaf>,
}

impl CaState {
    /// Loads the state, without parts that are malformed, expired or another owner's.
    pub(super) fn load(mirror: &RegistryMirror, references: &References, now: i64) -> Self {
        let data = |contents: &Option<Contents>| contents.as_ref().map(|contents| contents.data.clone());
        let stored = data(&references.ca).unwrap_or_default();
        let files = data(&references.files).unwrap_or_default();
        let owner = Owner {
            namespace: mirror.namespace().unwrap_or_default(),
            mirror: mirror.name_any(),
        };
        // Both Secrets have them, so that the loss of one costs no client its trust.
        let [_, _, published] = serving::FILES;
        let bundles = [stored.get(TRUSTED), files.get(published)];
        let trusted = bundles
            .into_iter()
            .flatten()
            .flat_map(|pem| StoredCertificate::parse_all(pem));
        let is_usable = |ca: &StoredCertificate| owner.has_issued(ca) && ca.validity.not_after > now;
        let retired = trusted.filter(is_usable).collect();
        let own = |keys| CertificateAuthority::load(&stored, keys).filter(|ca| is_usable(ca.certificate()));
        Self {
            current: own(CURRENT),
            next: own(NEXT),
            leaf: Leaf::load(&files, serving::FILES),
            retired,
            owner,
        }
    }

    /// Returns whether there is a CA, and the serving certificate is of that CA or of one before it.
    pub(super) fn is_serving(&self) -> bool {
        let has_issued = |current: &CertificateAuthority| {
            let leaf = self.leaf.as_ref();
            leaf.is_some_and(|leaf| self.is_trusted(leaf.issuer(), current))
        };
        self.current.as_ref().is_some_and(has_issued)
    }

    pub(super) fn next_validity(&self) -> Option<Validity> {
        self.next.as_ref().map(CertificateAuthority::validity)
    }

    /// Returns the end of each retired CA.
    pub(super) fn retired_ends(&self) -> impl Iterator<Item = i64> {
        self.retired.iter().map(|ca| ca.validity.not_after)
    }

    /// Returns whether clients trust a CA with this subject.
    pub(super) fn is_trusted(&self, subject: &[u8], current: &CertificateAuthority) -> bool {
        self.trusted(current).iter().any(|known| known.subject == subject)
    }

    /// Returns the bundle of all CA certificates that clients trust, in PEM: the CA that signs first, then the latest.
    pub(super) fn bundle(&self, current: &CertificateAuthority) -> String {
        self.trusted(current)
            .into_iter()
            .map(StoredCertificate::to_pem)
            .collect()
    }

    fn trusted<'a>(&'a self, current: &'a CertificateAuthority) -> Vec<&'a StoredCertificate> {
        let mut others: Vec<_> = self
            .retired
            .iter()
            .chain(self.next.as_ref().map(CertificateAuthority::certificate))
            .filter(|other| other.der != current.certificate().der)
            .collect();
        others.sort_by_key(|other| (std::cmp::Reverse(other.validity.not_before), &other.der));
        others.dedup();
        [current.certificate()].into_iter().chain(others).collect()
    }

    /// Returns the content of the CA Secret.
    pub(super) fn to_secret(&self, current: &CertificateAuthority, bundle: String) -> SecretFiles {
        let mut data = SecretFiles::from([(TRUSTED.to_owned(), bundle.into_bytes())]);
        current.write(CURRENT, &mut data);
        if let Some(next) = &self.next {
            next.write(NEXT, &mut data);
        }
        data
    }
}
