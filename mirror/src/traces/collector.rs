//! The client that brings batches of spans to the collector.

use std::env;
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    OTEL_EXPORTER_OTLP_TIMEOUT, OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT, OTEL_EXPORTER_OTLP_TRACES_TIMEOUT,
};
use reqwest::redirect;
use tokio::runtime::Handle;

use crate::tls::{self, TrustedCertificates};

/// More of an answer is not read: it holds a number of refused spans and a sentence.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The client. It is asked by a thread without a runtime, and does its work on the server's.
#[derive(Debug)]
pub(super) struct Collector {
    client: reqwest::Client,
    runtime: Handle,
}

impl Collector {
    pub(super) fn new(runtime: Handle) -> Result<Self, super::Error> {
        let tls = tls::client_config(TrustedCertificates::system(), true)?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .timeout(timeout(|name| env::var(name).ok()))
            // Headers may hold a key for this collector only.
            .redirect(redirect::Policy::none())
            .build()?;
        Ok(Self { client, runtime })
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request.map(reqwest::Body::from))?;
        Ok(self.runtime.spawn(send(self.client.clone(), request)).await??)
    }
}

async fn send(client: reqwest::Client, request: reqwest::Request) -> reqwest::Result<Response<Bytes>> {
    // The URL may hold a password.
    let mut response = client
        .execute(request)
        .await
        .map_err(reqwest::Error::without_url)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST_ANSWER {
            body.clear();
            break;
        }
    }
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    Ok(answer)
}

/// Returns the time limit for a batch with all its attempts, in milliseconds.
fn timeout(variable: impl Fn(&str) -> Option<String>) -> Duration {
    [OTEL_EXPORTER_OTLP_TRACES_TIMEOUT, OTEL_EXPORTER_OTLP_TIMEOUT]
        .into_iter()
        .find_map(|name| variable(name)?.trim().parse().ok())
        .map_or(OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT, Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    /// The timeout for the export of a batch.
    #[test_case(&[] => Duration::from_secs(10); "the default")]
    #[test_case(&[(OTEL_EXPORTER_OTLP_TIMEOUT, "250")] => Duration::from_millis(250); "for all signals")]
    #[test_case(&[(OTEL_EXPORTER_OTLP_TIMEOUT, "250"), (OTEL_EXPORTER_OTLP_TRACES_TIMEOUT, "1000")] => Duration::from_secs(1); "for traces")]
    #[test_case(&[(OTEL_EXPORTER_OTLP_TIMEOUT, "soon")] => Duration::from_secs(10); "no number")]
    fn batch_timeout(set: &[(&str, &str)]) -> Duration {
        timeout(|name| {
            let found = set.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }
}
