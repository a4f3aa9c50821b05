//! The Services: one for clients, one that gives each Pod a name.

use std::net::IpAddr;

use crds::{
    RegistryMirror,
    service::{IpFamilyPolicy, ServiceType},
};
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;

use super::{child::Child, workload};
use crate::names;
use crate::{
    kind::Kind,
    observed::{Allocation, Observed},
    validate::Accepted,
};

/// Returns the Service that nodes pull through. Where it was deleted, it asks for the numbers that it had: nodes hold them.
pub(super) fn clients(mirror: &RegistryMirror, observed: &Observed) -> Child {
    let name = mirror.name_any();
    let wanted = &mirror.spec.service;
    let lost = lost(mirror, observed);
    let mut metadata = names::owned(mirror, name.clone());
    if !wanted.annotations.is_empty() {
        metadata.annotations = Some(wanted.annotations.clone());
    }
    let service = Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(wanted.r#type.as_str().to_owned()),
            selector: Some(names::selector(&name)),
            ports: Some(vec![ServicePort {
                node_port: wanted.node_port.or(lost.node_port),
                ..port(workload::REGISTRY_PORT, wanted.port)
            }]),
            cluster_ip: wanted
                .cluster_ip
                .as_deref()
                .map(|ip| cluster_ip(ip, observed))
                .or_else(|| lost.cluster_ips.first().cloned()),
            cluster_ips: (!lost.cluster_ips.is_empty()).then_some(lost.cluster_ips),
            load_balancer_class: wanted.load_balancer_class.clone(),
            ip_family_policy: wanted.ip_family_policy.map(|policy| policy.as_str().to_owned()),
            external_traffic_policy: wanted
                .external_traffic_policy
                .map(|policy| policy.as_str().to_owned()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    Child::new(Kind::Service, name, &service)
}

/// Returns the requested address in the spelling of the live Service, which the API server compares as text, and else in
/// its canonical one.
fn cluster_ip(wanted: &str, observed: &Observed) -> String {
    let Ok(address) = wanted.parse::<IpAddr>() else {
        return wanted.to_owned();
    };
    let live = observed.service.as_ref().map(|service| service.ip.as_str());
    live.filter(|live| live.parse() == Ok(address))
        .map_or_else(|| address.to_string(), str::to_owned)
}

/// Returns the numbers that the Service had before it was deleted, as far as the spec still leaves them to the cluster.
fn lost(mirror: &RegistryMirror, observed: &Observed) -> Allocation {
    let wanted = &mirror.spec.service;
    let status = mirror.status.as_ref().and_then(|status| status.endpoint.as_ref());
    let Some(endpoint) = status.filter(|_| observed.service.is_none()) else {
        return Allocation::default();
    };
    let mut lost = Allocation::from_status(endpoint);
    if wanted.cluster_ip.is_some() {
        lost.cluster_ips.clear();
    }
    if matches!(wanted.ip_family_policy, None | Some(IpFamilyPolicy::SingleStack)) {
        lost.cluster_ips.truncate(1);
    }
    if wanted.r#type == ServiceType::ClusterIP {
        lost.node_port = None;
    }
    lost
}

/// Renders the Service with a DNS name for each Pod, ready or not, with the admin port and the port for other servers.
pub(super) fn headless(accepted: &Accepted<'_>) -> Child {
    let mirror = accepted.mirror;
    let peers = accepted.peers.as_ref().map(|_| workload::PEER_PORT);
    let ports = [workload::REGISTRY_PORT, workload::ADMIN_PORT]
        .into_iter()
        .chain(peers);
    let name = names::headless(&mirror.name_any());
    let service = Service {
        metadata: names::owned(mirror, name.clone()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(names::selector(&mirror.name_any())),
            ports: Some(ports.map(|target| port(target, target.number.into())).collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    Child::new(Kind::Service, name, &service)
}

fn port(target: workload::Port, number: i32) -> ServicePort {
    ServicePort {
        name: Some(target.name.to_owned()),
        protocol: Some("TCP".to_owned()),
        port: number,
        target_port: Some(IntOrString::String(target.name.to_owned())),
        ..ServicePort::default()
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::observed::ServiceAddress;

    #[test_case("2001:DB8:0::1", None => "2001:db8::1"; "canonical")]
    #[test_case("2001:db8::1", Some("2001:DB8:0:0::1") => "2001:DB8:0:0::1"; "as the live Service spells it")]
    #[test_case("2001:db8::2", Some("2001:db8::1") => "2001:db8::2"; "another address")]
    #[test_case("10.96.0.7", Some("10.96.0.7") => "10.96.0.7"; "IPv4")]
    fn cluster_ip_is_compared_as_an_address(wanted: &str, live: Option<&str>) -> String {
        let service = live.map(|ip| ServiceAddress {
            ip: ip.to_owned(),
            port: 5000,
        });
        let observed = Observed {
            service,
            ..Observed::default()
        };
        cluster_ip(wanted, &observed)
    }
}
