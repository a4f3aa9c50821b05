//! Notices that files were replaced, be it by a rename, a link that was swapped, or an edit in place.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;

/// Looked at this often: file systems differ in what they tell, and a look costs microseconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A set of files, as they were when last looked at.
#[derive(Debug, Default)]
pub struct Files {
    paths: Vec<PathBuf>,
    stamps: Vec<Option<Stamp>>,
}

/// What differs when a file was replaced: device, inode, size, and when its content and itself changed.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

impl Files {
    /// These files as they are now.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let stamps = look(&paths);
        Self { paths, stamps }
    }

    /// Waits until one of them is another than before. Without any file that is never.
    pub async fn changed(&mut self) {
        loop {
            sleep(LOOK_EVERY).await;
            let paths = self.paths.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || look(&paths)).await else {
                continue;
            };
            if now != self.stamps {
                self.stamps = now;
                return;
            }
        }
    }
}

fn look(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let m = fs::metadata(path).ok()?;
        Some((
            m.dev(),
            m.ino(),
            m.size(),
            m.mtime(),
            m.mtime_nsec(),
            m.ctime(),
            m.ctime_nsec(),
        ))
    };
    paths.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    async fn notices(path: &Path, change: impl FnOnce()) {
        let mut files = Files::new(vec![path.to_owned()]);
        change();
        let changed = tokio::time::timeout(Duration::from_secs(20), files.changed()).await;
        assert!(changed.is_ok());
    }

    #[tokio::test]
    async fn an_edit_a_swapped_link_and_a_removal_are_noticed() {
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

    #[tokio::test]
    async fn nothing_is_noticed_where_nothing_changed() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::new(vec![directory.path().to_owned()]);
        let changed = tokio::time::timeout(LOOK_EVERY + Duration::from_millis(200), files.changed()).await;
        assert!(changed.is_err());
    }
}
