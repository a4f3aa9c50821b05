//! The resource's root and its spec.

use kube::{
    CustomResource, KubeSchema,
    core::{Reason, Rule},
};
use serde::{Deserialize, Serialize};

use crate::{
    Access, Cache, NodeConfiguration, Observability, Peers, Pod, PodIdentity, RegistryMirrorStatus, Service,
    Storage, Tls, Upstream, rules,
};

/// The maximum number of servers of a mirror. The operator manages PersistentVolumeClaims, Pods and a cache for each.
pub const MAX_REPLICAS: i32 = 1000;

/// The admin's specification of a mirror.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "registrymirror.io",
    version = "v1alpha1",
    kind = "RegistryMirror",
    plural = "registrymirrors",
    shortname = "rmir",
    validation = no_shrinking("storage"),
    validation = no_shrinking("storage.localTier"),
    validation = no_other_address(),
    validation = no_child_as_reference(),
    namespaced,
    status = "RegistryMirrorStatus",
    derive = "PartialEq",
    doc = "A pull-through mirror of container registries: pulls are answered from its cache, and what is missing is fetched from upstream once.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Upstream", type_ = "string", json_path = ".spec.upstreams[0].host"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint.url"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = 1
    ),
    printcolumn(
        name = "Storage",
        type_ = "string",
        json_path = ".spec.storage.type",
        priority = 1
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.serverVersion",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "self.replicas <= 1 || !has(self.storage.persistentVolumeClaim) \
         || !has(self.storage.persistentVolumeClaim.existingClaim)"
    )
        .message("must be 0 or 1 with an existingClaim, as one claim can't hold two caches: use size, which makes a claim for each replica")
        .field_path(".replicas"),
    validation = Rule::new(
        "self.replicas <= 1 || !has(self.storage.localTier) || !has(self.storage.localTier.persistentVolumeClaim) \
         || !has(self.storage.localTier.persistentVolumeClaim.existingClaim)"
    )
        .message("must be 0 or 1 with an existingClaim, as one claim can't hold two caches: use size, which makes a claim for each replica")
        .field_path(".replicas"),
    validation = cache_within_ephemeral_volume()
)]
pub struct RegistryMirrorSpec {
    /// Pauses the operator for this mirror: it applies no change until this is false again. The servers continue to
    /// serve.
    #[serde(default)]
    pub paused: bool,

    /// The registries that this mirror may reach, and no other. The first one answers requests that name none.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["host".into()]))]
    pub upstreams: Vec<Upstream>,

    /// The retention and the limits of cached content.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub cache: Cache,

    /// The storage of the cache.
    pub storage: Storage,

    /// The number of servers; 0 stops them and keeps PersistentVolumeClaims and their content. Each replica has a cache
    /// of its own, and asks the others for what it lacks (`peers`).
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = MAX_REPLICAS))]
    pub replicas: i32,

    /// The cooperation of the servers.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub peers: Peers,

    /// The Service that nodes and other clients pull through. It is never deleted and made again, as nodes hold
    /// its address.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub service: Service,

    /// TLS for clients.
    #[serde(default)]
    #[schemars(extend("default" = {"mode": "Disabled"}))]
    pub tls: Tls,

    /// Access control for pulls.
    #[serde(default)]
    #[schemars(extend("default" = {"mode": "Anonymous"}))]
    pub access: Access,

    /// HTTP headers of every response that does not have them already, such as `Strict-Transport-Security` or
    /// `Access-Control-Allow-Origin`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub response_headers: Vec<ResponseHeader>,

    /// The configuration of nodes to pull through the mirror.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub node_configuration: NodeConfiguration,

    /// The ServiceAccount of the mirror's Pods, which has the mirror's name and no permissions in the cluster.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub service_account: PodIdentity,

    /// Settings of the mirror's Pods.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub pod: Pod,

    /// Logs.
    #[serde(default)]
    #[schemars(extend("default" = {}))]
    pub observability: Observability,
}

/// An HTTP header.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResponseHeader {
    /// The header's name. Headers that say where a message ends, such as `Content-Length`, can't be set.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = rules::header_name(), validation = rules::not_framing())]
    pub name: String,

    /// Its value: printable ASCII.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = rules::header_value())]
    pub value: String,
}

fn one() -> i32 {
    1
}

/// Returns the rule that PersistentVolumeClaims do not shrink. A size that was never bound can still be reduced, and a
/// PersistentVolumeClaim that was bound to a larger volume than requested does not limit the size.
fn no_shrinking(holder: &str) -> Rule {
    let claim = format!("spec.{holder}.persistentVolumeClaim");
    let is_claim = |object: &str| {
        // Only the last two may be absent: storage and spec are required.
        let tier = match holder {
            "storage" => String::new(),
            tier => format!("has({object}.spec.{tier}) && "),
        };
        format!("{tier}has({object}.{claim}) && has({object}.{claim}.size)")
    };
    let (new, old) = (format!("self.{claim}.size"), format!("oldSelf.{claim}.size"));
    let bound = "self.status.storage.capacity";
    let sizes = [new.as_str(), old.as_str(), bound]
        .map(rules::is_quantity)
        .join(" && ");
    Rule::new(format!(
        "!({} && {} && has(self.status) && has(self.status.storage) && has({bound}) && {sizes} \
         && quantity({new}).isLessThan(quantity({old})) && quantity({new}).isLessThan(quantity({bound})))",
        is_claim("self"),
        is_claim("oldSelf"),
    ))
    .message(
        "can't be less than what the claims have already (status.storage.capacity), as claims can't shrink",
    )
    .field_path(format!(".{claim}.size"))
}

/// Returns the rule that a Service keeps its address, which nodes hold, however it is spelled. Until the Service has an
/// address, for example where the API server refuses the requested one, another address can be requested; also after the
/// Service was deleted and another object took its address.
fn no_other_address() -> Rule {
    let (new, old) = ("self.spec.service.clusterIP", "oldSelf.spec.service.clusterIP");
    let is_set = |object: &str| format!("has({object}.spec.service) && has({object}.spec.service.clusterIP)");
    let given = "self.status.endpoint.url";
    // Not url().getHostname(), which costs as if the host had no end. IPv4 addresses have one spelling.
    let ipv6 = format!("{given}.substring({given}.indexOf('[') + 1, {given}.indexOf(']'))");
    let is_taken = "has(self.status.conditions) \
                    && self.status.conditions.exists(c, c.type == 'Accepted' && c.reason == 'AddressTaken')";
    Rule::new(format!(
        "!({}) || ({} && {new} == {old}) || !has(self.status) || !has(self.status.endpoint) || !isIP({new}) \
         || {given}.contains('/' + {new} + ':') \
         || ({given}.contains('[') && isIP({ipv6}) && ip({ipv6}) == ip({new})) || ({is_taken})",
        is_set("self"),
        is_set("oldSelf"),
    ))
    .message(
        "can't be another address than the Service has (status.endpoint), as nodes hold that one: leave it as it was, or make another RegistryMirror",
    )
    .field_path(".spec.service.clusterIP")
}

/// Returns the rule that a spec names no object that the operator creates.
fn no_child_as_reference() -> Rule {
    // A comparison with the mirror's name, not a concatenation, which costs as if that name had no end.
    let is_child = |secret: &str, suffix: &str| {
        let stem = format!("{secret}.substring(0, {secret}.size() - {})", suffix.len());
        format!("({secret}.endsWith('{suffix}') && {stem} == self.metadata.name)")
    };
    let not_ours = |secret: &str| {
        format!(
            "!({} || {} || {})",
            is_child(secret, "-credentials"),
            is_child(secret, "-files"),
            is_child(secret, "-ca-key")
        )
    };
    Rule::new(format!(
        "self.spec.upstreams.all(u, (!has(u.credentialsSecretRef) || {}) \
         && (!has(u.tls) || !has(u.tls.caBundleRef) || u.tls.caBundleRef.kind != 'Secret' || {})) \
         && (!has(self.spec.tls) || !has(self.spec.tls.secretName) || {}) \
         && (!has(self.spec.tls) || !has(self.spec.tls.clientCARef) || self.spec.tls.clientCARef.kind != 'Secret' || {}) \
         && (!has(self.spec.access) || !has(self.spec.access.htpasswdSecretRef) || {}) \
         && (!has(self.spec.storage.objectStore) || !has(self.spec.storage.objectStore.credentials.secretRef) || {}) \
         && (!has(self.spec.storage.objectStore) || !has(self.spec.storage.objectStore.tls) \
             || !has(self.spec.storage.objectStore.tls.caBundleRef) \
             || self.spec.storage.objectStore.tls.caBundleRef.kind != 'Secret' || {})",
        not_ours("u.credentialsSecretRef.name"),
        not_ours("u.tls.caBundleRef.name"),
        not_ours("self.spec.tls.secretName"),
        not_ours("self.spec.tls.clientCARef.name"),
        not_ours("self.spec.access.htpasswdSecretRef.name"),
        not_ours("self.spec.storage.objectStore.credentials.secretRef.name"),
        not_ours("self.spec.storage.objectStore.tls.caBundleRef.name"),
    ))
    .message("a Secret named like the mirror with -credentials, -files or -ca-key behind it is made by the operator: refer to another one")
    .field_path(".spec")
    .reason(Reason::FieldValueForbidden)
}

/// Returns the rule that the cache is smaller than the volume: the kubelet evicts a Pod whose emptyDir exceeds its
/// limit.
fn cache_within_ephemeral_volume() -> Rule {
    let tier = "self.storage.localTier";
    let limit = format!(
        "(has({tier}) ? (has({tier}.ephemeral) ? {tier}.ephemeral.sizeLimit : '10Gi') \
         : (has(self.storage.ephemeral) ? self.storage.ephemeral.sizeLimit : '10Gi'))"
    );
    let is_ephemeral = format!(
        "(self.storage.type == 'Ephemeral' \
         || (self.storage.type == 'ObjectStore' && (!has({tier}) || {tier}.type == 'Ephemeral')))"
    );
    Rule::new(format!(
        "!{is_ephemeral} || !has(self.cache.maxSize) || !{} || !{} \
         || quantity(self.cache.maxSize).isLessThan(quantity({limit}))",
        rules::is_quantity("self.cache.maxSize"),
        rules::is_quantity(&limit),
    ))
    .message("must be below the sizeLimit of the Ephemeral storage (10Gi unless set), as the Pod is evicted beyond it")
    .field_path(".cache.maxSize")
}
