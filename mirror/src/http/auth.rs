//! Logins of clients: `auth.htpasswd`, bcrypt entries only, as Distribution has it.

mod check;
mod queue;
mod users;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};

use super::error::RegistryError;
use check::{Login, LoginVerdict, PasswordChecks};
use users::{NoUsers, Users};

pub use users::MAX_COST as MAX_BCRYPT_COST;

/// Logins that an htpasswd file lists; clones are of one. Without the file no client is let in.
#[derive(Clone)]
pub struct Htpasswd {
    users: Arc<Users>,
    challenge: HeaderValue,
    checks: Arc<PasswordChecks>,
}

/// Returns the reason why no client can log in with this file; `None` if a client can.
///
/// # Errors
/// The message about a line whose cost is too high: a server leaves its user out.
pub fn check_htpasswd(path: &Path) -> Result<Option<String>, String> {
    let list = users::list(path);
    let failed = list.as_ref().err().map(ToString::to_string);
    users::too_costly(path, &list).map_or(Ok(failed), Err)
}

impl Htpasswd {
    /// Returns the logins of this file; `realm` is what clients show.
    pub fn new(path: PathBuf, realm: &str) -> Self {
        let plain = realm.replace(['"', '\\'], "'");
        let challenge = HeaderValue::try_from(format!("Basic realm=\"{plain}\""))
            .unwrap_or(HeaderValue::from_static("Basic realm=\"mirror\""));
        Self {
            users: Arc::new(Users::new(path)),
            challenge,
            checks: Arc::new(PasswordChecks::new()),
        }
    }

    /// Reads the file, so that the log has a change before the next login. Blocks.
    pub fn reload(&self) {
        self.users.read_again();
    }

    /// Returns the reason why no user, or not every user, can log in.
    pub fn trouble(&self) -> Option<String> {
        self.users.trouble()
    }

    /// Lets a request of `client` (`address:port`) pass that has a listed login. Sets `user` to its user name where the
    /// file lists it: another name may be a password in the wrong place.
    pub(super) async fn admit(
        &self,
        headers: &HeaderMap,
        client: &Arc<str>,
        user: &mut Option<Box<str>>,
    ) -> Result<(), RegistryError> {
        let challenge = || self.challenge.clone();
        let shown = headers.get(header::AUTHORIZATION);
        let shown = shown.ok_or_else(|| RegistryError::no_login(challenge()))?;
        let login = login(shown).ok_or_else(|| RegistryError::wrong_login(challenge()))?;
        let list = self.users.now().await;
        let users = match list.as_ref() {
            Ok(users) => users,
            Err(NoUsers::Unavailable(_)) => return Err(RegistryError::users_unavailable()),
            Err(NoUsers::None(_)) => return Err(RegistryError::wrong_login(challenge())),
        };
        *user = users.get(&login.name).map(|_| login.name.as_str().into());
        match self.checks.check(login, users, client).await {
            LoginVerdict::Right => Ok(()),
            LoginVerdict::Wrong => Err(RegistryError::wrong_login(challenge())),
            LoginVerdict::Busy => Err(RegistryError::too_many_logins()),
        }
    }
}

fn login(value: &HeaderValue) -> Option<Login> {
    let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
    let decoded = scheme
        .eq_ignore_ascii_case("basic")
        .then(|| STANDARD.decode(encoded.trim()).ok())??;
    let text = String::from_utf8(decoded).ok()?;
    let (name, password) = text.split_once(':')?;
    Some(Login {
        name: name.to_owned(),
        password: password.to_owned(),
    })
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

    fn client() -> Arc<str> {
        Arc::from("192.0.2.1:1")
    }

    /// Only listed users with their passwords are admitted.
    #[tokio::test]
    async fn only_listed_users_are_admitted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("htpasswd");
        let hash = bcrypt::hash("right", 4).unwrap();
        std::fs::write(&path, format!("# a comment\nalice:{hash}\nplain:right\n")).unwrap();
        let access = Htpasswd::new(path.clone(), "test");
        let mut user = None;
        for _ in 0..2 {
            assert!(
                access
                    .admit(&basic("alice", "right"), &client(), &mut user)
                    .await
                    .is_ok()
            );
            assert_eq!(user.take().as_deref(), Some("alice"));
        }
        for (user, password) in [("alice", "wrong"), ("bob", "right"), ("plain", "right"), ("", "")] {
            let mut named = None;
            let refused = access.admit(&basic(user, password), &client(), &mut named).await;
            assert!(refused.is_err(), "{user}");
            assert_eq!(named.as_deref(), (user == "alice").then_some("alice"));
        }
        assert!(
            access
                .admit(&HeaderMap::new(), &client(), &mut user)
                .await
                .is_err()
        );
        // A login that was accepted before ends with its line.
        let hash = bcrypt::hash("other", 4).unwrap();
        std::fs::write(&path, format!("alice:{hash}\n")).unwrap();
        assert!(
            access
                .admit(&basic("alice", "right"), &client(), &mut user)
                .await
                .is_err()
        );
        assert!(
            access
                .admit(&basic("alice", "other"), &client(), &mut user)
                .await
                .is_ok()
        );
    }

    /// Without its htpasswd file the server admits no user.
    #[tokio::test]
    async fn missing_htpasswd_admits_no_user() {
        let access = Htpasswd::new("/nonexistent/htpasswd".into(), "test");
        let admitted = access.admit(&basic("alice", "right"), &client(), &mut None).await;
        assert!(admitted.is_err());
    }
}
