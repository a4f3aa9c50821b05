//! What the watched copies say of one mirror.

use crds::{RegistryMirror, storage::Volume};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{
        ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, Pod,
        Service,
    },
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt,
    api::{DynamicObject, ObjectMeta},
};
use serde::de::DeserializeOwned;

use std::{collections::BTreeSet, net::IpAddr};

use super::{Cluster, children::Children};
use crate::{
    desired::{config, names},
    kind::Kind,
    observed::{
        Allocation, Answer, Claim, Configuration, ExistingClaim, Growth, Observed, Rendered, Server,
        ServiceAddress, Text, Workload,
    },
    owners,
};

impl Cluster {
    /// The present state of a mirror's objects. Only a claim that an admin made has to be asked for.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn observe(&self, mirror: &RegistryMirror) -> kube::Result<Observed> {
        let namespace = mirror.namespace().unwrap_or_default();
        let mut observed = self.children.observe(mirror);
        if let Some(Volume::ExistingClaim { name }) = mirror.spec.storage.volume() {
            let claims = Api::<PersistentVolumeClaim>::namespaced(self.client(), &namespace);
            observed.existing_claim = Some(ExistingClaim {
                name: name.to_owned(),
                claim: claims.get_opt(name).await?.map(|claim| self::claim(claim, 0)),
            });
        }
        Ok(observed)
    }
}

impl Children {
    /// What the copies say of a mirror.
    pub fn observe(&self, mirror: &RegistryMirror) -> Observed {
        let (name, namespace) = (mirror.name_any(), mirror.namespace().unwrap_or_default());
        let stateful_set = self.typed::<StatefulSet>(mirror, Kind::StatefulSet);
        let deployment = self.typed::<Deployment>(mirror, Kind::Deployment);
        let service = self.typed::<Service>(mirror, Kind::Service);
        Observed {
            service_names: service.as_ref().map(service_names).unwrap_or_default(),
            allocation: service.as_ref().map(Allocation::from_service).unwrap_or_default(),
            service: service.and_then(ServiceAddress::of),
            configuration: self.configuration(mirror),
            claims: self.claims(mirror),
            claim_templates: stateful_set.as_ref().and_then(claim_templates),
            workload: stateful_set
                .map(of_stateful_set)
                .or_else(|| deployment.map(of_deployment)),
            servers: self.servers(&namespace, &name),
            at: Timestamp::now(),
            existing_claim: None,
            certificate: None,
        }
    }

    /// The Pods of a mirror that run, in the order of their names, and are not about to end. Nothing is known yet of
    /// what they say.
    pub fn servers(&self, namespace: &str, mirror: &str) -> Vec<Server> {
        let pods = self.of_mirror(Kind::Pod, namespace, mirror);
        let mut servers: Vec<_> = pods.iter().filter_map(|pod| server(&parse(pod)?)).collect();
        servers.sort_by(|a, b| a.pod.cmp(&b.pod));
        servers
    }

    /// The mirrors that had taken up a new version, and are not ready again, with the time since when.
    pub fn rolling(&self) -> Vec<((String, String), Timestamp)> {
        let sets = self.every(Kind::StatefulSet);
        let sets = sets.filter_map(|set| Some((key(&set), of_stateful_set(parse(&set)?))));
        let deployments = self.every(Kind::Deployment);
        let deployments = deployments.filter_map(|set| Some((key(&set), of_deployment(parse(&set)?))));
        sets.chain(deployments)
            .filter(|(_, workload)| !workload.rolled_out())
            .filter_map(|(key, workload)| Some((key, workload.upgraded()?)))
            .collect()
    }

    /// The claims of a mirror, in the order of its replicas: the same are told the same way each time.
    fn claims(&self, mirror: &RegistryMirror) -> Vec<Claim> {
        let (name, namespace) = (mirror.name_any(), mirror.namespace().unwrap_or_default());
        let objects = self.of_mirror(Kind::PersistentVolumeClaim, &namespace, &name);
        let parsed = objects.iter().filter_map(|object| {
            let ordinal = names::claim_ordinal(&name, &object.name_any())?;
            Some(Claim {
                goes_with_mirror: owners::goes_with(mirror, &object.metadata),
                ..claim(parse(object)?, ordinal)
            })
        });
        let mut claims: Vec<_> = parsed.collect();
        claims.sort_by_key(|claim| claim.ordinal);
        claims
    }

    fn configuration(&self, mirror: &RegistryMirror) -> Option<Configuration> {
        let map = self.owned::<ConfigMap>(mirror, Kind::ConfigMap, &names::config(&mirror.name_any()))?;
        let mut data = map.data.unwrap_or_default();
        let mut annotations = map.metadata.annotations.unwrap_or_default();
        let mut text = |key: &str, note: &str| {
            Some(Text {
                yaml: data.remove(key)?,
                written: annotations.remove(note),
            })
        };
        Some(Configuration {
            current: text(config::FILE, names::CONFIGURATION)?,
            last_good: text(config::LAST_GOOD, names::LAST_GOOD),
        })
    }

    /// The object of the mirror's own name, if it is the mirror's.
    fn typed<K: DeserializeOwned>(&self, mirror: &RegistryMirror, kind: Kind) -> Option<K> {
        self.owned(mirror, kind, &mirror.name_any())
    }

    fn owned<K: DeserializeOwned>(&self, mirror: &RegistryMirror, kind: Kind, name: &str) -> Option<K> {
        let object = self.get(kind, &mirror.namespace().unwrap_or_default(), name)?;
        let owned = object
            .owner_references()
            .iter()
            .any(|owner| Some(&owner.uid) == mirror.meta().uid.as_ref());
        if owned { parse(&object) } else { None }
    }
}

/// A workload's mirror has its name.
fn key(workload: &DynamicObject) -> (String, String) {
    (workload.namespace().unwrap_or_default(), workload.name_any())
}

fn server(pod: &Pod) -> Option<Server> {
    let status = pod.status.as_ref()?;
    if pod.metadata.deletion_timestamp.is_some() || status.phase.as_deref() != Some("Running") {
        return None;
    }
    Some(Server {
        pod: pod.name_any(),
        uid: pod.uid()?,
        address: status.pod_ip.as_ref()?.parse::<IpAddr>().ok()?,
        answer: Answer::Unasked,
    })
}

fn parse<K: DeserializeOwned>(object: &DynamicObject) -> Option<K> {
    serde_json::from_value(serde_json::to_value(object).ok()?).ok()
}

fn service_names(service: &Service) -> Vec<String> {
    let spec = service.spec.iter();
    let own = spec.flat_map(|spec| spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
    let balancers = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref());
    let ingress = balancers.flat_map(|balancer| balancer.ingress.iter().flatten());
    let names: BTreeSet<_> = own
        .chain(ingress.flat_map(|ingress| ingress.ip.iter().chain(&ingress.hostname)))
        .filter(|name| !name.is_empty())
        .cloned()
        .collect();
    names.into_iter().collect()
}

/// The templates without what the API server adds, so that they are what was applied.
fn claim_templates(set: &StatefulSet) -> Option<Vec<PersistentVolumeClaim>> {
    let templates = set.spec.as_ref()?.volume_claim_templates.as_ref()?;
    let bare = |template: &PersistentVolumeClaim| {
        let (metadata, spec) = (
            template.metadata.clone(),
            template.spec.clone().unwrap_or_default(),
        );
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: metadata.name,
                labels: metadata.labels,
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: spec.access_modes,
                resources: spec.resources,
                storage_class_name: spec.storage_class_name,
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        }
    };
    (!templates.is_empty()).then(|| templates.iter().map(bare).collect())
}

/// What was noted of how the Pods of a workload were rendered, if it can be read.
fn rendered(metadata: &ObjectMeta) -> Option<Rendered> {
    let note = names::POD_TEMPLATE_SOURCE.get(metadata.annotations.as_ref()?)?;
    serde_json::from_str(note).ok()
}

fn of_stateful_set(set: StatefulSet) -> Workload {
    let status = set.status.unwrap_or_default();
    Workload {
        rendered: rendered(&set.metadata),
        current: status.observed_generation >= set.metadata.generation,
        wanted: set.spec.and_then(|spec| spec.replicas).unwrap_or(1),
        replicas: status.replicas,
        ready: status.ready_replicas.unwrap_or(0),
        updated: status.updated_replicas.unwrap_or(0),
        obstacle: None,
    }
}

fn of_deployment(deployment: Deployment) -> Workload {
    let status = deployment.status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let failure = conditions
        .into_iter()
        .find(|c| c.type_ == "ReplicaFailure" && c.status == "True");
    Workload {
        rendered: rendered(&deployment.metadata),
        current: status.observed_generation >= deployment.metadata.generation,
        wanted: deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1),
        replicas: status.replicas.unwrap_or(0),
        ready: status.ready_replicas.unwrap_or(0),
        updated: status.updated_replicas.unwrap_or(0),
        obstacle: failure.and_then(|condition| condition.message),
    }
}

fn claim(claim: PersistentVolumeClaim, ordinal: u32) -> Claim {
    let name = claim.name_any();
    let status = claim.status.unwrap_or_default();
    Claim {
        name,
        ordinal,
        goes_with_mirror: false,
        growth: growth(&status),
        bound: status.phase.as_deref() == Some("Bound"),
        requested: claim
            .spec
            .and_then(|spec| spec.resources?.requests?.remove("storage")),
        capacity: status
            .capacity
            .and_then(|mut capacity| capacity.remove("storage")),
    }
}

fn growth(status: &PersistentVolumeClaimStatus) -> Growth {
    let conditions = status.conditions.iter().flatten();
    let told = |kinds: &[&str]| {
        let mut told = conditions
            .clone()
            .filter(|told| told.status == "True" && kinds.contains(&told.type_.as_str()));
        told.next()
            .map(|told| told.message.clone().unwrap_or_else(|| told.type_.clone()))
    };
    let state = status.allocated_resource_statuses.as_ref();
    let state = state.and_then(|states| states.get("storage").map(String::as_str));
    let failure = told(&["ControllerResizeError", "NodeResizeError"]);
    match (state, failure) {
        (Some(state @ ("ControllerResizeInfeasible" | "NodeResizeInfeasible")), failure) => {
            Growth::Infeasible(failure.unwrap_or_else(|| state.to_owned()))
        }
        (_, Some(failure)) => Growth::Failing(failure),
        _ if told(&["FileSystemResizePending"]).is_some() => Growth::FileSystem,
        _ if told(&["Resizing"]).is_some() => Growth::Volume,
        _ => Growth::Asked,
    }
}
