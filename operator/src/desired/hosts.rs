//! The `ConfigMap` with files for nodes. They name the mirror by IP: nodes do not resolve the cluster's names.

use std::collections::BTreeMap;

use crds::RegistryMirror;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use super::child::Child;
use crate::names;
use crate::{
    kind::Kind,
    node_config::{self, NodeEndpoint},
    observed::{Observed, ServiceAddress},
    validate::{Accepted, Serving},
};

/// Returns the `ConfigMap`, once the Service has an address.
pub(super) fn object(accepted: &Accepted<'_>, observed: &Observed) -> Option<Child> {
    let mirror = accepted.mirror;
    if !mirror.spec.node_configuration.mode.is_published() {
        return None;
    }
    let service = observed.service.as_ref()?;
    let certificate = accepted.serving.as_ref().and_then(Serving::ca_text);
    Some(map(mirror, files(mirror, service, certificate)))
}

/// Returns the `ConfigMap` with other CA certificates; `None` if it has none.
pub(super) fn renewed(
    mirror: &RegistryMirror,
    mut published: BTreeMap<String, String>,
    serving: &Serving,
) -> Option<Child> {
    *published.get_mut(names::CA_BUNDLE_KEY)? = serving.ca_text()?;
    Some(map(mirror, published))
}

fn map(mirror: &RegistryMirror, files: BTreeMap<String, String>) -> Child {
    let name = names::hosts(&mirror.name_any());
    let map = ConfigMap {
        metadata: names::owned(mirror, name.clone()),
        data: Some(files),
        ..ConfigMap::default()
    };
    Child::new(Kind::ConfigMap, name, &map)
}

/// Returns the files for the nodes of a mirror at this address. `certificates` holds the certificates, in PEM, that
/// clients have to trust.
pub fn files(
    mirror: &RegistryMirror,
    address: &ServiceAddress,
    certificates: Option<String>,
) -> BTreeMap<String, String> {
    let endpoint = NodeEndpoint::new(address, mirror.spec.tls.mode, certificates);
    node_config::published(mirror, &endpoint)
}
