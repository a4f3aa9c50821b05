//! Health checks, TLS, users: what a running server takes up without a restart.

use std::fs;

use reqwest::{Certificate, Client, Identity};
use serde_json::Value;

use crate::hub::{Fault, Hub};
use crate::served::{Home, Served, eventually};

fn proxy(hub: &Hub) -> String {
    format!("proxy: {{remoteurl: '{}', cache: {{maxsize: 1Gi}}}}", hub.url())
}

#[tokio::test]
async fn failing_health_check_is_503_and_named_to_admins() {
    let hub = Hub::start().await;
    let health = "health: {file: [{file: HOME/down, interval: 10ms, threshold: 2}]}";
    let served = Home::new()
        .serve("", &format!("{}\n{health}", proxy(&hub)), &[])
        .await;
    assert_eq!(served.get("/v2/").await.0, 200);
    assert_eq!(served.admin("/debug/health").await, (200, "{}".into()));
    served.home.write("down", "");
    eventually("out of service", async || served.get("/v2/").await.0 == 503).await;
    let body: Value = serde_json::from_slice(&served.get("/v2/app/manifests/1").await.1).unwrap();
    assert!(
        body["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("/debug/health"),
        "{body}"
    );
    let (code, text) = served.admin("/debug/health").await;
    assert!(code == 503 && text.contains("the file is there"), "{text}");
    assert_eq!(served.admin("/livez").await.0, 200);
    fs::remove_file(served.home.path("down")).unwrap();
    eventually("back in service", async || served.get("/v2/").await.0 == 200).await;
}

/// The log has one line when a check starts to fail, none while it fails (a reload included), and one when it passes
/// again; in between the server is alive and not ready.
#[tokio::test]
async fn failing_check_is_logged_once_and_unready() {
    let hub = Hub::start().await;
    let health = "health: {file: [{file: HOME/down, interval: 10ms, threshold: 2}]}";
    let yaml = format!("{}\n{health}", proxy(&hub));
    let mut served = Home::new().serve("", &yaml, &[]).await;
    assert_eq!(served.admin("/readyz").await.0, 200);
    served.home.write("down", "");
    let line = served.line("a health check fails").await;
    assert_eq!(
        (&line["level"], &line["reason"]),
        (&"warning".into(), &"the file is there".into())
    );
    let check = format!("file {}", served.home.path("down").display());
    assert_eq!(line["check"], check.as_str());
    for reload in [false, true] {
        if reload {
            served.signal(rustix::process::Signal::HUP);
            served.line("the new configuration is in force").await;
        }
        let (code, text) = served.admin("/readyz").await;
        assert!(code == 503 && text.contains(&check), "{code} {text}");
        assert_eq!(served.admin("/livez").await.0, 200);
        assert_eq!(served.get("/v2/").await.0, 503);
    }
    fs::remove_file(served.home.path("down")).unwrap();
    eventually("ready", async || served.admin("/readyz").await.0 == 200).await;
    assert_eq!(served.get("/v2/").await.0, 200);
    served.signal(rustix::process::Signal::TERM);
    let log = served.rest_of_the_log().await;
    assert!(!log.contains("a health check fails"), "{log}");
    let back: Vec<_> = log.lines().filter(|line| line.contains("passes again")).collect();
    assert!(
        back.len() == 1 && back[0].contains("\"info\"") && back[0].contains(&check),
        "{log}"
    );
}

#[tokio::test]
async fn headers_and_prefix_apply_to_every_response() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    let http = ", prefix: /mirror/, headers: {X-Frame-Options: [deny], Content-Type: [text/html]}";
    let served = Home::new().serve(http, &proxy(&hub), &[]).await;
    for (path, code) in [
        ("/mirror/v2/", 200),
        ("/mirror/v2/app/manifests/v1", 200),
        ("/v2/app/manifests/v1", 404),
    ] {
        let url = format!("http://{}{path}", served.address);
        let answer = crate::served::client().get(url).send().await.unwrap();
        assert_eq!(answer.status(), code, "{path}");
        assert_eq!(answer.headers()["x-frame-options"], "deny", "{path}");
        assert!(answer.headers().contains_key("x-request-id"), "{path}");
        let types: Vec<_> = answer.headers().get_all("content-type").iter().collect();
        assert!(types.len() == 1 && types[0] != "text/html", "{path}: {types:?}");
    }
}

/// A read-only cache serves and stores nothing.
#[tokio::test]
async fn read_only_cache_stores_nothing() {
    let hub = Hub::start().await;
    let digest = hub.push_blob("app", b"bytes");
    hub.push_image("app", "v1", &[b"layer"]);
    let environment = [
        ("REGISTRY_PROXY_CACHE_READONLY", "true"),
        ("REGISTRY_HTTP_DEBUG_PROMETHEUS_ENABLED", "true"),
    ];
    let mut served = Home::new().serve("", &proxy(&hub), &environment).await;
    for _ in 0..2 {
        assert_eq!(
            served.get(&format!("/v2/app/blobs/{digest}")).await,
            (200, b"bytes".to_vec())
        );
        assert_eq!(served.get("/v2/app/manifests/v1").await.0, 200);
    }
    assert_eq!(hub.count("GET blobs"), 2);
    assert!(!served.home.path("cache/docker/registry/v2/blobs/sha256").exists());
    let counted = served.admin("/metrics").await.1;
    assert!(counted.contains("reason=\"readonly\"} 2"), "{counted}");
    assert!(counted.contains("reason=\"noroom\"} 0"), "{counted}");
    served.signal(rustix::process::Signal::TERM);
    let log = served.rest_of_the_log().await;
    assert!(!log.contains("WARN"), "what was asked for is no trouble: {log}");
}

/// A cache that becomes read-only serves its content and sends no additional upstream requests.
#[tokio::test]
async fn read_only_cache_serves_without_extra_requests() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    let yaml = format!("proxy: {{remoteurl: '{}', cache: {{tagttl: 1h}}}}", hub.url());
    let mut served = Home::new().serve("", &yaml, &[]).await;
    let (_, manifest) = served.get("/v2/app/manifests/v1").await;
    served.signal(rustix::process::Signal::TERM);
    served.ended().await;
    let environment = [("REGISTRY_PROXY_CACHE_READONLY", "true")];
    let served = served.home.serve("", &yaml, &environment).await;
    hub.forget();
    for _ in 0..3 {
        assert_eq!(served.get("/v2/app/manifests/v1").await, (200, manifest.clone()));
    }
    assert_eq!(hub.seen("*").len(), 0, "asked though the tag is fresh");
}

/// A configuration of Distribution in maintenance still makes a cache: only clients are refused changes.
#[tokio::test]
async fn maintenance_readonly_still_caches() {
    let hub = Hub::start().await;
    let digest = hub.push_blob("app", b"bytes");
    let environment = [("REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED", "true")];
    let mut served = Home::new().serve("", &proxy(&hub), &environment).await;
    for _ in 0..2 {
        assert_eq!(served.get(&format!("/v2/app/blobs/{digest}")).await.0, 200);
    }
    assert_eq!(hub.count("GET blobs"), 1);
    let upload = format!("http://{}/v2/app/blobs/uploads/", served.address);
    let refused = crate::served::client().post(upload).send().await.unwrap();
    assert_eq!(refused.status(), 405);
    served.signal(rustix::process::Signal::TERM);
    served.ended().await;
}

/// `proxy.cache.readonly` changes with a reload, in both directions.
#[tokio::test]
async fn readonly_changes_on_reload() {
    let hub = Hub::start().await;
    let digests = [b"a", b"b"].map(|data| hub.push_blob("app", data));
    let yaml = proxy(&hub);
    let mut served = Home::new().serve("", &yaml, &[]).await;
    let path = served.home.path("config.yml");
    let writable = fs::read_to_string(&path).unwrap();
    let readonly = writable.replace("cache: {", "cache: {readonly: true, ");
    for (text, digest, asked) in [(&readonly, &digests[0], 2), (&writable, &digests[1], 3)] {
        fs::write(&path, text).unwrap();
        served.signal(rustix::process::Signal::HUP);
        served.line("the new configuration is in force").await;
        for _ in 0..2 {
            assert_eq!(served.get(&format!("/v2/app/blobs/{digest}")).await.0, 200);
        }
        assert_eq!(hub.count("GET blobs"), asked);
    }
}

/// A certificate of its own authority for 127.0.0.1, written where the server looks.
fn renew(home: &Home) -> Certificate {
    let issued =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    home.write("tls.key", &issued.signing_key.serialize_pem());
    home.write("tls.crt", &issued.cert.pem());
    Certificate::from_pem(issued.cert.pem().as_bytes()).unwrap()
}

async fn answers(served: &Served, trusted: &Certificate, identity: Option<Identity>) -> bool {
    let builder = Client::builder().no_proxy().tls_certs_only([trusted.clone()]);
    let builder = match identity {
        Some(identity) => builder.identity(identity),
        None => builder,
    };
    let url = format!("https://{}/v2/", served.address);
    builder
        .build()
        .unwrap()
        .get(url)
        .send()
        .await
        .is_ok_and(|answer| answer.status() == 200)
}

/// The server serves a renewed certificate without a restart.
#[tokio::test]
async fn renewed_certificate_needs_no_restart() {
    crate::served::client();
    let (hub, home) = (Hub::start().await, Home::new());
    let first = renew(&home);
    let tls = ", tls: {certificate: HOME/tls.crt, key: HOME/tls.key}";
    let served = home.serve(tls, &proxy(&hub), &[]).await;
    assert!(answers(&served, &first, None).await);
    let second = renew(&served.home);
    eventually("the new certificate", async || {
        answers(&served, &second, None).await
    })
    .await;
    assert!(!answers(&served, &first, None).await);
}

/// A client's certificate with its key, and the authority that gave it.
fn client_identity() -> (Identity, String) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["client.test".into()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let pem = format!("{}{}", leaf.pem(), key.serialize_pem());
    (Identity::from_pem(pem.as_bytes()).unwrap(), ca)
}

#[tokio::test]
async fn client_cas_are_enforced_and_reloaded() {
    crate::served::client();
    let (hub, home) = (Hub::start().await, Home::new());
    let own = renew(&home);
    let ((jane, first_ca), (john, second_ca)) = (client_identity(), client_identity());
    home.write("clients.pem", &first_ca);
    let tls = ", tls: {certificate: HOME/tls.crt, key: HOME/tls.key, clientcas: [HOME/clients.pem]}";
    let mut served = home.serve(tls, &proxy(&hub), &[]).await;
    assert!(answers(&served, &own, Some(jane.clone())).await);
    // The name of both authorities is the same.
    for (refused, reason) in [(Some(john.clone()), "BadSignature"), (None, "no certificates")] {
        assert!(!answers(&served, &own, refused).await);
        let line = served.line("the certificate of the client").await;
        assert_eq!(line["level"], "info", "{line}");
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
    }
    served.home.write("clients.pem", &second_ca);
    eventually("the other authority", async || {
        answers(&served, &own, Some(john.clone())).await
    })
    .await;
    assert!(!answers(&served, &own, Some(jane)).await);
}

#[tokio::test]
async fn htpasswd_edit_counts_at_once() {
    let (hub, home) = (Hub::start().await, Home::new());
    let listed = |user: &str| format!("{user}:{}\n", bcrypt::hash("secret", 4).unwrap());
    home.write("users", &listed("jane"));
    let auth = "auth: {htpasswd: {realm: mirror, path: HOME/users}}";
    let served = home.serve("", &format!("{}\n{auth}", proxy(&hub)), &[]).await;
    let code = async |user: &str| {
        let request = crate::served::client().get(format!("http://{}/v2/", served.address));
        request
            .basic_auth(user, Some("secret"))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!((code("jane").await, code("john").await), (200, 401));
    for _ in 0..4 {
        served.home.write("users", &listed("john"));
        assert_eq!((code("jane").await, code("john").await), (401, 200));
        served.home.write("users", &listed("jane"));
        assert_eq!((code("jane").await, code("john").await), (200, 401));
    }
}

/// Without its htpasswd file the server admits no user until the file exists.
#[tokio::test]
async fn missing_htpasswd_admits_no_user_until_created() {
    let (hub, home) = (Hub::start().await, Home::new());
    let auth = "auth: {htpasswd: {realm: mirror, path: HOME/users}}";
    let mut served = home.serve("", &format!("{}\n{auth}", proxy(&hub)), &[]).await;
    let code = async |served: &crate::served::Served| {
        let request = crate::served::client().get(format!("http://{}/v2/app/tags/list", served.address));
        let sent = request.basic_auth("jane", Some("secret")).send();
        sent.await.unwrap().status().as_u16()
    };
    assert_eq!(code(&served).await, 401);
    let error = served.status().await["usersError"].to_string();
    assert!(
        error.contains("all logins are refused until it is there"),
        "{error}"
    );
    let line = format!("jane:{}\n", bcrypt::hash("secret", 4).unwrap());
    served.home.write("users", &line);
    assert_eq!(code(&served).await, 404);
    assert!(served.status().await["usersError"].is_null());
    served.line("users can log in").await;
}

/// On SIGHUP new cache settings apply to content that is cached already.
#[tokio::test]
async fn sighup_applies_cache_settings_to_cached_content() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    for _ in 0..2 {
        served.get("/v2/app/manifests/v1").await;
    }
    assert_eq!(hub.count("HEAD manifests"), 1);
    let yaml = fs::read_to_string(served.home.path("config.yml")).unwrap();
    served
        .home
        .write("config.yml", &yaml.replace("maxsize", "tagttl: 1h, maxsize"));
    served.signal(rustix::process::Signal::HUP);
    served.line("in force").await;
    served.get("/v2/app/manifests/v1").await;
    assert_eq!(hub.count("HEAD manifests"), 1);
}

/// An offline server keeps content that is older than its time to live; once it is online again, such content goes.
#[tokio::test]
async fn offline_server_keeps_expired_content() {
    let hub = Hub::start().await;
    let (digest, _) = hub.push_image("app", "v1", &[b"layer"]);
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    let path = format!("/v2/app/manifests/{digest}");
    assert_eq!(served.get(&path).await.0, 200);
    let yaml = fs::read_to_string(served.home.path("config.yml")).unwrap();
    for keys in ["offline: true", "offline: true, tagttl: 1h", "tagttl: 1h"] {
        let yaml = yaml.replace("maxsize", &format!("{keys}, maxsize"));
        let yaml = yaml.replace("remoteurl", "ttl: 1ns, remoteurl");
        served.home.write("config.yml", &yaml);
        served.signal(rustix::process::Signal::HUP);
        served.line("in force").await;
        if keys.contains("offline") {
            assert_eq!(served.get(&path).await.0, 200, "{keys}");
            assert_eq!(hub.count("GET manifests"), 1);
        }
    }
    served.line("content expired").await;
    assert_eq!(served.get(&path).await.0, 200);
    assert!(hub.count("GET manifests") > 1);
}

/// The access log distinguishes whole responses from those that were cut.
#[tokio::test]
async fn access_log_marks_cut_responses() {
    let hub = Hub::start().await;
    let (small, large) = (
        hub.push_blob("app", b"small"),
        hub.push_blob("app", vec![7; 1 << 20]),
    );
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    let path = |digest| format!("/v2/app/blobs/{digest}");
    for (method, path) in [
        ("GET", path(&small)),
        ("HEAD", path(&small)),
        ("GET", path(&large)),
        ("GET", "/v2/app/tags/list".to_owned()),
        ("GET", "/v2/unknown/manifests/1".to_owned()),
        ("GET", "/v2/".to_owned()),
    ] {
        let url = format!("http://{}{path}", served.address);
        let answer = crate::served::client()
            .request(method.parse().unwrap(), url)
            .send()
            .await;
        answer.unwrap().bytes().await.unwrap();
        let line = served.line("\"request\"").await;
        assert_eq!(line["whole"], true, "{line}");
    }
    hub.once("GET blobs", Fault::Stall(600_000));
    let cut = hub.push_blob("app", vec![8; 1 << 20]);
    let url = format!("http://{}{}", served.address, path(&cut));
    let mut answer = crate::served::client().get(url).send().await.unwrap();
    answer.chunk().await.unwrap();
    drop(answer);
    let line = served.line("\"request\"").await;
    assert_eq!(line["whole"], false, "{line}");
}

#[tokio::test]
async fn configuration_waits_for_its_ca_file() {
    let (near, far, home) = (Hub::start().await, Hub::start_tls().await, Home::new());
    let digest = far.push_blob("app", b"bytes");
    let yaml = |far: &str| {
        format!(
            "proxy: {{filesdirectory: HOME/files, cache: {{maxsize: 1Gi}}, upstreams: [\
             {{host: near.test, remoteurl: '{}'}}{far}]}}",
            near.url()
        )
    };
    let mut served = home.serve("", &yaml(""), &[]).await;
    let before = fs::read_to_string(served.home.path("config.yml")).unwrap();
    let with = format!(
        ", {{host: far.test, remoteurl: '{}', tls: {{cafile: far.pem}}}}]",
        far.url()
    );
    served.home.write("config.yml", &before.replace(']', &with));
    served.line("far.pem").await;
    served.forget_log();
    assert_eq!(
        served.get(&format!("/v2/app/blobs/{digest}?ns=far.test")).await.0,
        404
    );
    fs::create_dir(served.home.path("files")).unwrap();
    fs::copy(far.ca_file().unwrap(), served.home.path("files/far.pem")).unwrap();
    eventually("the new upstream", async || {
        served.get(&format!("/v2/app/blobs/{digest}?ns=far.test")).await.0 == 200
    })
    .await;
    eventually("no error any more", async || {
        served.status().await.get("configurationError").is_none()
    })
    .await;
}

/// A large hit over TLS arrives byte for byte.
#[tokio::test]
async fn large_tls_hit_is_byte_identical() {
    crate::served::client();
    let (hub, home) = (Hub::start().await, Home::new());
    let data: Vec<u8> = (0..3_000_001_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
    let digest = hub.push_blob("app", &data);
    let trusted = renew(&home);
    let tls = ", tls: {certificate: HOME/tls.crt, key: HOME/tls.key}";
    let served = home.serve(tls, &proxy(&hub), &[]).await;
    let url = format!("https://{}/v2/app/blobs/{digest}", served.address);
    for http1 in [true, false] {
        let builder = Client::builder().no_proxy().tls_certs_only([trusted.clone()]);
        let builder = if http1 { builder.http1_only() } else { builder };
        let client = builder.build().unwrap();
        for _ in 0..2 {
            let answer = client.get(&url).send().await.unwrap();
            assert!(answer.bytes().await.unwrap() == data, "other bytes");
        }
    }
}

/// The page of a running server shows its upstreams and images, and its JSON has the same; `admin.page: false` removes
/// both.
#[tokio::test]
async fn page_shows_a_running_server() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    let served = Home::new().serve("", &proxy(&hub), &[]).await;
    for _ in 0..3 {
        assert_eq!(served.get("/v2/app/manifests/v1").await.0, 200);
    }
    let (code, page) = served.admin("/?q=app&sort=name").await;
    assert_eq!(code, 200);
    let host = served.status().await["upstreams"][0]["host"]
        .as_str()
        .unwrap()
        .to_owned();
    for part in ["<html lang=\"en\">", &host, "app:v1", "Hit ratio", "ready"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let json = async |path: &str| {
        let (code, text) = served.admin(path).await;
        assert_eq!(code, 200, "{path}: {text}");
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let content = json("/status/content?q=app&sort=size&n=1").await;
    assert_eq!((&content["total"], &content["matching"]), (&1.into(), &1.into()));
    let image = &content["images"][0];
    assert!(image["name"].as_str().unwrap().ends_with("/app:v1"), "{image}");
    assert!(image["bytes"].as_u64().unwrap() > 0, "{image}");
    assert!(image["platforms"].is_array(), "{image}");
    assert_eq!(
        json("/status/content?q=nothing").await["images"],
        serde_json::json!([])
    );
    assert_eq!(json("/status/fills").await, serde_json::json!([]));
    let history = json("/status/history").await;
    let hits = history["periods"][0]["hits"].as_u64().unwrap();
    let misses = history["periods"][1]["misses"].as_u64().unwrap();
    assert_eq!(hits + misses, 3, "{history}");

    let yaml = format!("admin: {{page: false}}\n{}", proxy(&hub));
    let served = Home::new().serve("", &yaml, &[]).await;
    for path in ["/", "/status/content", "/status/fills", "/status/history"] {
        assert_eq!(served.admin(path).await.0, 404, "{path}");
    }
    assert_eq!(served.admin("/status").await.0, 200);
}

/// A name that a browser resolved to the admin port reads no page (DNS rebinding); a reload takes another name.
#[tokio::test]
async fn rebound_name_gets_421_unless_configured() {
    let hub = Hub::start().await;
    let served = Home::new().serve("", &proxy(&hub), &[]).await;
    let ask = async |path: &str, host: &str| {
        let request = crate::served::client().get(format!("http://{}{path}", served.admin));
        let answer = request.header("host", host).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    for path in ["/", "/status", "/status/content"] {
        let (code, text) = ask(path, "mirror.example.com:5001").await;
        assert_eq!(code, 421, "{path}: {text}");
        assert!(text.contains("admin.hosts"), "{text}");
        assert_eq!(
            ask(path, "hub-0.hub-headless.mirrors.svc:5001").await.0,
            200,
            "{path}"
        );
    }
    for path in ["/livez", "/metrics"] {
        assert_eq!(ask(path, "mirror.example.com").await.0, 200, "{path}");
    }
    let path = served.home.path("config.yml");
    let named = format!(
        "{}\nadmin: {{hosts: [mirror.example.com]}}\n",
        fs::read_to_string(&path).unwrap()
    );
    fs::write(&path, named).unwrap();
    served.signal(rustix::process::Signal::HUP);
    eventually("the name of the setting", async || {
        ask("/status", "mirror.example.com").await.0 == 200
    })
    .await;
    assert_eq!(ask("/status", "evil.example").await.0, 421);
}

/// A GET of a manifest, by tag or digest, is a pull of its image; a HEAD and an answer of 304 are none. The pulls are there
/// at once and after a restart, order the images, and are a column of the page.
#[tokio::test]
async fn pulls_of_images_are_counted() {
    let hub = Hub::start().await;
    for (repository, layer) in [("often", b"first"), ("rare", b"other")] {
        hub.push_image(repository, "v1", &[layer]);
    }
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    let head = crate::served::client().head(format!("http://{}/v2/often/manifests/v1", served.address));
    let head = head.send().await.unwrap();
    let etag = head.headers()["etag"].clone();
    let digest = head.headers()["docker-content-digest"]
        .to_str()
        .unwrap()
        .to_owned();
    for path in [
        "often/manifests/v1",
        &format!("often/manifests/{digest}"),
        "rare/manifests/v1",
    ] {
        assert_eq!(served.get(&format!("/v2/{path}")).await.0, 200, "{path}");
    }
    let unchanged = crate::served::client()
        .get(format!("http://{}/v2/often/manifests/v1", served.address))
        .header("if-none-match", etag);
    assert_eq!(unchanged.send().await.unwrap().status(), 304);

    let pulls = async |served: &crate::served::Served| {
        let (code, text) = served.admin("/status/content?sort=pulls").await;
        assert_eq!(code, 200, "{text}");
        let content: serde_json::Value = serde_json::from_str(&text).unwrap();
        let images = content["images"].as_array().unwrap().clone();
        let pulls = images.into_iter().map(|image| {
            let name = image["name"]
                .as_str()
                .unwrap()
                .rsplit_once('/')
                .unwrap()
                .1
                .to_owned();
            (name, image["pulls"].as_u64().unwrap())
        });
        pulls.collect::<Vec<_>>()
    };
    let expected = [("often:v1".to_owned(), 2), ("rare:v1".to_owned(), 1)];
    assert_eq!(pulls(&served).await, expected);
    let (_, page) = served.admin("/?sort=pulls").await;
    assert!(
        page.contains(">Pulls</th>") && page.contains("<option value=\"pulls\" selected>"),
        "{page}"
    );

    served.signal(rustix::process::Signal::TERM);
    served.ended().await;
    let served = served.home.serve("", &proxy(&hub), &[]).await;
    assert_eq!(pulls(&served).await, expected);
    assert_eq!(served.get("/v2/rare/manifests/v1").await.0, 200);
    assert_eq!(pulls(&served).await[1].1, 2);
}

/// The history of a server continues after a restart, with the earlier requests.
#[tokio::test]
async fn history_continues_after_server_restart() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    for _ in 0..3 {
        assert_eq!(served.get("/v2/app/manifests/v1").await.0, 200);
    }
    served.signal(rustix::process::Signal::TERM);
    served.ended().await;

    let served = served.home.serve("", &proxy(&hub), &[]).await;
    eventually("the earlier history", async || {
        let (_, text) = served.admin("/status/history").await;
        let history: serde_json::Value = serde_json::from_str(&text).unwrap();
        let day = &history["periods"][1];
        day["hits"].as_u64().unwrap() + day["misses"].as_u64().unwrap() == 3
    })
    .await;
    let status = served.status().await;
    assert_eq!(status["lastDay"]["hits"], 2, "{status}");
    assert!(status["cache"]["oldestUse"].is_string(), "{status}");
}

/// The status of an upstream that is down has its last error, the time of it, and the time of the next try; so has the page.
#[tokio::test]
async fn status_has_last_error_and_next_try() {
    let mut hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    let served = Home::new().serve("", &proxy(&hub), &[]).await;
    assert_eq!(served.get("/v2/app/manifests/v1").await.0, 200);
    let upstream = async || served.status().await["upstreams"][0].clone();
    assert!(upstream().await.get("lastError").is_none());
    hub.stop();
    assert_ne!(served.get("/v2/app/manifests/v2").await.0, 200);
    eventually("down", async || upstream().await["state"] == "Unreachable").await;
    let found = upstream().await;
    assert!(
        found["lastError"].as_str().unwrap().contains("unavailable"),
        "{found}"
    );
    for key in ["lastErrorTime", "nextTry"] {
        let time = found[key].as_str().unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{found}");
    }
    let (_, page) = served.admin("/?refresh=off").await;
    assert!(
        page.contains("next try") && page.contains("unavailable"),
        "{page}"
    );
}
