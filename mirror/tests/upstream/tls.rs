//! Certificates of upstreams: those that are trusted, and messages about the others.

use std::io::Write;

use mirror::clock::Clock;
use mirror::upstream::{BuildError, Error, Upstream};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};
use test_case::test_case;

use crate::hub::{Fault, Hub};
use crate::openssl::{LOCAL, Openssl};
use crate::{blob, name, tag};

async fn pull(config: &mirror::config::Upstream) -> Result<(), Error> {
    let upstream = Upstream::new(config, Clock::system()).unwrap();
    upstream
        .manifest(&name("library/app"), &tag("v1"))
        .await
        .map(drop)
}

#[tokio::test]
async fn unknown_ca_is_refused_unless_added_or_skipped() {
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

/// A redirect from HTTPS to HTTP is refused.
#[tokio::test]
async fn https_redirect_to_http_is_refused() {
    let (hub, plain) = (Hub::start_tls().await, Hub::start().await);
    hub.push_image("library/app", "v1", &[b"layer"]);
    plain.push_image("library/app", "v1", &[b"layer"]);
    let to = format!("{}v2/library/app/manifests/v1", plain.url());
    hub.always("GET manifests", Fault::redirect(&to));
    let error = pull(&hub.config()).await.unwrap_err();
    assert!(error.to_string().contains("from https to http"), "{error}");
    assert_eq!(plain.count("*"), 0);
}

/// The error for a CA file that cannot be used names it.
#[tokio::test]
async fn unusable_ca_file_is_named() {
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
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

/// Pulls an image from an upstream with this chain and key.
async fn pull_from(chain: &str, key: &str, ca: &str) -> Result<(), Error> {
    let hub = Hub::start_tls_with(chain, key, ca).await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    pull(&hub.config()).await
}

/// The command of Distribution's documentation makes a certificate with `CA:TRUE` for the server.
#[tokio::test]
async fn self_signed_server_certificate_as_ca_is_trusted() {
    let own = Openssl::new().self_signed(&format!("-newkey rsa:4096 -sha256 -addext {LOCAL}"));
    let hub = Hub::start_tls_with(&own.chain, &own.key, &own.ca).await;
    hub.push_image("library/app", "v1", &[b"layer"]);
    let digest = hub.push_blob("library/app", b"blob");
    pull(&hub.config()).await.unwrap();
    // Over HTTP/1.1, by another client.
    let upstream = Upstream::new(&hub.config(), Clock::system()).unwrap();
    blob(&upstream, &digest).await.unwrap();
}

/// The root of the CA is unknown, and the certificate of the server is in the CA file.
#[test_case(""; "without its issuer")]
#[test_case("basicConstraints=CA:TRUE"; "with the rights of a CA")]
#[test_case("extendedKeyUsage=clientAuth,anyExtendedKeyUsage"; "for any purpose")]
#[tokio::test]
async fn leaf_certificate_as_ca_file_is_trusted(extension: &str) {
    let issued = Openssl::new().issued("-newkey rsa:2048", "sha256", &format!("{LOCAL}\n{extension}"));
    pull_from(&issued.chain, &issued.key, &issued.chain)
        .await
        .unwrap();
}

/// Simple recipes give servers a certificate with the rights of a CA.
#[test_case("rsa:2048", "sha256")]
#[test_case("ec -pkeyopt ec_paramgen_curve:secp521r1", "sha512")]
#[tokio::test]
async fn ca_certificate_of_trusted_ca_is_trusted(key: &str, digest: &str) {
    let openssl = Openssl::new();
    let extensions = format!("{LOCAL}\nbasicConstraints=CA:TRUE");
    let issued = openssl.issued(&format!("-newkey {key}"), digest, &extensions);
    pull_from(&issued.chain, &issued.key, &issued.ca).await.unwrap();
    let stranger = openssl.issued(&format!("-newkey {key}"), digest, &extensions);
    let error = pull_from(&issued.chain, &issued.key, &stranger.ca)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is that of a CA, and not itself trusted"),
        "{error}"
    );
}

/// The key of a server whose certificate is in the CA file opens nothing else.
#[test_case(""; "without basic constraints")]
#[test_case("basicConstraints=CA:FALSE"; "no CA")]
#[tokio::test]
async fn leaf_in_ca_file_issues_nothing(extension: &str) {
    let openssl = Openssl::new();
    let leaf = openssl.issued("-newkey rsa:2048", "sha256", &format!("{LOCAL}\n{extension}"));
    openssl.run("req -new -newkey rsa:2048 -nodes -keyout other.key -out other.csr -subj /CN=other");
    openssl.run(
        "x509 -req -in other.csr -CA leaf.crt -CAkey leaf.key -CAcreateserial -extfile extensions -out other.crt",
    );
    let read = |name| std::fs::read_to_string(openssl.path(name)).unwrap();
    let error = pull_from(&read("other.crt"), &read("other.key"), &leaf.chain)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("not issued by a trusted CA"),
        "{error}"
    );
}

/// Another certificate for the same name and with the same key is not the one of the CA file.
#[tokio::test]
async fn certificate_like_a_trusted_one_is_refused() {
    let openssl = Openssl::new();
    let issued = openssl.issued("-newkey rsa:2048", "sha256", LOCAL);
    openssl.run(
        "x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile extensions -out other.crt",
    );
    let other = std::fs::read_to_string(openssl.path("other.crt")).unwrap();
    let error = pull_from(&issued.chain, &issued.key, &other).await.unwrap_err();
    assert!(
        error.to_string().contains("not issued by a trusted CA"),
        "{error}"
    );
}

#[test_case("ec -pkeyopt ec_paramgen_curve:secp521r1", "sha512")]
#[test_case("ec -pkeyopt ec_paramgen_curve:secp521r1", "sha256")]
#[test_case("ec -pkeyopt ec_paramgen_curve:secp384r1", "sha512")]
#[test_case("ec -pkeyopt ec_paramgen_curve:secp384r1", "sha256")]
#[test_case("ec -pkeyopt ec_paramgen_curve:prime256v1", "sha512")]
#[test_case("ec -pkeyopt ec_paramgen_curve:prime256v1", "sha384")]
#[test_case("rsa:4608", "sha512")]
#[test_case("ed25519", "sha512")]
#[tokio::test]
async fn chain_of_every_usual_algorithm_is_trusted(key: &str, digest: &str) {
    let issued = Openssl::new().issued(&format!("-newkey {key}"), digest, LOCAL);
    pull_from(&issued.chain, &issued.key, &issued.ca).await.unwrap();
}

#[test_case("sha1", "rsa:2048", "sha1WithRSAEncryption")]
#[test_case("sha256", "ec -pkeyopt ec_paramgen_curve:secp256k1", "secp256k1")]
#[tokio::test]
async fn unsupported_signature_is_named(digest: &str, key: &str, expected: &str) {
    let openssl = Openssl::new();
    openssl.issued(&format!("-newkey {key}"), digest, LOCAL);
    openssl.run("req -new -newkey rsa:2048 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf");
    openssl.run(&format!(
        "x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -{digest} -extfile extensions -out leaf.crt"
    ));
    let read = |name| std::fs::read_to_string(openssl.path(name)).unwrap();
    let error = pull_from(&read("leaf.crt"), &read("leaf.key"), &read("ca.crt"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
    assert!(
        error.to_string().contains("is not supported: issue it with"),
        "{error}"
    );
}

/// The names and the validity of a certificate in the CA file are checked like those of any other.
#[test_case(|params| params.not_after = date_time_ymd(2020, 2, 1), "expired at 2020-02-01T00:00:00Z"; "expired")]
#[test_case(|params| params.not_before = date_time_ymd(4000, 2, 1), "not valid before 4000-02-01"; "not yet valid")]
#[test_case(|params| params.subject_alt_names.clear(), "no subjectAltName"; "named in its common name")]
#[test_case(|params| params.subject_alt_names = vec!["other.test".try_into().map(rcgen::SanType::DnsName).unwrap()],
    "only valid for DnsName(\"other.test\")"; "of another name")]
#[test_case(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
    "does not allow extended key usage for server authentication"; "for clients")]
#[tokio::test]
async fn unfit_certificate_in_ca_file_is_refused(change: fn(&mut CertificateParams), expected: &str) {
    for is_ca in [IsCa::NoCa, IsCa::Ca(rcgen::BasicConstraints::Unconstrained)] {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "127.0.0.1");
        params.is_ca = is_ca;
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let error = pull_from(&certificate, &key.serialize_pem(), &certificate)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
