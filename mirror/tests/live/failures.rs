//! Why a request failed: a line in the log at the default level, and the same reason in the error's body.

use reqwest::StatusCode;
use serde_json::Value;
use test_case::test_case;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::hub::{Auth, Fault, Hub};
use crate::served::{Home, Served};

fn proxy(hub: &Hub) -> String {
    format!(
        "proxy: {{upstreams: [{{host: hub.test, remoteurl: '{}'}}], cache: {{maxsize: 1Gi}}}}",
        hub.url()
    )
}

/// Returns the status and the error's body.
async fn error(served: &Served, path: &str) -> (u16, Value) {
    let (status, body) = served.get(path).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    (status, body["errors"][0].clone())
}

/// Each failure has one line with upstream, status, code, reason and what was asked for; its body has the same reason.
#[tokio::test]
async fn failed_request_is_explained_in_log_and_body() {
    let hub = Hub::start().await;
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    let blob = format!("sha256:{}", "0".repeat(64));
    let (tag, by_digest) = ("app/manifests/v1".to_owned(), format!("app/blobs/{blob}"));
    let limited = Fault::limited(Some("1"));
    for (fault, path, status, code, level, words) in [
        (
            Fault::error(404, "MANIFEST_UNKNOWN"),
            &tag,
            404,
            "MANIFEST_UNKNOWN",
            "info",
            "MANIFEST_UNKNOWN",
        ),
        (
            Fault::error(403, "DENIED"),
            &by_digest,
            403,
            "DENIED",
            "warning",
            "denied access (403)",
        ),
        (
            Fault::status(401),
            &by_digest,
            403,
            "DENIED",
            "warning",
            "denied access (401)",
        ),
        (
            Fault::status(500),
            &by_digest,
            503,
            "TOOMANYREQUESTS",
            "warning",
            "500",
        ),
        (
            limited,
            &tag.replace("v1", "v2"),
            429,
            "TOOMANYREQUESTS",
            "warning",
            "rate",
        ),
        // The last, as upstream is not asked for a while then.
        (
            Fault::Reset,
            &by_digest,
            503,
            "TOOMANYREQUESTS",
            "warning",
            "connection",
        ),
    ] {
        hub.heal();
        hub.always("* /v2/", fault);
        let (got, body) = error(&served, &format!("/v2/{path}")).await;
        assert_eq!((got, body["code"].as_str().unwrap()), (status, code), "{body}");
        let line = served.line("request failed").await;
        assert_eq!(line["level"], level, "{line}");
        assert_eq!(
            (&line["status"], &line["code"]),
            (&status.into(), &code.into()),
            "{line}"
        );
        assert_eq!(
            (&line["upstream"], &line["repository"]),
            (&"hub.test".into(), &"hub.test/app".into()),
            "{line}"
        );
        assert_eq!(line["reference"], path.rsplit('/').next().unwrap(), "{line}");
        assert!(line["reason"].as_str().unwrap().contains(words), "{line}");
        assert_eq!(body["detail"]["reason"], line["reason"]);
        assert_eq!(body["detail"]["upstream"], "hub.test");
        assert_eq!(served.line("\"request\"").await["id"], line["id"]);
    }
}

/// Requests that the mirror itself refuses are explained, too.
#[tokio::test]
async fn refused_request_is_explained_in_log_and_body() {
    let hub = Hub::start().await;
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    for (path, status, code, words) in [
        (
            "/v2/App/manifests/1",
            400,
            "NAME_INVALID",
            "not a repository name",
        ),
        ("/v2/app/blobs/sha256:abc", 400, "DIGEST_INVALID", "not a digest"),
        (
            "/v2/app/manifests/1?ns=gcr.io",
            404,
            "NAME_UNKNOWN",
            "no upstream",
        ),
        (
            "/v2/app/manifests/1?n%73=gcr.io",
            404,
            "NAME_UNKNOWN",
            "no upstream",
        ),
        ("/v2/nothing", 404, "UNSUPPORTED", "no such endpoint"),
    ] {
        let (got, body) = error(&served, path).await;
        assert_eq!((got, body["code"].as_str().unwrap()), (status, code), "{body}");
        let line = served.line("request failed").await;
        assert_eq!(
            (&line["level"], &line["code"]),
            (&"info".into(), &code.into()),
            "{line}"
        );
        assert!(line["reason"].as_str().unwrap().contains(words), "{line}");
        assert_eq!(body["detail"]["reason"], line["reason"]);
    }
    assert_eq!(hub.count("* "), 0);
}

/// After some lines the server counts failures of one kind, and logs their number in one line.
#[tokio::test]
async fn similar_failures_share_one_counted_line() {
    let hub = Hub::start().await;
    hub.always("* manifests", Fault::status(500));
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    for number in 0..50 {
        assert_eq!(served.get(&format!("/v2/app/manifests/{number}")).await.0, 503);
    }
    let mut lines = 0;
    let repeated = loop {
        let line = served.line("request failed").await;
        match line["repeated"].as_u64() {
            Some(repeated) => break repeated,
            None => lines += 1,
        }
    };
    assert!((10..50).contains(&lines), "{lines}");
    assert_eq!(lines + repeated, 50);
}

/// An answer that is cut after its header is explained by the line alone.
#[tokio::test]
async fn cut_response_is_explained_in_log() {
    let hub = Hub::start().await;
    let digest = hub.push_blob("app", vec![7; 2 << 20]);
    hub.always("GET blobs", Fault::Corrupt);
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    let (status, body) = served.get(&format!("/v2/app/blobs/{digest}")).await;
    assert!(status == 200 && body.is_empty(), "{status}");
    let line = served.line("request failed").await;
    assert_eq!(
        (&line["level"], &line["status"]),
        (&"warning".into(), &200.into()),
        "{line}"
    );
    assert_eq!(
        (&line["upstream"], &line["reference"]),
        (&"hub.test".into(), &digest.as_str().into()),
        "{line}"
    );
    assert!(line["reason"].as_str().unwrap().contains("wrong bytes"), "{line}");
}

/// The user is in the lines of its requests; a name that is no user's may be a secret and is in none.
#[tokio::test]
async fn request_lines_name_the_user() {
    let (hub, home) = (Hub::start().await, Home::new());
    home.write("users", &format!("jane:{}\n", bcrypt::hash("secret", 4).unwrap()));
    let rest = format!(
        "{}\nauth: {{htpasswd: {{realm: mirror, path: HOME/users}}}}",
        proxy(&hub)
    );
    let mut served = home.serve("", &rest, &[]).await;
    let url = format!("http://{}/v2/app/manifests/none", served.address);
    for (login, status) in [
        (Some(("jane", "secret")), 404),
        (Some(("jane", "hunter2")), 401),
        (Some(("hunter2", "secret")), 401),
        (None, 401),
    ] {
        let request = crate::served::client().get(&url);
        let request = match login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        assert_eq!(request.send().await.unwrap().status().as_u16(), status);
    }
    served.signal(rustix::process::Signal::TERM);
    let log = served.rest_of_the_log().await;
    let users = |text: &str| {
        let lines = log.lines().filter(|line| line.contains(text));
        lines
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["user"].clone())
            .collect::<Vec<_>>()
    };
    let jane = || Value::from("jane");
    assert_eq!(
        users("\"request\""),
        [jane(), jane(), Value::Null, Value::Null],
        "{log}"
    );
    // Each client begins without a login: that is no line at the default level.
    assert_eq!(users("request failed"), [jane(), jane(), Value::Null], "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

/// A credential that a registry repeats in an error is neither in the log nor in the body.
#[tokio::test]
async fn upstream_reason_has_no_secret() {
    let hub = Hub::start().await;
    *hub.auth() = Auth::Basic("jane".into(), "hunter2".into());
    let words = "amFuZTpodW50ZXIy and hunter2 at https://cdn.test/?sig=hunter2";
    let body = format!(r#"{{"errors":[{{"code":"DENIED","message":"{words}"}}]}}"#);
    let rest = format!(
        "proxy: {{remoteurl: '{}', username: jane, password: hunter2, cache: {{maxsize: 1Gi}}}}",
        hub.url()
    );
    let mut served = Home::new()
        .serve("", &rest, &[("REGISTRY_LOG_LEVEL", "debug")])
        .await;
    // From then on the server shows the credential at once, and the registry may repeat it.
    hub.push_image("app", "shown", &[b"layer"]);
    assert_eq!(served.get("/v2/app/manifests/shown").await.0, 200);
    for status in [403, 404, 500] {
        let answer = Fault::Answer(
            StatusCode::from_u16(status).unwrap(),
            Vec::new(),
            body.clone().into(),
        );
        hub.heal();
        hub.always("* manifests", answer);
        let (_, body) = error(&served, &format!("/v2/app/manifests/{status}")).await;
        let line = served.line("request failed").await;
        for text in [body.to_string(), line.to_string()] {
            assert!(
                !text.contains("hunter2") && !text.contains("amFuZTpodW50"),
                "{text}"
            );
        }
    }
}

/// The password that a client writes before the name of an upstream is in no line of the log and in no body.
#[test_case("ns=user:hunter2@hub.test"; "as it is")]
#[test_case("n%73=user%3Ahunter2%40hub.test"; "encoded")]
#[test_case("ns=user%253Ahunter2%2540hub.test"; "encoded twice")]
#[tokio::test]
async fn user_in_name_of_upstream_is_masked(query: &str) {
    let hub = Hub::start().await;
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    let (status, body) = error(&served, &format!("/v2/app/manifests/1?{query}")).await;
    assert_eq!((status, body["code"].as_str()), (404, Some("NAME_UNKNOWN")));
    let failed = served.line("request failed").await;
    let request = served.line("\"request\"").await;
    for text in [body.to_string(), failed.to_string(), request.to_string()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(
        body["message"].as_str().unwrap().contains("[secret]@hub.test"),
        "{body}"
    );
}

/// The password that a client writes before a host in the path is in no line of the log and in no body.
#[test_case("/v2/user:hunter2@hub.test/app/manifests/1"; "before the upstream")]
#[test_case("/v2/https://user:hunter2@hub.test/v2/app/manifests/1"; "in a URL")]
#[test_case("/v2/user%3Ahunter2%40hub.test/app/blobs/x"; "encoded")]
#[test_case("/v2/user%253Ahunter2%2540hub.test/app/blobs/x"; "encoded twice")]
#[test_case("/user:hunter2@hub.test/app"; "at no endpoint")]
#[test_case("/v2/app/tags/list?last=user:hunter2@hub.test"; "in a query")]
#[tokio::test]
async fn user_in_path_is_in_no_line(target: &str) {
    let hub = Hub::start().await;
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    let mut stream = TcpStream::connect(&served.address).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let line = served.line("\"request\"").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    for text in [body, &line.to_string()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(line.to_string().contains("hub.test"), "{line}");
}

/// A request that the parser of HTTP/1.1 refuses has a line with the reason.
#[test_case("X: \u{1b}[1m\r\n\r\n", 400, "invalid HTTP header"; "a control character")]
#[test_case(&format!("X: {}\r\n\r\n", "a".repeat(70_000)), 431, "too large"; "a long header")]
#[test_case(&"X: a\r\n".repeat(101), 431, "too large"; "many fields")]
#[tokio::test]
async fn unparsed_request_has_a_line(header: &str, status: u16, words: &str) {
    let hub = Hub::start().await;
    let mut served = Home::new().serve("", &proxy(&hub), &[]).await;
    let mut stream = TcpStream::connect(&served.address).await.unwrap();
    let request = format!("GET /v2/ HTTP/1.1\r\nHost: m\r\n{header}\r\n");
    // The server may close the connection before it read all.
    let _ = stream.write_all(request.as_bytes()).await;
    let line = served.line("can't be parsed").await;
    assert_eq!(
        (&line["level"], &line["status"]),
        (&"info".into(), &status.into()),
        "{line}"
    );
    let reason = line["reason"].as_str().unwrap();
    assert!(reason.contains("127.0.0.1:") && reason.contains(words), "{line}");
}
