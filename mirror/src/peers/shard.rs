//! Ownership: rendezvous hashing of members over 256 shards.

use crate::digest::{Algorithm, Digest};
use crate::name::Repository;

/// One of 256 parts of all content; each has an owner in every set of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shard(u8);

impl Shard {
    /// Returns the shard of a blob: the first byte of its digest, as in the directories of Distribution.
    pub(crate) fn of_blob(digest: &Digest) -> Self {
        let byte = digest
            .hex()
            .get(..2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        Self(byte.unwrap_or_default())
    }

    /// Returns the number of the shard.
    pub(crate) fn index(self) -> u8 {
        self.0
    }

    /// Returns the shard of the manifests, tags and lists of a repository. One owner has them all, so that a manifest that
    /// one client asks for by tag and another by digest costs one request.
    pub(crate) fn of_repository(repository: &Repository) -> Self {
        Self::of_blob(&Digest::compute(
            Algorithm::Sha256,
            repository.to_string().as_bytes(),
        ))
    }

    /// Returns the weight of a member for this shard; the member with the greatest owns it.
    pub(super) fn weight(self, member: &str) -> Digest {
        let mut text = member.as_bytes().to_vec();
        text.push(self.0);
        Digest::compute(Algorithm::Sha256, &text)
    }
}

impl From<u8> for Shard {
    fn from(number: u8) -> Self {
        Self(number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn owner(members: &[String], shard: Shard) -> &String {
        members.iter().max_by_key(|member| shard.weight(member)).unwrap()
    }

    fn members(count: usize) -> Vec<String> {
        let id =
            |number: usize| Digest::compute(Algorithm::Sha256, &number.to_le_bytes()).hex()[..32].to_owned();
        (0..count).map(id).collect()
    }

    /// No member of three owns much more than its fair share of the shards.
    #[test]
    fn shards_are_spread_over_members() {
        let members = members(3);
        let mut owned = HashMap::<&String, usize>::new();
        for shard in 0..=255 {
            *owned.entry(owner(&members, Shard(shard))).or_default() += 1;
        }
        assert!(
            owned.values().all(|count| (50..=120).contains(count)),
            "{owned:?}"
        );
    }

    /// A member that leaves moves its own shards only.
    #[test]
    fn departure_moves_only_own_shards() {
        let before = members(4);
        let after = &before[..3];
        for shard in (0..=255).map(Shard) {
            let previous = owner(&before, shard);
            if after.contains(previous) {
                assert_eq!(owner(after, shard), previous);
            }
        }
    }

    #[test]
    fn blob_shard_is_first_digest_byte() {
        let digest = format!("sha256:ab{}", "0".repeat(62)).parse().unwrap();
        assert_eq!(Shard::of_blob(&digest), Shard(0xab));
    }
}
