//! What a mirror has of authorities and certificates, in its Secrets.

use crds::RegistryMirror;
use kube::ResourceExt;

use super::{
    Files,
    certificate::Certificate,
    decide::Span,
    make::{Authority, Leaf, Owner},
};
use crate::{
    dereference::{Contents, References},
    validate::serving,
};

/// The authority that signs, in its Secret: certificate, key, and what leads to it from the one before.
const CURRENT: [&str; 3] = ["tls.crt", "tls.key", "cross.crt"];
/// The one that clients are told to trust, and that signs next.
const NEXT: [&str; 3] = ["next.crt", "next.key", "next-cross.crt"];
/// All that clients are told to trust.
const TRUSTED: &str = "ca.crt";

/// All of it that can be used. Has no `Debug`: it holds private keys.
pub(super) struct Held {
    pub(super) owner: Owner,
    pub(super) current: Option<Authority>,
    pub(super) next: Option<Authority>,
    /// Authorities that sign no more and that clients may go on to trust.
    pub(super) others: Vec<Certificate>,
    pub(super) leaf: Option<Leaf>,
}

impl Held {
    /// What can't be read, belongs to others or has ended is as good as gone.
    pub(super) fn read(mirror: &RegistryMirror, references: &References, now: i64) -> Self {
        let data = |contents: &Option<Contents>| contents.as_ref().map(|contents| contents.data.clone());
        let kept = data(&references.authority).unwrap_or_default();
        let files = data(&references.files).unwrap_or_default();
        let owner = Owner {
            namespace: mirror.namespace().unwrap_or_default(),
            mirror: mirror.name_any(),
        };
        // In both Secrets: one that is lost costs no client its trust.
        let [_, _, published] = serving::OWN;
        let bundles = [kept.get(TRUSTED), files.get(published)];
        let trusted = bundles
            .into_iter()
            .flatten()
            .flat_map(|pem| Certificate::all(pem));
        let good = |authority: &Certificate| owner.made(authority) && authority.span.ends > now;
        let others = trusted.filter(good).collect();
        let own = |keys| Authority::read(&kept, keys).filter(|own| good(own.certificate()));
        Self {
            current: own(CURRENT),
            next: own(NEXT),
            leaf: Leaf::read(&files),
            others,
            owner,
        }
    }

    /// Whether there is an authority, and what clients are shown is of it or of one before it.
    pub(super) fn serves(&self) -> bool {
        let own = |current: &Authority| {
            self.leaf
                .as_ref()
                .is_some_and(|leaf| self.trusts(leaf.issuer(), current))
        };
        self.current.as_ref().is_some_and(own)
    }

    pub(super) fn next_span(&self) -> Option<Span> {
        self.next.as_ref().map(Authority::span)
    }

    /// When each of the others ends.
    pub(super) fn ends(&self) -> impl Iterator<Item = i64> {
        self.others.iter().map(|authority| authority.span.ends)
    }

    /// Whether clients are told to trust an authority of this name.
    pub(super) fn trusts(&self, authority: &[u8], current: &Authority) -> bool {
        self.all(current).iter().any(|known| known.subject == authority)
    }

    /// All that clients are told to trust, in PEM: the one that signs first, then the latest.
    pub(super) fn trusted(&self, current: &Authority) -> String {
        self.all(current).into_iter().map(Certificate::pem).collect()
    }

    fn all<'a>(&'a self, current: &'a Authority) -> Vec<&'a Certificate> {
        let mut others: Vec<_> = self
            .others
            .iter()
            .chain(self.next.as_ref().map(Authority::certificate))
            .filter(|other| other.der != current.certificate().der)
            .collect();
        others.sort_by_key(|other| (std::cmp::Reverse(other.span.starts), &other.der));
        others.dedup();
        [current.certificate()].into_iter().chain(others).collect()
    }

    /// As it is kept for the next time.
    pub(super) fn files(&self, current: &Authority, trusted: String) -> Files {
        let mut files = Files::from([(TRUSTED.to_owned(), trusted.into_bytes())]);
        current.write(CURRENT, &mut files);
        if let Some(next) = &self.next {
            next.write(NEXT, &mut files);
        }
        files
    }
}
