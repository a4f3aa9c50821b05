//! Whose certificates are believed.

use std::io::Write;

use mirror::clock::Clock;
use mirror::upstream::{BuildError, Error, Upstream};

use crate::hub::{Fault, Hub};
use crate::{name, tag};

async fn pull(config: &mirror::config::Upstream) -> Result<(), Error> {
    let upstream = Upstream::new(config, Clock::system()).unwrap();
    upstream
        .manifest(&name("library/app"), &tag("v1"))
        .await
        .map(drop)
}

#[tokio::test]
async fn an_unknown_authority_is_refused_the_ca_file_adds_it_and_checking_can_be_turned_off() {
    let hub = Hub::start_tls().await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let mut config = hub.config();
    pull(&config).await.unwrap();
    config.tls.ca_file = None;
    let error = pull(&config).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    config.tls.insecure_skip_verify = true;
    pull(&config).await.unwrap();
}

#[tokio::test]
async fn https_never_leads_to_http() {
    let (hub, plain) = (Hub::start_tls().await, Hub::start().await);
    hub.push_image("library/app", "v1", &[b"layer"]);
    plain.push_image("library/app", "v1", &[b"layer"]);
    let to = format!("{}v2/library/app/manifests/v1", plain.url());
    hub.always("GET manifests", Fault::redirect(&to));
    let error = pull(&hub.config()).await.unwrap_err();
    assert!(error.to_string().contains("from https to http"), "{error}");
    assert_eq!(plain.count("*"), 0);
}

#[tokio::test]
async fn a_ca_file_that_cannot_be_used_is_named() {
    let hub = Hub::start().await;
    let mut config = hub.config();
    config.tls.ca_file = Some("/nonexistent/ca.pem".into());
    let error = Upstream::new(&config, Clock::system()).err().unwrap();
    assert!(matches!(&error, BuildError::CaUnreadable { .. }), "{error}");
    assert!(error.to_string().contains("/nonexistent/ca.pem"));
    for content in [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        config.tls.ca_file = Some(file.path().to_owned());
        let error = Upstream::new(&config, Clock::system()).err().unwrap();
        assert!(
            matches!(error, BuildError::CaMalformed { .. }),
            "{content}: {error}"
        );
    }
}
