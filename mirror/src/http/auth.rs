//! Who may pull: `auth.htpasswd`, bcrypt entries only, as Distribution has it.

mod users;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};
use moka::future::Cache;
use tokio::sync::Semaphore;

use super::error::RegistryError;
use crate::digest::{Algorithm, Digest};
use users::Users;

/// How long an accepted login is believed: bcrypt costs tens of milliseconds of CPU on purpose.
const BELIEVED: Duration = Duration::from_mins(1);
const REMEMBERED: u64 = 10_000;
/// A hash to compare unknown users' passwords with, so that they take as long as known ones.
const NOBODY: &str = "$2y$10$CwTycUXWue0Thq9StjUM0uJ8.Ln6PrmVYhSEV1gJOtMdCxJ.9p7Jm";

/// Logins that an htpasswd file lists; clones are of one. Without the file nobody is let in.
#[derive(Clone)]
pub struct Htpasswd {
    users: Arc<Users>,
    challenge: HeaderValue,
    /// Logins with the line that they were compared with: a line that changed or went lets nobody in.
    accepted: Cache<Digest, ()>,
    /// Checks under way: no more than the machine has cores, or guesses would take the threads that disks need.
    checks: Arc<Semaphore>,
}

/// Why nobody can log in with this file; `None` if somebody can.
pub fn trouble_with_users(path: &Path) -> Option<String> {
    users::list(path).err()
}

impl Htpasswd {
    /// Logins of this file; `realm` is what clients show.
    pub fn new(path: PathBuf, realm: &str) -> Self {
        let plain = realm.replace(['"', '\\'], "'");
        let challenge = HeaderValue::try_from(format!("Basic realm=\"{plain}\""))
            .unwrap_or(HeaderValue::from_static("Basic realm=\"mirror\""));
        let accepted = Cache::builder()
            .max_capacity(REMEMBERED)
            .time_to_live(BELIEVED)
            .build();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let checks = Arc::new(Semaphore::new(cores));
        Self {
            users: Arc::new(Users::new(path)),
            challenge,
            accepted,
            checks,
        }
    }

    /// Looks at the file, so that the log tells of a change before somebody comes. Blocks.
    pub fn look(&self) {
        self.users.read_again();
    }

    /// Why nobody can log in; `None` if somebody can.
    pub fn trouble(&self) -> Option<String> {
        self.users.trouble()
    }

    /// Lets a request pass that comes with a listed login, and names its user where the file lists it: another name may
    /// be a password in the wrong place.
    pub(super) async fn admit(
        &self,
        headers: &HeaderMap,
        user: &mut Option<Box<str>>,
    ) -> Result<(), RegistryError> {
        let challenge = || self.challenge.clone();
        let shown = headers.get(header::AUTHORIZATION);
        let shown = shown.ok_or_else(|| RegistryError::no_login(challenge()))?;
        let (name, password) = login(shown).ok_or_else(|| RegistryError::wrong_login(challenge()))?;
        let users = self.users.now().await;
        let listed = users.as_ref().as_ref().ok().and_then(|users| users.get(&name));
        let hash = listed.map_or(NOBODY, String::as_str).to_owned();
        let key = Digest::of(Algorithm::Sha256, format!("{hash}:{name}:{password}").as_bytes());
        *user = listed.map(|_| name.into());
        if self.accepted.get(&key).await.is_some() {
            return Ok(());
        }
        let known = listed.is_some();
        let _turn = self.checks.acquire().await;
        let right = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash).unwrap_or(false));
        if !(right.await.unwrap_or(false) && known) {
            return Err(RegistryError::wrong_login(challenge()));
        }
        self.accepted.insert(key, ()).await;
        Ok(())
    }
}

fn login(value: &HeaderValue) -> Option<(String, String)> {
    let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
    let decoded = scheme
        .eq_ignore_ascii_case("basic")
        .then(|| STANDARD.decode(encoded.trim()).ok())??;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':')
        .map(|(user, password)| (user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[tokio::test]
    async fn only_listed_logins_pass() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("htpasswd");
        let hash = bcrypt::hash("right", 4).unwrap();
        std::fs::write(&path, format!("# a comment\nalice:{hash}\nplain:right\n")).unwrap();
        let access = Htpasswd::new(path.clone(), "test");
        let mut user = None;
        for _ in 0..2 {
            assert!(access.admit(&basic("alice", "right"), &mut user).await.is_ok());
            assert_eq!(user.take().as_deref(), Some("alice"));
        }
        for (user, password) in [("alice", "wrong"), ("bob", "right"), ("plain", "right"), ("", "")] {
            let mut named = None;
            let refused = access.admit(&basic(user, password), &mut named).await;
            assert!(refused.is_err(), "{user}");
            assert_eq!(named.as_deref(), (user == "alice").then_some("alice"));
        }
        assert!(access.admit(&HeaderMap::new(), &mut user).await.is_err());
        // Who was let in before is not for longer than the line stands there.
        let hash = bcrypt::hash("other", 4).unwrap();
        std::fs::write(&path, format!("alice:{hash}\n")).unwrap();
        assert!(access.admit(&basic("alice", "right"), &mut user).await.is_err());
        assert!(access.admit(&basic("alice", "other"), &mut user).await.is_ok());
    }

    #[tokio::test]
    async fn without_its_file_nobody_passes() {
        let access = Htpasswd::new("/nonexistent/htpasswd".into(), "test");
        let admitted = access.admit(&basic("alice", "right"), &mut None).await;
        assert!(admitted.is_err());
    }
}
