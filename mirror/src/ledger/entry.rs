//! One piece of content of the bucket, as its ledger knows it.

use crate::digest::Digest;
use crate::store::{BucketUpload, Link};

/// The most links of a piece of content that the ledger records; further ones stay in the bucket.
pub(crate) const MAX_LINKS: usize = 64;
/// The memory of an entry without its links, in bytes: the digest, the tables and the allocator's part.
const ENTRY_MEMORY: usize = 192;
/// The memory of a link without its text, in bytes.
const LINK_MEMORY: usize = 32;

/// A piece of content that a mirror uploaded. Times are ms since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LedgerEntry {
    /// The size in bytes.
    pub(super) size: u64,
    /// The last use by any replica.
    pub(super) used: i64,
    /// The first fetch.
    pub(super) fetched: i64,
    /// The links to it that the bucket has.
    links: Vec<Box<str>>,
}

impl LedgerEntry {
    /// Creates an entry.
    pub(super) fn new(size: u64, used: i64, fetched: i64) -> Self {
        Self {
            size,
            used,
            fetched,
            links: Vec::new(),
        }
    }

    /// Adds a link in its compact form, unless there are too many.
    pub(super) fn add_link(&mut self, text: &str) {
        let is_known = self.links.iter().any(|link| **link == *text);
        if !is_known && self.links.len() < MAX_LINKS {
            self.links.push(text.into());
        }
    }

    /// Adds what another entry of the same content knows.
    pub(super) fn merge(&mut self, other: &Self) {
        self.used = self.used.max(other.used);
        self.fetched = self.fetched.max(other.fetched);
        for link in &other.links {
            self.add_link(link);
        }
    }

    /// Returns the links in their compact form.
    pub(super) fn link_texts(&self) -> impl Iterator<Item = &str> {
        self.links.iter().map(|link| &**link)
    }

    /// Returns the links; what is malformed is left out.
    pub(super) fn links<'a>(&'a self, digest: &'a Digest) -> impl Iterator<Item = Link> + 'a {
        self.links.iter().filter_map(|text| parse_link(text, digest))
    }

    /// Returns the memory that the entry takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        let links = self.links.iter().map(|link| link.len() + LINK_MEMORY);
        ENTRY_MEMORY + links.sum::<usize>()
    }
}

impl From<&BucketUpload> for LedgerEntry {
    fn from(upload: &BucketUpload) -> Self {
        let mut entry = Self::new(upload.size, upload.used.max(upload.uploaded), upload.fetched);
        for link in &upload.links {
            entry.add_link(&link_text(link, &upload.digest));
        }
        entry
    }
}

/// Returns the compact form of a link: kind, repository, and its name unless that is the digest.
pub(super) fn link_text(link: &Link, digest: &Digest) -> String {
    let (kind, repository, name) = (link.kind(), link.repository(), link.name());
    if name == digest.as_str() {
        format!("{kind} {repository}")
    } else {
        format!("{kind} {repository} {name}")
    }
}

fn parse_link(text: &str, digest: &Digest) -> Option<Link> {
    let mut words = text.split(' ');
    let (kind, repository) = (words.next()?.parse().ok()?, words.next()?);
    let name = words.next().unwrap_or(digest.as_str());
    words
        .next()
        .is_none()
        .then(|| Link::from_key(kind, repository, name))
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Algorithm;
    use crate::name::Repository;

    /// The compact form of each kind of link reads back.
    #[test]
    fn links_read_back_from_their_text() {
        let digest = Digest::compute(Algorithm::Sha256, b"a");
        let other = Digest::compute(Algorithm::Sha512, b"a");
        let repository = Repository {
            host: "[::1]:5000".parse().unwrap(),
            name: "a/b".parse().unwrap(),
        };
        let links = [
            Link::Layer(repository.clone(), digest.clone()),
            Link::Layer(repository.clone(), other),
            Link::Revision(repository.clone(), digest.clone()),
            Link::Tag(repository, "v1".parse().unwrap()),
        ];
        for link in links {
            assert_eq!(parse_link(&link_text(&link, &digest), &digest), Some(link));
        }
    }

    /// An entry records no more links than its limit.
    #[test]
    fn links_of_an_entry_are_bounded() {
        let mut entry = LedgerEntry::new(1, 1, 1);
        for number in 0..2 * MAX_LINKS {
            entry.add_link(&format!("0 docker.io/a/{number}"));
        }
        assert_eq!(entry.links.len(), MAX_LINKS);
    }

    proptest! {
        #[test]
        fn any_link_text_is_read_without_panic(text: String) {
            let _ = parse_link(&text, &Digest::compute(Algorithm::Sha256, b"a"));
        }
    }
}
