//! Writes that are held back: an object that someone else keeps changing back, and one that the API server refuses.
//!
//! The first is repaired at once, and then ever later: two who write in turn without a pause would wear the API server
//! out, and neither would win. The second is tried again ever later, too, as of a quota or an address set free nobody
//! tells; at once where the wish or the object is another.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::core::Status;
use tokio::time::Instant;

use crate::kind::Kind;

/// So often the same thing is applied without waiting: someone who edits by hand tries more than once.
const AT_ONCE: u32 = 3;
/// The first wait before a repair; each is twice the last.
const FIRST: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST: Duration = Duration::from_mins(1);
/// The same for what is refused.
const FIRST_REFUSED: Duration = Duration::from_secs(20);
const LONGEST_REFUSED: Duration = Duration::from_mins(5);
/// After so long without a write it starts anew.
const FORGOTTEN: Duration = Duration::from_mins(10);

/// An object: its kind, namespace and name.
pub type Key = (Kind, String, String);

/// What is wanted of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Of what is to be applied.
    pub digest: [u8; 32],
    /// The version of what is there.
    pub version: Option<String>,
}

/// Why a write has to wait.
#[derive(Clone, Debug)]
pub enum Held {
    /// Someone else keeps changing the object; for so long it is left alone.
    Contested(Duration),
    /// The API server said this, and would say it again.
    Refused(Box<Status>),
}

/// What became of the last writes to each object.
#[derive(Default)]
pub struct Contests(Mutex<HashMap<Key, Last>>);

struct Last {
    wish: Wish,
    /// How often the same came of the same wish.
    times: u32,
    at: Instant,
    refusal: Option<Box<Status>>,
}

impl Contests {
    /// Whether a write has to wait.
    pub fn held(&self, key: &Key, wish: &Wish, now: Instant) -> Option<Held> {
        let lasts = self.lock();
        let last = lasts.get(key)?;
        let wait = last.wait(wish).checked_sub(now.duration_since(last.at))?;
        if wait.is_zero() {
            return None;
        }
        Some(match &last.refusal {
            Some(status) => Held::Refused(status.clone()),
            None => Held::Contested(wait),
        })
    }

    /// The object was written.
    pub fn wrote(&self, key: Key, wish: Wish, now: Instant) {
        self.note(key, wish, now, None);
    }

    /// The API server refused the write.
    pub fn refused(&self, key: Key, wish: Wish, now: Instant, status: Box<Status>) {
        self.note(key, wish, now, Some(status));
    }

    fn note(&self, key: Key, wish: Wish, at: Instant, refusal: Option<Box<Status>>) {
        let mut lasts = self.lock();
        lasts.retain(|_, last| at.duration_since(last.at) < FORGOTTEN);
        let before = lasts.get(&key).filter(|before| {
            before.wish.digest == wish.digest && before.refusal.is_some() == refusal.is_some()
        });
        let times = before.map_or(0, |before| before.times) + 1;
        let last = Last {
            wish,
            times,
            at,
            refusal,
        };
        lasts.insert(key, last);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Last>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Last {
    /// How long after it a write for this wish has to wait.
    fn wait(&self, wish: &Wish) -> Duration {
        match self.refusal {
            Some(_) if self.wish == *wish => doubled(FIRST_REFUSED, self.times, LONGEST_REFUSED),
            // The first write is no repair.
            None if self.wish.digest == wish.digest && self.times > AT_ONCE => {
                doubled(FIRST, self.times - AT_ONCE, LONGEST)
            }
            _ => Duration::ZERO,
        }
    }
}

/// Twice as long each time, from the first on.
fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    let factor = 2_u32.saturating_pow(times.saturating_sub(1));
    first.saturating_mul(factor).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        (Kind::ConfigMap, "mirrors".to_owned(), "hub-config".to_owned())
    }

    fn wish(digest: u8, version: &str) -> Wish {
        Wish {
            digest: [digest; 32],
            version: Some(version.to_owned()),
        }
    }

    fn wait(contests: &Contests, wish: &Wish, now: Instant) -> Option<Duration> {
        contests.held(&key(), wish, now).map(|held| match held {
            Held::Contested(wait) => wait,
            Held::Refused(_) => Duration::MAX,
        })
    }

    #[test]
    fn repairs_follow_at_once_and_then_ever_later() {
        let (contests, mut now) = (Contests::default(), Instant::now());
        let mut waits = Vec::new();
        for version in 0..12 {
            contests.wrote(key(), wish(1, &version.to_string()), now);
            let wait = wait(&contests, &wish(1, "other"), now).unwrap_or_default();
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn another_wish_is_no_repair_and_starts_anew() {
        let (contests, now) = (Contests::default(), Instant::now());
        for _ in 0..9 {
            contests.wrote(key(), wish(1, "1"), now);
        }
        assert!(wait(&contests, &wish(1, "2"), now).is_some());
        assert_eq!(wait(&contests, &wish(2, "2"), now), None);
        contests.wrote(key(), wish(2, "2"), now);
        assert_eq!(wait(&contests, &wish(2, "3"), now), None);
    }

    #[test]
    fn what_is_refused_is_asked_again_later_and_at_once_where_wish_or_object_is_another() {
        let (contests, now) = (Contests::default(), Instant::now());
        contests.refused(key(), wish(1, "1"), now, Box::default());
        let held = |wish, now| wait(&contests, &wish, now).is_some();
        assert!(held(wish(1, "1"), now + FIRST_REFUSED / 2));
        assert!(!held(wish(1, "1"), now + FIRST_REFUSED));
        assert!(!held(wish(2, "1"), now) && !held(wish(1, "2"), now));
        contests.refused(key(), wish(1, "1"), now, Box::default());
        assert!(held(wish(1, "1"), now + FIRST_REFUSED));
        contests.wrote(key(), wish(1, "1"), now);
        assert!(!held(wish(1, "1"), now));
    }

    #[test]
    fn what_is_forgotten_takes_no_room() {
        let (contests, now) = (Contests::default(), Instant::now());
        contests.wrote(key(), wish(1, "1"), now);
        let other = (Kind::Secret, String::new(), String::new());
        contests.wrote(other, wish(1, "1"), now + FORGOTTEN);
        assert_eq!(contests.lock().len(), 1);
    }
}
