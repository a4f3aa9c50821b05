//! Back-off after 429: suspends one class of requests until `Retry-After` or an exponential delay expires.

use std::time::Duration;

use http::{HeaderMap, header::RETRY_AFTER};
use jiff::Timestamp;
use parking_lot::Mutex;

use crate::clock::Clock;

const FIRST_DELAY: Duration = Duration::from_secs(10);
const MAX_DELAY: Duration = Duration::from_mins(5);
/// The maximum `Retry-After`; a bogus date must not suspend requests for good.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// The classes of requests that upstreams limit separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestClass {
    /// GET of a manifest, which Docker Hub limits.
    Manifest = 0,
    /// HEAD of anything.
    Head = 1,
    /// GET of a blob.
    Blob = 2,
    /// A request to a token server.
    Token = 3,
    /// Lists: tags, referrers, and the base that probes ask.
    List = 4,
}

impl RequestClass {
    /// Returns the name of the class in traces.
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

impl RequestClass {
    pub(super) const ALL: [Self; 5] = [Self::Manifest, Self::Head, Self::Blob, Self::Token, Self::List];
}

#[derive(Clone, Copy, Debug, Default)]
struct Cooldown {
    /// The start and the end of the cooldown.
    span: Option<(Timestamp, Timestamp)>,
    /// The number of consecutive 429s without `Retry-After`.
    doublings: u32,
}

/// The cooldowns of one credential.
#[derive(Debug)]
pub(super) struct Cooldowns {
    clock: Clock,
    classes: Mutex<[Cooldown; 5]>,
    /// The rate limit, as last reported.
    reported: Mutex<RateLimit>,
}

impl Cooldowns {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            classes: Mutex::default(),
            reported: Mutex::default(),
        }
    }

    /// Records the rate limit that a response reports.
    pub(super) fn set_reported(&self, reported: RateLimit) {
        *self.reported.lock() = reported;
    }

    /// Returns the rate limit as last reported; its reset is the end of a cooldown in force.
    pub(super) fn reported(&self) -> RateLimit {
        let (reported, now) = (*self.reported.lock(), self.clock.now());
        let cooldown = self.cooldown(RequestClass::Manifest);
        let until = cooldown.and_then(|left| now.checked_add(left).ok());
        RateLimit {
            reset: until.or(reported.reset.filter(|reset| *reset > now)),
            ..reported
        }
    }

    fn with<T>(&self, class: RequestClass, f: impl FnOnce(&mut Cooldown) -> T) -> T {
        let mut classes = self.classes.lock();
        f(&mut classes[class as usize])
    }

    /// Returns the remaining cooldown of a class.
    pub(super) fn cooldown(&self, class: RequestClass) -> Option<Duration> {
        let (begun, until) = self.with(class, |cooldown| cooldown.span)?;
        let length = Duration::try_from(until.duration_since(begun)).ok()?;
        (!self.clock.is_over(begun, length)).then(|| remaining(until, self.clock.now()))
    }

    /// Starts a cooldown after a 429, and returns its length.
    pub(super) fn start_cooldown(&self, class: RequestClass, headers: &HeaderMap) -> Duration {
        let (now, in_force) = (self.clock.now(), self.cooldown(class));
        let asked = parse_retry_after(headers, now);
        self.with(class, |cooldown| {
            let pause = match (asked, in_force) {
                (Some(asked), _) => asked,
                // Concurrent requests count as one.
                (None, Some(left)) => return left,
                (None, None) => {
                    let pause = FIRST_DELAY
                        .saturating_mul(1 << cooldown.doublings.min(5))
                        .min(MAX_DELAY);
                    cooldown.doublings = cooldown.doublings.saturating_add(1);
                    pause
                }
            };
            let pause = in_force.map_or(pause, |left| left.max(pause));
            let until = now.checked_add(pause).unwrap_or(Timestamp::MAX);
            cooldown.span = Some((now, until));
            remaining(until, now)
        })
    }

    /// Resets the back-off of a class after a success. A cooldown in force stays, because the request was sent before
    /// the 429.
    pub(super) fn end_cooldown(&self, class: RequestClass) {
        if self.cooldown(class).is_none() {
            self.with(class, |cooldown| *cooldown = Cooldown::default());
        }
    }
}

fn remaining(until: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or_default()
}

/// Returns the time of `Retry-After`, seconds or a date (RFC 9110, 10.2.3): from a second to an hour.
pub(super) fn parse_retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = if let Ok(seconds) = text.parse::<u64>() {
        Duration::from_secs(seconds)
    } else {
        let date = Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok()?;
        Duration::try_from(date.duration_since(now)).unwrap_or_default()
    };
    Some(asked.clamp(Duration::from_secs(1), MAX_RETRY_AFTER))
}

/// The rate limit that an upstream reports (`ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 98;w=21600`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// The requests that the upstream allows in its window.
    pub limit: Option<i64>,
    /// The remaining requests.
    pub remaining: Option<i64>,
    /// The time of the reset (`ratelimit-reset`, in seconds from now), or the end of a cooldown.
    pub reset: Option<Timestamp>,
}

impl RateLimit {
    /// Reads the headers of a response.
    pub(super) fn read(headers: &HeaderMap, now: Timestamp) -> Self {
        let number = |name| {
            let text = headers.get(name)?.to_str().ok()?;
            text.split([';', ',']).next()?.trim().parse::<i64>().ok()
        };
        let seconds = number("ratelimit-reset").and_then(|seconds| u64::try_from(seconds).ok());
        let reset = seconds.and_then(|seconds| now.checked_add(Duration::from_secs(seconds)).ok());
        Self {
            limit: number("ratelimit-limit"),
            remaining: number("ratelimit-remaining"),
            reset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn retry_after(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())])
    }

    fn seconds(rate_limits: &Cooldowns, headers: &HeaderMap) -> u64 {
        (rate_limits.start_cooldown(RequestClass::Manifest, headers) + Duration::from_millis(500)).as_secs()
    }

    #[test]
    fn cooldown_doubles_to_limit_and_resets_after_success() {
        let clock = Clock::system();
        let rate_limits = Cooldowns::new(clock.clone());
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(seconds(&rate_limits, &HeaderMap::new()), expected);
            clock.advance(Duration::from_secs(301));
            assert_eq!(rate_limits.cooldown(RequestClass::Manifest), None);
        }
        rate_limits.end_cooldown(RequestClass::Manifest);
        assert_eq!(seconds(&rate_limits, &HeaderMap::new()), 10);
    }

    #[test]
    fn success_sent_before_429_keeps_cooldown() {
        let clock = Clock::system();
        let rate_limits = Cooldowns::new(clock.clone());
        assert_eq!(seconds(&rate_limits, &HeaderMap::new()), 10);
        rate_limits.end_cooldown(RequestClass::Manifest);
        assert!(rate_limits.cooldown(RequestClass::Manifest).is_some());
        clock.advance(Duration::from_secs(11));
        assert_eq!(seconds(&rate_limits, &HeaderMap::new()), 20);
    }

    /// Rate limits of requests that were sent together do not double the back-off.
    #[test]
    fn concurrent_rate_limits_double_once() {
        let rate_limits = Cooldowns::new(Clock::system());
        assert_eq!(seconds(&rate_limits, &HeaderMap::new()), 10);
        assert_eq!(seconds(&rate_limits, &HeaderMap::new()), 10);
    }

    /// `Retry-After` is a number of seconds or a date, and is limited on both sides.
    #[test]
    fn retry_after_is_seconds_or_date_in_bounds() {
        let cooldown = |value: &str| seconds(&Cooldowns::new(Clock::system()), &retry_after(value));
        assert_eq!(cooldown("42"), 42);
        assert_eq!(cooldown("0"), 1);
        assert_eq!(cooldown("99999999"), 3600);
        assert_eq!(cooldown("soon"), 10);
        let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(100));
        assert!((98..=101).contains(&cooldown(&date)), "{date}");
        assert_eq!(cooldown("Sun, 06 Nov 1994 08:49:37 GMT"), 1);
    }

    /// A back-off ends at once if the clock, which was ahead, is set back.
    #[test]
    fn backoff_does_not_outlast_a_wrong_clock() {
        let clock = Clock::system();
        clock.advance(Duration::from_hours(1_000));
        let rate_limits = Cooldowns::new(clock.clone());
        rate_limits.start_cooldown(RequestClass::Blob, &retry_after("60"));
        assert!(rate_limits.cooldown(RequestClass::Blob).is_some());
        clock.set_back(Duration::from_hours(1_000));
        assert_eq!(rate_limits.cooldown(RequestClass::Blob), None);
    }

    /// Each class of requests backs off separately.
    #[test]
    fn classes_back_off_separately() {
        let rate_limits = Cooldowns::new(Clock::system());
        rate_limits.start_cooldown(RequestClass::Manifest, &HeaderMap::new());
        assert!(rate_limits.cooldown(RequestClass::Manifest).is_some());
        assert_eq!(rate_limits.cooldown(RequestClass::Head), None);
    }

    fn read(fields: &[(&'static str, &str)], now: Timestamp) -> RateLimit {
        let fields = fields.iter();
        let fields = fields.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        RateLimit::read(&fields.collect(), now)
    }

    /// The remaining rate limit is read with and without its window.
    #[test]
    fn remaining_rate_limit_is_read() {
        let left = |value: &str| read(&[("ratelimit-remaining", value)], Timestamp::UNIX_EPOCH).remaining;
        assert_eq!(left("98;w=21600"), Some(98));
        assert_eq!(left("0"), Some(0));
        assert_eq!(left("many"), None);
    }

    /// The rate limit has its reset from the headers of the upstream, or from a cooldown in force.
    #[test]
    fn rate_limit_has_limit_and_reset() {
        let clock = Clock::system();
        let rate_limits = Cooldowns::new(clock.clone());
        let fields = [
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", "7;w=21600"),
            ("ratelimit-reset", "60"),
        ];
        rate_limits.set_reported(read(&fields, clock.now()));
        let left = |reported: RateLimit| reported.reset.unwrap().duration_since(clock.now()).as_secs();
        let reported = rate_limits.reported();
        assert_eq!((reported.limit, reported.remaining), (Some(100), Some(7)));
        assert!((58..=60).contains(&left(reported)), "{reported:?}");
        rate_limits.start_cooldown(RequestClass::Manifest, &retry_after("300"));
        assert!((298..=300).contains(&left(rate_limits.reported())));
        clock.advance(Duration::from_secs(301));
        assert_eq!(rate_limits.reported().reset, None);
        assert_eq!(read(&[("ratelimit-reset", "-1")], clock.now()).reset, None);
    }

    proptest! {
        /// No `Retry-After` causes an endless back-off or a panic.
        #[test]
        fn any_retry_after_gives_bounded_backoff(value in "[ -~]{0,40}") {
            let rate_limits = Cooldowns::new(Clock::system());
            prop_assert!(rate_limits.start_cooldown(RequestClass::Blob, &retry_after(&value)) <= MAX_RETRY_AFTER);
        }
    }
}
