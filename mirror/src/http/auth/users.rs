//! The users of an htpasswd file, as they are at the moment.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::{error, info};

use crate::file_watch::FileStamp;

/// The users of a file, followed: what it lists counts from the moment on that it is there.
pub(super) struct Users {
    path: PathBuf,
    held: ArcSwap<Held>,
}

/// A file as it was read.
struct Held {
    stamp: Option<FileStamp>,
    /// False where an edit could have left the same stamp: it is read again each time.
    settled: bool,
    list: Arc<List>,
}

/// Bcrypt hashes by user, or why there is none: then nobody is let in.
pub(super) type List = Result<HashMap<String, String>, String>;

impl Users {
    /// Reads the file; a log line says so where nobody can log in.
    pub(super) fn new(path: PathBuf) -> Self {
        let held = Held::read(&path);
        tell(&path, &Ok(HashMap::new()), &held.list);
        Self {
            path,
            held: ArcSwap::from_pointee(held),
        }
    }

    /// The users now. One `stat` of a local file at most times; read on a thread that may wait where that tells of
    /// a change.
    pub(super) async fn now(self: &Arc<Self>) -> Arc<List> {
        let held = self.held.load();
        if held.settled && held.stamp == FileStamp::read(&self.path) {
            return held.list.clone();
        }
        let users = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || users.read_again()).await;
        read.unwrap_or_else(|error| Arc::new(Err(error.to_string())))
    }

    /// Reads the file again. Blocks.
    pub(super) fn read_again(&self) -> Arc<List> {
        let held = Held::read(&self.path);
        let list = held.list.clone();
        let before = self.held.swap(Arc::new(held));
        tell(&self.path, &before.list, &list);
        list
    }

    /// Why nobody can log in; `None` if somebody can.
    pub(super) fn trouble(&self) -> Option<String> {
        let list = self.held.load().list.clone();
        list.as_ref().as_ref().err().cloned()
    }
}

impl Held {
    /// Stamped before it is read: an edit in between differs from the stamp.
    fn read(path: &Path) -> Self {
        let stamp = FileStamp::read(path);
        Self {
            settled: stamp.as_ref().is_none_or(FileStamp::is_settled),
            stamp,
            list: Arc::new(list(path)),
        }
    }
}

/// The bcrypt entries of a file; as with Distribution, the last line of a user counts.
///
/// # Errors
/// Why nobody can log in, with the path.
pub(super) fn list(path: &Path) -> List {
    let read = || {
        if !fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other("it is not a file"));
        }
        fs::read(path)
    };
    let bytes = read().map_err(|error| {
        let path = path.display();
        format!("cannot read the htpasswd file {path}: {error}; nobody is let in until it is there")
    })?;
    let users: HashMap<_, _> = String::from_utf8_lossy(&bytes)
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .filter(|(_, hash)| hash.starts_with("$2"))
        .map(|(user, hash)| (user.to_owned(), hash.to_owned()))
        .collect();
    if users.is_empty() {
        let path = path.display();
        return Err(format!(
            "the htpasswd file {path} lists no user with a bcrypt hash, so nobody is let in; htpasswd -nB NAME prints a line for one"
        ));
    }
    Ok(users)
}

/// Says what changed for those who want to log in.
fn tell(path: &Path, before: &List, now: &List) {
    match (before, now) {
        (before, Err(trouble)) if before.as_ref().err() != Some(trouble) => {
            error!(key = "auth.htpasswd.path", "{trouble}");
        }
        (Err(_), Ok(users)) => info!(path = %path.display(), users = users.len(), "users can log in"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        fs::write(&path, text).unwrap();
        (directory, path)
    }

    #[test]
    fn the_last_bcrypt_line_of_a_user_counts_and_comments_do_not() {
        let (_directory, path) = file("# a: comment\na:$2y$05$x\n#b:$2y$05$x\nc:{SHA}x\na:$2y$05$z\n");
        let expected = HashMap::from([("a".to_owned(), "$2y$05$z".to_owned())]);
        assert_eq!(list(&path), Ok(expected));
    }

    #[test]
    fn why_nobody_can_log_in_is_said_with_the_path() {
        let (directory, path) = file("a:plain\n");
        let said = |path: &Path| list(path).unwrap_err();
        assert!(said(&path).contains("lists no user with a bcrypt hash"));
        assert!(said(directory.path()).contains("it is not a file"));
        assert!(said(Path::new("/nonexistent/users")).contains("/nonexistent/users: No such file"));
    }

    #[tokio::test]
    async fn an_edit_within_one_tick_of_the_file_system_counts_for_the_next_request() {
        let (_directory, path) = file("a:$2y$05$x\n");
        let users = Arc::new(Users::new(path.clone()));
        for name in ["b", "c", "d"] {
            fs::write(&path, format!("{name}:$2y$05$x\n")).unwrap();
            let now = users.now().await;
            assert!(now.as_ref().as_ref().unwrap().contains_key(name), "{name}");
        }
        fs::remove_file(&path).unwrap();
        assert!(users.now().await.is_err());
        assert!(users.trouble().is_some());
    }
}
