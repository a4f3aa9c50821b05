//! The place of the cache, and the care of what else is there (`storage`).

use std::path::PathBuf;
use std::time::Duration;

use super::duration::GoDuration;
use super::{Error, file};

const DEFAULT_ROOT: &str = "/var/lib/registry";
const DAY: Duration = Duration::from_hours(24);
/// A bare number counts nanoseconds, which is seldom meant and never sensible.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// The removal of uploads that Distribution left behind (`storage.maintenance.uploadpurging`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadPurging {
    /// Nothing is removed where this is false.
    pub enabled: bool,
    /// The age from which an upload is removed.
    pub age: Duration,
    /// The time from one sweep to the next; at least a second.
    pub interval: Duration,
    /// Nothing is removed, and the log names what would be.
    pub dry_run: bool,
}

impl Default for UploadPurging {
    fn default() -> Self {
        Self {
            enabled: true,
            age: 7 * DAY,
            interval: DAY,
            dry_run: false,
        }
    }
}

impl UploadPurging {
    pub(super) fn new(purging: &file::UploadPurging) -> Self {
        let default = Self::default();
        let interval = purging.interval.and_then(GoDuration::positive);
        Self {
            enabled: purging.enabled.unwrap_or(default.enabled),
            age: purging
                .age
                .map_or(default.age, |age| age.positive().unwrap_or_default()),
            interval: interval.map_or(default.interval, |interval| interval.max(SHORTEST_INTERVAL)),
            dry_run: purging.dry_run,
        }
    }
}

/// Returns the directory of the cache.
///
/// # Errors
/// It is set to nothing.
pub(super) fn root(storage: &file::Storage) -> Result<PathBuf, Error> {
    let root = storage.filesystem.root_directory.as_deref();
    match root.unwrap_or(DEFAULT_ROOT) {
        "" => Err(Error::invalid(
            "storage.filesystem.rootdirectory",
            "must not be empty",
        )),
        root => Ok(root.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;
    use test_case::test_case;

    fn purging(yaml: &str) -> UploadPurging {
        let yaml = format!("storage: {{maintenance: {{uploadpurging: {yaml}}}}}");
        UploadPurging::new(&File::parse(&yaml).unwrap().storage.maintenance.upload_purging)
    }

    #[test_case("{}" => UploadPurging::default(); "nothing")]
    #[test_case("{enabled: true, age: 168h, interval: 24h, dryrun: false}" => UploadPurging::default(); "the defaults")]
    #[test_case("{enabled: false}" => UploadPurging {enabled: false, ..UploadPurging::default()})]
    #[test_case("{age: 0}" => UploadPurging {age: Duration::ZERO, ..UploadPurging::default()})]
    #[test_case("{age: -1h}" => UploadPurging {age: Duration::ZERO, ..UploadPurging::default()})]
    #[test_case("{age: 1h30m, dryrun: true}" => UploadPurging {age: Duration::from_mins(90), dry_run: true, ..UploadPurging::default()})]
    #[test_case("{interval: 5}" => UploadPurging {interval: SHORTEST_INTERVAL, ..UploadPurging::default()})]
    #[test_case("{interval: 0}" => UploadPurging::default(); "no interval")]
    fn upload_purging_has_distributions_defaults(yaml: &str) -> UploadPurging {
        purging(yaml)
    }
}
