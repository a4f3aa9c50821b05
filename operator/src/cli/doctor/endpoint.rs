//! Checks the endpoint of a mirror, from this machine and else through the API server.

use std::time::Duration;

use crds::{RegistryMirror, status::Endpoint, tls::TlsMode};
use http::{Request, StatusCode, Uri};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, Config, ResourceExt, client::Body};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::time::timeout;

use super::{
    error_message,
    report::{Check, Class, Finding},
};
use crate::names;

/// A mirror that is near answers at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The header by which a registry identifies itself (distribution-spec, "Determining Support", and earlier registries).
const REGISTRY: (&str, &str) = ("docker-distribution-api-version", "registry/2.0");

/// The response of an endpoint.
struct EndpointResponse {
    code: StatusCode,
    /// True if the response has the header of a registry: an address of the cluster may be another server's from here.
    is_registry: bool,
}

impl EndpointResponse {
    fn is_good(&self) -> bool {
        self.is_registry && matches!(self.code, StatusCode::OK | StatusCode::UNAUTHORIZED)
    }
}

/// Asks for `/v2/`.
pub(super) async fn check(client: &Client, subject: &str, mirror: &RegistryMirror) -> Finding {
    let endpoint = mirror.status.as_ref().and_then(|status| status.endpoint.as_ref());
    let Some(endpoint) = endpoint else {
        return Finding::warning(Check::Endpoint, subject, "has no address yet");
    };
    let url = &endpoint.url;
    let directly = match asked(client, mirror, endpoint).await {
        Ok(answer) if answer.is_registry => return answered(subject, url, &answer),
        Ok(answer) => format!("the server there is no registry, {}", answer.code),
        Err(error) => error,
    };
    not_from_here(
        subject,
        url,
        &directly,
        through_the_api_server(client, mirror).await,
    )
}

fn answered(subject: &str, url: &str, answer: &EndpointResponse) -> Finding {
    match answer.code {
        StatusCode::OK => Finding::ok(Check::Endpoint, subject, format!("{url} responds")),
        StatusCode::UNAUTHORIZED => Finding::ok(
            Check::Endpoint,
            subject,
            format!("{url} responds and requires a password"),
        ),
        code => {
            let message = format!("{url}/v2/ responds with {code}");
            Finding::problem(Check::Endpoint, Class::Other, subject, message)
                .advice("kubectl logs of the mirror's Pods have the requests and the cause")
        }
    }
}

/// Returns the finding about an address that this machine can't reach, which says little about the mirror.
fn not_from_here(
    subject: &str,
    url: &str,
    directly: &str,
    through_api_server: Result<EndpointResponse, String>,
) -> Finding {
    let message = match through_api_server {
        Ok(answer) if answer.is_good() => {
            format!("{url} not reachable from here ({directly}), but reachable from the API server")
        }
        Ok(answer) => format!(
            "{url} not reachable from here ({directly}), and the response through the API server is {}",
            answer.code
        ),
        Err(error) => format!(
            "{url} not reachable from here ({directly}), and not checked through the API server: {error}"
        ),
    };
    Finding::warning(Check::Endpoint, subject, message).advice("curl it on a node: nodes have to reach it")
}

async fn asked(
    client: &Client,
    mirror: &RegistryMirror,
    endpoint: &Endpoint,
) -> Result<EndpointResponse, String> {
    let url: Uri = endpoint.url.parse().map_err(|error| format!("no URL: {error}"))?;
    let mut config = Config::new(url);
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.default_retry = false;
    if let Some(map) = &endpoint.ca_config_map {
        config.root_cert = Some(authority(client, mirror, map).await?);
    }
    let anonymous = Client::try_from(config).map_err(|error| error_message(&error))?;
    answer(&anonymous, "/v2/").await
}

/// Returns the CA certificates that clients trust.
async fn authority(client: &Client, mirror: &RegistryMirror, map: &str) -> Result<Vec<Vec<u8>>, String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &mirror.namespace().unwrap_or_default());
    let map = maps.get(map).await.map_err(|error| error_message(&error))?;
    let pem = map
        .data
        .and_then(|mut data| data.remove(names::CA_BUNDLE_KEY))
        .unwrap_or_default();
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|certificate| certificate.map(|der| der.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("its CA certificates are not readable: {error}"))
}

async fn through_the_api_server(
    client: &Client,
    mirror: &RegistryMirror,
) -> Result<EndpointResponse, String> {
    let (namespace, name) = (mirror.namespace().unwrap_or_default(), mirror.name_any());
    let is_plain = mirror.spec.tls.mode == TlsMode::Disabled;
    let scheme = if is_plain { "http" } else { "https" };
    let port = mirror.spec.service.port;
    let path = format!("/api/v1/namespaces/{namespace}/services/{scheme}:{name}:{port}/proxy/v2/");
    answer(client, &path).await
}

async fn answer(client: &Client, path: &str) -> Result<EndpointResponse, String> {
    let request = Request::get(path)
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    match timeout(ANSWER_TIMEOUT, client.send(request)).await {
        Ok(Ok(response)) => {
            let said = response.headers().get(REGISTRY.0);
            Ok(EndpointResponse {
                code: response.status(),
                is_registry: said.is_some_and(|said| said == REGISTRY.1),
            })
        }
        Ok(Err(error)) => Err(error_message(&error)),
        Err(_) => Err(format!("no response within {} s", ANSWER_TIMEOUT.as_secs())),
    }
}
