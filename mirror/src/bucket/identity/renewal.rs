//! The renewal of credentials that expire: one request at a time, and the last credential while the cloud fails.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::{CredentialProvider, Error, Result};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest wait for a new credential while the last one is valid.
const REFRESH: Duration = Duration::from_millis(250);
/// The time for which the last credential is used while the cloud issues no other: the crate asks for a new one 5 min
/// before the last one expires.
const MARGIN: Duration = Duration::from_mins(5);
/// The pause after a cloud that issued no new credential, while the last one is used.
const PAUSE: Duration = Duration::from_secs(10);

/// A provider of credentials in front of the one that asks the cloud. A caller that gives up does not end the request to the
/// cloud.
pub(super) struct IdentityCredentials<C>(Arc<Shared<C>>);

struct Shared<C> {
    provider: Arc<dyn CredentialProvider<Credential = C>>,
    /// Corrects what the provider read.
    correct: fn(Arc<C>) -> Arc<C>,
    last: Mutex<Last<C>>,
    /// The request to the cloud; there is one at a time.
    turn: Arc<Semaphore>,
}

/// The last credential.
struct Last<C> {
    credential: Option<Arc<C>>,
    /// The first and the last failure since then.
    failing: Option<(Instant, Instant)>,
}

impl<C> fmt::Debug for IdentityCredentials<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityCredentials")
    }
}

impl<C: fmt::Debug + Send + Sync + 'static> IdentityCredentials<C> {
    pub(super) fn new(
        provider: Arc<dyn CredentialProvider<Credential = C>>,
        correct: fn(Arc<C>) -> Arc<C>,
    ) -> Arc<Self> {
        Arc::new(Self(Arc::new(Shared {
            provider,
            correct,
            last: Mutex::new(Last {
                credential: None,
                failing: None,
            }),
            turn: Arc::new(Semaphore::new(1)),
        })))
    }
}

impl<C: Send + Sync + 'static> Shared<C> {
    async fn fetch(&self, turn: OwnedSemaphorePermit) -> Result<Arc<C>> {
        let fetched = self.provider.get_credential().await.map_err(refused);
        let mut last = self.last.lock();
        let result = match fetched {
            Ok(credential) => {
                let credential = (self.correct)(credential);
                *last = Last {
                    credential: Some(Arc::clone(&credential)),
                    failing: None,
                };
                Ok(credential)
            }
            Err(error) => {
                let now = Instant::now();
                let since = last.failing.map_or(now, |(since, _)| since);
                if last.failing.is_none() {
                    tracing::warn!(%error, "the cloud issues no new credential for the bucket");
                }
                last.failing = Some((since, now));
                let usable = last.credential.clone();
                usable.filter(|_| since.elapsed() < MARGIN).ok_or(error)
            }
        };
        drop(turn);
        result
    }

    /// Returns the last credential while it may be used, and whether the cloud is to be asked for another one.
    fn usable(&self) -> Option<(Arc<C>, bool)> {
        let last = self.last.lock();
        let credential = last.credential.clone()?;
        match last.failing {
            None => Some((credential, true)),
            Some((since, _)) if since.elapsed() >= MARGIN => None,
            Some((_, tried)) => Some((credential, tried.elapsed() >= PAUSE)),
        }
    }
}

#[async_trait]
impl<C: fmt::Debug + Send + Sync + 'static> CredentialProvider for IdentityCredentials<C> {
    type Credential = C;

    async fn get_credential(&self) -> Result<Arc<C>> {
        let shared = &self.0;
        let usable = shared.usable();
        let turn = match (&usable, shared.turn.clone().try_acquire_owned()) {
            (Some((credential, false)), _) | (Some((credential, _)), Err(_)) => {
                return Ok(Arc::clone(credential));
            }
            (_, Ok(turn)) => turn,
            (None, Err(_)) => shared.turn.clone().acquire_owned().await.map_err(ended)?,
        };
        let fetch = tokio::spawn({
            let shared = Arc::clone(shared);
            async move { shared.fetch(turn).await }
        });
        let Some((credential, _)) = usable else {
            return fetch.await.map_err(ended)?;
        };
        match tokio::time::timeout(REFRESH, fetch).await {
            Ok(fetched) => fetched.map_err(ended)?,
            Err(_) => Ok(credential),
        }
    }
}

fn ended(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic {
        store: "identity",
        source: Box::new(error),
    }
}

/// Returns the error of a cloud that refused the identity as such, and not as a store that does not answer.
fn refused(error: Error) -> Error {
    let mut inner: &dyn std::error::Error = &error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    let text = inner.to_string();
    if text.contains("status code: 40") && !text.contains("Throttling") {
        return Error::Unauthenticated {
            path: String::new(),
            source: Box::new(error),
        };
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A cloud that issues its first credential, and then fails or hangs.
    #[derive(Debug, Default)]
    struct Cloud {
        asked: AtomicUsize,
        hangs: bool,
    }

    #[async_trait]
    impl CredentialProvider for Cloud {
        type Credential = i32;

        async fn get_credential(&self) -> Result<Arc<i32>> {
            match self.asked.fetch_add(1, Ordering::Relaxed) {
                0 => Ok(Arc::new(7)),
                _ if self.hangs => std::future::pending().await,
                _ => Err(ended(std::io::Error::other("status code: 403 Forbidden"))),
            }
        }
    }

    /// The last credential is used while the cloud refuses or hangs.
    #[tokio::test]
    async fn last_credential_is_used_while_the_cloud_fails() {
        for hangs in [false, true] {
            let cloud = Arc::new(Cloud {
                hangs,
                ..Cloud::default()
            });
            let renewal = IdentityCredentials::new(cloud.clone() as _, |credential| credential);
            for _ in 0..3 {
                assert_eq!(*renewal.get_credential().await.unwrap(), 7);
            }
            assert_eq!(cloud.asked.load(Ordering::Relaxed), 2);
        }
    }

    /// Without a credential, a refusal is an error of the credentials.
    #[tokio::test]
    async fn refusal_is_an_error_of_the_credentials() {
        let cloud = Cloud {
            asked: AtomicUsize::new(1),
            hangs: false,
        };
        let error = IdentityCredentials::new(Arc::new(cloud) as _, |credential| credential)
            .get_credential()
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Unauthenticated { .. }), "{error:?}");
    }
}
