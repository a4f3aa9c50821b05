//! Who may pull: `auth.htpasswd`, bcrypt entries only, as Distribution has it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};
use moka::future::Cache;
use tokio::sync::Semaphore;
use tracing::error;

use super::error::RegistryError;
use crate::digest::{Algorithm, Digest};

/// How long an accepted login is believed: bcrypt costs tens of milliseconds of CPU on purpose.
const BELIEVED: Duration = Duration::from_mins(1);
const REMEMBERED: u64 = 10_000;
/// A hash to compare unknown users' passwords with, so that they take as long as known ones.
const NOBODY: &str = "$2y$10$CwTycUXWue0Thq9StjUM0uJ8.Ln6PrmVYhSEV1gJOtMdCxJ.9p7Jm";

/// Logins that an htpasswd file lists; clones are of one. The file is read anew for each login that is not
/// believed yet.
#[derive(Clone)]
pub struct Htpasswd {
    path: PathBuf,
    challenge: HeaderValue,
    accepted: Cache<Digest, ()>,
    /// Checks under way: no more than the machine has cores, or guesses would take the threads that disks need.
    checks: Arc<Semaphore>,
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
            path,
            challenge,
            accepted,
            checks,
        }
    }

    /// Believes nobody any more, as the file may be another one now.
    pub fn forget(&self) {
        self.accepted.invalidate_all();
    }

    /// Lets a request pass that comes with a listed login.
    pub(super) async fn admit(&self, headers: &HeaderMap) -> Result<(), RegistryError> {
        let refused = || RegistryError::unauthorized(self.challenge.clone());
        let login = headers
            .get(header::AUTHORIZATION)
            .and_then(login)
            .ok_or_else(refused)?;
        let key = Digest::of(Algorithm::Sha256, format!("{}:{}", login.0, login.1).as_bytes());
        if self.accepted.get(&key).await.is_some() {
            return Ok(());
        }
        let _turn = self.checks.acquire().await;
        let path = self.path.clone();
        let listed = tokio::task::spawn_blocking(move || is_listed(&path, &login.0, &login.1)).await;
        if !listed.unwrap_or(false) {
            return Err(refused());
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

/// An unreadable file lets nobody in.
fn is_listed(path: &std::path::Path, user: &str, password: &str) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
        error!(path = %path.display(), %error, "the htpasswd file can't be read: nobody can log in");
        String::new()
    });
    let hash = text
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .find(|(name, _)| *name == user);
    let known = hash.is_some();
    bcrypt::verify(password, hash.map_or(NOBODY, |(_, hash)| hash)).unwrap_or(false) && known
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
        let access = Htpasswd::new(path, "test");
        assert!(access.admit(&basic("alice", "right")).await.is_ok());
        assert!(access.admit(&basic("alice", "right")).await.is_ok());
        for (user, password) in [("alice", "wrong"), ("bob", "right"), ("plain", "right"), ("", "")] {
            assert!(access.admit(&basic(user, password)).await.is_err(), "{user}");
        }
        assert!(access.admit(&HeaderMap::new()).await.is_err());
    }

    #[tokio::test]
    async fn without_its_file_nobody_passes() {
        let access = Htpasswd::new("/nonexistent/htpasswd".into(), "test");
        assert!(access.admit(&basic("alice", "right")).await.is_err());
    }
}
