//! The addresses of agents, from the `EndpointSlice`s of their Service.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// The headless Service of the agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentService {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// The name of a Service that is not `NAMESPACE/NAME`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be NAMESPACE/NAME")]
pub struct InvalidAgentService;

impl FromStr for AgentService {
    type Err = InvalidAgentService;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').ok_or(InvalidAgentService)?;
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err(InvalidAgentService);
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// Returns the address of the agent of each node. Of several Pods on a node, one that is not terminating counts.
pub(super) fn by_node<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> BTreeMap<String, SocketAddr> {
    let mut agents = BTreeMap::new();
    for slice in slices {
        let port = slice.ports.iter().flatten().find_map(|port| port.port);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let Some(node) = &endpoint.node_name else { continue };
            let Some(address) = address(endpoint, port) else {
                continue;
            };
            if is_terminating(endpoint) {
                agents.entry(node.clone()).or_insert(address);
            } else {
                agents.insert(node.clone(), address);
            }
        }
    }
    agents
}

fn address(endpoint: &Endpoint, port: u16) -> Option<SocketAddr> {
    let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    Some(SocketAddr::new(ip, port))
}

fn is_terminating(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.is_some_and(|conditions| conditions.terminating == Some(true))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    fn slice(port: &Value, endpoints: &Value) -> EndpointSlice {
        let slice =
            json!({"metadata": {}, "addressType": "IPv4", "ports": [{"port": port}], "endpoints": endpoints});
        serde_json::from_value(slice).unwrap()
    }

    #[test]
    fn running_agent_of_each_node_is_found() {
        let terminating = json!({"terminating": true});
        let slices = [
            slice(
                &json!(18081),
                &json!([{"addresses": ["10.0.0.1"], "nodeName": "a"}, {"addresses": ["10.0.0.2"]}]),
            ),
            slice(
                &json!(18081),
                &json!([
                    {"addresses": ["10.0.0.9"], "nodeName": "a", "conditions": terminating},
                    {"addresses": ["junk"], "nodeName": "b"},
                    {"addresses": ["10.0.0.3"], "nodeName": "c", "conditions": terminating},
                ]),
            ),
            slice(
                &Value::Null,
                &json!([{"addresses": ["10.0.0.4"], "nodeName": "d"}]),
            ),
        ];
        let found: Vec<_> = by_node(slices.iter())
            .into_iter()
            .map(|(node, address)| format!("{node} {address}"))
            .collect();
        assert_eq!(found, ["a 10.0.0.1:18081", "c 10.0.0.3:18081"]);
    }

    #[test_case("mirrors/rm-agent" => true)]
    #[test_case("rm-agent" => false; "no namespace")]
    #[test_case("/rm-agent" => false; "empty namespace")]
    #[test_case("mirrors/" => false; "empty name")]
    #[test_case("a/b/c" => false; "two slashes")]
    fn agent_service_is_namespace_and_name(text: &str) -> bool {
        text.parse::<AgentService>().is_ok()
    }
}
