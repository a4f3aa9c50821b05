//! Reads the state of one mirror from the cache.

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

use super::{Cluster, cache::ObjectCache};
use crate::{
    desired::config,
    kind::Kind,
    mirror_key::MirrorKey,
    names,
    observed::{
        Allocation, Claim, Configuration, ExistingClaim, Growth, Observed, PodTemplateSource, PollResult,
        Server, ServiceAddress, Text, Workload,
    },
    owners,
};

impl Cluster {
    /// Returns the state of a mirror's objects. Only a PVC that an admin creates takes a request.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn observe(&self, mirror: &RegistryMirror) -> kube::Result<Observed> {
        Ok(Observed {
            existing_claim: self.existing_claim(mirror).await?,
            ..self.cache.observe(mirror)
        })
    }

    /// Reads the PVC that a user made and a spec names, if it names one.
    ///
    /// # Errors
    /// Those of the API server; a PVC that does not exist is none.
    pub async fn existing_claim(&self, mirror: &RegistryMirror) -> kube::Result<Option<ExistingClaim>> {
        let Some(Volume::ExistingClaim { name }) = mirror.spec.storage.volume() else {
            return Ok(None);
        };
        let namespace = mirror.namespace().unwrap_or_default();
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client(), &namespace);
        let live = if names::is_object_name(name) {
            claims.get_opt(name).await?
        } else {
            None
        };
        let annotations = live.as_ref().map(ResourceExt::annotations);
        Ok(Some(ExistingClaim {
            name: name.to_owned(),
            allowed_mirror: annotations.and_then(|all| all.get(names::ALLOW_MIRROR).cloned()),
            claim: live.map(|claim| self::claim(claim, 0)),
        }))
    }
}

impl ObjectCache {
    /// Returns the cached state of a mirror.
    pub fn observe(&self, mirror: &RegistryMirror) -> Observed {
        let (name, namespace) = (mirror.name_any(), mirror.namespace().unwrap_or_default());
        let stateful_set = self.typed::<StatefulSet>(mirror, Kind::StatefulSet);
        let deployment = self.typed::<Deployment>(mirror, Kind::Deployment);
        let service = self.typed::<Service>(mirror, Kind::Service);
        Observed {
            service_names: service.as_ref().map(service_names).unwrap_or_default(),
            allocation: service.as_ref().map(Allocation::from_service).unwrap_or_default(),
            service: service.and_then(ServiceAddress::from_service),
            configuration: self.configuration(mirror),
            claims: self.claims(mirror),
            claim_templates: stateful_set.as_ref().and_then(claim_templates),
            workload: stateful_set
                .map(from_stateful_set)
                .or_else(|| deployment.map(from_deployment)),
            servers: self.servers(&namespace, &name),
            at: Timestamp::now(),
            existing_claim: None,
            nodes: None,
            certificate: None,
        }
    }

    /// Returns the running Pods of a mirror that are not terminating, by name. They are not polled yet.
    pub fn servers(&self, namespace: &str, mirror: &str) -> Vec<Server> {
        let pods = self.of_mirror(Kind::Pod, namespace, mirror);
        let mut servers: Vec<_> = pods.iter().filter_map(|pod| server(&parse(pod)?)).collect();
        servers.sort_by(|a, b| a.pod.cmp(&b.pod));
        servers
    }

    /// Returns the mirrors that roll out a new version, with the time of their admission.
    pub fn rolling(&self) -> Vec<(MirrorKey, Timestamp)> {
        let of_mirrors = |kind| {
            let every = self.every(kind);
            every.filter(move |set| names::is_of_mirror(kind, &set.metadata))
        };
        let sets = of_mirrors(Kind::StatefulSet);
        let sets =
            sets.filter_map(|set| Some((MirrorKey::from_object(&*set), from_stateful_set(parse(&set)?))));
        let deployments = of_mirrors(Kind::Deployment);
        let deployments = deployments
            .filter_map(|set| Some((MirrorKey::from_object(&*set), from_deployment(parse(&set)?))));
        sets.chain(deployments)
            .filter(|(_, workload)| !workload.is_rolled_out())
            .filter_map(|(key, workload)| Some((key, workload.upgraded()?)))
            .collect()
    }

    /// Returns the PVCs of a mirror in the order of its replicas, so that messages are stable.
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

    /// Returns the object with the mirror's name, if the mirror owns it.
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

fn server(pod: &Pod) -> Option<Server> {
    let status = pod.status.as_ref()?;
    if pod.metadata.deletion_timestamp.is_some() || status.phase.as_deref() != Some("Running") {
        return None;
    }
    Some(Server {
        pod: pod.name_any(),
        uid: pod.uid()?,
        address: status.pod_ip.as_ref()?.parse::<IpAddr>().ok()?,
        poll: PollResult::NotPolled,
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

/// Returns the claim templates as they were applied, without the defaults of the API server.
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
                owner_references: metadata.owner_references,
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

/// Returns the source of a workload's Pod template, if its annotation can be parsed.
fn template_source(metadata: &ObjectMeta) -> Option<PodTemplateSource> {
    let source = names::POD_TEMPLATE_SOURCE.get(metadata.annotations.as_ref()?)?;
    serde_json::from_str(source).ok()
}

fn from_stateful_set(set: StatefulSet) -> Workload {
    let status = set.status.unwrap_or_default();
    Workload {
        template_source: template_source(&set.metadata),
        current: status.observed_generation >= set.metadata.generation,
        wanted: set.spec.and_then(|spec| spec.replicas).unwrap_or(1),
        replicas: status.replicas,
        ready: status.ready_replicas.unwrap_or(0),
        updated: status.updated_replicas.unwrap_or(0),
        obstacle: None,
    }
}

fn from_deployment(deployment: Deployment) -> Workload {
    let status = deployment.status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let failure = conditions
        .into_iter()
        .find(|c| c.type_ == "ReplicaFailure" && c.status == "True");
    Workload {
        template_source: template_source(&deployment.metadata),
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
    let message = |kinds: &[&str]| {
        let mut found = conditions
            .clone()
            .filter(|found| found.status == "True" && kinds.contains(&found.type_.as_str()));
        found
            .next()
            .map(|found| found.message.clone().unwrap_or_else(|| found.type_.clone()))
    };
    let state = status.allocated_resource_statuses.as_ref();
    let state = state.and_then(|states| states.get("storage").map(String::as_str));
    let failure = message(&["ControllerResizeError", "NodeResizeError"]);
    match (state, failure) {
        (Some(state @ ("ControllerResizeInfeasible" | "NodeResizeInfeasible")), failure) => {
            Growth::Infeasible(failure.unwrap_or_else(|| state.to_owned()))
        }
        (_, Some(failure)) => Growth::Failing(failure),
        _ if message(&["FileSystemResizePending"]).is_some() => Growth::FileSystem,
        _ if message(&["Resizing"]).is_some() => Growth::Volume,
        _ => Growth::Requested,
    }
}
