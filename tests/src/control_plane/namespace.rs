//! A namespace for each test.

use std::fmt::{self, Debug};
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace as Object, ServiceAccount};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ControlPlane, Error};
use crate::wait;

/// A kind of namespaced objects that tests create, read and print.
pub trait Namespaced:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Serialize + Clone + Debug
{
}

impl<K> Namespaced for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + DeserializeOwned
        + Serialize
        + Clone
        + Debug
{
}

/// Returns parameters for a request that the API server checks without keeping the object.
pub fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// A namespace, with an administrator's client of the test's own.
pub struct Namespace {
    name: String,
    client: Client,
    cleanup: Option<kube::config::Kubeconfig>,
}

impl Namespace {
    pub(super) async fn create(control_plane: &ControlPlane, prefix: &str) -> Result<Self, Error> {
        let client = control_plane.client().await;
        let object = Object {
            metadata: ObjectMeta {
                generate_name: Some(format!("{prefix}-")),
                ..ObjectMeta::default()
            },
            ..Object::default()
        };
        let made = Api::all(client.clone())
            .create(&PostParams::default(), &object)
            .await?;
        let namespace = Self {
            name: made.name_any(),
            client,
            // A control plane of the tests is removed as a whole.
            cleanup: control_plane
                .processes
                .is_none()
                .then(|| control_plane.kubeconfig.clone()),
        };
        if control_plane.has_controllers() {
            namespace.admits_pods().await?;
        }
        Ok(namespace)
    }

    /// Pods are refused until the `default` ServiceAccount is there.
    async fn admits_pods(&self) -> Result<(), Error> {
        let accounts = self.api::<ServiceAccount>();
        let what = format!("ServiceAccount default in {}", self.name);
        let found = wait::until(&what, Duration::from_secs(30), async || {
            accounts.get_opt("default").await.ok().flatten()
        });
        found.await.map(drop).map_err(|source| Error::NotReady {
            name: "kube-controller-manager".to_owned(),
            source,
            log: String::new(),
        })
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the client that made the namespace.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns the API of a kind in the namespace.
    pub fn api<K: Namespaced>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.name)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let Some(kubeconfig) = self.cleanup.take() else {
            return;
        };
        let name = self.name.clone();
        // The test's runtime may be ending: the request is made on one of its own.
        let request = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .ok()?;
            runtime.block_on(async {
                let client = super::access::client(&kubeconfig, None).await.ok()?;
                Api::<Object>::all(client)
                    .delete(&name, &kube::api::DeleteParams::default())
                    .await
                    .ok()
            })
        });
        if request.join().ok().flatten().is_none() {
            eprintln!("namespace {} could not be deleted", self.name);
        }
    }
}
