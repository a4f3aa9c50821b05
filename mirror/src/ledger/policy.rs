//! The choice of the content that leaves the bucket; pure.

use crate::config::TtlFrom;
use crate::digest::Digest;
use crate::metrics::EvictionReason;

use super::entry::LedgerEntry;

/// The number of entries from which an eviction frees more than it must, so that it is not needed again at once.
const MANY: usize = 10_000;
/// The part of the limit that such an eviction frees.
const SLACK: u64 = 128;

/// The limits of the content of one owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BucketLimits {
    /// The most bytes.
    pub(super) bytes: Option<u64>,
    /// The time before which content has expired, in ms since 1970, and the event that it counts from.
    pub(super) expired: Option<(i64, TtlFrom)>,
}

/// A piece of content in the order of eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EvictionCandidate {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) used: i64,
    pub(super) fetched: i64,
}

impl EvictionCandidate {
    /// Creates a candidate.
    pub(super) fn new(digest: &Digest, entry: &LedgerEntry) -> Self {
        Self {
            digest: digest.clone(),
            size: entry.size,
            used: entry.used,
            fetched: entry.fetched,
        }
    }

    fn is_expired(&self, limits: BucketLimits) -> bool {
        is_expired(self.used, self.fetched, limits)
    }
}

/// Returns whether the time of content with these times is up.
pub(super) fn is_expired(used: i64, fetched: i64, limits: BucketLimits) -> bool {
    limits.expired.is_some_and(|(before, from)| match from {
        TtlFrom::LastUse => used < before,
        TtlFrom::FirstFetch => fetched < before,
    })
}

/// Returns the share of a limit that the owner of so many of the 256 shards has.
pub(super) fn share(limit: u64, shards: usize) -> u64 {
    let share = u128::from(limit) * shards as u128 / 256;
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Returns the content that has to go, the least recently used first: what has expired, and what is over the limit.
/// Content that `is_pinned` stays, and counts.
pub(super) fn choose(
    mut all: Vec<EvictionCandidate>,
    limits: BucketLimits,
    is_pinned: impl Fn(&EvictionCandidate) -> bool,
) -> Vec<(EvictionCandidate, EvictionReason)> {
    let mut bytes = all.iter().fold(0, |sum: u64, one| sum.saturating_add(one.size));
    let is_over = limits.bytes.is_some_and(|limit| bytes > limit);
    if !is_over && !all.iter().any(|one| one.is_expired(limits)) {
        return Vec::new();
    }
    let slack = if all.len() > MANY && is_over {
        SLACK
    } else {
        u64::MAX
    };
    let target = limits.bytes.map_or(u64::MAX, |limit| limit - limit / slack);
    all.sort_unstable_by(|one, other| (one.used, &one.digest).cmp(&(other.used, &other.digest)));
    let mut chosen = Vec::new();
    // Expired content first: what it frees need not be freed by what is in use.
    for reason in [EvictionReason::Expired, EvictionReason::Room] {
        let mut kept = Vec::new();
        for one in all {
            let goes = if reason == EvictionReason::Expired {
                one.is_expired(limits)
            } else {
                is_over && bytes > target
            };
            if goes && !is_pinned(&one) {
                bytes = bytes.saturating_sub(one.size);
                chosen.push((one, reason));
            } else {
                kept.push(one);
            }
        }
        all = kept;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn candidate(number: u64, size: u64, used: i64) -> EvictionCandidate {
        EvictionCandidate {
            digest: Digest::compute(Algorithm::Sha256, &number.to_le_bytes()),
            size,
            used,
            fetched: used / 2,
        }
    }

    fn sizes(chosen: &[(EvictionCandidate, EvictionReason)]) -> Vec<(u64, EvictionReason)> {
        chosen.iter().map(|(one, reason)| (one.size, *reason)).collect()
    }

    /// The least recently used content goes, and no more of it than the limit needs.
    #[test]
    fn least_recently_used_goes_first() {
        let all = vec![candidate(1, 10, 3), candidate(2, 20, 1), candidate(3, 30, 2)];
        let limits = |bytes| BucketLimits {
            bytes: Some(bytes),
            expired: None,
        };
        let choose = |bytes| sizes(&choose(all.clone(), limits(bytes), |_| false));
        assert_eq!(choose(60), []);
        assert_eq!(choose(59), [(20, EvictionReason::Room)]);
        assert_eq!(
            choose(39),
            [(20, EvictionReason::Room), (30, EvictionReason::Room)]
        );
        assert_eq!(choose(0).len(), 3);
    }

    /// Pinned content stays, though it is the oldest, over the limit and expired.
    #[test]
    fn pinned_content_stays() {
        let all = vec![candidate(1, 10, 1), candidate(2, 20, 2)];
        let limits = BucketLimits {
            bytes: Some(0),
            expired: Some((9, TtlFrom::LastUse)),
        };
        let chosen = choose(all, limits, |one| one.size == 10);
        assert_eq!(sizes(&chosen), [(20, EvictionReason::Expired)]);
    }

    /// Expired content goes before content that is in use; the event that the time counts from decides.
    #[test]
    fn expired_content_makes_room_first() {
        let all = vec![candidate(1, 10, 8), candidate(2, 20, 20), candidate(3, 5, 10)];
        let limits = BucketLimits {
            bytes: Some(30),
            expired: Some((5, TtlFrom::FirstFetch)),
        };
        assert_eq!(
            sizes(&choose(all.clone(), limits, |_| false)),
            [(10, EvictionReason::Expired)]
        );
        let limits = BucketLimits {
            bytes: None,
            expired: Some((10, TtlFrom::LastUse)),
        };
        assert_eq!(
            sizes(&choose(all, limits, |_| false)),
            [(10, EvictionReason::Expired)]
        );
    }

    /// A least recently used cache of a simulation.
    #[derive(Default)]
    struct Lru {
        used: std::collections::HashMap<u64, (u64, u64)>,
        order: std::collections::BTreeMap<u64, u64>,
        bytes: u64,
    }

    impl Lru {
        /// Returns whether an object of a size was there at a time, and keeps the total within a limit.
        fn access(&mut self, object: u64, size: u64, time: u64, limit: u64) -> bool {
            let before = self.used.insert(object, (time, size));
            if let Some((last, _)) = before {
                self.order.remove(&last);
            } else {
                self.bytes += size;
            }
            self.order.insert(time, object);
            while self.bytes > limit {
                let Some((_, oldest)) = self.order.pop_first() else {
                    break;
                };
                self.bytes -= self.used.remove(&oldest).map_or(0, |(_, size)| size);
            }
            before.is_some()
        }
    }

    /// 256 shards that each keep their part of the limit hit nearly as often as one cache with all of it. Popularity is
    /// that of images (Zipf), sizes are from 1 to 1,000.
    #[test]
    fn shards_hit_nearly_as_often_as_one_cache() {
        use rand::{RngExt as _, SeedableRng as _};
        const OBJECTS: u32 = 60_000;
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        let sizes: Vec<u64> = (0..OBJECTS).map(|_| rng.random_range(1..=1_000)).collect();
        let limit = sizes.iter().sum::<u64>() / 5;
        let mut one = Lru::default();
        let mut shards: Vec<Lru> = (0..256).map(|_| Lru::default()).collect();
        let (mut hits, mut hits_of_shards) = (0_u32, 0_u32);
        for time in 0..600_000 {
            // The inverse of the distribution function of Zipf's law with exponent 1.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
            let object = f64::from(OBJECTS).powf(rng.random::<f64>()) as u64 - 1;
            let size = sizes[usize::try_from(object).unwrap()];
            let digest = Digest::compute(Algorithm::Sha256, &object.to_le_bytes());
            let shard = usize::from(crate::peers::Shard::of_blob(&digest).index());
            hits += u32::from(one.access(object, size, time, limit));
            hits_of_shards += u32::from(shards[shard].access(object, size, time, share(limit, 1)));
        }
        let ratio = f64::from(hits_of_shards) / f64::from(hits);
        eprintln!("one cache {hits}, 256 shards {hits_of_shards}: {ratio:.4}");
        assert!(ratio >= 0.99, "{ratio}");
    }

    /// The shares of all owners are the limit.
    #[test]
    fn shares_are_parts_of_256() {
        assert_eq!(share(2 << 40, 256), 2 << 40);
        assert_eq!(share(2560, 3), 30);
        assert_eq!(share(u64::MAX, 256), u64::MAX);
    }
}
