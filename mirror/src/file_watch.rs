//! Detects replaced files, after a rename, a swapped link or an edit in place.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use crate::file_read::{self, FileStamp, MAX_FILE};

/// The interval between two checks: file systems differ in the events that they emit, and a check costs microseconds.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// A set of files with the stamps of the last check.
#[derive(Debug, Default)]
pub struct FileWatch(Vec<WatchedFile>);

#[derive(Clone, Debug)]
struct WatchedFile {
    path: PathBuf,
    stamp: Option<FileStamp>,
    /// A hash of the content, while the stamp is too recent to be conclusive.
    content: Option<u64>,
}

impl FileWatch {
    /// Records the current state of these files. Blocks.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let watch = |path| {
            let mut file = WatchedFile {
                path,
                stamp: None,
                content: None,
            };
            file.refresh();
            file
        };
        Self(paths.into_iter().map(watch).collect())
    }

    /// Waits until a file of the set changes. Never resolves for an empty set.
    pub async fn changed(&mut self) {
        loop {
            sleep(POLL_INTERVAL).await;
            let mut files = self.0.clone();
            let checked = tokio::task::spawn_blocking(move || {
                let mut changed = false;
                for file in &mut files {
                    changed |= file.refresh();
                }
                (files, changed)
            });
            let Ok((files, changed)) = checked.await else {
                continue;
            };
            self.0 = files;
            if changed {
                return;
            }
        }
    }
}

impl WatchedFile {
    /// Checks the file again; returns `true` if the file or its content changed.
    fn refresh(&mut self) -> bool {
        let stamp = FileStamp::read(&self.path);
        let settled = stamp.as_ref().is_none_or(FileStamp::is_settled);
        let content = (!settled || self.content.is_some()).then(|| hash(&self.path));
        let same = stamp == self.stamp && (self.content.is_none() || content == self.content);
        self.stamp = stamp;
        self.content = content.filter(|_| !settled);
        !same
    }
}

/// Returns the hash of the content of a file. A file that cannot be read counts as empty: its stamp changes when it
/// becomes readable.
fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    file_read::read(path, MAX_FILE)
        .unwrap_or_default()
        .hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    async fn notices(path: &Path, change: impl FnOnce()) {
        let mut files = FileWatch::new(vec![path.to_owned()]);
        change();
        let changed = tokio::time::timeout(Duration::from_secs(20), files.changed()).await;
        assert!(changed.is_ok());
    }

    /// The watch notices an edited file, a swapped link and a removed file.
    #[tokio::test]
    async fn edit_link_swap_and_removal_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("1"), directory.path().join("2"));
        let (link, swap) = (directory.path().join("link"), directory.path().join("swap"));
        fs::write(&one, "a").unwrap();
        fs::write(&two, "a").unwrap();
        symlink(&one, &link).unwrap();
        symlink(&two, &swap).unwrap();
        tokio::join!(
            notices(&two, || fs::write(&two, "b").unwrap()),
            notices(&link, || fs::rename(&swap, &link).unwrap()),
            notices(&one, || fs::remove_file(&one).unwrap()),
        );
    }

    /// The watch notices, once, an edit that leaves the time stamp of the file as it was.
    #[test]
    fn edit_within_one_tick_is_noticed_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "a").unwrap();
        let mut file = FileWatch::new(vec![path.clone()]).0.remove(0);
        fs::write(&path, "b").unwrap();
        // As where both writes fell into one tick.
        file.stamp = FileStamp::read(&path);
        assert!(file.refresh());
        assert!(!file.refresh());
    }

    /// The watch gives no notice while nothing changes.
    #[tokio::test]
    async fn unchanged_files_give_no_notice() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = FileWatch::new(vec![directory.path().to_owned()]);
        let changed = tokio::time::timeout(POLL_INTERVAL + Duration::from_millis(200), files.changed()).await;
        assert!(changed.is_err());
    }
}
