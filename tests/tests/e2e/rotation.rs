//! Passwords that change while nodes pull.

use std::time::{Duration, Instant};

use testbed::wait;

use crate::cluster::Cluster;
use crate::mirror::MIRRORS;
use crate::registry::{Registry, user};

const SOON: Duration = Duration::from_mins(1);
const STATE: &str = "jsonpath={.status.upstreams[0].credentials.version} \
    {.status.conditions[?(@.type==\"CredentialsValid\")].status} \
    {.status.conditions[?(@.type==\"CredentialsValid\")].reason}";

impl Cluster {
    /// As an admin does it.
    pub(crate) async fn set_password(&self, password: &str) {
        let script = format!(
            "kubectl create secret generic upstream {MIRRORS} --type=kubernetes.io/basic-auth \
             --from-literal=username={} --from-literal=password={password} --dry-run=client -o yaml | kubectl apply -f -",
            user(password)
        );
        self.run(&["sh", "-c", &script]).await;
    }

    /// The version of the credentials, and what the condition says of them.
    pub(crate) async fn credentials(&self) -> (String, String) {
        let state = self.kubectl(&["get", "rmir", "hub", MIRRORS, "-o", STATE]).await;
        let (version, saying) = state.split_once(' ').unwrap();
        (version.to_owned(), saying.to_owned())
    }

    /// Waits until the status says so of another version than this.
    pub(crate) async fn credentials_after(&self, version: &str, saying: &str) {
        let there = async || {
            let (now, said) = self.credentials().await;
            (now != version && said == saying).then_some(())
        };
        if let Err(error) = wait::until(saying, SOON, there).await {
            panic!("{error}\n{}", self.mirrors_state().await);
        }
    }

    /// Changes the password, and tells how soon the status says that every replica uses it; the old one then goes.
    pub(crate) async fn rotate(&self, registry: &Registry, old: &str, new: &str) -> Duration {
        let (version, _) = self.credentials().await;
        registry.takes(&[old, new]);
        let begin = Instant::now();
        self.set_password(new).await;
        self.credentials_after(&version, "True CredentialsAccepted").await;
        let took = begin.elapsed();
        registry.takes(&[new]);
        took
    }
}
