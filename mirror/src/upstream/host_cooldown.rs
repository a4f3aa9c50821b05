//! Back-off from hosts that are not the registry, such as a storage that its redirects lead to: their rate limits say
//! nothing about the registry's.

use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use moka::sync::Cache;
use url::Url;

use super::error::Error;
use super::rate_limit::parse_retry_after;
use crate::clock::Clock;

/// The longest cooldown of such a host, whatever it asks for.
pub(crate) const MAX_COOLDOWN: Duration = Duration::from_mins(1);
/// The cooldown where it asks for no time.
const DEFAULT_COOLDOWN: Duration = Duration::from_secs(10);
/// The most hosts that are kept; one that is forgotten is asked again.
pub(crate) const MAX_HOSTS: u64 = 100;

/// The hosts of one upstream that answered 429.
#[derive(Debug)]
pub(super) struct HostCooldowns {
    clock: Clock,
    /// The begin and the length of each cooldown, by origin.
    hosts: Cache<String, (Timestamp, Duration)>,
}

impl HostCooldowns {
    pub(super) fn new(clock: Clock) -> Self {
        let hosts = Cache::builder()
            .max_capacity(MAX_HOSTS)
            .time_to_live(MAX_COOLDOWN)
            .build();
        Self { clock, hosts }
    }

    /// Starts a cooldown after a 429 with these headers. Returns its error, which says how long it lasts.
    pub(super) fn start(&self, url: &Url, headers: &HeaderMap) -> Error {
        let now = self.clock.now();
        let length = parse_retry_after(headers, now)
            .unwrap_or(DEFAULT_COOLDOWN)
            .min(MAX_COOLDOWN);
        self.hosts.insert(key(url), (now, length));
        limited(length, url)
    }

    /// Fails while the host of a URL cools down.
    pub(super) fn admit(&self, url: &Url) -> Result<(), Error> {
        match self.hosts.get(&key(url)) {
            Some((begun, length)) if !self.clock.is_over(begun, length) => {
                Err(limited(length.saturating_sub(self.clock.since(begun)), url))
            }
            _ => Ok(()),
        }
    }
}

fn limited(retry_after: Duration, url: &Url) -> Error {
    Error::RateLimited {
        retry_after,
        host: url.host_str().map(str::to_owned),
    }
}

fn key(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::RETRY_AFTER;
    use test_case::test_case;

    fn headers(retry_after: Option<&str>) -> HeaderMap {
        let value = retry_after.map(|value| (RETRY_AFTER, value.parse().unwrap()));
        value.into_iter().collect()
    }

    #[test_case(None, 10; "no time")]
    #[test_case(Some("3"), 3; "seconds")]
    #[test_case(Some("3600"), 60; "an hour")]
    #[test_case(Some("0"), 1; "no seconds")]
    fn one_host_cools_down_for_seconds(retry_after: Option<&str>, expected: u64) {
        let clock = Clock::system();
        let cooldowns = HostCooldowns::new(clock.clone());
        let url: Url = "https://cdn.example/a?sig=1".parse().unwrap();
        let error = cooldowns.start(&url, &headers(retry_after));
        let length = Duration::from_secs(expected);
        assert_eq!(error, limited(length, &url));
        assert!(error.to_string().starts_with("cdn.example, "), "{error}");
        assert!(
            cooldowns
                .admit(&"https://cdn.example/b".parse().unwrap())
                .is_err()
        );
        for other in ["https://cdn.example:8443/a", "https://r.example/v2/"] {
            assert!(cooldowns.admit(&other.parse().unwrap()).is_ok(), "{other}");
        }
        clock.advance(length);
        assert!(cooldowns.admit(&url).is_ok());
    }
}
