//! Whether a mirror answers: from here, and else from the API server.

use std::time::Duration;

use crds::{RegistryMirror, status::Endpoint, tls::TlsMode};
use http::{Request, StatusCode, Uri};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, Config, ResourceExt, client::Body};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::time::timeout;

use super::{
    report::{Check, Class, Finding},
    words,
};
use crate::desired::names;

/// A mirror that is near answers at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks for `/v2/`.
pub(super) async fn check(client: &Client, subject: &str, mirror: &RegistryMirror) -> Finding {
    let endpoint = mirror.status.as_ref().and_then(|status| status.endpoint.as_ref());
    let Some(endpoint) = endpoint else {
        return Finding::warning(Check::Endpoint, subject, "has no address yet");
    };
    match asked(client, mirror, endpoint).await {
        Ok(code) => answered(subject, &endpoint.url, code),
        Err(directly) => {
            let through_api_server = through_the_api_server(client, mirror).await;
            not_directly(subject, &endpoint.url, &directly, through_api_server)
        }
    }
}

fn answered(subject: &str, url: &str, code: StatusCode) -> Finding {
    match code {
        StatusCode::OK => Finding::ok(Check::Endpoint, subject, format!("{url} answers")),
        StatusCode::UNAUTHORIZED => Finding::ok(
            Check::Endpoint,
            subject,
            format!("{url} answers, and asks for a password"),
        ),
        code => {
            let message = format!("{url}/v2/ answers with {code}");
            Finding::problem(Check::Endpoint, Class::Other, subject, message)
                .advice("is it the mirror that answers at this address? kubectl logs of its Pods say what they were asked")
        }
    }
}

/// That this machine can't reach an address of the cluster's says little about the mirror.
fn not_directly(
    subject: &str,
    url: &str,
    directly: &str,
    through_api_server: Result<StatusCode, String>,
) -> Finding {
    let message = match through_api_server {
        Ok(StatusCode::OK | StatusCode::UNAUTHORIZED) => {
            format!("{url} can't be reached from here ({directly}), but the API server reaches the mirror")
        }
        Ok(code) => format!(
            "{url} can't be reached from here ({directly}), and through the API server the answer is {code}"
        ),
        Err(error) => format!(
            "{url} can't be reached from here ({directly}), nor could the API server be asked to try: {error}"
        ),
    };
    Finding::warning(Check::Endpoint, subject, message)
        .advice("it is for nodes to reach: curl it on one of them")
}

async fn asked(client: &Client, mirror: &RegistryMirror, endpoint: &Endpoint) -> Result<StatusCode, String> {
    let url: Uri = endpoint.url.parse().map_err(|error| format!("no URL: {error}"))?;
    let mut config = Config::new(url);
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.default_retry = false;
    if let Some(map) = &endpoint.ca_config_map {
        config.root_cert = Some(authority(client, mirror, map).await?);
    }
    let anonymous = Client::try_from(config).map_err(|error| words(&error))?;
    status(&anonymous, "/v2/").await
}

/// What clients have to trust.
async fn authority(client: &Client, mirror: &RegistryMirror, map: &str) -> Result<Vec<Vec<u8>>, String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &mirror.namespace().unwrap_or_default());
    let map = maps.get(map).await.map_err(|error| words(&error))?;
    let pem = map
        .data
        .and_then(|mut data| data.remove(names::AUTHORITY))
        .unwrap_or_default();
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|certificate| certificate.map(|der| der.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("its authority can't be read: {error}"))
}

async fn through_the_api_server(client: &Client, mirror: &RegistryMirror) -> Result<StatusCode, String> {
    let (namespace, name) = (mirror.namespace().unwrap_or_default(), mirror.name_any());
    let is_plain = mirror.spec.tls.mode == TlsMode::Disabled;
    let scheme = if is_plain { "http" } else { "https" };
    let port = mirror.spec.service.port;
    let path = format!("/api/v1/namespaces/{namespace}/services/{scheme}:{name}:{port}/proxy/v2/");
    status(client, &path).await
}

async fn status(client: &Client, path: &str) -> Result<StatusCode, String> {
    let request = Request::get(path)
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    match timeout(ANSWER_TIMEOUT, client.send(request)).await {
        Ok(Ok(response)) => Ok(response.status()),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
    }
}
