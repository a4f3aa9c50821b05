//! Uploads that Distribution left behind: an interrupted push or proxied download leaves `_uploads/UUID` in its
//! repository. They count against the limit until they are removed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::config::UploadPurging;
use crate::store::catalog::{directories, each_directory};
use crate::store::durable::{self, IoError, on};
use crate::store::{Error, Inner, Store};

/// A time in RFC 3339, with nanoseconds and an offset, is shorter.
const LONGEST_TIME: u64 = 64;

/// The result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// The uploads removed.
    pub removed: u64,
    /// The uploads that a dry run left in place.
    pub spared: u64,
    /// The bytes of all uploads that are still there.
    pub bytes: u64,
}

impl Store {
    /// Removes the uploads that are older than the configured age, and counts the others against the limit. A
    /// read-only cache keeps all of them.
    ///
    /// # Errors
    /// A directory that cannot be read; what was counted before stays.
    pub async fn sweep_uploads(&self, purging: UploadPurging) -> Result<Sweep, Error> {
        self.blocking(move |inner| {
            let sweep = inner.sweep_uploads(purging)?;
            inner.space.set_uploads(sweep.bytes);
            Ok(sweep)
        })
        .await
    }
}

impl Inner {
    fn sweep_uploads(&self, purging: UploadPurging) -> Result<Sweep, IoError> {
        let age = (purging.enabled && !self.is_readonly()).then_some(purging.age);
        let now = self.clock.settled();
        let is_old = |started: Timestamp| {
            age.is_some_and(|age| {
                Duration::try_from(now.duration_since(started)).is_ok_and(|since| since >= age)
            })
        };
        let mut sweep = Sweep::default();
        each_directory(&self.layout, &mut |_, own| {
            for uploads in own.iter().filter(|path| path.ends_with("_uploads")) {
                sweep.bytes = sweep.bytes.saturating_add(Content::measure(uploads)?.bytes);
                for upload in directories(uploads)?.into_iter().filter(|path| is_upload(path)) {
                    let content = Content::measure(&upload)?;
                    if is_old(started(&upload, &content)) {
                        sweep.take(&upload, &content, purging.dry_run);
                    }
                }
            }
            Ok(())
        })?;
        Ok(sweep)
    }
}

impl Sweep {
    /// Removes an upload that is old, unless the run is dry.
    fn take(&mut self, upload: &Path, content: &Content, dry: bool) {
        let (path, bytes) = (upload.display(), content.bytes);
        if dry {
            tracing::info!(%path, bytes, "an upload that was left behind would be removed (dryrun)");
            self.spared += 1;
            return;
        }
        match fs::remove_dir_all(upload) {
            Ok(()) => {
                tracing::debug!(%path, bytes, "an upload that was left behind is removed");
                self.removed += 1;
                self.bytes = self.bytes.saturating_sub(bytes);
            }
            Err(error) => tracing::warn!(%path, %error, "an upload that was left behind cannot be removed"),
        }
    }
}

/// Returns whether a directory in `_uploads` is an upload: Distribution names each by a UUID.
fn is_upload(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str());
    let groups = name.unwrap_or_default().split('-');
    let is_group = |group: &str| group.bytes().all(|byte| byte.is_ascii_hexdigit());
    groups.clone().all(is_group) && groups.map(str::len).eq([8, 4, 4, 4, 12])
}

/// Returns the time in `startedat`; where there is none, the time of the last change.
fn started(upload: &Path, content: &Content) -> Timestamp {
    let path = upload.join("startedat");
    let read = durable::read(&path, LONGEST_TIME).ok();
    let written = read.as_deref().and_then(parse_started);
    written.unwrap_or(content.changed)
}

/// Returns the time that `startedat` holds.
pub(super) fn parse_started(text: &[u8]) -> Option<Timestamp> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// The files of a directory and below. Links are not followed.
struct Content {
    bytes: u64,
    /// The last change of any of it.
    changed: Timestamp,
}

impl Content {
    fn measure(directory: &Path) -> Result<Self, IoError> {
        let mut content = Self {
            bytes: 0,
            changed: Timestamp::UNIX_EPOCH,
        };
        let mut open = vec![directory.to_owned()];
        while let Some(here) = open.pop() {
            content.add(&here, &mut open)?;
        }
        Ok(content)
    }

    fn add(&mut self, directory: &Path, open: &mut Vec<PathBuf>) -> Result<(), IoError> {
        let entries = match durable::list(directory) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(error) => return Err(on("list", directory)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(on("list", directory))?;
            // An upload that ended meanwhile has no metadata.
            let Ok(metadata) = entry.metadata() else { continue };
            let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            self.changed = self
                .changed
                .max(Timestamp::try_from(changed).unwrap_or(Timestamp::MAX));
            if metadata.is_dir() {
                open.push(entry.path());
            } else if metadata.is_file() {
                self.bytes = self.bytes.saturating_add(metadata.len());
            }
        }
        Ok(())
    }
}
