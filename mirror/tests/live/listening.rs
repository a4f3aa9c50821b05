//! The listeners of a server and its end: sockets, prefixes, pages, health, and the drain.

use std::process::Command;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;
use test_case::test_case;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::hub::{Fault, Gate, Hub};
use crate::openssl::{LOCAL, Openssl};
use crate::served::{Home, Served, client, eventually};

const MIB: usize = 1024 * 1024;

fn proxy(hub: &Hub) -> String {
    format!("proxy: {{remoteurl: '{}', cache: {{maxsize: 1Gi}}}}", hub.url())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_pulls_over_a_unix_socket() {
    let hub = Hub::start().await;
    let digest = hub.push_blob("app", b"bytes");
    let home = Home::new();
    let socket = home.path("m.sock").display().to_string();
    let environment = [
        ("REGISTRY_HTTP_NET", "unix"),
        ("REGISTRY_HTTP_ADDR", socket.as_str()),
    ];
    let served = home.serve("", &proxy(&hub), &environment).await;
    assert_eq!(served.address, socket);
    for _ in 0..2 {
        let curl = Command::new("curl")
            .args(["-sSi", "--unix-socket", &socket])
            .arg(format!("http://mirror/v2/app/blobs/{digest}"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&curl.stdout).to_lowercase();
        assert!(
            said.starts_with("http/1.1 200") && said.ends_with("bytes"),
            "{said}"
        );
    }
}

/// A client that reads the end of a response late still receives all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reader_gets_the_end_of_a_response() {
    let hub = Hub::start().await;
    // More than the socket takes: its end waits in the server for the client.
    let data: Vec<u8> = (0..300_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let digest = hub.push_blob("app", &data);
    let home = Home::new();
    let socket = home.path("m.sock").display().to_string();
    let environment = [
        ("REGISTRY_HTTP_NET", "unix"),
        ("REGISTRY_HTTP_ADDR", socket.as_str()),
    ];
    let _served = home.serve("", &proxy(&hub), &environment).await;
    let connect = || tokio::net::UnixStream::connect(&socket);
    let (mut late, mut silent) = (connect().await.unwrap(), connect().await.unwrap());
    let request = format!("GET /v2/app/blobs/{digest} HTTP/1.1\r\nhost: m\r\n\r\n");
    late.write_all(request.as_bytes()).await.unwrap();
    late.readable().await.unwrap();
    // Until others would have been cut for what they do not send.
    silent.read_to_end(&mut Vec::new()).await.unwrap();
    let mut answer = vec![0; data.len()];
    late.read_exact(&mut answer).await.unwrap();
    let head = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
    let mut rest = vec![0; head];
    late.read_exact(&mut rest).await.unwrap();
    answer.extend(rest);
    assert!(answer[head..] == data, "other bytes");
}

/// Sends the bytes of a request, and returns the field lines of the answer.
async fn field_lines(address: &str, request: &str) -> (String, Vec<String>) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("{request}\r\nHost: mirror\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    let mut lines = std::str::from_utf8(&answer[..end]).unwrap().lines();
    let status = lines.next().unwrap().to_owned();
    (status, lines.map(str::to_owned).collect())
}

/// Go writes each word of a field name with a capital, also where other software writes `WWW` or `ETag`.
fn is_written_as_in_go(line: &str) -> bool {
    let name = line.split(':').next().unwrap();
    name.split('-').all(|word| {
        word.starts_with(|c: char| !c.is_ascii_lowercase())
            && !word[1..].contains(|c: char| c.is_ascii_uppercase())
    })
}

/// Clients that compare field names as text know those of Distribution.
#[tokio::test]
async fn http1_header_names_have_go_case() {
    let (hub, home) = (Hub::start().await, Home::new());
    let digest = hub.push_blob("app", vec![7; 2 * MIB]);
    hub.push_image("app", "v1", &[b"layer"]);
    let auth = "auth: {htpasswd: {realm: mirror, path: HOME/users}}";
    let closed = Home::new();
    closed.write("users", "");
    let closed = closed.serve("", &format!("{}\n{auth}", proxy(&hub)), &[]).await;
    let served = home.serve(", headers: {x-own: [a]}", &proxy(&hub), &[]).await;
    let (blob, manifest) = (format!("/v2/app/blobs/{digest}"), "/v2/app/manifests/v1");
    let range = |ranges: &str| format!("GET {blob} HTTP/1.1\r\nRange: bytes={ranges}");
    for (address, request, status, expected) in [
        (
            &served.address,
            "GET /v2/ HTTP/1.1".to_owned(),
            "200",
            "Docker-Distribution-Api-Version",
        ),
        (
            &served.address,
            format!("GET {manifest} HTTP/1.1"),
            "200",
            "Docker-Content-Digest",
        ),
        (
            &served.address,
            format!("HEAD {manifest} HTTP/1.1"),
            "200",
            "Etag",
        ),
        (
            &served.address,
            format!("GET {blob} HTTP/1.1"),
            "200",
            "Content-Length",
        ),
        (&served.address, format!("GET {blob} HTTP/1.1"), "200", "X-Cache"),
        (&served.address, format!("GET {blob} HTTP/1.0"), "200", "X-Own"),
        (&served.address, range("0-9"), "206", "Content-Range"),
        (&served.address, range("0-9,20-29"), "206", "Content-Type"),
        (&served.address, range("9999999-"), "416", "Content-Range"),
        (
            &served.address,
            "GET /v2/app/tags/list?n=1 HTTP/1.1".to_owned(),
            "200",
            "Content-Type",
        ),
        (
            &served.address,
            "GET /v2/none/manifests/v1 HTTP/1.1".to_owned(),
            "404",
            "Content-Type",
        ),
        (
            &served.address,
            "PUT /v2/app/manifests/v1 HTTP/1.1".to_owned(),
            "405",
            "Content-Type",
        ),
        (&served.address, "GET  HTTP".to_owned(), "400", "Date"),
        (
            &served.admin,
            "GET /metrics HTTP/1.1".to_owned(),
            "200",
            "Content-Type",
        ),
        (
            &closed.address,
            "GET /v2/ HTTP/1.1".to_owned(),
            "401",
            "Www-Authenticate",
        ),
    ] {
        let (first, lines) = field_lines(address, &request).await;
        assert_eq!(first.split(' ').nth(1), Some(status), "{request}");
        let start = format!("{expected}: ");
        assert!(
            lines.iter().any(|line| line.starts_with(&start)),
            "{request}: {lines:?}"
        );
        assert!(
            lines.iter().all(|line| is_written_as_in_go(line)),
            "{request}: {lines:?}"
        );
    }
}

/// Follows `Link` from page to page, and gathers what `field` lists.
async fn walk(served: &Served, path: &str, field: &str) -> (Vec<String>, usize) {
    let (mut path, mut names, mut pages) = (path.to_owned(), Vec::new(), 0);
    loop {
        let url = format!("http://{}{path}", served.address);
        let answer = client().get(url).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        pages += 1;
        let link = answer
            .headers()
            .get("link")
            .map(|link| link.to_str().unwrap().to_owned());
        let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        names.extend(
            body[field]
                .as_array()
                .unwrap()
                .iter()
                .map(|name| name.as_str().unwrap().to_owned()),
        );
        let Some(link) = link else {
            return (names, pages);
        };
        let (target, relation) = link.trim_start_matches('<').split_once('>').unwrap();
        assert_eq!(relation, "; rel=\"next\"");
        target.clone_into(&mut path);
    }
}

#[tokio::test]
async fn catalog_and_tags_paginate_behind_prefix() {
    let mut hub = Hub::start().await;
    let upstream = format!("upstreams: [{{host: registry.test, remoteurl: '{}'}}]", hub.url());
    let yaml = format!("proxy: {{{upstream}, cache: {{maxsize: 1Gi}}}}");
    let served = Home::new().serve(", prefix: /mirror", &yaml, &[]).await;
    for (repository, tag) in [("a", "v1"), ("a", "v2"), ("a", "v3"), ("b/c", "v1"), ("d", "v1")] {
        hub.push_image(repository, tag, &[b"layer"]);
        let path = format!("/mirror/v2/{repository}/manifests/{tag}?ns=registry.test");
        assert_eq!(served.get(&path).await.0, 200);
    }
    for gone in [false, true] {
        let (tags, pages) = walk(&served, "/mirror/v2/a/tags/list?n=1&ns=registry.test", "tags").await;
        assert_eq!(
            (tags, pages),
            (["v1", "v2", "v3"].map(String::from).to_vec(), 3),
            "gone: {gone}"
        );
        let (names, pages) = walk(&served, "/mirror/v2/_catalog?n=2", "repositories").await;
        assert_eq!(
            (names, pages),
            (["a", "b/c", "d"].map(String::from).to_vec(), 2),
            "gone: {gone}"
        );
        hub.stop();
    }
}

#[tokio::test]
async fn failing_health_checks_end_service_after_threshold() {
    let (hub, mut watched) = (Hub::start().await, Hub::start().await);
    let (page, port) = (watched.url().join("v2/").unwrap(), watched.url().port().unwrap());
    let often = "interval: 100ms, threshold: 3";
    let health = format!(
        "health: {{storagedriver: {{enabled: true, {often}}}, tcp: [{{addr: '127.0.0.1:{port}', {often}}}], \
         http: [{{uri: '{page}', {often}}}]}}"
    );
    let mut served = Home::new()
        .serve("", &format!("{}\n{health}", proxy(&hub)), &[])
        .await;
    eventually("in service", async || served.get("/v2/").await.0 == 200).await;
    let asked = watched.count("HEAD /v2/");
    watched.always("HEAD /v2/", Fault::status(500));
    eventually("out of service by the page", async || {
        served.get("/v2/").await.0 == 503
    })
    .await;
    let failures = watched
        .seen("HEAD /v2/")
        .iter()
        .skip(asked)
        .filter(|seen| seen.status == 500)
        .count();
    assert!(failures >= 3, "out of service after {failures} failures");
    let (code, text) = served.admin("/debug/health").await;
    assert!(
        code == 503 && text.contains(page.as_str()) && !text.contains("tcp"),
        "{text}"
    );
    let (code, text) = served.admin("/readyz").await;
    assert!(code == 503 && text.contains(page.as_str()), "{text}");
    watched.stop();
    eventually("the port", async || {
        served
            .admin("/debug/health")
            .await
            .1
            .contains(&format!("tcp 127.0.0.1:{port}"))
    })
    .await;
    watched.heal();
    watched.restart().await;
    eventually("back in service", async || served.get("/v2/").await.0 == 200).await;
    // A file in the place of the root: the next write of the server would make a missing root again.
    let (cache, file) = (served.home.path("cache"), served.home.path("file"));
    std::fs::write(&file, "").unwrap();
    let exchange = || renameat_with(CWD, &cache, CWD, &file, RenameFlags::EXCHANGE).unwrap();
    exchange();
    eventually("out of service by the storage", async || {
        served.get("/v2/").await.0 == 503
    })
    .await;
    assert!(served.admin("/debug/health").await.1.contains("storage"));
    assert_eq!(served.admin("/livez").await.0, 200);
    exchange();
    eventually("the storage back", async || served.get("/v2/").await.0 == 200).await;
    assert_eq!(served.admin("/readyz").await.0, 200);
    served.signal(rustix::process::Signal::TERM);
    let log = served.rest_of_the_log().await;
    for check in [
        format!("http {page}"),
        format!("tcp 127.0.0.1:{port}"),
        "storage".to_owned(),
    ] {
        let lines = |message: &str| {
            let check = format!("\"check\":\"{check}\"");
            let of = |line: &&str| line.contains(message) && line.contains(&check);
            log.lines().filter(of).count()
        };
        assert_eq!(
            (lines("a health check fails"), lines("passes again")),
            (1, 1),
            "{check}: {log}"
        );
    }
}

/// A client half-way through a blob that upstream holds back.
async fn half_way(hub: &Hub, served: &Served, gate: &Gate) -> (reqwest::Response, Vec<u8>) {
    let data: Vec<u8> = (0..4 * MIB).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let digest = hub.push_blob("app", &data);
    hub.once("GET blobs", Fault::Wait(2 * MIB, gate.clone()));
    let url = format!("http://{}/v2/app/blobs/{digest}", served.address);
    let mut answer = client().get(url).send().await.unwrap();
    let first = answer.chunk().await.unwrap().unwrap();
    assert!(data.starts_with(&first));
    (answer, data[first.len()..].to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_completes_fill_and_refuses_new_clients() {
    let (hub, gate) = (Hub::start().await, Gate::shut());
    let mut served = Home::new().serve(", draintimeout: 1m", &proxy(&hub), &[]).await;
    let (answer, rest) = half_way(&hub, &served, &gate).await;
    served.signal(rustix::process::Signal::TERM);
    eventually("not ready", async || served.admin("/readyz").await.0 == 503).await;
    let url = format!("http://{}/v2/", served.address);
    eventually("no new client", async || client().get(&url).send().await.is_err()).await;
    gate.open();
    assert!(answer.bytes().await.unwrap() == rest, "other bytes");
    assert_eq!(served.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lame_duck_serves_while_not_ready() {
    let hub = Hub::start().await;
    let mut served = Home::new().serve(", lameduck: 2s", &proxy(&hub), &[]).await;
    let url = format!("http://{}/v2/", served.address);
    served.signal(rustix::process::Signal::TERM);
    eventually("not ready", async || served.admin("/readyz").await.0 == 503).await;
    assert_eq!(client().get(&url).send().await.unwrap().status(), 200);
    eventually("no new client", async || client().get(&url).send().await.is_err()).await;
    assert_eq!(served.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fill_beyond_drain_time_is_truncated() {
    let (hub, gate) = (Hub::start().await, Gate::shut());
    let mut served = Home::new()
        .serve(", draintimeout: 300ms", &proxy(&hub), &[])
        .await;
    let (answer, _) = half_way(&hub, &served, &gate).await;
    served.signal(rustix::process::Signal::TERM);
    assert_eq!(served.ended().await, Some(0));
    assert!(answer.bytes().await.is_err(), "a cut body looks whole");
    assert!(!served.home.path("cache/docker/registry/v2/blobs/sha256").exists());
}

/// A request by curl, which speaks TLS with OpenSSL; the status, or what curl says.
fn curl(served: &Served, openssl: &Openssl, options: &str) -> Result<String, String> {
    let output = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*"])
        .args(["--cacert", "self.crt"])
        .args(options.split_whitespace())
        .arg(format!("https://{}/v2/", served.address))
        .current_dir(openssl.path(""))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    output
        .status
        .success()
        .then(|| text(&output.stdout))
        .ok_or_else(|| text(&output.stderr))
}

/// A server with the self-signed certificate that openssl makes with these options.
async fn behind_tls(hub: &Hub, openssl: &Openssl, options: &str, more: &str) -> Served {
    openssl.self_signed(&format!("-newkey {options} -addext {LOCAL}"));
    let (certificate, key) = (openssl.path("self.crt"), openssl.path("self.key"));
    let tls = format!(
        ", tls: {{certificate: {}, key: {}{more}}}",
        certificate.display(),
        key.display()
    );
    Home::new().serve(&tls, &proxy(hub), &[]).await
}

#[test_case("rsa:2048")]
#[test_case("rsa:4608"; "rsa above 4096 bits")]
#[test_case("ec -pkeyopt ec_paramgen_curve:prime256v1 -sha512")]
#[test_case("ec -pkeyopt ec_paramgen_curve:secp384r1")]
#[test_case("ec -pkeyopt ec_paramgen_curve:secp521r1 -sha512")]
#[test_case("ed25519")]
#[tokio::test]
async fn certificate_of_every_usual_key_is_served(key: &str) {
    let (hub, openssl) = (Hub::start().await, Openssl::new());
    let served = behind_tls(&hub, &openssl, key, "").await;
    for version in ["--tlsv1.3", "--tls-max 1.2", "--http1.1"] {
        assert_eq!(
            curl(&served, &openssl, version).as_deref(),
            Ok("200"),
            "{version}"
        );
    }
}

/// `http.tls.minimumtls` and the versions that are never spoken.
#[test_case("", &[("--tls-max 1.1", false), ("--tls-max 1.2", true), ("--tlsv1.3", true)])]
#[test_case(", minimumtls: tls1.0", &[("--tls-max 1.1", false), ("--tls-max 1.2", true)])]
#[test_case(", minimumtls: tls1.2", &[("--tls-max 1.1", false), ("--tls-max 1.2", true), ("--tlsv1.3", true)])]
#[test_case(", minimumtls: tls1.3", &[("--tls-max 1.2", false), ("--tlsv1.3", true)])]
#[tokio::test]
async fn minimum_tls_version_is_required(setting: &str, expected: &[(&str, bool)]) {
    let (hub, openssl) = (Hub::start().await, Openssl::new());
    let served = behind_tls(&hub, &openssl, "rsa:2048", setting).await;
    for (version, is_served) in expected {
        let answer = curl(&served, &openssl, version);
        assert_eq!(answer.is_ok(), *is_served, "{version}: {answer:?}");
    }
}

/// A client's certificate that is itself in `http.tls.clientcas` needs no issuer, and may be self-signed with `CA:TRUE`.
#[tokio::test]
async fn listed_client_certificate_is_admitted() {
    let (hub, openssl) = (Hub::start().await, Openssl::new());
    openssl.issued("-newkey rsa:2048", "sha256", "extendedKeyUsage=clientAuth");
    openssl.run("req -x509 -newkey rsa:2048 -nodes -keyout own.key -out own.crt -subj /CN=client");
    openssl.run("req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.crt -subj /CN=client");
    openssl.run(
        "req -x509 -newkey rsa:2048 -nodes -keyout server.key -out server.crt -subj /CN=s -addext extendedKeyUsage=serverAuth",
    );
    let listed = ["leaf.crt", "own.crt", "server.crt"].map(|name| openssl.path(name).display().to_string());
    let client_cas = format!(", clientcas: [{}]", listed.join(", "));
    let served = behind_tls(&hub, &openssl, "rsa:2048", &client_cas).await;
    for (name, is_served) in [("leaf", true), ("own", true), ("other", false), ("server", false)] {
        let answer = curl(&served, &openssl, &format!("--cert {name}.crt --key {name}.key"));
        assert_eq!(answer.is_ok(), is_served, "{name}: {answer:?}");
    }
    let answer = curl(&served, &openssl, "");
    assert!(answer.is_err(), "without a certificate: {answer:?}");
}

/// A health check trusts the CAs of the system, and a certificate that is itself among them.
#[tokio::test]
async fn https_health_check_trusts_listed_certificate() {
    let openssl = Openssl::new();
    let own = openssl.self_signed(&format!("-newkey rsa:2048 -addext {LOCAL}"));
    let other = Openssl::new();
    other.self_signed(&format!("-newkey rsa:2048 -addext {LOCAL}"));
    let (hub, page) = (
        Hub::start().await,
        Hub::start_tls_with(&own.chain, &own.key, &own.ca).await,
    );
    let often = "interval: 50ms, threshold: 1";
    let health = format!("health: {{http: [{{uri: '{}v2/', {often}}}]}}", page.url());
    for (trusted, status) in [(&openssl, 200), (&other, 503)] {
        let trusted = trusted.path("self.crt").display().to_string();
        let yaml = format!("{}\n{health}", proxy(&hub));
        let served = Home::new().serve("", &yaml, &[("SSL_CERT_FILE", &trusted)]).await;
        eventually("the check", async || page.count("HEAD /v2/") > 0 || status == 503).await;
        eventually("the answer", async || served.get("/v2/").await.0 == status).await;
        let (_, failing) = served.admin("/debug/health").await;
        assert_eq!(
            failing.contains("add the CA, or the certificate itself"),
            status == 503,
            "{failing}"
        );
    }
}
