//! Step four: make the cluster hold what is desired, writing only where it does not.

use std::{collections::BTreeMap, sync::Arc};

use crds::{RegistryMirror, conditions::Reason};
use futures::future::{join_all, try_join_all};
use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::{
    cluster::{
        Cluster,
        children::fingerprint,
        contest::{Held, Wish},
    },
    desired::{Child, Desired, names},
    kind::Kind,
    observed::Observed,
    validate::Rejection,
};

mod adopt;
mod claims;
pub mod compare;
mod error;
pub mod guard;
mod held;
mod reload;
mod tried;

pub use adopt::adopt;
pub use error::Error;
use error::{is_refusal, refused};
pub use reload::AGAIN_AFTER;
use tried::Tried;

/// What the API server would not take of a mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What it said against claims, by name. They keep nothing else from being applied: servers with a smaller volume
    /// serve.
    pub refused_claims: BTreeMap<String, RefusedClaim>,
    /// What it said against other objects as such, by validation: the spec asks for what can't be.
    pub refused: Option<Rejection>,
    /// What policies, webhooks and quotas said against other objects, in one sentence.
    pub forbidden: Option<String>,
}

impl Applied {
    /// Whether all is applied but for claims.
    pub fn is_whole(&self) -> bool {
        self.refused.is_none() && self.forbidden.is_none()
    }
}

/// Why a claim is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedClaim {
    /// `ResizeUnsupported`, `ClaimPending` or `RetentionPolicyNotApplied`.
    pub reason: Reason,
    /// In the API server's words.
    pub message: String,
}

/// Applies all objects of a mirror, tells its Pods of what they can reload, and deletes what is no longer asked for.
///
/// Each is tried, also where one before it was refused or failed, but for these: where the key of the mirror's own
/// authority is not kept, nothing is handed out that it signed, as the next look would draw another one; and the workload
/// waits for what its Pods mount, as one that starts without it, or with what was before, might not serve.
///
/// # Errors
/// What may be mended by another try; what was applied stays. Every write can be repeated.
pub async fn all(
    mirror: &RegistryMirror,
    desired: &Desired,
    observed: &Observed,
    cluster: &Cluster,
) -> Result<Applied, Error> {
    let target = Target::new(mirror, cluster);
    let found = target.find(desired).await?;
    let (mut tried, mut applied) = (Tried::default(), Applied::default());
    if target.configure(desired, &found, &mut tried).await?
        && target
            .apply_claims(desired, &found, &mut applied, &mut tried)
            .await
    {
        target.tell_pods(desired, observed).await?;
        if tried.note(target.apply_workload(desired, &found).await) {
            for (kind, name) in desired.superseded(&mirror.name_any()) {
                target.prune(kind, &name).await?;
            }
        }
    }
    tried.end(&mut applied)?;
    Ok(applied)
}

/// Makes the Service that clients know, and nothing else, once every name was looked at.
///
/// # Errors
/// Those of [`all`].
pub async fn service(mirror: &RegistryMirror, desired: &Desired, cluster: &Cluster) -> Result<(), Error> {
    let target = Target::new(mirror, cluster);
    let found = target.find(desired).await?;
    let name = mirror.name_any();
    let services = desired
        .children()
        .filter(|child| child.kind == Kind::Service && child.name == name);
    for service in services {
        let done = target.apply(service, &found).await;
        done.map_err(|error| target.explain(service, &found, error))?;
    }
    Ok(())
}

/// Applies these, where they are there and the mirror's: nothing is made.
///
/// # Errors
/// Those of [`all`].
pub async fn those_there(
    mirror: &RegistryMirror,
    children: &[Child],
    cluster: &Cluster,
) -> Result<(), Error> {
    let target = Target::new(mirror, cluster);
    let uid = |child: &Child| {
        let live = cluster.children.get(child.kind, &target.namespace, &child.name)?;
        let ours = guard::is_ours(mirror, &live.metadata) && live.metadata.deletion_timestamp.is_none();
        Some((key(child), live.uid().filter(|_| ours)?))
    };
    let found: Found = children.iter().filter_map(uid).collect();
    // One after the other, as the key of an authority has to be kept before anything is shown that it signed.
    for child in children.iter().filter(|child| found.contains_key(&key(child))) {
        target.apply(child, &found).await?;
    }
    Ok(())
}

/// The UIDs of the objects that were there and are the mirror's.
type Found = BTreeMap<Key, String>;
/// An object of a mirror, by its kind and name.
pub type Key = (Kind, String);

fn key(child: &Child) -> Key {
    (child.kind, child.name.clone())
}

/// Where one mirror's objects go.
struct Target<'a> {
    mirror: &'a RegistryMirror,
    namespace: String,
    cluster: &'a Cluster,
}

impl<'a> Target<'a> {
    fn new(mirror: &'a RegistryMirror, cluster: &'a Cluster) -> Self {
        Self {
            mirror,
            namespace: mirror.namespace().unwrap_or_default(),
            cluster,
        }
    }
}

impl Target<'_> {
    /// Applies what comes before claims and workload; whether all is there that Pods mount.
    async fn configure(&self, desired: &Desired, found: &Found, tried: &mut Tried) -> Result<bool, Error> {
        let mirror = self.mirror.name_any();
        let authority = names::authority_key(&mirror);
        let (first, others): (Vec<_>, Vec<_>) = desired
            .configuration
            .iter()
            .partition(|child| child.kind == Kind::Secret && child.name == authority);
        for child in first {
            match self.apply(child, found).await {
                Err(error @ Error::Contested { .. }) => _ = tried.note(Err(error)),
                done => done?,
            }
        }
        let done = join_all(others.iter().map(|child| async {
            let done = self.apply(child, found).await;
            done.map_err(|error| self.explain(child, found, error))
        }));
        let done = done.await;
        let mounted = names::mounted(&mirror);
        let mut there = true;
        for (child, done) in others.iter().zip(done) {
            let noted = tried.note(done);
            there &= noted || !mounted.contains(&(child.kind, child.name.clone()));
        }
        Ok(there)
    }

    /// Gives a refusal of the address of the Service that clients know its own reason where the Service was deleted: the
    /// operator requests the address that nodes hold, and the spec may be correct.
    fn explain(&self, child: &Child, found: &Found, error: Error) -> Error {
        let status = self.mirror.status.as_ref();
        let endpoint = status.and_then(|status| status.endpoint.as_ref());
        let is_lost = child.kind == Kind::Service
            && child.name == self.mirror.name_any()
            && !found.contains_key(&key(child));
        match (error, endpoint.filter(|_| is_lost)) {
            (Error::Rejected(rejection), Some(endpoint)) if is_about_address(&rejection) => {
                Error::Rejected(Rejection {
                    reason: Reason::AddressTaken,
                    message: format!(
                        "Service {} was deleted and can't be made again at {}, which nodes pull through: {}; free the address or \
                     node port, or set another one in spec.service and give nodes the new files",
                        child.name, endpoint.url, rejection.message
                    ),
                })
            }
            (error, _) => error,
        }
    }

    /// Looks at every name before anything is written: half a mirror is of no use to anyone.
    async fn find(&self, desired: &Desired) -> Result<Found, Error> {
        let found = desired.children().map(|child| async {
            let uid = self.find_one(child.kind, &child.name).await?;
            Ok::<_, Error>(uid.map(|uid| (key(child), uid)))
        });
        Ok(try_join_all(found).await?.into_iter().flatten().collect())
    }

    /// The UID of an object that is the mirror's, if there is one.
    async fn find_one(&self, kind: Kind, name: &str) -> Result<Option<String>, Error> {
        let Some(live) = self.cluster.children.get(kind, &self.namespace, name) else {
            // Not the operator's by its label; but maybe the label was taken off, or the name is someone else's.
            return self.look(kind, name).await;
        };
        guard::check(self.mirror, kind, &live.metadata)?;
        Ok(live.uid())
    }

    /// Applies one object if it is not as it should be.
    async fn apply(&self, child: &Child, found: &Found) -> Result<(), Error> {
        self.apply_manifest(child, seal(child), found).await
    }

    /// Applies the workload, whose Pods stay as they are where it is held.
    async fn apply_workload(&self, desired: &Desired, found: &Found) -> Result<(), Error> {
        let workload = &desired.workload;
        let live = self
            .cluster
            .children
            .get(workload.kind, &self.namespace, &workload.name);
        let manifest = match live.filter(|_| desired.is_held) {
            Some(live) => held::with_pods_of(&live, workload.manifest.clone()),
            None => seal(workload),
        };
        self.apply_manifest(workload, manifest, found).await
    }

    async fn apply_manifest(&self, child: &Child, manifest: Value, found: &Found) -> Result<(), Error> {
        let (kind, name) = (child.kind, child.name.as_str());
        let live = self.cluster.children.get(kind, &self.namespace, name);
        if live
            .as_ref()
            .is_some_and(|live| is_applied(kind, live, &manifest))
        {
            return Ok(());
        }
        // Since its name was looked at, an owner may have been taken off: by whoever deletes the mirror and keeps its
        // objects. Put back, it would have the object deleted.
        if let Some(live) = &live {
            guard::check(self.mirror, kind, &live.metadata)?;
        }
        let applied = self.write(child, &manifest, live.as_deref(), found).await?;
        tracing::info!(%kind, name, "applied");
        if is_applied(kind, &applied, &manifest) {
            return Ok(());
        }
        Err(Error::Altered {
            kind,
            name: name.to_owned(),
        })
    }

    /// Unless the last writes to the object came to nothing: then ever later.
    async fn write(
        &self,
        child: &Child,
        manifest: &Value,
        live: Option<&DynamicObject>,
        found: &Found,
    ) -> Result<Arc<DynamicObject>, Error> {
        let (kind, name) = (child.kind, child.name.as_str());
        let (contests, object) = (
            &self.cluster.contests,
            (kind, self.namespace.clone(), name.to_owned()),
        );
        let wish = Wish {
            digest: Sha256::digest(manifest.to_string()).into(),
            version: live.and_then(ResourceExt::resource_version),
        };
        match contests.held(&object, &wish, Instant::now()) {
            Some(Held::Contested(after)) => {
                let name = name.to_owned();
                return Err(Error::Contested { kind, name, after });
            }
            Some(Held::Refused(status)) => return Err(refused(kind, name, kube::Error::Api(status))),
            None => {}
        }
        let uid = found.get(&key(child)).map(String::as_str);
        let applied = self
            .cluster
            .apply(kind, &self.namespace, manifest.clone(), uid)
            .await;
        match &applied {
            Ok(_) => contests.wrote(object, wish, Instant::now()),
            Err(kube::Error::Api(status))
                if is_refusal(status) || status.code == 403 && kind == Kind::PersistentVolumeClaim =>
            {
                contests.refused(object, wish, Instant::now(), status.clone());
            }
            Err(_) => {}
        }
        if uid.is_none() && applied.is_err() {
            // An admission policy refuses a write to an object of someone else, which was made since the look.
            self.look(kind, name).await?;
        }
        applied.map_err(|source| refused(kind, name, source))
    }

    /// The UID of an object that is the mirror's although it does not look like it.
    async fn look(&self, kind: Kind, name: &str) -> Result<Option<String>, Error> {
        let found = self.cluster.look(kind, &self.namespace, name).await;
        let Some(metadata) = found.map_err(|source| Error::cluster("looking at", kind, name, source))? else {
            return Ok(None);
        };
        guard::check(self.mirror, kind, &metadata)?;
        Ok(metadata.uid)
    }

    /// Deletes an object of an earlier spec.
    async fn prune(&self, kind: Kind, name: &str) -> Result<(), Error> {
        let Some(live) = self.cluster.children.get(kind, &self.namespace, name) else {
            return Ok(());
        };
        if live.metadata.deletion_timestamp.is_some() || !guard::is_ours(self.mirror, &live.metadata) {
            return Ok(());
        }
        let deleted = self.cluster.delete(kind, &self.namespace, &live).await;
        deleted.map_err(|source| Error::cluster("deleting", kind, name, source))?;
        tracing::info!(%kind, name, "deleted: the spec no longer asks for it");
        Ok(())
    }
}

/// Returns whether the API server's validation names an address or a node port of a Service.
fn is_about_address(rejection: &Rejection) -> bool {
    let fields = ["spec.clusterIP", "].nodePort: "];
    fields.iter().any(|field| rejection.message.contains(field))
}

/// The manifest with its own hash: a field that a later one leaves out could not be noticed otherwise.
fn seal(child: &Child) -> Value {
    let mut hashed = child.manifest.clone();
    if child.kind == Kind::Secret {
        // A hash of a password in an annotation would let anyone who sees it try passwords. Values are compared by
        // themselves; here only the keys count.
        blank(&mut hashed);
    }
    let hash = hex::encode(&Sha256::digest(hashed.to_string())[..16]);
    let mut manifest = child.manifest.clone();
    manifest["metadata"]["annotations"][names::APPLIED] = json!(hash);
    manifest
}

fn blank(secret: &mut Value) {
    if let Some(data) = secret.get_mut("data").and_then(Value::as_object_mut) {
        data.values_mut().for_each(|value| *value = Value::Null);
    }
}

fn is_applied(kind: Kind, live: &DynamicObject, manifest: &Value) -> bool {
    let Ok(live) = serde_json::to_value(live) else {
        return false;
    };
    let mut manifest = manifest.clone();
    if let Some(fields) = manifest.as_object_mut() {
        // What comes in a list does not say of itself what it is.
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    if kind == Kind::Secret {
        fingerprint(&mut manifest);
    }
    compare::contains(&live, &manifest)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn secret(value: &str) -> Child {
        let manifest = json!({"metadata": {"name": "s"}, "data": {"password": value}});
        Child {
            kind: Kind::Secret,
            name: "s".to_owned(),
            manifest,
        }
    }

    fn hash(child: &Child) -> String {
        seal(child)["metadata"]["annotations"][names::APPLIED]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[test_case("spec.clusterIPs: Invalid value: [\"10.0.0.5\"]: failed to allocate IP 10.0.0.5: provided IP is already allocated" => true; "address")]
    #[test_case("spec.ports[0].nodePort: Invalid value: 30500: provided port is already allocated" => true; "node port")]
    #[test_case("metadata.annotations: Invalid value: \"a b\": name part must consist of alphanumeric characters" => false; "annotation")]
    #[test_case("spec.loadBalancerClass: Invalid value: \"x y\": name part must consist of" => false; "class")]
    fn refusal_is_about_address(field: &str) -> bool {
        let words = format!("the API server refuses Service hub: Service \"hub\" is invalid: {field}");
        is_about_address(&Rejection::invalid(words))
    }

    #[test]
    fn a_secrets_values_are_not_in_its_hash() {
        assert_eq!(hash(&secret("YQ==")), hash(&secret("Yg==")));
    }

    #[test]
    fn a_field_that_is_left_out_changes_the_hash() {
        let child = |manifest| Child {
            kind: Kind::Service,
            name: "s".to_owned(),
            manifest,
        };
        let before = child(json!({"metadata": {}, "spec": {"a": 1, "b": 2}}));
        let after = child(json!({"metadata": {}, "spec": {"a": 1}}));
        assert_ne!(hash(&before), hash(&after));
    }

    #[test]
    fn a_secret_with_another_value_is_not_as_it_should_be() {
        let live = |value| {
            let mut object: DynamicObject = serde_json::from_value(seal(&secret(value))).unwrap();
            fingerprint(&mut object.data);
            object
        };
        assert!(is_applied(Kind::Secret, &live("YQ=="), &seal(&secret("YQ=="))));
        assert!(!is_applied(Kind::Secret, &live("Yg=="), &seal(&secret("YQ=="))));
    }

    #[test]
    fn an_object_out_of_a_list_is_as_it_should_be_without_its_kind() {
        let manifest = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}});
        let child = Child {
            kind: Kind::Service,
            name: "s".to_owned(),
            manifest,
        };
        let mut live: DynamicObject = serde_json::from_value(seal(&child)).unwrap();
        live.types = None;
        assert!(is_applied(Kind::Service, &live, &seal(&child)));
    }
}
