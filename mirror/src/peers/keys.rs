//! The keys that peers share: authorization of requests, and signatures of answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use http::HeaderValue;

use crate::clock::Clock;
use crate::file_read;
use crate::secret::Secret;

/// The scheme of `PeerAuthorization` between peers: `Mirror <time>.<HMAC-SHA256(secret, method path time)>`.
const SCHEME: &str = "Mirror";
/// The age, and the lead of a clock, from which an authorization is refused.
pub(crate) const MAX_AGE: Duration = Duration::from_mins(1);
/// The keys that are read: one in use and one that it replaces, or that replaces it.
pub(crate) const MAX_KEYS: usize = 2;
/// The fewest characters of a key.
const MIN_KEY: usize = 16;
/// The most bytes of the file that are read.
const MAX_FILE: u64 = 4096;

/// The keys of a secret file: one a line, the first signs, each verifies.
pub(crate) struct PeerKeys {
    path: PathBuf,
    clock: Clock,
    keys: ArcSwap<Vec<hmac::Key>>,
}

/// The reason why an authorization is refused; none says which part of a signature differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthorizationError {
    /// No or another scheme.
    #[error("no authorization of a peer")]
    Missing,
    /// No key made it.
    #[error("the authorization is not made with the secret of this mirror")]
    Wrong,
    /// Older than [`MAX_AGE`], or from the future.
    #[error("the authorization is more than 60 s old or ahead: check that the clocks agree")]
    Expired,
}

/// The reason why a secret file has no usable key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretFileError {
    /// The file cannot be read.
    #[error("cannot read the file {path} (peers.secretfile): {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The file has no key that is long enough.
    #[error("the file {path} (peers.secretfile) has no usable key: write one or two lines of at least 16 characters", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
    },
}

impl PeerKeys {
    /// Reads the keys of a file. Without a usable file there is no key, so that every request is refused.
    pub(crate) fn new(path: PathBuf, clock: Clock) -> Self {
        let keys = ArcSwap::default();
        let keys = Self { path, clock, keys };
        keys.reload();
        keys
    }

    /// Reads the file again; a file without a usable key keeps the previous keys. Returns `false` if the file can't be read
    /// for the moment.
    pub(crate) fn reload(&self) -> bool {
        match read(&self.path) {
            Ok(secrets) => {
                let key = |secret: &Secret| hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
                self.keys.store(Arc::new(secrets.iter().map(key).collect()));
            }
            Err(error) => {
                tracing::warn!(%error, "the secret of peers was not read");
                return !matches!(&error, SecretFileError::Unreadable { source, .. } if file_read::is_transient(source));
            }
        }
        true
    }

    /// Returns the authorization of a request, made with the key of this index.
    pub(crate) fn authorize(&self, index: usize, method: &str, target: &str) -> Option<PeerAuthorization> {
        let key = self.keys.load().get(index)?.clone();
        let time = self.clock.now().as_second();
        let tag = hmac::sign(&key, request_text(method, target, time).as_bytes());
        let value = format!("{SCHEME} {time}.{}", hex::encode(tag));
        let value = HeaderValue::try_from(value).ok()?;
        Some(PeerAuthorization { key, value })
    }

    /// Checks the authorization of a request.
    pub(crate) fn verify(
        &self,
        authorization: Option<&HeaderValue>,
        method: &str,
        target: &str,
    ) -> Result<PeerAuthorization, AuthorizationError> {
        let value = authorization.ok_or(AuthorizationError::Missing)?;
        let text = value.to_str().ok().and_then(parse);
        let (time, tag) = text.ok_or(AuthorizationError::Missing)?;
        let signed = request_text(method, target, time);
        let keys = self.keys.load();
        let made = |key: &&hmac::Key| hmac::verify(key, signed.as_bytes(), &tag).is_ok();
        let key = keys.iter().find(made).ok_or(AuthorizationError::Wrong)?;
        if self.clock.now().as_second().abs_diff(time) > MAX_AGE.as_secs() {
            return Err(AuthorizationError::Expired);
        }
        Ok(PeerAuthorization {
            key: key.clone(),
            value: value.clone(),
        })
    }
}

/// The authorization of one request, which binds the signature of its answer to it.
pub(crate) struct PeerAuthorization {
    key: hmac::Key,
    value: HeaderValue,
}

impl PeerAuthorization {
    /// Returns the value of the header.
    pub(crate) fn value(&self) -> &HeaderValue {
        &self.value
    }

    /// Returns the signature of the answer to this request.
    pub(crate) fn sign(&self, answer: &[u8]) -> String {
        hex::encode(hmac::sign(&self.key, &self.bound(answer)))
    }

    /// Returns whether a member with the key of this request signed its answer.
    pub(crate) fn is_answer_signed(&self, answer: &[u8], signature: Option<&HeaderValue>) -> bool {
        let tag = signature.and_then(|value| hex::decode(value.as_bytes()).ok());
        tag.is_some_and(|tag| hmac::verify(&self.key, &self.bound(answer), &tag).is_ok())
    }

    fn bound(&self, answer: &[u8]) -> Vec<u8> {
        [b"answer ", self.value.as_bytes(), b"\n", answer].concat()
    }
}

fn request_text(method: &str, target: &str, time: i64) -> String {
    format!("{method} {target} {time}")
}

/// Parses an authorization: its time in seconds since 1970, and its tag.
fn parse(text: &str) -> Option<(i64, Vec<u8>)> {
    let (scheme, credentials) = text.split_once(' ')?;
    let (time, tag) = credentials.trim().split_once('.')?;
    let is_number = !time.is_empty() && time.bytes().all(|b| b.is_ascii_digit());
    let known = scheme.eq_ignore_ascii_case(SCHEME) && is_number;
    known.then(|| Some((time.parse().ok()?, hex::decode(tag).ok()?)))?
}

/// Reads the secrets of a file.
///
/// # Errors
/// The file cannot be read, or has no usable key.
pub(crate) fn read(path: &Path) -> Result<Vec<Secret>, SecretFileError> {
    let unreadable = |source| SecretFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let text = file_read::read_text(path, MAX_FILE).map_err(unreadable)?;
    let lines = text.lines().map(str::trim).filter(|line| line.len() >= MIN_KEY);
    let secrets: Vec<_> = lines.take(MAX_KEYS).map(Secret::new).collect();
    if secrets.is_empty() {
        return Err(SecretFileError::Unusable {
            path: path.to_owned(),
        });
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TARGET: &str = "/v2/a/blobs/b?ns=c.test";

    fn keys(text: &str, clock: &Clock) -> PeerKeys {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        PeerKeys::new(file.path().to_owned(), clock.clone())
    }

    fn check(
        keys: &PeerKeys,
        made: &PeerAuthorization,
        method: &str,
        target: &str,
    ) -> Result<(), AuthorizationError> {
        keys.verify(Some(made.value()), method, target).map(drop)
    }

    /// An authorization is for one method, one target and 60 s.
    #[test]
    fn authorization_is_for_one_request_and_60_s() {
        let clock = Clock::system();
        let keys = keys("0123456789abcdef0123\n", &clock);
        let made = keys.authorize(0, "GET", TARGET).unwrap();
        assert_eq!(check(&keys, &made, "GET", TARGET), Ok(()));
        assert_eq!(
            check(&keys, &made, "HEAD", TARGET),
            Err(AuthorizationError::Wrong)
        );
        assert_eq!(check(&keys, &made, "GET", "/v2/"), Err(AuthorizationError::Wrong));
        clock.advance(MAX_AGE.saturating_sub(Duration::from_secs(2)));
        assert_eq!(check(&keys, &made, "GET", TARGET), Ok(()));
        clock.advance(Duration::from_secs(5));
        assert_eq!(
            check(&keys, &made, "GET", TARGET),
            Err(AuthorizationError::Expired)
        );
    }

    /// While the secret rotates, members with the old and the new key accept each other.
    #[test]
    fn two_keys_verify_while_secret_rotates() {
        let clock = Clock::system();
        let (old, new) = ("old-old-old-old-old", "new-new-new-new-new");
        let [before, during, after] = [
            keys(old, &clock),
            keys(&format!("{new}\n{old}\n"), &clock),
            keys(new, &clock),
        ];
        let made = before.authorize(0, "GET", TARGET).unwrap();
        let seen = during.verify(Some(made.value()), "GET", TARGET).unwrap();
        let signature = HeaderValue::try_from(seen.sign(b"answer")).unwrap();
        assert!(made.is_answer_signed(b"answer", Some(&signature)));
        assert!(!made.is_answer_signed(b"another", Some(&signature)));
        assert_eq!(
            check(&after, &made, "GET", TARGET),
            Err(AuthorizationError::Wrong)
        );
        for index in 0..2 {
            let made = during.authorize(index, "GET", TARGET).unwrap();
            let accepted = check(&before, &made, "GET", TARGET).is_ok();
            assert_eq!(accepted, index == 1);
        }
    }

    /// Without a usable key every request is refused, and no request is made.
    #[test]
    fn short_or_missing_secret_gives_no_key() {
        let clock = Clock::system();
        for text in ["", "\n\n", "short\n"] {
            let keys = keys(text, &clock);
            assert!(keys.authorize(0, "GET", TARGET).is_none());
        }
    }

    proptest! {
        /// No header that is made without the secret is accepted, and none makes the parser panic.
        #[test]
        fn forged_authorization_is_refused(value in "(Mirror )?[ -~]{0,90}", time in 0_i64..4_000_000_000) {
            let clock = Clock::system();
            let keys = keys("0123456789abcdef0123\n", &clock);
            for text in [value.clone(), format!("Mirror {time}.{value}"), format!("Mirror {time}.{}", "0".repeat(64))] {
                if let Ok(header) = HeaderValue::try_from(text) {
                    prop_assert!(keys.verify(Some(&header), "GET", TARGET).is_err());
                }
            }
        }
    }
}
