//! Rests: after a 429, nothing of that class is asked until the upstream wants it again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, header::RETRY_AFTER};
use jiff::Timestamp;

use crate::clock::Clock;

const FIRST: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_mins(5);
/// What an upstream may ask for; a bogus date must not silence the mirror for good.
const MOST_ASKED: Duration = Duration::from_hours(1);

/// What upstreams count apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// GET of a manifest: what Docker Hub's limit counts.
    Manifest = 0,
    /// HEAD of anything.
    Head = 1,
    /// GET of a blob.
    Blob = 2,
    /// A token server's answer.
    Token = 3,
    /// Lists: tags, referrers, and the base that probes ask.
    List = 4,
}

impl Class {
    /// As traces call it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Head => "head",
            Self::Blob => "blob",
            Self::Token => "token",
            Self::List => "list",
        }
    }
}

impl Class {
    pub(super) const ALL: [Self; 5] = [Self::Manifest, Self::Head, Self::Blob, Self::Token, Self::List];
}

#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    /// When it began, and when it ends.
    span: Option<(Timestamp, Timestamp)>,
    /// How often in a row upstream gave no time of its own.
    doublings: u32,
}

/// The rests of one credential.
#[derive(Debug)]
pub(super) struct Rests {
    clock: Clock,
    classes: Mutex<[Rest; 5]>,
    /// What the upstream last said is left of its rate limit.
    remaining: Mutex<Option<i64>>,
}

impl Rests {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            classes: Mutex::default(),
            remaining: Mutex::default(),
        }
    }

    /// Takes note of what is left of the rate limit.
    pub(super) fn note_left(&self, left: i64) {
        *self.remaining.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
    }

    /// What was last said to be left of the rate limit.
    pub(super) fn requests_left(&self) -> Option<i64> {
        *self.remaining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, class: Class, f: impl FnOnce(&mut Rest) -> T) -> T {
        let mut classes = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut classes[class as usize])
    }

    /// How long this class still rests.
    pub(super) fn left(&self, class: Class) -> Option<Duration> {
        let (begun, until) = self.with(class, |rest| rest.span)?;
        let length = Duration::try_from(until.duration_since(begun)).ok()?;
        (!self.clock.is_over(begun, length)).then(|| remaining(until, self.clock.now()))
    }

    /// Takes note of a 429; says how long the class rests now.
    pub(super) fn limited(&self, class: Class, headers: &HeaderMap) -> Duration {
        let (now, resting) = (self.clock.now(), self.left(class));
        let asked = asked_for(headers, now);
        self.with(class, |rest| {
            let pause = match (asked, resting) {
                (Some(asked), _) => asked,
                // Requests that were under way together are one offence.
                (None, Some(left)) => return left,
                (None, None) => {
                    let pause = FIRST.saturating_mul(1 << rest.doublings.min(5)).min(MOST);
                    rest.doublings = rest.doublings.saturating_add(1);
                    pause
                }
            };
            let pause = resting.map_or(pause, |left| left.max(pause));
            let until = now.checked_add(pause).unwrap_or(Timestamp::MAX);
            rest.span = Some((now, until));
            remaining(until, now)
        })
    }

    /// Takes note of a success: the next rest is a short one again. A rest in force stays, as the
    /// success was under way before the 429.
    pub(super) fn succeeded(&self, class: Class) {
        if self.left(class).is_none() {
            self.with(class, |rest| *rest = Rest::default());
        }
    }
}

fn remaining(until: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or_default()
}

/// Returns the time of `Retry-After`, seconds or a date (RFC 9110, 10.2.3): from a second to an hour.
pub(super) fn asked_for(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = if let Ok(seconds) = text.parse::<u64>() {
        Duration::from_secs(seconds)
    } else {
        let date = Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok()?;
        Duration::try_from(date.duration_since(now)).unwrap_or_default()
    };
    Some(asked.clamp(Duration::from_secs(1), MOST_ASKED))
}

/// What is left of the rate limit (`ratelimit-remaining: 98;w=21600`).
pub(super) fn requests_left(headers: &HeaderMap) -> Option<i64> {
    let text = headers.get("ratelimit-remaining")?.to_str().ok()?;
    text.split(';').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn retry_after(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())])
    }

    fn seconds(rests: &Rests, headers: &HeaderMap) -> u64 {
        (rests.limited(Class::Manifest, headers) + Duration::from_millis(500)).as_secs()
    }

    #[test]
    fn without_retry_after_the_rest_doubles_up_to_five_minutes_and_starts_anew_after_a_success() {
        let clock = Clock::system();
        let rests = Rests::new(clock.clone());
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(seconds(&rests, &HeaderMap::new()), expected);
            clock.advance(Duration::from_secs(301));
            assert_eq!(rests.left(Class::Manifest), None);
        }
        rests.succeeded(Class::Manifest);
        assert_eq!(seconds(&rests, &HeaderMap::new()), 10);
    }

    #[test]
    fn a_success_that_was_under_way_neither_ends_a_rest_nor_its_doubling() {
        let clock = Clock::system();
        let rests = Rests::new(clock.clone());
        assert_eq!(seconds(&rests, &HeaderMap::new()), 10);
        rests.succeeded(Class::Manifest);
        assert!(rests.left(Class::Manifest).is_some());
        clock.advance(Duration::from_secs(11));
        assert_eq!(seconds(&rests, &HeaderMap::new()), 20);
    }

    #[test]
    fn answers_to_requests_sent_together_double_nothing() {
        let rests = Rests::new(Clock::system());
        assert_eq!(seconds(&rests, &HeaderMap::new()), 10);
        assert_eq!(seconds(&rests, &HeaderMap::new()), 10);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_within_bounds() {
        let rest = |value: &str| seconds(&Rests::new(Clock::system()), &retry_after(value));
        assert_eq!(rest("42"), 42);
        assert_eq!(rest("0"), 1);
        assert_eq!(rest("99999999"), 3600);
        assert_eq!(rest("soon"), 10);
        let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(100));
        assert!((98..=101).contains(&rest(&date)), "{date}");
        assert_eq!(rest("Sun, 06 Nov 1994 08:49:37 GMT"), 1);
    }

    #[test]
    fn a_rest_does_not_last_for_as_long_as_the_clock_was_wrong() {
        let clock = Clock::system();
        clock.advance(Duration::from_hours(1_000));
        let rests = Rests::new(clock.clone());
        rests.limited(Class::Blob, &retry_after("60"));
        assert!(rests.left(Class::Blob).is_some());
        clock.set_back(Duration::from_hours(1_000));
        assert_eq!(rests.left(Class::Blob), None);
    }

    #[test]
    fn classes_rest_apart() {
        let rests = Rests::new(Clock::system());
        rests.limited(Class::Manifest, &HeaderMap::new());
        assert!(rests.left(Class::Manifest).is_some());
        assert_eq!(rests.left(Class::Head), None);
    }

    #[test]
    fn the_rate_limit_left_is_read_with_and_without_its_window() {
        let left = |value: &str| {
            requests_left(&HeaderMap::from_iter([(
                "ratelimit-remaining".parse().unwrap(),
                value.parse().unwrap(),
            )]))
        };
        assert_eq!(left("98;w=21600"), Some(98));
        assert_eq!(left("0"), Some(0));
        assert_eq!(left("many"), None);
    }

    proptest! {
        #[test]
        fn no_retry_after_makes_a_rest_endless_or_panics(value in "[ -~]{0,40}") {
            let rests = Rests::new(Clock::system());
            prop_assert!(rests.limited(Class::Blob, &retry_after(&value)) <= MOST_ASKED);
        }
    }
}
