//! The operator as a whole: a controller for each scope, until it is told to stop.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use kube::{
    Client,
    runtime::events::{Recorder, Reporter},
};
use mirror::clock::Clock;
use tokio_util::sync::CancellationToken;

use crate::{
    admin_server::Health,
    certificates::CertificateLifetimes,
    cluster::Scope,
    controller::{self, Controller, Settings},
    desired::Release,
    policy::Policy,
    rollout::{Rollout, RolloutConfig},
};

/// What the operator looks after, and what it brings along.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name among other operators, that of its Lease as `NAMESPACE/NAME`; empty: there are no others.
    pub name: String,
    /// The namespaces whose mirrors it looks after; none means all.
    pub namespaces: Vec<String>,
    /// What a release has fixed.
    pub release: Release,
    /// For how long the certificates are good that it issues.
    pub lifetimes: CertificateLifetimes,
    /// What it takes for the time.
    pub clock: Clock,
    /// How often every mirror is looked at though nothing seems to have happened.
    pub resync: Duration,
    /// How mirrors take up a new release.
    pub upgrades: RolloutConfig,
    /// The limits of specs.
    pub policy: Policy,
}

impl Default for Options {
    /// All namespaces, this release, a quarter of an hour.
    fn default() -> Self {
        Self {
            name: String::new(),
            namespaces: Vec::new(),
            release: Release::default(),
            lifetimes: CertificateLifetimes::default(),
            clock: Clock::default(),
            resync: controller::RESYNC,
            upgrades: RolloutConfig::default(),
            policy: Policy::default(),
        }
    }
}

/// Looks after mirrors until it is told to stop; then lets what is running end.
pub async fn run(client: Client, options: Options, health: Health, shutdown: CancellationToken) {
    let recorder = Recorder::new(client.clone(), Reporter::from("registry-mirror"));
    let scopes = scopes(&options.namespaces);
    let rollouts = Rollout::per_scope(&scopes, options.upgrades, &health.metrics);
    let controllers: Vec<_> = scopes
        .iter()
        .zip(rollouts)
        .map(|(scope, rollout)| {
            let settings = Settings {
                name: options.name.clone(),
                release: options.release.clone(),
                lifetimes: options.lifetimes,
                clock: options.clock.clone(),
                resync: options.resync,
                policy: options.policy.clone(),
            };
            let (recorder, metrics) = (recorder.clone(), health.metrics.clone());
            Controller::new(&client, scope, settings, recorder, metrics, rollout)
        })
        .collect();
    let synced = join_all(controllers.iter().map(Controller::synced));
    let ready = async move {
        synced.await;
        tracing::info!("every watch has listed; mirrors are looked after");
        health.set_ready();
    };
    let ready = tokio::spawn(shutdown.clone().run_until_cancelled_owned(ready));
    join_all(
        controllers
            .into_iter()
            .map(|controller| controller.run(shutdown.clone())),
    )
    .await;
    ready.abort();
}

fn scopes(namespaces: &[String]) -> Vec<Scope> {
    if namespaces.is_empty() {
        return vec![Scope::Cluster];
    }
    // One that is named twice has one controller: two would write the same in turn.
    let once: BTreeSet<_> = namespaces.iter().cloned().collect();
    once.into_iter().map(Scope::Namespace).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_namespace_all_are_looked_after() {
        assert_eq!(scopes(&[]), [Scope::Cluster]);
        assert_eq!(scopes(&["a".to_owned()]), [Scope::Namespace("a".to_owned())]);
    }

    #[test]
    fn a_namespace_that_is_named_twice_has_one_controller() {
        let twice = ["b", "a", "b"].map(str::to_owned);
        assert_eq!(scopes(&twice), ["a", "b"].map(|n| Scope::Namespace(n.to_owned())));
    }
}
