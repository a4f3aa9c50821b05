//! The warnings of `render` and `doctor` about valid specs.

use std::{fmt, net::Ipv6Addr};

use crds::{
    RegistryMirror, Upstream,
    access::AccessMode,
    node_configuration::{Fallback, NodeConfigurationMode},
    service::ServiceType,
    storage::StorageType,
    tls::TlsMode,
};
use mirror::config::{Globs, remote_url};
use serde::Serialize;
use url::{Host, Url};

use crate::{quantity::amount, validate::is_in_clear_text};

/// The size in bytes below which a cache has no room for many usual images: 1 GiB.
const SMALL_CACHE: f64 = (1 << 30) as f64;
/// The registry of images whose name has none.
const DOCKER_HUB: &str = "docker.io";

/// A warning about a valid spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The stable identifier for programs.
    pub id: &'static str,
    /// The field of the spec.
    pub field: String,
    /// The consequence.
    pub message: String,
    /// The correction.
    pub advice: &'static str,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.field, self.message, self.advice)
    }
}

impl Warning {
    fn new(
        id: &'static str,
        field: impl Into<String>,
        message: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Self {
            id,
            field: field.into(),
            message: message.into(),
            advice,
        }
    }
}

/// Returns the warnings about a mirror whose servers run `server_image` if its spec names no other image.
pub fn find(mirror: &RegistryMirror, server_image: &str) -> Vec<Warning> {
    let mut warnings: Vec<_> = about_upstreams(mirror).collect();
    warnings.extend(
        [
            own_image(mirror, server_image),
            agent_image(mirror, server_image),
            open_credentials(mirror),
            open_to_the_world(mirror),
            passwords_in_clear_text(mirror),
            single_replica(mirror),
            nothing_to_serve(mirror),
            small_cache(mirror),
            address_for_newer_nodes(mirror),
        ]
        .into_iter()
        .flatten(),
    );
    warnings.extend(ineffective_pins(mirror));
    warnings
}

/// Returns the warnings about the upstreams of a mirror.
pub(crate) fn about_upstreams(mirror: &RegistryMirror) -> impl Iterator<Item = Warning> {
    let upstreams = mirror.spec.upstreams.iter().enumerate();
    upstreams.flat_map(|(index, upstream)| of_upstream(upstream, &format!("spec.upstreams[{index}]")))
}

/// Registries whose names users misspell.
const KNOWN_REGISTRIES: [&str; 7] = [
    DOCKER_HUB,
    "quay.io",
    "ghcr.io",
    "registry.k8s.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
    "registry.gitlab.com",
];
/// Names that are taken for those of registries.
const MISTAKEN: [(&str, &str); 4] = [
    ("docker.com", DOCKER_HUB),
    ("hub.docker.com", DOCKER_HUB),
    ("k8s.io", "registry.k8s.io"),
    ("github.com", "ghcr.io"),
];

/// Returns the registry that a name most likely means, if it differs in one letter or is mistaken for it.
fn misspelt_registry(host: &str) -> Option<&'static str> {
    let mistaken = MISTAKEN.iter().find(|(name, _)| *name == host);
    let is_close = |known: &&&str| strsim::damerau_levenshtein(host, known) == 1;
    mistaken
        .map(|(_, known)| *known)
        .or_else(|| KNOWN_REGISTRIES.iter().find(is_close).copied())
}

fn of_upstream(upstream: &Upstream, field: &str) -> impl Iterator<Item = Warning> + use<> {
    let host = &upstream.host;
    let in_clear_text = upstream.credentials_secret_ref.is_some()
        && upstream.insecure_allow_http_credentials
        && Url::parse(&upstream.effective_remote_url()).is_ok_and(|remote| is_in_clear_text(&remote));
    let misspelt = misspelt_registry(host).map(|known| {
        Warning::new(
            "registry-misspelt",
            format!("{field}.host"),
            format!("{host} is no widely known registry, but {known} is"),
            "correct the host, unless it is a registry of yours",
        )
    });
    let unlikely = upstream.remote_url.as_deref().and_then(remote_url::correction);
    let unlikely = unlikely.map(|correction| {
        Warning::new(
            "remote-url-unlikely",
            format!("{field}.remoteURL"),
            correction,
            "leave it as it is only if the registry is there",
        )
    });
    let unchecked = upstream.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify);
    let credentials = in_clear_text.then(|| {
        Warning::new(
            "credentials-over-http",
            format!("{field}.insecureAllowHTTPCredentials"),
            format!("an attacker between the servers and {host} reads its credentials"),
            "use an https:// remoteURL",
        )
    });
    let certificate = unchecked.then(|| {
        Warning::new(
            "certificate-not-checked",
            format!("{field}.tls.insecureSkipVerify"),
            format!(
                "an attacker between the servers and {host} can impersonate it, and reads its credentials"
            ),
            "name the authority that signed its certificate in tls.caBundleRef",
        )
    });
    [misspelt, unlikely, credentials, certificate]
        .into_iter()
        .flatten()
}

/// Returns the warning that nodes without fallback can't pull the image of the mirror itself.
fn own_image(mirror: &RegistryMirror, server_image: &str) -> Option<Warning> {
    let nodes = &mirror.spec.node_configuration;
    let image = mirror.spec.pod.image.as_deref().unwrap_or(server_image);
    let registry = registry_of(image);
    let is_at_risk = nodes.mode.is_published() && nodes.fallback == Fallback::Never;
    (is_at_risk && has_upstream(mirror, registry)).then(|| {
        Warning::new(
            "own-image-through-itself",
            "spec.nodeConfiguration.fallback",
            format!(
                "the mirror's own image {image} comes from {registry}, and with fallback Never nodes ask only the mirror \
                 for that: one that is down can't be started on a node that has not got the image"
            ),
            "set fallback to Allow, or pod.image to an image of a registry that this mirror is not for",
        )
    })
}

/// Returns the warning that nodes pull the image of their agent through the mirror. The image is that of the operator.
fn agent_image(mirror: &RegistryMirror, server_image: &str) -> Option<Warning> {
    let nodes = &mirror.spec.node_configuration;
    let registry = registry_of(server_image);
    if nodes.mode != NodeConfigurationMode::Manage || !has_upstream(mirror, registry) {
        return None;
    }
    let consequence = match nodes.fallback {
        Fallback::Allow => "a pull of it waits for nodeConfiguration.dialTimeout while the mirror is down",
        Fallback::Never => "a node can't pull it while the mirror is down",
    };
    let message = format!(
        "the image of the node agent {server_image} comes from {registry}, and nodes ask the mirror for it: no agent runs yet \
         to bypass a mirror that is down, and {consequence}"
    );
    let advice = "preload the image on nodes, or use an image of a registry that this mirror is not for";
    let field = "spec.nodeConfiguration.mode";
    Some(Warning::new("agent-image-through-mirror", field, message, advice))
}

fn has_upstream(mirror: &RegistryMirror, registry: &str) -> bool {
    let mut upstreams = mirror.spec.upstreams.iter();
    upstreams.any(|upstream| upstream.host == registry)
}

/// Returns the registry of an image, as container runtimes parse it: a first component that looks like a host.
fn registry_of(image: &str) -> &str {
    let looks_like_a_host = |first: &&str| first.contains(['.', ':']) || *first == "localhost";
    let first = image.split_once('/').map(|(first, _)| first);
    first.filter(looks_like_a_host).unwrap_or(DOCKER_HUB)
}

fn has_credentials(mirror: &RegistryMirror) -> bool {
    let mut upstreams = mirror.spec.upstreams.iter();
    upstreams.any(|upstream| upstream.credentials_secret_ref.is_some())
}

/// Returns whether clients need neither a password nor a certificate.
fn is_anonymous(mirror: &RegistryMirror) -> bool {
    mirror.spec.access.mode == AccessMode::Anonymous && mirror.spec.tls.client_ca_ref.is_none()
}

fn open_credentials(mirror: &RegistryMirror) -> Option<Warning> {
    (is_anonymous(mirror) && has_credentials(mirror)).then(|| {
        Warning::new(
            "anonymous-access-with-credentials",
            "spec.access.mode",
            "every client that reaches the mirror pulls everything that its credentials may pull",
            "set access.mode to Basic, or let only nodes reach the Service (NetworkPolicy)",
        )
    })
}

fn open_to_the_world(mirror: &RegistryMirror) -> Option<Warning> {
    let outside = mirror.spec.service.r#type != ServiceType::ClusterIP;
    (outside && is_anonymous(mirror)).then(|| {
        Warning::new(
            "anonymous-access-from-outside",
            "spec.service.type",
            "the mirror can be reached from outside of the cluster, and serves anyone",
            "set access.mode to Basic and tls, or service.type to ClusterIP",
        )
    })
}

fn passwords_in_clear_text(mirror: &RegistryMirror) -> Option<Warning> {
    let spec = &mirror.spec;
    (spec.access.mode == AccessMode::Basic && spec.tls.mode == TlsMode::Disabled).then(|| {
        Warning::new(
            "passwords-over-http",
            "spec.tls.mode",
            "clients send their passwords over http, where anyone on the way can read them",
            "give the mirror a certificate (tls)",
        )
    })
}

fn single_replica(mirror: &RegistryMirror) -> Option<Warning> {
    if mirror.spec.replicas != 1 {
        return None;
    }
    let (message, advice) = match mirror.spec.node_configuration.fallback {
        Fallback::Allow => (
            "while its only server is replaced, by a roll-out or with its node, nodes pull from the registries \
             themselves; no disruption budget protects it",
            "set replicas to 2 or more",
        ),
        Fallback::Never => (
            "while its only server is replaced, by a roll-out or with its node, nodes can't pull at all; no disruption \
             budget protects it",
            "set replicas to 2 or more, or nodeConfiguration.fallback to Allow",
        ),
    };
    Some(Warning::new("single-replica", "spec.replicas", message, advice))
}

fn nothing_to_serve(mirror: &RegistryMirror) -> Option<Warning> {
    let spec = &mirror.spec;
    (spec.cache.offline && spec.storage.r#type == StorageType::Ephemeral).then(|| {
        Warning::new(
            "offline-with-ephemeral-storage",
            "spec.cache.offline",
            "a new Pod has an empty cache, and offline it asks no upstream: it has nothing to serve",
            "use storage.type PersistentVolumeClaim, or set cache.offline to false",
        )
    })
}

/// Returns the warning that the storage, or the limit of the cache, is smaller than many images.
fn small_cache(mirror: &RegistryMirror) -> Option<Warning> {
    let (storage, cache) = (&mirror.spec.storage, &mirror.spec.cache);
    let claim = storage.persistent_volume_claim.as_ref();
    let sizes = [
        ("spec.cache.maxSize", cache.max_size.as_ref()),
        (
            "spec.storage.persistentVolumeClaim.size",
            claim.and_then(|claim| claim.size.as_ref()),
        ),
        (
            "spec.storage.ephemeral.sizeLimit",
            storage.ephemeral.as_ref().map(|volume| &volume.size_limit),
        ),
    ];
    let mut sizes = sizes.into_iter().filter_map(|(field, size)| Some((field, size?)));
    let (field, size) = sizes.find(|(_, size)| amount(&size.0).is_some_and(|bytes| bytes < SMALL_CACHE))?;
    Some(Warning::new(
        "small-cache",
        field,
        format!(
            "{} is less than many images have: a layer without room passes through uncached, each time",
            size.0
        ),
        "set a size that has room for the images of the nodes, such as 50Gi",
    ))
}

/// Returns a warning for each pattern of pinned images whose host is no upstream of the mirror.
fn ineffective_pins(mirror: &RegistryMirror) -> impl Iterator<Item = Warning> {
    let patterns = mirror.spec.cache.pinned.iter().enumerate();
    let ineffective = patterns.filter(|(_, pattern)| {
        let host = pattern.split('/').next().unwrap_or_default().to_owned();
        let crosses_components = host.contains("**");
        !crosses_components && Globs::new(&[host]).is_ok_and(|host| !has_upstream_like(mirror, &host))
    });
    ineffective.map(|(index, pattern)| {
        Warning::new(
            "pinned-without-upstream",
            format!("spec.cache.pinned[{index}]"),
            format!("{pattern} keeps nothing, because its host is no upstream of the mirror"),
            "correct the host, or add it to upstreams",
        )
    })
}

fn has_upstream_like(mirror: &RegistryMirror, host: &Globs) -> bool {
    let mut upstreams = mirror.spec.upstreams.iter();
    upstreams.any(|upstream| host.matches(&upstream.host))
}

/// Returns the risk of an IPv6 address in the files for nodes, which not every container runtime reads.
fn address_for_newer_nodes(mirror: &RegistryMirror) -> Option<Warning> {
    let nodes = &mirror.spec.node_configuration;
    if !nodes.mode.is_published() || !has_ipv6_address(mirror) {
        return None;
    }
    let message = match nodes.fallback {
        Fallback::Allow => {
            "nodes have the mirror's IPv6 address, which containerd 1.7, CRI-O and podman can't read in their files: \
             they pull from the registries themselves"
        }
        Fallback::Never => {
            "nodes have the mirror's IPv6 address, which CRI-O and podman can't read in their files: they can't pull \
             from the mirror's registries at all"
        }
    };
    let field = "spec.nodeConfiguration";
    let advice = "use nodes with containerd 2.0 or later, or an IPv4 address for the Service";
    Some(Warning::new("ipv6-address-for-nodes", field, message, advice))
}

/// Returns whether the Service has an IPv6 address, or requests one before it has one.
fn has_ipv6_address(mirror: &RegistryMirror) -> bool {
    let endpoint = mirror.status.as_ref().and_then(|status| status.endpoint.as_ref());
    let live = endpoint.and_then(|endpoint| Url::parse(&endpoint.url).ok());
    let wanted = || mirror.spec.service.cluster_ip.as_deref();
    live.map_or_else(
        || wanted().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
        |url| matches!(url.host(), Some(Host::Ipv6(_))),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    const IMAGE: &str = "ghcr.io/example/registry-mirror:1";

    fn mirror(change: &Value) -> RegistryMirror {
        let mut spec =
            json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}, "replicas": 2});
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        RegistryMirror::new("hub", serde_json::from_value(spec).unwrap())
    }

    fn ids(change: &Value) -> Vec<&'static str> {
        find(&mirror(change), IMAGE)
            .into_iter()
            .map(|risk| risk.id)
            .collect()
    }

    #[test_case(&json!({}) => Vec::<&str>::new(); "none")]
    #[test_case(&json!({"replicas": 0}) => Vec::<&str>::new(); "scaled to zero")]
    #[test_case(&json!({"replicas": 1}) => vec!["single-replica"])]
    #[test_case(&json!({"upstreams": [{"host": "ghcr.io"}], "nodeConfiguration": {"fallback": "Never"}})
        => vec!["own-image-through-itself"])]
    #[test_case(&json!({"upstreams": [{"host": "ghcr.io"}], "nodeConfiguration": {"fallback": "Allow"}})
        => Vec::<&str>::new(); "nodes fall back")]
    #[test_case(&json!({"upstreams": [{"host": "ghcr.io"}], "nodeConfiguration": {"fallback": "Never", "mode": "None"}})
        => Vec::<&str>::new(); "nothing is published")]
    #[test_case(&json!({"nodeConfiguration": {"fallback": "Never"}}) => Vec::<&str>::new(); "the image comes from elsewhere")]
    #[test_case(&json!({"upstreams": [{"host": "ghcr.io"}], "nodeConfiguration": {"mode": "Manage"}})
        => vec!["agent-image-through-mirror"]; "agents pull their image through the mirror")]
    #[test_case(&json!({"nodeConfiguration": {"mode": "Manage"}}) => Vec::<&str>::new(); "image of agents comes from elsewhere")]
    #[test_case(&json!({"upstreams": [{"host": "docker.io"}], "nodeConfiguration": {"fallback": "Never"}, "pod": {"image": "me/mirror"}})
        => vec!["own-image-through-itself"]; "an image without a host is Docker Hub's")]
    #[test_case(&json!({"upstreams": [{"host": "quay.io", "credentialsSecretRef": {"name": "s"}}]})
        => vec!["anonymous-access-with-credentials"])]
    #[test_case(&json!({"upstreams": [{"host": "a", "remoteURL": "http://a", "insecureAllowHTTPCredentials": true, "credentialsSecretRef": {"name": "s"}}], "access": {"mode": "Basic"}, "tls": {"mode": "Secret"}})
        => vec!["credentials-over-http"])]
    #[test_case(&json!({"upstreams": [{"host": "a", "remoteURL": "http://[::1]:80", "insecureAllowHTTPCredentials": true, "credentialsSecretRef": {"name": "s"}}], "access": {"mode": "Basic"}, "tls": {"mode": "Secret"}})
        => Vec::<&str>::new(); "loopback")]
    #[test_case(&json!({"upstreams": [{"host": "a", "remoteURL": "https://a/v2/"}]}) => vec!["remote-url-unlikely"])]
    #[test_case(&json!({"upstreams": [{"host": "a", "tls": {"insecureSkipVerify": true}}]}) => vec!["certificate-not-checked"])]
    #[test_case(&json!({"access": {"mode": "Basic"}}) => vec!["passwords-over-http"])]
    #[test_case(&json!({"service": {"type": "NodePort"}}) => vec!["anonymous-access-from-outside"])]
    #[test_case(&json!({"service": {"clusterIP": "2001:db8::1"}}) => vec!["ipv6-address-for-nodes"])]
    #[test_case(&json!({"service": {"clusterIP": "2001:db8::1"}, "nodeConfiguration": {"fallback": "Never"}})
        => vec!["ipv6-address-for-nodes"]; "IPv6 without fallback")]
    #[test_case(&json!({"service": {"clusterIP": "2001:db8::1"}, "nodeConfiguration": {"mode": "None"}})
        => Vec::<&str>::new(); "IPv6 without files for nodes")]
    #[test_case(&json!({"service": {"clusterIP": "10.96.0.7"}}) => Vec::<&str>::new(); "IPv4")]
    #[test_case(&json!({"service": {"type": "NodePort"}, "tls": {"mode": "SelfSigned", "clientCARef": {"kind": "Secret", "name": "ca"}}})
        => Vec::<&str>::new(); "clients need a certificate")]
    #[test_case(&json!({"cache": {"offline": true}}) => vec!["offline-with-ephemeral-storage"])]
    #[test_case(&json!({"storage": {"type": "Ephemeral", "ephemeral": {"sizeLimit": "100Mi"}}}) => vec!["small-cache"])]
    #[test_case(&json!({"cache": {"maxSize": "500M"}}) => vec!["small-cache"]; "a small limit of the cache")]
    #[test_case(&json!({"cache": {"maxSize": "1Gi"}}) => Vec::<&str>::new(); "a gibibyte")]
    #[test_case(&json!({"cache": {"pinned": ["quay.io/team/**:*", "docker.io/library/*:*"]}})
        => vec!["pinned-without-upstream"])]
    #[test_case(&json!({"cache": {"pinned": ["*.io/team/**:*", "**/nginx:*"]}}) => Vec::<&str>::new(); "pinned by wildcard")]
    fn warning_for_spec(change: &Value) -> Vec<&'static str> {
        ids(change)
    }

    #[test]
    fn warning_names_field_and_action() {
        let change =
            json!({"upstreams": [{"host": "a"}, {"host": "b", "tls": {"insecureSkipVerify": true}}]});
        let risk = find(&mirror(&change), IMAGE).remove(0);
        assert_eq!(risk.field, "spec.upstreams[1].tls.insecureSkipVerify");
        assert!(
            risk.message.contains("between the servers and b"),
            "{}",
            risk.message
        );
        assert!(risk.advice.contains("caBundleRef"));
    }

    #[test]
    fn pinned_pattern_is_named_by_its_index() {
        let change = json!({"cache": {"pinned": ["quay.io/a:*", "docker.io/b:*"]}});
        let risk = find(&mirror(&change), IMAGE).remove(0);
        assert_eq!(risk.field, "spec.cache.pinned[1]");
        assert!(risk.message.contains("docker.io/b:*"), "{}", risk.message);
    }

    #[test]
    fn ipv6_endpoint_in_status_is_a_risk() {
        let mut mirror = mirror(&json!({}));
        let status = json!({"endpoint": {"url": "http://[2001:db8::1]:5000"}});
        mirror.status = Some(serde_json::from_value(status).unwrap());
        assert_eq!(find(&mirror, IMAGE)[0].id, "ipv6-address-for-nodes");
    }

    #[test]
    fn single_replica_without_fallback_warns_more() {
        let warnings = find(
            &mirror(&json!({"replicas": 1, "nodeConfiguration": {"fallback": "Never"}})),
            IMAGE,
        );
        assert!(warnings[0].message.contains("can't pull at all"), "{warnings:?}");
    }
}
