//! The users of an htpasswd file, as they are at the moment.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bcrypt::HashParts;
use tracing::{error, info};

use crate::file_read::{self, FileStamp, MAX_FILE};

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
    /// The reason why the list is one that was read before.
    failure: Option<String>,
}

/// The users, or the reason why there are none: then no client is let in.
pub(super) type List = Result<HtpasswdUsers, NoUsers>;

/// The reason why a file lists no users.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoUsers {
    /// The file cannot be read for the moment, which says nothing about its users.
    #[error("{0}")]
    Unavailable(String),
    /// The file is not there, or lists no user.
    #[error("{0}")]
    None(String),
}

/// The highest cost of a bcrypt hash in an htpasswd file: each step doubles the time, and a hash of cost 14 takes about a second. A hash of
/// cost 31 takes days, and cannot be interrupted.
pub const MAX_COST: u32 = 14;
/// bcrypt has no lower cost.
const MIN_COST: u32 = 4;

/// The bcrypt entries of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HtpasswdUsers {
    users: HashMap<String, HtpasswdEntry>,
    highest_cost: u32,
    /// The first line that is left out for its cost: its number and its cost.
    too_costly: Option<(usize, u32)>,
}

/// A user's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HtpasswdEntry {
    pub(super) hash: Box<str>,
    pub(super) cost: u32,
}

impl HtpasswdUsers {
    /// Returns the bcrypt entries in `text`; as with Distribution, the last line of a user counts. A line above
    /// [`MAX_COST`] lists no user.
    pub(super) fn parse(text: &str) -> Self {
        let mut listed = Self::default();
        // Some editors begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().map(str::trim).zip(1..);
        for (line, number) in lines.filter(|(line, _)| !line.starts_with('#')) {
            let Some((user, hash)) = line.split_once(':') else {
                continue;
            };
            match hash.parse::<HashParts>().map(|parts| parts.get_cost()) {
                Ok(cost @ MIN_COST..=MAX_COST) => {
                    let hash = hash.into();
                    listed.users.insert(user.to_owned(), HtpasswdEntry { hash, cost });
                }
                Ok(cost) if cost > MAX_COST => {
                    listed.users.remove(user);
                    listed.too_costly.get_or_insert((number, cost));
                }
                _ => {}
            }
        }
        let costs = listed.users.values().map(|entry| entry.cost);
        listed.highest_cost = costs.max().unwrap_or(MIN_COST);
        listed
    }

    /// Returns the entry of a user.
    pub(super) fn get(&self, name: &str) -> Option<&HtpasswdEntry> {
        self.users.get(name)
    }

    /// Returns the highest cost in the file.
    pub(super) fn highest_cost(&self) -> u32 {
        self.highest_cost
    }
}

impl Users {
    /// Reads the file, and logs an error if no user can log in.
    pub(super) fn new(path: PathBuf) -> Self {
        let held = Held::read(&path);
        log_change(&path, None, &held);
        Self {
            path,
            held: ArcSwap::from_pointee(held),
        }
    }

    /// Returns the current users: usually after one `stat` of a local file; a changed file is read on a blocking thread.
    pub(super) async fn now(self: &Arc<Self>) -> Arc<List> {
        let held = self.held.load();
        if held.settled && held.stamp == FileStamp::read(&self.path) {
            return held.list.clone();
        }
        let users = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || users.read_again()).await;
        read.unwrap_or_else(|error| Arc::new(Err(NoUsers::Unavailable(error.to_string()))))
    }

    /// Reads the file again; keeps the users that it had while it cannot be read for the moment. Blocks.
    pub(super) fn read_again(&self) -> Arc<List> {
        let (before, mut held) = (self.held.load_full(), Held::read(&self.path));
        if let (Ok(_), Err(NoUsers::Unavailable(reason))) = (before.list.as_ref(), held.list.as_ref()) {
            held.failure = Some(reason.clone());
            held.list = Arc::clone(&before.list);
        }
        log_change(&self.path, Some(&before), &held);
        let list = held.list.clone();
        self.held.store(Arc::new(held));
        list
    }

    /// Returns the reason why no user, or not every user, can log in.
    pub(super) fn trouble(&self) -> Option<String> {
        self.held.load().trouble(&self.path)
    }
}

impl Held {
    /// Stamped before it is read: an edit in between differs from the stamp.
    fn read(path: &Path) -> Self {
        let stamp = FileStamp::read(path);
        let list = list(path);
        let is_read = !matches!(list, Err(NoUsers::Unavailable(_)));
        Self {
            settled: is_read && stamp.as_ref().is_none_or(FileStamp::is_settled),
            stamp,
            list: Arc::new(list),
            failure: None,
        }
    }

    /// Returns the reason why no user, or not every user, can log in, or why the file was not read.
    fn trouble(&self, path: &Path) -> Option<String> {
        let failed = self.list.as_ref().as_ref().err().map(ToString::to_string);
        let failed = failed.or_else(|| self.failure.clone());
        failed.or_else(|| too_costly(path, &self.list))
    }
}

/// Reads the bcrypt entries of a file.
///
/// # Errors
/// The reason why no user can log in, with the path.
pub(super) fn list(path: &Path) -> List {
    let bytes = file_read::read(path, MAX_FILE).map_err(|error| {
        let path = path.display();
        if file_read::is_transient(&error) {
            return NoUsers::Unavailable(format!(
                "cannot read the htpasswd file {path} at the moment: {error}; the users that were read before stay, and it is read again"
            ));
        }
        NoUsers::None(format!(
            "cannot read the htpasswd file {path}: {error}; all logins are refused until it is there"
        ))
    })?;
    let listed = HtpasswdUsers::parse(&String::from_utf8_lossy(&bytes));
    if listed.users.is_empty() && listed.too_costly.is_none() {
        let path = path.display();
        return Err(NoUsers::None(format!(
            "the htpasswd file {path} lists no user with a bcrypt hash, so all logins are refused; htpasswd -nB NAME prints a line for one"
        )));
    }
    Ok(listed)
}

/// Returns the message about a line that is left out for its cost.
pub(super) fn too_costly(path: &Path, list: &List) -> Option<String> {
    let (line, cost) = list.as_ref().ok()?.too_costly?;
    let path = path.display();
    Some(format!(
        "line {line} of the htpasswd file {path} has a bcrypt hash of cost {cost}, and the highest cost is {MAX_COST}: its user is not let in; htpasswd -nB -C 10 NAME prints a line for one"
    ))
}

/// Logs a change of the users, or of the reason why there are none.
fn log_change(path: &Path, before: Option<&Held>, now: &Held) {
    match now.trouble(path) {
        Some(message) if before.and_then(|before| before.trouble(path)).as_ref() != Some(&message) => {
            error!(key = "auth.htpasswd.path", "{message}");
        }
        _ => {}
    }
    let could_log_in = before.is_none_or(|before| before.list.is_ok());
    if let (false, Ok(listed)) = (could_log_in, now.list.as_ref()) {
        info!(path = %path.display(), users = listed.users.len(), "users can log in");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Salt and hash of a bcrypt line.
    const SALTED: &str = "CwTycUXWue0Thq9StjUM0uJ8.Ln6PrmVYhSEV1gJOtMdCxJ.9p7Jm";

    /// A line above the highest cost lists no user, also where the user had one before; other users are listed.
    #[test]
    fn line_of_too_high_cost_lists_no_user() {
        let line = |user: &str, cost: u32| format!("{user}:$2y${cost}${SALTED}\n");
        let lines = [line("a", 10), line("b", 14), line("a", 15), line("c", 31)];
        let (_directory, path) = file(&lines.concat());
        let users = Users::new(path.clone());
        let listed = list(&path).unwrap();
        assert_eq!(listed.users.keys().collect::<Vec<_>>(), ["b"]);
        let message = users.trouble().unwrap();
        for part in ["line 3", "cost 15", "highest cost is 14", path.to_str().unwrap()] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn byte_order_mark_is_no_part_of_a_user() {
        let users = HtpasswdUsers::parse(&format!("\u{feff}a:$2y$05${SALTED}\n"));
        assert!(users.get("a").is_some());
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        fs::write(&path, text).unwrap();
        (directory, path)
    }

    /// The last bcrypt line of a user counts; comments and other hashes do not.
    #[test]
    fn last_bcrypt_line_of_a_user_counts() {
        let text = format!(
            "# a: comment\na:$2y$05${SALTED}\n#b:$2y$05${SALTED}\nc:{{SHA}}x\nd:$2y$05$x\na:$2y$06${SALTED}\n"
        );
        let (_directory, path) = file(&text);
        let listed = list(&path).unwrap();
        assert_eq!(listed.users.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(listed.highest_cost(), 6);
    }

    /// The error for an htpasswd file that admits no user names the path and the cause.
    #[test]
    fn unusable_htpasswd_error_names_path() {
        let (directory, path) = file("a:plain\n");
        let said = |path: &Path| list(path).unwrap_err().to_string();
        assert!(said(&path).contains("lists no user with a bcrypt hash"));
        assert!(said(directory.path()).contains("it is a directory"));
        assert!(said(Path::new("/nonexistent/users")).contains("/nonexistent/users: No such file"));
    }

    /// Users stay while their file cannot be read for the moment, and go with the file.
    #[test]
    fn transient_failure_keeps_the_users() {
        let (_directory, path) = file(&format!("a:$2y$05${SALTED}\n"));
        let users = Users::new(path.clone());
        // Reading the memory of a process at address 0 is EIO, as of a disk that fails.
        let link = path.with_extension("link");
        std::os::unix::fs::symlink("/proc/self/mem", &link).unwrap();
        fs::rename(&link, &path).unwrap();
        for _ in 0..2 {
            assert!(users.read_again().as_ref().as_ref().unwrap().get("a").is_some());
            let trouble = users.trouble().unwrap();
            assert!(trouble.contains("stay, and it is read again"), "{trouble}");
        }
        let never_read = Users::new(path.clone());
        let list = never_read.read_again();
        assert!(matches!(list.as_ref(), Err(NoUsers::Unavailable(_))), "{list:?}");
        fs::remove_file(&path).unwrap();
        assert!(matches!(users.read_again().as_ref(), Err(NoUsers::None(_))));
    }

    #[tokio::test]
    async fn edit_within_file_system_tick_counts_at_once() {
        let (_directory, path) = file(&format!("a:$2y$05${SALTED}\n"));
        let users = Arc::new(Users::new(path.clone()));
        for name in ["b", "c", "d"] {
            fs::write(&path, format!("{name}:$2y$05${SALTED}\n")).unwrap();
            let now = users.now().await;
            assert!(now.as_ref().as_ref().unwrap().get(name).is_some(), "{name}");
        }
        fs::remove_file(&path).unwrap();
        assert!(users.now().await.is_err());
        assert!(users.trouble().is_some());
    }
}
