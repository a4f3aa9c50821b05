//! Lists nodes with the state that their agents report of each mirror, and the nodes that pulled nothing although they
//! have images of its registries.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crds::{RegistryMirror, node_configuration::NodeConfigurationMode};
use futures::{StreamExt, stream};
use http::Request;
use http_body_util::{BodyExt, Limited};
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, Client, ResourceExt, api::ListParams, client::Body, core::Selector};
use mirror::admin::{ClientStatus, Status};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{
    error_message, mirrors,
    report::{Check, Class, Finding},
};
use crate::{
    agent::{MirrorReport, NodeReport, NodeState},
    cluster::Scope,
    desired::ADMIN_PORT,
    mirror_key::MirrorKey,
    names,
    status_client::StatusClient,
};

/// The labels of agents, as the chart sets them.
const AGENTS: &str = "app.kubernetes.io/name=registry-mirror,app.kubernetes.io/component=node-agent";
/// The port of agents, as the chart sets it, for a Pod that names none.
const AGENT_PORT: u16 = 18081;
/// The maximum number of reports that are requested at the same time.
const MAX_REQUESTS: usize = 32;
/// The time limit of a request through the API server.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of a report.
const MAX_REPORT_BYTES: usize = 2 << 20;
/// The time within which a node that pulled counts as pulling.
const PULLING: SignedDuration = SignedDuration::from_hours(24);

/// A node with the report of its agent.
struct ListedNode {
    name: String,
    addresses: BTreeSet<IpAddr>,
    images: Vec<String>,
    agent: AgentAnswer,
}

/// The answer of a node's agent.
enum AgentAnswer {
    /// The node has none.
    Absent,
    /// It does not answer.
    Silent(String),
    /// Its report.
    Report(NodeReport),
}

/// A mirror with the last pull of each client; `None` if a server does not answer.
struct ManagedMirror {
    key: MirrorKey,
    hosts: Vec<String>,
    clients: Option<BTreeMap<IpAddr, Timestamp>>,
}

/// Checks the nodes of the mirrors in a scope that agents manage.
pub(super) async fn check(client: &Client, scope: &Scope) -> Vec<Finding> {
    let mirrors = match mirrors::list(client, scope).await {
        Ok(mirrors) => mirrors.into_iter().filter_map(|stored| stored.0.ok()),
        // The finding about mirrors has the cause.
        Err(_) => return Vec::new(),
    };
    let is_managed =
        |mirror: &RegistryMirror| mirror.spec.node_configuration.mode == NodeConfigurationMode::Manage;
    let managed: Vec<_> = mirrors.filter(is_managed).collect();
    if managed.is_empty() {
        let message = "no mirror has nodeConfiguration.mode Manage";
        return vec![Finding::ok(Check::Nodes, "-", message)];
    }
    let nodes = match nodes(client).await {
        Ok(nodes) => nodes,
        Err(error) => {
            let message = format!("Nodes or Pods of agents not listed: {}", error_message(&error));
            let finding = Finding::warning(Check::Nodes, "-", message);
            return vec![
                finding.advice("run doctor as a user that may list nodes, and Pods in every namespace"),
            ];
        }
    };
    let managed: Vec<_> = stream::iter(managed)
        .map(|mirror| managed_mirror(client, mirror))
        .buffered(MAX_REQUESTS)
        .collect()
        .await;
    let findings = nodes.iter().flat_map(|node| findings(node, &managed));
    findings.collect()
}

async fn nodes(client: &Client) -> kube::Result<Vec<ListedNode>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::all(client.clone());
    let agents = pods.list(&ListParams::default().labels(AGENTS)).await?.items;
    let agents: BTreeMap<_, _> = agents
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter_map(|pod| Some((pod.spec.as_ref()?.node_name.clone()?, pod)))
        .collect();
    let listed = nodes.list(&ListParams::default()).await?.items;
    let nodes = stream::iter(listed).map(|node| {
        let agent = agents.get(&node.name_any()).cloned();
        async move { listed_node(client, node, agent).await }
    });
    Ok(nodes.buffered(MAX_REQUESTS).collect().await)
}

async fn listed_node(client: &Client, node: Node, agent: Option<Pod>) -> ListedNode {
    let (name, status) = (node.name_any(), node.status.unwrap_or_default());
    let own = status.addresses.iter().flatten();
    let mut addresses: BTreeSet<IpAddr> = own.filter_map(|address| address.address.parse().ok()).collect();
    let agent = match agent {
        None => AgentAnswer::Absent,
        Some(pod) => match report::<NodeReport>(client, &pod, port(&pod)).await {
            Ok(report) => AgentAnswer::Report(report),
            Err(error) => AgentAnswer::Silent(error),
        },
    };
    if let AgentAnswer::Report(report) = &agent {
        addresses.extend(&report.addresses);
    }
    let images = status.images.into_iter().flatten();
    ListedNode {
        name,
        addresses,
        images: images.flat_map(|image| image.names.unwrap_or_default()).collect(),
        agent,
    }
}

async fn managed_mirror(client: &Client, mirror: RegistryMirror) -> ManagedMirror {
    let key = MirrorKey::from_object(&mirror);
    let hosts = mirror.spec.upstreams.iter().map(|upstream| upstream.host.clone());
    let hosts = hosts.collect();
    let clients = clients(client, &key).await;
    ManagedMirror { key, hosts, clients }
}

/// Returns the last pull of each client of a mirror; `None` without the report of each server.
async fn clients(client: &Client, mirror: &MirrorKey) -> Option<BTreeMap<IpAddr, Timestamp>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &mirror.namespace);
    let selector: Selector = names::selector(&mirror.name).into_iter().collect();
    let pods = pods.list(&ListParams::default().labels_from(&selector)).await;
    let mut last = BTreeMap::new();
    for pod in pods.ok()?.items {
        let status = report::<Status>(client, &pod, ADMIN_PORT).await.ok()?;
        for (address, at) in status.clients.iter().filter_map(ClientStatus::last_pull) {
            let known = last.entry(address).or_insert(at);
            *known = at.max(*known);
        }
    }
    Some(last)
}

fn port(pod: &Pod) -> u16 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port = ports
        .next()
        .and_then(|port| u16::try_from(port.container_port).ok());
    port.unwrap_or(AGENT_PORT)
}

/// Requests the report of a Pod through the API server, and else directly, as from a Pod of the cluster.
async fn report<T: DeserializeOwned>(client: &Client, pod: &Pod, port: u16) -> Result<T, String> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/status");
    let proxied = match timeout(TIMEOUT, proxied(client, &path)).await {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(error)) => error,
        Err(_) => format!("no response within {} s", TIMEOUT.as_secs()),
    };
    let ip = pod
        .status
        .as_ref()
        .and_then(|status| status.pod_ip.as_ref()?.parse().ok());
    let Some(ip) = ip else {
        return Err(format!("Pod {namespace}/{name} has no address"));
    };
    let direct = StatusClient::default().report(SocketAddr::new(ip, port)).await;
    direct.ok_or_else(|| format!("Pod {namespace}/{name}, port {port}: no valid report ({proxied})"))
}

async fn proxied<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, String> {
    let request = Request::get(path).body(Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let response = client
        .send(request)
        .await
        .map_err(|error| error_message(&error))?;
    if !response.status().is_success() {
        return Err(format!("through the API server: {}", response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_REPORT_BYTES)
        .collect()
        .await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

fn findings(node: &ListedNode, mirrors: &[ManagedMirror]) -> Vec<Finding> {
    match &node.agent {
        AgentAnswer::Absent => vec![
            Finding::warning(Check::Nodes, &node.name, "no node agent runs on the node")
                .advice("check nodeAgent.nodeSelector, tolerations and affinity of the chart"),
        ],
        AgentAnswer::Silent(error) => {
            let message = format!("the node agent does not answer: {error}");
            let finding = Finding::problem(Check::Nodes, Class::Cluster, &node.name, message);
            vec![
                finding
                    .advice("kubectl logs of the agent's Pod has the cause; doctor needs get on pods/proxy"),
            ]
        }
        AgentAnswer::Report(report) => {
            let each = mirrors.iter().map(|mirror| finding(node, report, mirror));
            each.collect()
        }
    }
}

fn finding(node: &ListedNode, report: &NodeReport, mirror: &ManagedMirror) -> Finding {
    let key = &mirror.key;
    let of_mirror = |one: &&MirrorReport| one.namespace == key.namespace && one.name == key.name;
    let Some(state) = report.mirrors.iter().find(of_mirror) else {
        let message = format!("{key}: the agent does not manage the mirror");
        return Finding::warning(Check::Nodes, &node.name, message)
            .reason("NotManaged")
            .advice("add the mirror's namespace to nodeAgent.namespaces of the chart");
    };
    let last = mirror.last_pull(node);
    if let Some(fault) = state.state.fault() {
        let message = format!("{key}: {fault} since {}: {}", state.since, state.message);
        let finding = if state.state == NodeState::Bypassed {
            Finding::warning(Check::Nodes, &node.name, message)
        } else {
            Finding::problem(Check::Nodes, Class::Cluster, &node.name, message)
        };
        let finding = finding.reason(fault);
        return match fault.advice() {
            Some(advice) => finding.advice(advice),
            None => finding,
        };
    }
    let message = format!("{key}: Configured since {}", state.since);
    match (last, mirror.first_image(node)) {
        (Some(last), _) => Finding::ok(Check::Nodes, &node.name, format!("{message}, last pull {last}")),
        (None, Some(image)) if mirror.clients.is_some() => {
            let message =
                format!("{message}, but no pull in 24 h although the node has images such as {image}");
            Finding::warning(Check::Nodes, &node.name, message)
                .reason("NoPull")
                .advice("pull an image on the node; if the mirror does not see it, restart the container runtime once")
        }
        (None, _) => Finding::ok(Check::Nodes, &node.name, format!("{message}, no pull in 24 h")),
    }
}

impl ManagedMirror {
    /// Returns the time of the last pull of a node in the last 24 hours.
    fn last_pull(&self, node: &ListedNode) -> Option<Timestamp> {
        let clients = self.clients.as_ref()?;
        let pulls = node.addresses.iter().filter_map(|address| clients.get(address));
        let last = pulls.max().copied()?;
        (Timestamp::now().duration_since(last) < PULLING).then_some(last)
    }

    /// Returns the first image of the node that comes from a registry of the mirror.
    fn first_image<'a>(&self, node: &'a ListedNode) -> Option<&'a str> {
        let is_of_mirror = |image: &&String| {
            let host = image.split('/').next().unwrap_or_default();
            self.hosts.iter().any(|own| own == host)
        };
        node.images.iter().find(is_of_mirror).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use test_case::test_case;

    use super::*;

    fn node(state: &str, image: &str) -> ListedNode {
        let report = json!({
            "version": "1", "node": "a", "runtime": "containerd", "directory": null,
            "mirrors": [{
                "namespace": "mirrors", "name": "hub", "state": state, "since": "2026-01-01T00:00:00Z", "message": "CAUSE",
            }],
        });
        ListedNode {
            name: "node-1".to_owned(),
            addresses: [IpAddr::from([10, 0, 0, 1])].into(),
            images: vec!["quay.io/other:1".to_owned(), image.to_owned()],
            agent: AgentAnswer::Report(serde_json::from_value(report).unwrap()),
        }
    }

    fn hub(clients: Option<&[&str]>) -> ManagedMirror {
        let clients = clients.map(|clients| {
            let pulls = clients.iter().map(|ip| (ip.parse().unwrap(), Timestamp::now()));
            pulls.collect()
        });
        ManagedMirror {
            key: MirrorKey {
                namespace: "mirrors".to_owned(),
                name: "hub".to_owned(),
            },
            hosts: vec!["docker.io".to_owned()],
            clients,
        }
    }

    const IMAGE: &str = "docker.io/library/nginx:1";

    #[test_case("Configured", IMAGE, Some(&["10.0.0.1"]) => ("ok", "last pull"); "pulled")]
    #[test_case("Configured", IMAGE, Some(&["10.0.0.2"]) => ("warning", IMAGE); "other node pulled")]
    #[test_case("Configured", "ghcr.io/a:1", Some(&[]) => ("ok", "no pull in 24 h"); "no image of the mirror")]
    #[test_case("Configured", IMAGE, None => ("ok", "no pull in 24 h"); "servers unknown")]
    #[test_case("Bypassed", IMAGE, Some(&[]) => ("warning", "Bypassed since"); "bypassed")]
    #[test_case("ReadOnly", IMAGE, Some(&[]) => ("problem", "CAUSE"); "read only")]
    #[test_case("Novel", IMAGE, Some(&[]) => ("problem", "AgentUnresponsive"); "unknown state")]
    fn node_is_listed_with_state_and_pulls(
        state: &str,
        image: &'static str,
        clients: Option<&[&str]>,
    ) -> (&'static str, &'static str) {
        let found = findings(&node(state, image), &[hub(clients)]).remove(0);
        let found = serde_json::to_value(found).unwrap();
        let message = found["message"].as_str().unwrap();
        let expected = [
            "last pull",
            IMAGE,
            "no pull in 24 h",
            "Bypassed since",
            "AgentUnresponsive",
            "CAUSE",
        ];
        let part = expected.into_iter().find(|part| message.contains(part));
        let result = ["ok", "warning", "problem"]
            .into_iter()
            .find(|one| found["result"] == *one);
        (result.unwrap(), part.unwrap())
    }

    #[test]
    fn node_without_an_agent_is_a_warning() {
        let mut node = node("Configured", IMAGE);
        node.agent = AgentAnswer::Absent;
        let found = serde_json::to_value(findings(&node, &[hub(None)])).unwrap();
        assert_eq!(found[0]["result"], "warning");
    }
}
