//! The secret that the servers of a mirror share, by which they know each other.
//!
//! The operator writes it once and keeps it. A user rotates it with a second line in front of the first one, and removes the
//! old line later: servers accept both.

use std::collections::BTreeMap;

use crds::peers::PeersMode;

use crate::{dereference::References, validate::Accepted};

/// The key of the Secret, and the name of the file.
pub const KEY: &str = "secret";
/// The fewest characters of a line that servers use.
const MIN_CHARACTERS: usize = 16;
/// The number of random bytes of a new secret.
const RANDOM_BYTES: usize = 32;

/// Sets the secret of a mirror whose servers ask each other: the stored one, or a new one.
pub fn ensure(accepted: &mut Accepted<'_>, references: &References) {
    keep(accepted, references);
    if accepted.peers.is_none() && accepted.mirror.spec.peers.mode == PeersMode::Auto {
        let secret = hex::encode(rand::random::<[u8; RANDOM_BYTES]>()).into_bytes();
        accepted.peers = Some(BTreeMap::from([(KEY.to_owned(), secret)]));
    }
}

/// Sets the secret that is stored already, and creates none.
pub fn keep(accepted: &mut Accepted<'_>, references: &References) {
    let stored = references.peers.as_ref().and_then(|stored| stored.get(KEY));
    let usable = stored.filter(|_| accepted.mirror.spec.peers.mode == PeersMode::Auto);
    let usable = usable.filter(|secret| is_usable(secret));
    accepted.peers = usable.map(|secret| BTreeMap::from([(KEY.to_owned(), secret.to_vec())]));
}

fn is_usable(secret: &[u8]) -> bool {
    let text = std::str::from_utf8(secret).unwrap_or_default();
    text.lines().any(|line| line.trim().len() >= MIN_CHARACTERS)
}
