//! The mirrors and servers of a cluster.

use crds::{RegistryMirror, tls::TlsMode};
use http::Uri;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, Client, ResourceExt, api::ListParams, core::Selector};

use super::{
    route::{Route, Tls},
    server::{MirrorServer, trust},
};
use crate::{
    cli::{Failure, connection::Connection},
    cluster::{Scope, error_message},
    desired::{ACTIONS_PORT, ADMIN_PORT, REGISTRY_PORT},
    names,
};

/// The arguments that select a cluster and a namespace.
#[derive(Debug, clap::Args)]
pub(super) struct ClusterArgs {
    /// The namespace of the mirror. Absent: that of the context
    #[arg(short, long, value_name = "NAMESPACE", add = super::complete::namespaces())]
    pub(super) namespace: Option<String>,
    #[command(flatten)]
    pub(super) connection: Connection,
}

/// The arguments that select the servers of a mirror.
#[derive(Debug, clap::Args)]
pub(super) struct MirrorArgs {
    /// The mirror [default: the only one of the namespace]
    #[arg(long, value_name = "NAME", add = super::complete::mirrors())]
    pub(super) mirror: Option<String>,
    /// One Pod of the mirror [default: every Pod that runs]
    #[arg(long, value_name = "POD")]
    pub(super) pod: Option<String>,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

/// A namespace of a cluster.
pub(super) struct ClusterClient {
    pub(super) client: Client,
    pub(super) namespace: String,
}

impl ClusterArgs {
    /// Connects to the cluster.
    ///
    /// # Errors
    /// There is no such cluster.
    pub(super) async fn connect(&self) -> Result<ClusterClient, Failure> {
        let config = self.connection.config().await.map_err(Failure::from)?;
        let namespace = self.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| Failure::Environment(error_message(&error)))?;
        Ok(ClusterClient { client, namespace })
    }
}

impl ClusterClient {
    /// Returns the mirrors of a scope, by namespace and name.
    ///
    /// # Errors
    /// The API server does not list them.
    pub(super) async fn mirrors(&self, scope: &Scope) -> Result<Vec<RegistryMirror>, Failure> {
        let listed = scope.api::<RegistryMirror>(self.client.clone());
        let listed = listed.list(&ListParams::default()).await;
        let mut mirrors = listed.map_err(|error| not_listed(&error))?.items;
        mirrors.sort_by_key(|mirror| (mirror.namespace(), mirror.name_any()));
        Ok(mirrors)
    }

    /// Returns the mirror of this name; without a name the only mirror of the namespace.
    ///
    /// # Errors
    /// There is no such mirror, or several.
    pub(super) async fn mirror(&self, name: Option<&str>) -> Result<RegistryMirror, Failure> {
        let mut mirrors = self.mirrors(&Scope::Namespace(self.namespace.clone())).await?;
        let names: Vec<_> = mirrors.iter().map(ResourceExt::name_any).collect();
        let found = match name {
            Some(name) => names.iter().position(|found| found == name),
            None if names.len() == 1 => Some(0),
            None => None,
        };
        match found {
            Some(index) => Ok(mirrors.swap_remove(index)),
            None => Err(self.no_mirror(name, &names)),
        }
    }

    fn no_mirror(&self, name: Option<&str>, names: &[String]) -> Failure {
        let (namespace, all) = (&self.namespace, names.join(", "));
        Failure::Reference(match (name, names) {
            (None, []) => format!(
                "no RegistryMirror found in namespace {namespace}: choose another namespace with -n, or apply a mirror \
                 (kubectl apply -n {namespace} -f mirror.yaml)"
            ),
            (Some(name), []) => format!(
                "RegistryMirror {name} not found: namespace {namespace} has none; choose another namespace with -n (kubectl \
                 get rmir -A lists all)"
            ),
            (None, _) => format!("several mirrors found in namespace {namespace}: choose one of {all}"),
            (Some(name), names) => match crds::validate::closest(name, names.iter().map(String::as_str)) {
                Some(closest) => format!(
                    "RegistryMirror {name} not found in namespace {namespace}: did you mean {closest}?"
                ),
                None => format!(
                    "RegistryMirror {name} not found in namespace {namespace}: choose one of {all}, or another namespace \
                     with -n"
                ),
            },
        })
    }

    /// Returns the Pods of a mirror, by name.
    ///
    /// # Errors
    /// The API server does not list them.
    pub(super) async fn pods(&self, mirror: &str) -> Result<Vec<Pod>, Failure> {
        let selector: Selector = names::selector(mirror).into_iter().collect();
        let params = ListParams::default().labels_from(&selector);
        let pods = self.pod_api().list(&params).await.map_err(|error| {
            let message = error_message(&error);
            Failure::Environment(format!("Pods of RegistryMirror {mirror} not listed: {message}"))
        })?;
        let mut pods = pods.items;
        pods.sort_by_key(ResourceExt::name_any);
        Ok(pods)
    }

    /// Returns the running Pods of a mirror, or the one that the arguments name.
    ///
    /// # Errors
    /// None runs.
    pub(super) async fn running(&self, mirror: &str, pod: Option<&str>) -> Result<Vec<String>, Failure> {
        let pods = self.pods(mirror).await?;
        let names: Vec<_> = pods
            .iter()
            .filter(|pod| is_running(pod))
            .map(ResourceExt::name_any)
            .collect();
        match pod {
            Some(pod) if names.iter().any(|name| name == pod) => Ok(vec![pod.to_owned()]),
            Some(pod) => Err(Failure::Reference(format!(
                "Pod {pod} of RegistryMirror {mirror} does not run: choose one of {}",
                names.join(", ")
            ))),
            None if names.is_empty() => Err(Failure::Environment(format!(
                "no Pod of RegistryMirror {mirror} runs: kubectl rmir doctor {mirror} -n {} finds the cause",
                self.namespace
            ))),
            None => Ok(names),
        }
    }

    pub(super) fn pod_api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn route(&self, pod: &str, port: u16) -> Route {
        let (pods, pod) = (Box::new(self.pod_api()), pod.to_owned());
        Route::Pod { pods, pod, port }
    }

    /// Returns the admin port of a Pod.
    pub(super) fn admin(&self, pod: &str) -> MirrorServer {
        self.plain(pod, ADMIN_PORT)
    }

    /// Returns the listener of actions of a Pod.
    pub(super) fn actions(&self, pod: &str) -> MirrorServer {
        self.plain(pod, ACTIONS_PORT)
    }

    fn plain(&self, pod: &str, port: u16) -> MirrorServer {
        let host = format!("127.0.0.1:{port}");
        MirrorServer::new(format!("Pod {pod}"), &host, self.route(pod, port), None)
    }

    /// Returns the registry of a Pod.
    ///
    /// # Errors
    /// The CA certificates of the mirror are not readable.
    pub(super) async fn registry(&self, mirror: &RegistryMirror, pod: &str) -> Result<MirrorServer, Failure> {
        let tls = self.tls(mirror).await?;
        let host = format!("127.0.0.1:{REGISTRY_PORT}");
        let route = self.route(pod, REGISTRY_PORT);
        Ok(MirrorServer::new(format!("Pod {pod}"), &host, route, tls))
    }

    async fn tls(&self, mirror: &RegistryMirror) -> Result<Option<Tls>, Failure> {
        if mirror.spec.tls.mode == TlsMode::Disabled {
            return Ok(None);
        }
        let endpoint = mirror.status.as_ref().and_then(|status| status.endpoint.as_ref());
        let uri: Option<Uri> = endpoint.and_then(|endpoint| endpoint.url.parse().ok());
        let host = uri.as_ref().and_then(Uri::host).map(str::to_owned);
        let host = host.unwrap_or_else(|| format!("{}.{}.svc", mirror.name_any(), self.namespace));
        let ca = match endpoint.and_then(|endpoint| endpoint.ca_config_map.as_deref()) {
            Some(map) => Some(self.ca(map).await?),
            None => None,
        };
        trust(&host, ca.as_deref().map(str::as_bytes)).map(Some)
    }

    async fn ca(&self, map: &str) -> Result<String, Failure> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = maps.get(map).await.map_err(|error| {
            Failure::Environment(format!("ConfigMap {map} not readable: {}", error_message(&error)))
        })?;
        let pem = found.data.and_then(|mut data| data.remove(names::CA_BUNDLE_KEY));
        pem.ok_or_else(|| Failure::Reference(format!("ConfigMap {map} has no key {}", names::CA_BUNDLE_KEY)))
    }
}

/// Returns whether a Pod runs and is not being deleted.
pub(super) fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// Returns whether a Pod is ready.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn not_listed(error: &kube::Error) -> Failure {
    Failure::Environment(match error {
        kube::Error::Api(status) if status.code == 404 => {
            "the cluster does not know the kind RegistryMirror: install the chart, or registry-mirror crd | kubectl \
             apply --server-side -f -"
                .to_owned()
        }
        kube::Error::Api(status) if status.is_forbidden() => format!(
            "RegistryMirrors not listed: {}; choose a namespace whose mirrors you may view (-n)",
            status.message
        ),
        kube::Error::Api(status) if status.code == 401 => {
            "the API server rejects the credentials of the kubeconfig: log in again, or choose another context (kubectl \
             config get-contexts, --context)"
                .to_owned()
        }
        error => format!(
            "the API server does not respond: {}; is it the right cluster (kubectl config current-context, --context), \
             and is there a way to it (VPN, firewall, proxy)?",
            error_message(error)
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use kube::client::Body;
    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    fn status(code: u16, reason: &str, message: &str) -> (u16, Value) {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "code": code, "reason": reason, "message": message});
        (code, status)
    }

    fn mirrors(names: &[&str]) -> (u16, Value) {
        let item = |name: &&str| {
            json!({"apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
                "metadata": {"name": name, "namespace": "mirrors"},
                "spec": {"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}}})
        };
        let items: Vec<_> = names.iter().map(item).collect();
        let list = json!({"apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirrorList",
            "metadata": {}, "items": items});
        (200, list)
    }

    /// The message of a command that gets this answer to its list of mirrors.
    #[test_case(None, mirrors(&[]) => "no RegistryMirror found in namespace mirrors: choose another namespace with -n, or apply a mirror (kubectl apply -n mirrors -f mirror.yaml)"; "no mirror")]
    #[test_case(Some("hub"), mirrors(&[]) => "RegistryMirror hub not found: namespace mirrors has none; choose another namespace with -n (kubectl get rmir -A lists all)"; "a name in the wrong namespace")]
    #[test_case(Some("hbu"), mirrors(&["hub", "quay"]) => "RegistryMirror hbu not found in namespace mirrors: did you mean hub?"; "a misspelt name")]
    #[test_case(Some("x"), mirrors(&["hub", "quay"]) => "RegistryMirror x not found in namespace mirrors: choose one of hub, quay, or another namespace with -n"; "another name")]
    #[test_case(None, mirrors(&["hub", "quay"]) => "several mirrors found in namespace mirrors: choose one of hub, quay"; "several mirrors")]
    #[test_case(None, status(404, "NotFound", "the server could not find the requested resource") => "the cluster does not know the kind RegistryMirror: install the chart, or registry-mirror crd | kubectl apply --server-side -f -"; "no CRD")]
    #[test_case(None, status(403, "Forbidden", "User \"ann\" cannot list resource") => "RegistryMirrors not listed: User \"ann\" cannot list resource; choose a namespace whose mirrors you may view (-n)"; "no permission")]
    #[test_case(None, status(401, "Unauthorized", "Unauthorized") => "the API server rejects the credentials of the kubeconfig: log in again, or choose another context (kubectl config get-contexts, --context)"; "an expired login")]
    #[tokio::test]
    async fn mirror_that_is_not_found_is_explained(name: Option<&str>, (code, body): (u16, Value)) -> String {
        let service = tower::service_fn(move |_| {
            let body = Body::from(body.to_string().into_bytes());
            let response = Response::builder().status(code).body(body).unwrap();
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let cluster = ClusterClient {
            client: Client::new(service, "mirrors"),
            namespace: "mirrors".to_owned(),
        };
        cluster.mirror(name).await.unwrap_err().to_string()
    }
}
