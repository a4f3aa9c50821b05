//! The API server, as the operator uses it: watched copies to read from, one field manager to write with.

use crds::RegistryMirror;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions},
    core::{NamespaceResourceScope, ObjectMeta, Status},
};
use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use crate::{
    dereference::{Contents, Reader, Reference},
    kind::Kind,
};

pub mod children;
pub mod contest;
mod follow;
pub mod listed;
pub mod observe;
pub mod watch;

use children::Children;
use contest::Contests;

/// Who owns the fields that the operator sets.
pub const FIELD_MANAGER: &str = "registry-mirror";

/// What the operator may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every namespace.
    Cluster,
    /// One.
    Namespace(String),
}

impl Scope {
    /// Whether a namespace belongs to it.
    pub fn covers(&self, namespace: &str) -> bool {
        match self {
            Self::Cluster => true,
            Self::Namespace(one) => one == namespace,
        }
    }

    /// The objects of one type in this scope.
    pub fn api<K>(&self, client: Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match self {
            Self::Cluster => Api::all(client),
            Self::Namespace(namespace) => Api::namespaced(client, namespace),
        }
    }

    /// The objects of one kind in this scope.
    pub fn children(&self, client: Client, kind: Kind) -> Api<DynamicObject> {
        match self {
            Self::Cluster => Api::all_with(client, &kind.resource()),
            Self::Namespace(namespace) => Api::namespaced_with(client, namespace, &kind.resource()),
        }
    }
}

/// A connection, and what was seen through it.
pub struct Cluster {
    client: Client,
    /// The watched copies of every mirror's objects.
    pub children: Arc<Children>,
    /// What others keep changing.
    pub contests: Contests,
}

impl Cluster {
    /// A connection whose copies someone else keeps up to date.
    pub fn new(client: Client, children: Arc<Children>) -> Self {
        Self {
            client,
            children,
            contests: Contests::default(),
        }
    }

    /// The connection.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Metadata of whatever has a name, be it the operator's or not: names that are not watched are looked at here.
    ///
    /// # Errors
    /// Those of the API server; an object that is not there is none.
    pub async fn look(&self, kind: Kind, namespace: &str, name: &str) -> kube::Result<Option<ObjectMeta>> {
        Ok(self
            .api(kind, namespace)
            .get_metadata_opt(name)
            .await?
            .map(|object| object.metadata))
    }

    /// Applies a manifest. With `uid` it is the object that was looked at, or nothing, and its fields are taken back
    /// from whoever changed them; without, nothing may be there. No apply can ask for that, so that what somebody made
    /// since it was looked for gets its old form back at once.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn apply(
        &self,
        kind: Kind,
        namespace: &str,
        mut manifest: Value,
        uid: Option<&str>,
    ) -> kube::Result<Arc<DynamicObject>> {
        let mut params = PatchParams::apply(FIELD_MANAGER);
        if let Some(uid) = uid {
            params = params.force();
            manifest["metadata"]["uid"] = json!(uid);
        }
        let name = manifest["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let api = self.api(kind, namespace);
        let object = api.patch(&name, &params, &Patch::Apply(&manifest)).await?;
        if uid.is_none() && was_there(&object) {
            // Who applies nothing takes back what nobody else has set as well.
            let nothing = json!({
                "apiVersion": manifest["apiVersion"], "kind": manifest["kind"],
                "metadata": {"name": name, "uid": object.uid()},
            });
            api.patch(&name, &params, &Patch::Apply(&nothing)).await?;
            return Err(there_first());
        }
        Ok(self.children.wrote(kind, object))
    }

    /// Returns whether a mirror is there and not about to be deleted, as the API server has it now.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn lives(&self, mirror: &RegistryMirror) -> kube::Result<bool> {
        let namespace = mirror.namespace().unwrap_or_default();
        let api = Api::<RegistryMirror>::namespaced(self.client(), &namespace);
        // A list of one: the operator has no right to `get` mirrors.
        let named = ListParams::default().fields(&format!("metadata.name={}", mirror.name_any()));
        let found = api.list_metadata(&named).await?;
        let mut same = found.iter().filter(|stored| stored.uid() == mirror.uid());
        Ok(same.any(|stored| stored.metadata.deletion_timestamp.is_none()))
    }

    /// Replaces the owner references of the object that was read, and nothing else of it. Applies can't: they leave the
    /// references of other managers, and those that the operator did not apply itself.
    ///
    /// # Errors
    /// Those of the API server; 409 where the object is another by now.
    pub async fn set_owners(
        &self,
        kind: Kind,
        read: &ObjectMeta,
        owners: &[OwnerReference],
    ) -> kube::Result<()> {
        let patch = json!({"metadata": {
            "uid": read.uid, "resourceVersion": read.resource_version, "ownerReferences": owners,
        }});
        let (name, namespace) = (read.name.as_deref(), read.namespace.as_deref());
        let api = self.api(kind, namespace.unwrap_or_default());
        let patch = Patch::Merge(&patch);
        let patched = api
            .patch(name.unwrap_or_default(), &by_operator(), &patch)
            .await?;
        self.children.wrote(kind, patched);
        Ok(())
    }

    /// Sets annotations of an object, and removes those without a value, in one request. A missing object is no error.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn annotate(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        annotations: &[(&str, Option<&str>)],
    ) -> kube::Result<()> {
        let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
        let patch = json!({"metadata": {"annotations": annotations}});
        gone_is_fine(
            self.api(kind, namespace)
                .patch_metadata(name, &by_operator(), &Patch::Merge(&patch))
                .await,
        )
    }

    /// Deletes the object that was looked at, and no other of its name.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn delete(&self, kind: Kind, namespace: &str, object: &DynamicObject) -> kube::Result<()> {
        let preconditions = Preconditions {
            uid: object.uid(),
            resource_version: None,
        };
        let params = DeleteParams {
            preconditions: Some(preconditions),
            ..DeleteParams::background()
        };
        gone_is_fine(
            self.api(kind, namespace)
                .delete(&object.name_any(), &params)
                .await,
        )
    }

    fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client(), namespace, &kind.resource())
    }

    async fn contents<K>(&self, namespace: &str, name: &str) -> kube::Result<Option<Contents>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug
            + Into<Contents>,
    {
        let read = Api::<K>::namespaced(self.client(), namespace).get_opt(name).await;
        Ok(read.map_err(without_values)?.map(Into::into))
    }
}

impl Reader for Cluster {
    type Error = kube::Error;

    async fn read(&self, namespace: &str, reference: &Reference) -> kube::Result<Option<Contents>> {
        match reference.kind {
            Kind::Secret => self.contents::<Secret>(namespace, &reference.name).await,
            _ => self.contents::<ConfigMap>(namespace, &reference.name).await,
        }
    }
}

/// Returns the parameters of a patch that is no apply.
fn by_operator() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Whether an object that was to be made was there: whatever is made has one manager, who sets all its fields.
fn was_there(object: &DynamicObject) -> bool {
    let mut managers = object.managed_fields().iter();
    managers.any(|entry| entry.manager.as_deref() != Some(FIELD_MANAGER))
}

/// Another look finds whose it is.
fn there_first() -> kube::Error {
    let message = "somebody else has made an object of this name at the same moment";
    kube::Error::Api(Status::failure(message, "Conflict").with_code(409).boxed())
}

/// The words about an answer that can't be read may repeat a value of it, its position does not.
fn without_values(error: kube::Error) -> kube::Error {
    match error {
        kube::Error::SerdeError(error) => kube::Error::SerdeError(serde_json::Error::custom(format!(
            "not what was asked for (line {} column {})",
            error.line(),
            error.column()
        ))),
        error => error,
    }
}

fn gone_is_fine<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => result.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[tokio::test]
    async fn a_secret_that_can_not_be_read_is_not_quoted() {
        let answer = json!({"kind": "Secret", "metadata": {"name": "hub"}, "data": "hunter2"}).to_string();
        let service = tower::service_fn(move |_| {
            let body = kube::client::Body::from(answer.clone().into_bytes());
            std::future::ready(Ok::<_, Infallible>(http::Response::new(body)))
        });
        let cluster = Cluster::new(Client::new(service, "mirrors"), Children::new().0);
        let error = cluster.read("mirrors", &Reference::secret("hub")).await;
        let error = error.err().map(|error| format!("{error} {error:?}")).unwrap();
        assert!(
            error.contains("line 1 column") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
