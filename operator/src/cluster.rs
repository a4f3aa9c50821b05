//! Access to the API server: a watched cache to read from, and one field manager to write with.

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
use std::{collections::BTreeMap, error::Error, fmt::Debug, sync::Arc};

use crate::{
    dereference::{Contents, Reader, Reference},
    kind::Kind,
    names,
};

pub mod cache;
pub mod observe;
pub mod reference_index;
pub mod request_limits;
pub mod sync_gate;
pub mod triggers;
pub(crate) mod trim;
mod watch_backoff;
pub mod write_backoff;

pub(crate) use watch_backoff::follow;

use cache::ObjectCache;
use write_backoff::WriteBackoff;

/// The field manager of the fields that the operator applies.
pub const FIELD_MANAGER: &str = "registry-mirror";

/// The namespaces that an operator watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every namespace.
    Cluster,
    /// One namespace.
    Namespace(String),
}

impl Scope {
    /// Returns whether a namespace belongs to the scope.
    pub fn covers(&self, namespace: &str) -> bool {
        match self {
            Self::Cluster => true,
            Self::Namespace(one) => one == namespace,
        }
    }

    /// Returns the API of a type in the scope.
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

    /// Returns the API of a kind in the scope.
    pub fn children(&self, client: Client, kind: Kind) -> Api<DynamicObject> {
        match self {
            Self::Cluster => Api::all_with(client, &kind.resource()),
            Self::Namespace(namespace) => Api::namespaced_with(client, namespace, &kind.resource()),
        }
    }
}

/// A connection to the API server, with the cache of what it has shown.
pub struct Cluster {
    client: Client,
    /// The cache of every mirror's objects.
    pub cache: Arc<ObjectCache>,
    /// The delays of writes that other field managers undo or the API server rejects.
    pub write_backoff: WriteBackoff,
}

impl Cluster {
    /// Creates a connection whose cache the caller updates.
    pub fn new(client: Client, cache: Arc<ObjectCache>) -> Self {
        Self {
            client,
            cache,
            write_backoff: WriteBackoff::default(),
        }
    }

    /// Returns the client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns the metadata of an object, also of one that is not watched; `None` if it does not exist.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn get_metadata(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> kube::Result<Option<ObjectMeta>> {
        Ok(self
            .api(kind, namespace)
            .get_metadata_opt(name)
            .await?
            .map(|object| object.metadata))
    }

    /// Applies a manifest. With `uid`, to the object with this UID, and forced: other field managers lose the fields. Without,
    /// the object must not exist. An apply has no such precondition, so an object that a user created in the meantime gets
    /// its form back at once.
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
        if uid.is_none() && existed_before(&object) {
            // An apply of no fields removes those that only this manager has set.
            let nothing = json!({
                "apiVersion": manifest["apiVersion"], "kind": manifest["kind"],
                "metadata": {"name": name, "uid": object.uid()},
            });
            api.patch(&name, &params, &Patch::Apply(&nothing)).await?;
            return Err(created_concurrently());
        }
        Ok(self.cache.record_write(kind, object))
    }

    /// Returns whether a mirror exists in the API server and is not being deleted.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn exists(&self, mirror: &RegistryMirror) -> kube::Result<bool> {
        let namespace = mirror.namespace().unwrap_or_default();
        let api = Api::<RegistryMirror>::namespaced(self.client(), &namespace);
        // A list of one object: the operator has no permission to `get` mirrors.
        let named = ListParams::default().fields(&format!("metadata.name={}", mirror.name_any()));
        let found = api.list_metadata(&named).await?;
        let mut same = found.iter().filter(|stored| stored.uid() == mirror.uid());
        Ok(same.any(|stored| stored.metadata.deletion_timestamp.is_none()))
    }

    /// Replaces the owner references of an object. An apply can't: it keeps the references of other managers, and those
    /// that the operator did not apply itself.
    ///
    /// # Errors
    /// Those of the API server; 409 if the object has changed since it was read.
    pub async fn set_owners(
        &self,
        kind: Kind,
        read: &ObjectMeta,
        owners: &[OwnerReference],
    ) -> kube::Result<()> {
        self.merge(kind, read, json!({"metadata": {"ownerReferences": owners}}))
            .await
    }

    /// Applies a merge patch (RFC 7396), which also removes fields of other managers, to an object as it was read.
    ///
    /// # Errors
    /// Those of the API server; 409 if the object has changed since it was read.
    pub async fn merge(&self, kind: Kind, read: &ObjectMeta, mut patch: Value) -> kube::Result<()> {
        patch["metadata"]["uid"] = json!(read.uid);
        patch["metadata"]["resourceVersion"] = json!(read.resource_version);
        let (name, namespace) = (read.name.as_deref(), read.namespace.as_deref());
        let api = self.api(kind, namespace.unwrap_or_default());
        let patch = Patch::Merge(&patch);
        let patched = api
            .patch(name.unwrap_or_default(), &by_operator(), &patch)
            .await?;
        self.cache.record_write(kind, patched);
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
        ignore_not_found(
            self.api(kind, namespace)
                .patch_metadata(name, &by_operator(), &Patch::Merge(&patch))
                .await,
        )
    }

    /// Deletes an object, by its UID. A missing object is no error.
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
        ignore_not_found(
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
        if !names::is_object_name(&reference.name) {
            return Ok(None);
        }
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

/// Returns whether an object existed before the operator applied it: a new object has one field manager.
fn existed_before(object: &DynamicObject) -> bool {
    let mut managers = object.managed_fields().iter();
    managers.any(|entry| entry.manager.as_deref() != Some(FIELD_MANAGER))
}

/// Returns the conflict with a user who created the object at the same time. The retry checks its owner.
fn created_concurrently() -> kube::Error {
    let message = "another client created an object of this name at the same time";
    kube::Error::Api(Status::failure(message, "Conflict").with_code(409).boxed())
}

/// Removes the text of a parse error, which may quote a value of a Secret, but not its position.
fn without_values(error: kube::Error) -> kube::Error {
    match error {
        kube::Error::SerdeError(error) => kube::Error::SerdeError(serde_json::Error::custom(format!(
            "malformed response (line {} column {})",
            error.line(),
            error.column()
        ))),
        error => error,
    }
}

/// Returns the message of the API server or, if it did not respond, the error with its sources.
pub fn error_message(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = error.source();
    }
    message
}

fn ignore_not_found<T>(result: kube::Result<T>) -> kube::Result<()> {
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
    async fn malformed_secret_is_not_quoted() {
        let answer = json!({"kind": "Secret", "metadata": {"name": "hub"}, "data": "hunter2"}).to_string();
        let service = tower::service_fn(move |_| {
            let body = kube::client::Body::from(answer.clone().into_bytes());
            std::future::ready(Ok::<_, Infallible>(http::Response::new(body)))
        });
        let cluster = Cluster::new(Client::new(service, "mirrors"), ObjectCache::new().0);
        let error = cluster.read("mirrors", &Reference::secret("hub")).await;
        let error = error.err().map(|error| format!("{error} {error:?}")).unwrap();
        assert!(
            error.contains("line 1 column") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
