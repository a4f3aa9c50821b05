//! Runs the operator: a controller for each scope.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use kube::{
    Client,
    runtime::events::{Recorder, Reporter},
};
use mirror::clock::Clock;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    admin_server::Health,
    certificates::CertificateLifetimes,
    cluster::{Scope, request_limits},
    controller::{self, Controller, Settings},
    desired::Release,
    node_poller::{AgentService, NodePoller},
    policy::Policy,
    rollout::{Rollout, RolloutConfig},
};

/// The options of the operator.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of the operator, that of its Lease as `NAMESPACE/NAME`; empty: it is the only operator.
    pub name: String,
    /// The namespaces of reconciled mirrors; empty: all.
    pub namespaces: Vec<String>,
    /// The release of the operator.
    pub release: Release,
    /// The lifetimes of issued certificates.
    pub lifetimes: CertificateLifetimes,
    /// The clock, replaceable in tests.
    pub clock: Clock,
    /// The resync period: the operator reconciles every mirror at least this often.
    pub resync: Duration,
    /// The limits of rollouts.
    pub upgrades: RolloutConfig,
    /// The limits of specs.
    pub policy: Policy,
    /// The Service of the node agents, if there are any.
    pub agent_service: Option<AgentService>,
}

impl Default for Options {
    /// Returns the options for all namespaces with the defaults of this release.
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
            agent_service: None,
        }
    }
}

/// Reconciles mirrors until `shutdown`, then lets running reconciles end.
pub async fn run(client: Client, options: Options, health: Health, shutdown: CancellationToken) {
    let client = request_limits::limited(&client);
    let recorder = Recorder::new(client.clone(), Reporter::from("registry-mirror"));
    let scopes = scopes(&options.namespaces);
    let rollouts = Rollout::per_scope(&scopes, options.upgrades, &health.metrics);
    let nodes = NodePoller::new(options.agent_service.clone());
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
            Controller::new(&client, scope, settings, recorder, metrics, rollout, &nodes)
        })
        .collect();
    let synced = join_all(controllers.iter().map(Controller::synced));
    let polling = async move { nodes.run(client).await };
    let _polling = AbortOnDropHandle::new(tokio::spawn(polling));
    let ready = async move {
        synced.await;
        tracing::info!("every watch has listed; the operator reconciles mirrors");
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

    /// Without a namespace the operator watches the whole cluster.
    #[test]
    fn no_namespace_means_the_whole_cluster() {
        assert_eq!(scopes(&[]), [Scope::Cluster]);
        assert_eq!(scopes(&["a".to_owned()]), [Scope::Namespace("a".to_owned())]);
    }

    /// A namespace that is named twice has one controller.
    #[test]
    fn duplicate_namespace_has_one_controller() {
        let twice = ["b", "a", "b"].map(str::to_owned);
        assert_eq!(scopes(&twice), ["a", "b"].map(|n| Scope::Namespace(n.to_owned())));
    }
}
