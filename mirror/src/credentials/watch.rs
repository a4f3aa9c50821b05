//! Detects changes of the directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::info;

use super::{Problem, Snapshot};

/// The polling interval. File systems differ in the events that they emit, and a read costs microseconds.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A watch that reads the directory after each change, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    changed: Arc<Notify>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Reads the directory and starts to watch it. The directory may appear later.
    pub async fn start(directory: &Path) -> Self {
        let (changed, directory) = (Arc::new(Notify::new()), directory.to_owned());
        let first = read(directory.clone(), 1).await;
        let (sender, snapshots) = watch::channel(Arc::new(first));
        let task = tokio::spawn(follow(directory, changed.clone(), sender));
        Self {
            changed,
            snapshots,
            task,
        }
    }

    /// Returns the snapshots of the directory: the current one, and each later one.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Requests an immediate read of the directory.
    pub fn reload(&self) {
        self.changed.notify_one();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(directory: PathBuf, changed: Arc<Notify>, snapshots: watch::Sender<Arc<Snapshot>>) {
    let mut generation = 1;
    loop {
        let _ = tokio::time::timeout(POLL_INTERVAL, changed.notified()).await;
        let new = read(directory.clone(), generation).await;
        if let Err(Problem::Unavailable(_)) = &new.candidates {
            if new.candidates != snapshots.borrow().candidates {
                snapshots.send_replace(Arc::new(new));
            }
        } else if new != **snapshots.borrow() {
            generation += 1;
            let new = Arc::new(read(directory.clone(), generation).await);
            info!(version = new.version, "the credentials directory changed");
            snapshots.send_replace(new);
        }
    }
}

async fn read(directory: PathBuf, generation: u64) -> Snapshot {
    let task = tokio::task::spawn_blocking(move || Snapshot::read(&directory, generation));
    match task.await {
        Ok(snapshot) => snapshot,
        // Only when the runtime stops.
        Err(error) => Snapshot::unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Writes the files as kubelet does: a new directory, and a link that is renamed over the old one.
    fn publish(root: &Path, round: u64) {
        let data = root.join(format!("..2026_{round}"));
        fs::create_dir(&data).unwrap();
        let entry = format!(r#"{{"auths":{{"quay.io":{{"username":"u{round}","password":"p"}}}}}}"#);
        fs::write(data.join("config.json"), entry).unwrap();
        fs::write(data.join("version"), round.to_string()).unwrap();
        symlink(&data, root.join("..data_tmp")).unwrap();
        let old = fs::read_link(root.join("..data"));
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        for name in ["config.json", "version"] {
            let _ = symlink(Path::new("..data").join(name), root.join(name));
        }
        if let Ok(old) = old {
            fs::remove_dir_all(old).unwrap();
        }
    }

    async fn version(snapshots: &mut watch::Receiver<Arc<Snapshot>>, version: u64) -> Arc<Snapshot> {
        let wait = snapshots.wait_for(|snapshot| snapshot.version == version);
        let snapshot = tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap()
            .unwrap();
        snapshot.clone()
    }

    /// The watch reads every swap of the directory, and never a mixture of two.
    #[tokio::test]
    async fn directory_swap_is_read_whole() {
        let root = tempfile::tempdir().unwrap();
        publish(root.path(), 10);
        let watch = Watch::start(root.path()).await;
        let mut snapshots = watch.snapshots();
        for round in 10..15 {
            if round > 10 {
                publish(root.path(), round);
            }
            let snapshot = version(&mut snapshots, round).await;
            let debug = format!("{:?}", snapshot.candidates);
            assert!(debug.contains(&format!("u{round}")), "{debug}");
        }
    }

    /// The watch finds a directory that is created after the start.
    #[tokio::test]
    async fn late_directory_is_found() {
        let root = tempfile::tempdir().unwrap();
        let late = root.path().join("late");
        let watch = Watch::start(&late).await;
        let mut snapshots = watch.snapshots();
        assert_eq!(snapshots.borrow().candidates, Err(Problem::Missing));
        fs::create_dir(&late).unwrap();
        publish(&late, 42);
        watch.reload();
        version(&mut snapshots, 42).await;
    }

    #[tokio::test]
    async fn without_a_version_changes_are_counted() {
        let root = tempfile::tempdir().unwrap();
        let watch = Watch::start(root.path()).await;
        let mut snapshots = watch.snapshots();
        fs::write(root.path().join("config.json"), r#"{"auths":{}}"#).unwrap();
        let snapshot = version(&mut snapshots, 2).await;
        assert!(snapshot.candidates.is_ok());
    }
}
