//! The Service that clients pull through.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{names::kubernetes_names, rules};

/// The Service that nodes and other clients pull through.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'ClusterIP' || !has(self.nodePort)")
        .message("goes with type NodePort or LoadBalancer only: remove it, or change the type")
        .field_path(".nodePort")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.type != 'ClusterIP' || !has(self.externalTrafficPolicy)")
        .message("goes with type NodePort or LoadBalancer only: remove it, or change the type")
        .field_path(".externalTrafficPolicy")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.type == 'LoadBalancer' || !has(self.loadBalancerClass)")
        .message("goes with type LoadBalancer only: remove it, or change the type")
        .field_path(".loadBalancerClass")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new(
        "self.type != 'LoadBalancer' || oldSelf.type != 'LoadBalancer' \
         || (has(self.loadBalancerClass) == has(oldSelf.loadBalancerClass) \
         && (!has(self.loadBalancerClass) || self.loadBalancerClass == oldSelf.loadBalancerClass))"
    )
        .message("can't be changed while the type is LoadBalancer: Kubernetes refuses it")
        .field_path(".loadBalancerClass")
)]
pub struct Service {
    /// `ClusterIP`, `NodePort` or `LoadBalancer`.
    #[serde(default)]
    pub r#type: ServiceType,

    /// The port that the Service listens on.
    #[serde(default = "registry_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,

    /// The port on every node. Absent: the cluster picks one. With type NodePort or LoadBalancer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,

    /// The Service's address, from the cluster's Service range. Absent: the cluster picks one. Once the
    /// Service has an address, no other can be asked for.
    #[serde(rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    #[x_kube(validation = Rule::new("isIP(self)").message("must be an IP address from the cluster's Service range, or left out"))]
    pub cluster_ip: Option<String>,

    /// Annotations of the Service, as load balancers and DNS controllers read them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = rules::annotations(), validation = rules::annotations_size(), validation = rules::not_ours())]
    pub annotations: BTreeMap<String, String>,

    /// The load balancer class of the Service. With type LoadBalancer. Immutable once set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 316))]
    pub load_balancer_class: Option<String>,

    /// The number of IP families of the Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_family_policy: Option<IpFamilyPolicy>,

    /// The destination of traffic from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<ExternalTrafficPolicy>,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            r#type: ServiceType::default(),
            port: registry_port(),
            node_port: None,
            cluster_ip: None,
            annotations: BTreeMap::new(),
            load_balancer_class: None,
            ip_family_policy: None,
            external_traffic_policy: None,
        }
    }
}

fn registry_port() -> i32 {
    5000
}

/// The type of a Service.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// From nodes and Pods.
    #[default]
    ClusterIP,
    /// On a port of every node, too.
    NodePort,
    /// Through a load balancer, too.
    LoadBalancer,
}

/// The number of IP families of the Service: `SingleStack`, `PreferDualStack` or `RequireDualStack`. Absent: the
/// default of the cluster.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamilyPolicy {
    /// One.
    SingleStack,
    /// Two where the cluster has two.
    PreferDualStack,
    /// Two, or it fails.
    RequireDualStack,
}

/// The destination of traffic from outside: `Cluster` (any Pod) or `Local` (only Pods on the node that received it,
/// which keeps the client's address). With type NodePort or LoadBalancer.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalTrafficPolicy {
    /// To any Pod.
    Cluster,
    /// To Pods on the node that it reached.
    Local,
}

kubernetes_names! {
    ServiceType { ClusterIP, NodePort, LoadBalancer }
    IpFamilyPolicy { SingleStack, PreferDualStack, RequireDualStack }
    ExternalTrafficPolicy { Cluster, Local }
}
