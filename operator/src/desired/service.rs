//! The Services: one for clients, one that gives each Pod a name.

use crds::RegistryMirror;
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;

use super::{child::Child, names, workload};
use crate::kind::Kind;

/// The Service that nodes pull through.
pub(super) fn clients(mirror: &RegistryMirror) -> Child {
    let name = mirror.name_any();
    let wanted = &mirror.spec.service;
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
                node_port: wanted.node_port,
                ..port(workload::REGISTRY_PORT, wanted.port)
            }]),
            cluster_ip: wanted.cluster_ip.clone(),
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

/// The Service that names each Pod, ready or not, with the admin port that the other one does not show.
pub(super) fn headless(mirror: &RegistryMirror) -> Child {
    let name = names::headless(&mirror.name_any());
    let service = Service {
        metadata: names::owned(mirror, name.clone()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(names::selector(&mirror.name_any())),
            ports: Some(vec![
                port(workload::REGISTRY_PORT, workload::REGISTRY_PORT.number.into()),
                port(workload::ADMIN_PORT, workload::ADMIN_PORT.number.into()),
            ]),
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
