//! The health checks that `/debug/health` reports (`health`).

use std::path::PathBuf;
use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use url::Url;

use super::duration::GoDuration;
use super::http::headers;
use super::{Error, file};

const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// The replacement of a secret.
pub(super) const MASK: &str = "********";

/// A bare number counts nanoseconds, which is seldom meant and never sensible.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// The checks; each runs at its interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// The check that the cache directory is readable.
    pub storage: Option<CheckSchedule>,
    /// Files that must not exist.
    pub files: Vec<FileCheck>,
    /// URLs that must answer.
    pub http: Vec<HttpCheck>,
    /// Ports that must be open.
    pub tcp: Vec<TcpCheck>,
}

/// The schedule of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckSchedule {
    /// The time from one run to the next.
    pub interval: Duration,
    /// Failures in a row before the check counts as failed; at least 1.
    pub threshold: u32,
}

/// A file whose existence takes the server out of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCheck {
    /// The file.
    pub path: PathBuf,
    /// The schedule.
    pub schedule: CheckSchedule,
}

/// A URL that must answer.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    /// The URL, requested with HEAD.
    pub uri: Url,
    /// The headers of the request.
    pub headers: HeaderMap,
    /// The expected status.
    pub status: StatusCode,
    /// The time limit.
    pub timeout: Duration,
    /// The schedule.
    pub schedule: CheckSchedule,
}

/// A port that must be open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpCheck {
    /// `host:port`.
    pub addr: String,
    /// The time limit.
    pub timeout: Duration,
    /// The schedule.
    pub schedule: CheckSchedule,
}

impl HttpCheck {
    /// Returns the URL with password and query masked, because they may be secrets.
    pub fn shown(&self) -> Url {
        let mut shown = self.uri.clone();
        if shown.password().is_some() {
            // Fails only for URLs that have no host, which can't have a password either.
            let _ = shown.set_password(Some(MASK));
        }
        if shown.query().is_some() {
            shown.set_query(Some(MASK));
        }
        shown
    }
}

impl Health {
    pub(super) fn new(health: &file::Health) -> Result<Self, Error> {
        let storage = &health.storage;
        let files = health.files.iter().enumerate().map(file_check);
        let http = health.http.iter().enumerate().map(http_check);
        let tcp = health.tcp.iter().enumerate().map(tcp_check);
        Ok(Self {
            storage: storage
                .enabled
                .then(|| schedule(storage.interval, storage.threshold)),
            files: files.collect::<Result<_, _>>()?,
            http: http.collect::<Result<_, _>>()?,
            tcp: tcp.collect::<Result<_, _>>()?,
        })
    }
}

fn schedule(interval: Option<GoDuration>, threshold: Option<u32>) -> CheckSchedule {
    let interval = interval
        .and_then(GoDuration::positive)
        .unwrap_or(DEFAULT_INTERVAL);
    CheckSchedule {
        interval: interval.max(SHORTEST_INTERVAL),
        threshold: threshold.unwrap_or(1).max(1),
    }
}

fn timeout(timeout: Option<GoDuration>) -> Duration {
    timeout.and_then(GoDuration::positive).unwrap_or(DEFAULT_TIMEOUT)
}

fn file_check((index, check): (usize, &file::FileChecker)) -> Result<FileCheck, Error> {
    if check.file.is_empty() {
        return Err(Error::invalid(
            format!("health.file[{index}].file"),
            "must be set",
        ));
    }
    Ok(FileCheck {
        path: PathBuf::from(&check.file),
        schedule: schedule(check.interval, check.threshold),
    })
}

fn http_check((index, check): (usize, &file::HttpChecker)) -> Result<HttpCheck, Error> {
    let key = |name: &str| format!("health.http[{index}].{name}");
    let status = check.status_code.filter(|code| *code != 0).unwrap_or(200);
    Ok(HttpCheck {
        uri: Url::parse(&check.uri).map_err(|e| Error::invalid(key("uri"), e))?,
        headers: headers(&key("headers"), &check.headers)?,
        status: StatusCode::from_u16(status).map_err(|e| Error::invalid(key("statuscode"), e))?,
        timeout: timeout(check.timeout),
        schedule: schedule(check.interval, check.threshold),
    })
}

fn tcp_check((index, check): (usize, &file::TcpChecker)) -> Result<TcpCheck, Error> {
    if check
        .addr
        .rsplit_once(':')
        .is_none_or(|(_, port)| port.parse::<u16>().is_err())
    {
        let key = format!("health.tcp[{index}].addr");
        return Err(Error::invalid(key, "expected host:port"));
    }
    Ok(TcpCheck {
        addr: check.addr.clone(),
        timeout: timeout(check.timeout),
        schedule: schedule(check.interval, check.threshold),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;
    use test_case::test_case;

    fn health(yaml: &str) -> Result<Health, Error> {
        Health::new(&File::parse(&format!("health: {yaml}"))?.health)
    }

    /// The storage check runs only if it is enabled.
    #[test]
    fn storage_check_requires_enabled() {
        assert_eq!(health("{storagedriver: {interval: 1s}}").unwrap().storage, None);
        let schedule = health("{storagedriver: {enabled: true}}")
            .unwrap()
            .storage
            .unwrap();
        assert_eq!((schedule.interval, schedule.threshold), (DEFAULT_INTERVAL, 1));
    }

    #[test]
    fn checks_have_distributions_defaults() {
        let health =
            health("{file: [{file: /down}], http: [{uri: 'http://a/'}], tcp: [{addr: 'b:1'}]}").unwrap();
        assert_eq!(health.files[0].schedule.interval, DEFAULT_INTERVAL);
        assert_eq!(health.http[0].status, StatusCode::OK);
        assert_eq!(health.tcp[0].timeout, DEFAULT_TIMEOUT);
    }

    /// An interval of nanoseconds is raised to the shortest interval, which keeps no core busy.
    #[test]
    fn nanosecond_interval_has_a_minimum() {
        let health = health("{file: [{file: /down, interval: 10, threshold: 3}]}").unwrap();
        assert_eq!(health.files[0].schedule.interval, SHORTEST_INTERVAL);
        assert_eq!(health.files[0].schedule.threshold, 3);
    }

    /// The error for an invalid value names its key.
    #[test_case("{file: [{}]}" => "health.file[0].file: must be set")]
    #[test_case("{http: [{uri: a}]}" => "health.http[0].uri: relative URL without a base")]
    #[test_case("{http: [{uri: 'http://a', statuscode: 7}]}" => "health.http[0].statuscode: invalid status code")]
    #[test_case("{tcp: [{addr: a}]}" => "health.tcp[0].addr: expected host:port")]
    fn invalid_value_error_names_key(yaml: &str) -> String {
        health(yaml).unwrap_err().to_string()
    }
}
