//! The mirrors of the namespaces that a node trusts, as the API server shows them.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use crds::{
    Pod, RegistryMirror,
    conditions::ConditionType,
    node_configuration::{Fallback, NodeConfigurationMode},
};
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject},
    runtime::watcher::{self, Event},
};
use mirror::config::host::canonical;
use tokio::sync::watch::Sender;

use super::{hosts_directory::CA_FILE, runtime_files::HostFiles};
use crate::{
    cluster::follow,
    kind::Kind,
    mirror_key::MirrorKey,
    names::{self, CA_BUNDLE_KEY},
    node_config::{self, NodeEndpoint},
    validate::bundle,
};

/// The maximum size of the CA certificates of a mirror, in bytes: those of all public CAs are smaller.
const MAX_BUNDLE: usize = 512 << 10;

/// Every mirror that agents manage. A mirror without a target has no spec that nodes may follow: the files
/// that a node has of it stay as they are.
pub(super) type TargetSet = Arc<BTreeMap<MirrorKey, Option<Arc<Target>>>>;

/// A mirror, or the error of a version of the API that this agent can't read.
type StoredMirror = serde_json::Result<RegistryMirror>;

/// A mirror that nodes are to pull through.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub(super) url: String,
    /// The registry hosts, each the name of a directory.
    pub(super) hosts: Vec<String>,
    /// The files for each host.
    pub(super) files: HostFiles,
    /// Nodes pull from nowhere else: `fallback: Never`.
    pub(super) is_only_source: bool,
}

/// Objects of one type, by namespace.
#[derive(Default)]
struct Store<T>(BTreeMap<String, Listing<T>>);

/// The objects of one namespace.
struct Listing<T> {
    current: BTreeMap<String, T>,
    /// The objects of a list that is not complete yet.
    incoming: BTreeMap<String, T>,
    is_synced: bool,
}

/// A change of an object that the agent reads.
enum Change {
    Mirror(Event<DynamicObject>),
    ConfigMap(Event<ConfigMap>),
}

/// Watches the mirrors and the `ConfigMap`s of the operator in these namespaces, and sends the targets after each change.
pub(super) async fn run(client: Client, namespaces: Vec<String>, sender: Sender<Option<TargetSet>>) {
    let changes = namespaces.iter().map(|namespace| changes(&client, namespace));
    let mut changes = stream::select_all(changes);
    let mut mirrors = Store::<StoredMirror>::new(&namespaces);
    let mut bundles = Store::<String>::new(&namespaces);
    while let Some((namespace, change)) = changes.next().await {
        match change {
            Change::Mirror(event) => mirrors.apply(&namespace, event, |object| Some(parse(object))),
            Change::ConfigMap(event) => bundles.apply(&namespace, event, bundle_of),
        }
        if mirrors.is_synced() && bundles.is_synced() {
            let previous = sender.borrow().clone().unwrap_or_default();
            let current = targets(&mirrors, &bundles, &previous);
            sender.send_if_modified(|sent| {
                let is_changed = sent.as_ref() != Some(&current);
                *sent = Some(current);
                is_changed
            });
        }
    }
}

fn changes(client: &Client, namespace: &str) -> impl Stream<Item = (String, Change)> + Send + use<> {
    // Undecoded: one mirror that this version can't read must not hide the others.
    let resource = ApiResource::erase::<RegistryMirror>(&());
    let mirrors = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let (key, value) = names::MANAGED_BY;
    let ours = watcher::Config::default().labels(&format!("{key}={value}"));
    let mirrors = follow("RegistryMirror".to_owned(), mirrors, watcher::Config::default());
    let maps = follow("ConfigMap".to_owned(), maps, ours);
    let changes = stream::select(
        mirrors
            .filter_map(async |event| event.ok().map(Change::Mirror))
            .boxed(),
        maps.filter_map(async |event| event.ok().map(Change::ConfigMap))
            .boxed(),
    );
    let namespace = namespace.to_owned();
    changes.map(move |change| (namespace.clone(), change))
}

/// Parses a mirror, without what no node needs: a user can put a megabyte there.
fn parse(object: DynamicObject) -> StoredMirror {
    let mut mirror: RegistryMirror = serde_json::to_value(object).and_then(serde_json::from_value)?;
    (mirror.metadata.annotations, mirror.metadata.managed_fields) = (None, None);
    mirror.spec.pod = Pod::default();
    mirror.spec.service.annotations.clear();
    mirror.spec.service_account.annotations.clear();
    Ok(mirror)
}

/// Returns the CA certificates of a `ConfigMap` for nodes. A user may set the operator's label on other objects.
fn bundle_of(map: ConfigMap) -> Option<String> {
    if !names::is_of_mirror(Kind::ConfigMap, &map.metadata) {
        return None;
    }
    let bundle = map.data?.remove(CA_BUNDLE_KEY)?;
    (bundle.len() <= MAX_BUNDLE).then_some(bundle)
}

impl<T> Store<T> {
    fn new(namespaces: &[String]) -> Self {
        let listing = || Listing {
            current: BTreeMap::new(),
            incoming: BTreeMap::new(),
            is_synced: false,
        };
        Self(
            namespaces
                .iter()
                .map(|namespace| (namespace.clone(), listing()))
                .collect(),
        )
    }

    fn is_synced(&self) -> bool {
        self.0.values().all(|listing| listing.is_synced)
    }

    fn get(&self, namespace: &str, name: &str) -> Option<&T> {
        self.0.get(namespace)?.current.get(name)
    }

    /// Applies an event. An object of which `convert` makes nothing counts as deleted.
    fn apply<K: ResourceExt + Debug>(
        &mut self,
        namespace: &str,
        event: Event<K>,
        convert: impl Fn(K) -> Option<T>,
    ) {
        let Some(listing) = self.0.get_mut(namespace) else {
            return;
        };
        match event {
            Event::Init => listing.incoming.clear(),
            Event::InitApply(object) => {
                let name = object.name_any();
                listing
                    .incoming
                    .extend(convert(object).map(|value| (name, value)));
            }
            Event::InitDone => {
                listing.current = std::mem::take(&mut listing.incoming);
                listing.is_synced = true;
            }
            Event::Apply(object) => {
                let name = object.name_any();
                listing.current.remove(&name);
                listing.current.extend(convert(object).map(|value| (name, value)));
            }
            Event::Delete(object) => {
                listing.current.remove(&object.name_any());
            }
        }
    }
}

/// Returns the target of each mirror that agents manage. A mirror whose spec the operator rejected, or has not read yet,
/// keeps its previous target: its servers run with the previous spec, too, and a policy may forbid the new one. So does a
/// mirror whose address or CA is not known.
fn targets(mirrors: &Store<StoredMirror>, bundles: &Store<String>, previous: &TargetSet) -> TargetSet {
    let listed = mirrors.0.iter().flat_map(|(namespace, listing)| {
        let mirrors = listing.current.iter();
        mirrors.map(move |(name, mirror)| (namespace, name, mirror))
    });
    let targets = listed.filter_map(|(namespace, name, mirror)| {
        let bundle = bundles.get(namespace, &names::hosts(name));
        let key = MirrorKey {
            namespace: namespace.clone(),
            name: name.clone(),
        };
        let target = match mirror {
            Ok(mirror) if !is_managed(mirror) => return None,
            Ok(mirror) if is_accepted(mirror) => Target::new(&key, mirror, bundle.map(String::as_str)),
            Ok(_) | Err(_) => None,
        };
        let target = target.map(Arc::new);
        let target = target.or_else(|| previous.get(&key).cloned().flatten());
        Some((key, target))
    });
    Arc::new(targets.collect())
}

impl Target {
    /// Returns the target of a mirror, unless its address or its CA is not known yet.
    ///
    /// Of the `ConfigMap` only certificates count: a user who may change it can't redirect nodes.
    pub(super) fn new(key: &MirrorKey, mirror: &RegistryMirror, bundle: Option<&str>) -> Option<Self> {
        let published = mirror.status.as_ref()?.endpoint.as_ref()?;
        let mut endpoint = NodeEndpoint::parse(&published.url, None).ok()?;
        if endpoint.url.starts_with("https://") {
            let certificates = bundle.and_then(|pem| bundle::certificates(pem.as_bytes()).ok());
            endpoint.certificates = certificates.and_then(|pem| String::from_utf8(pem).ok());
            if endpoint.certificates.is_none() && published.ca_config_map.is_some() {
                return None;
            }
        }
        let hosts = mirror.spec.upstreams.iter().map(|upstream| upstream.host.clone());
        let files = HostFiles {
            mirror: key.to_string(),
            authority: endpoint.authority.clone(),
            hosts_toml: node_config::hosts_toml(mirror, &endpoint, CA_FILE),
            registries_conf: node_config::registries_conf_entries(mirror, &endpoint),
            certificates: endpoint.certificates,
        };
        Some(Self {
            url: endpoint.url,
            hosts: hosts.filter(|host| is_directory_name(host)).collect(),
            files,
            is_only_source: mirror.spec.node_configuration.fallback == Fallback::Never,
        })
    }
}

/// Returns whether agents write the files of a mirror.
fn is_managed(mirror: &RegistryMirror) -> bool {
    let mode = mirror.spec.node_configuration.mode;
    mode == NodeConfigurationMode::Manage && mirror.metadata.deletion_timestamp.is_none()
}

/// Returns whether the operator accepted the current spec.
fn is_accepted(mirror: &RegistryMirror) -> bool {
    let generation = mirror.metadata.generation;
    let conditions = mirror.status.iter().flat_map(|status| &status.conditions);
    conditions
        .filter(|condition| condition.type_ == ConditionType::Accepted.as_str())
        .any(|condition| condition.status == "True" && condition.observed_generation == generation)
}

/// Returns whether a host can be the name of a directory: the API server checks it, and the agent doesn't rely on that.
pub(super) fn is_directory_name(host: &str) -> bool {
    let is_plain = !host.starts_with(['.', '_', '-']) && !host.contains(['/', '\\', '\0']);
    is_plain && host.len() <= 253 && canonical(host).is_ok()
}

#[cfg(test)]
mod tests;
