//! Notices that files were replaced, be it by a rename, a link that was swapped, or an edit in place.

use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

/// Looked at this often: file systems differ in what they tell, and a look costs microseconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Two edits that are closer than this may get the same times: file systems have ticks of up to 2 s.
const TICK: Duration = Duration::from_secs(2);

/// What differs when a file was replaced: device, inode, size, and when its content and itself changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    file: [u64; 3],
    times: [i64; 4],
}

impl Stamp {
    /// The stamp of what a path leads to; `None` where that is nothing.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().as_ref().map(Self::from)
    }

    /// False while one more edit could leave the same stamp: only the content tells then.
    pub(crate) fn is_settled(&self) -> bool {
        let [mtime, _, ctime, _] = self.times.map(|time| u64::try_from(time).unwrap_or_default());
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(mtime.max(ctime) + 1);
        SystemTime::now()
            .duration_since(changed)
            .is_ok_and(|age| age > TICK)
    }
}

impl From<&Metadata> for Stamp {
    fn from(m: &Metadata) -> Self {
        Self {
            file: [m.dev(), m.ino(), m.size()],
            times: [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()],
        }
    }
}

/// A set of files, as they were when last looked at.
#[derive(Debug, Default)]
pub struct Files(Vec<File>);

#[derive(Clone, Debug)]
struct File {
    path: PathBuf,
    stamp: Option<Stamp>,
    /// A hash of what it holds, where its stamp is too young to tell.
    content: Option<u64>,
}

impl Files {
    /// These files as they are now.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let look = |path| {
            let mut file = File {
                path,
                stamp: None,
                content: None,
            };
            file.look();
            file
        };
        Self(paths.into_iter().map(look).collect())
    }

    /// Waits until one of them is another than before. Without any file that is never.
    pub async fn changed(&mut self) {
        loop {
            sleep(LOOK_EVERY).await;
            let mut files = self.0.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let mut changed = false;
                for file in &mut files {
                    changed |= file.look();
                }
                (files, changed)
            });
            let Ok((files, changed)) = looked.await else {
                continue;
            };
            self.0 = files;
            if changed {
                return;
            }
        }
    }
}

impl File {
    /// Looks again; true where it is another file, or holds something else.
    fn look(&mut self) -> bool {
        let stamp = Stamp::of(&self.path);
        let settled = stamp.as_ref().is_none_or(Stamp::is_settled);
        let content = (!settled || self.content.is_some()).then(|| hash(&self.path));
        let same = stamp == self.stamp && (self.content.is_none() || content == self.content);
        self.stamp = stamp;
        self.content = content.filter(|_| !settled);
        !same
    }
}

/// What can't be read counts as empty: that it can be read again changes its stamp.
fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    fs::read(path).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

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

    #[test]
    fn an_edit_within_one_tick_of_the_file_system_is_noticed_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "a").unwrap();
        let mut file = Files::new(vec![path.clone()]).0.remove(0);
        fs::write(&path, "b").unwrap();
        // As where both writes fell into one tick.
        file.stamp = Stamp::of(&path);
        assert!(file.look());
        assert!(!file.look());
    }

    #[tokio::test]
    async fn nothing_is_noticed_where_nothing_changed() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::new(vec![directory.path().to_owned()]);
        let changed = tokio::time::timeout(LOOK_EVERY + Duration::from_millis(200), files.changed()).await;
        assert!(changed.is_err());
    }
}
