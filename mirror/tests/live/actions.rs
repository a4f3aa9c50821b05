//! The listener of actions: the cached images, purges, prewarming.

use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use crate::hub::{Fault, Hub};
use crate::served::{Home, Served, client, eventually};

const ACTIONS: &str = ", actions: {addr: '127.0.0.1:0'}";

/// A server with a listener of actions, and the address of the listener.
struct Acting {
    served: Served,
    actions: String,
}

impl Acting {
    async fn start(hub: &Hub, cache: &str) -> Self {
        let rest = format!(
            "proxy: {{upstreams: [{{host: hub.test, remoteurl: '{}'}}], cache: {{maxsize: 1Gi{cache}}}}}",
            hub.url()
        );
        let (served, line) = Home::new().serve_with_line(ACTIONS, &rest).await;
        let actions = line["actions"].as_str().unwrap().to_owned();
        Self { served, actions }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.actions)
    }

    async fn post(&self, path: &str, body: Value) -> (u16, String) {
        let request = client()
            .post(self.url(path))
            .header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn images(&self, query: &str) -> Vec<Value> {
        let answer = client().get(self.url(query)).send().await.unwrap();
        lines(&answer.text().await.unwrap())
    }

    async fn pull(&self, paths: &[String]) {
        for path in paths {
            assert_eq!(self.served.get(&format!("/v2/{path}")).await.0, 200, "{path}");
        }
    }

    async fn cache_status(&self, path: &str) -> String {
        let url = format!("http://{}/v2/{path}", self.served.address);
        let answer = client().get(url).send().await.unwrap();
        answer.headers()["x-cache"].to_str().unwrap().to_owned()
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Returns the paths that a client pulls of an image.
fn paths(repository: &str, tag: &str, layers: &[impl ToString]) -> Vec<String> {
    let layers = layers.iter().map(ToString::to_string);
    let blobs = layers.map(|digest| format!("{repository}/blobs/{digest}"));
    [format!("{repository}/manifests/{tag}")]
        .into_iter()
        .chain(blobs)
        .collect()
}

#[tokio::test]
async fn images_lists_pulled_images_with_sizes() {
    let hub = Hub::start().await;
    let (digest, layers) = hub.push_image("app", "v1", &[b"one", b"two"]);
    hub.push_image("other", "v1", &[b"three"]);
    let acting = Acting::start(&hub, "").await;
    assert_eq!(acting.images("/images").await, [] as [Value; 0]);
    acting.pull(&paths("app", "v1", &layers)).await;
    acting.pull(&paths("other", "v1", &[] as &[&str])).await;
    let images = acting.images("/images").await;
    assert_eq!(images.len(), 2, "{images:?}");
    let app = &images[0];
    assert_eq!(
        (&app["repository"], &app["tag"], &app["digest"]),
        (&json!("hub.test/app"), &json!("v1"), &json!(digest.to_string()))
    );
    assert!(app["bytes"].as_u64() > images[1]["bytes"].as_u64(), "{images:?}");
    assert_eq!(acting.images("/images?q=oth").await.len(), 1);
}

/// A purged tag is requested from the upstream again, with its layers, and another image keeps what it shares.
#[tokio::test]
async fn purge_of_tag_makes_next_pull_a_miss() {
    let hub = Hub::start().await;
    let (_, layers) = hub.push_image("app", "v1", &[b"shared", b"own"]);
    let (_, others) = hub.push_image("app", "v2", &[b"shared"]);
    let acting = Acting::start(&hub, "").await;
    acting.pull(&paths("app", "v1", &layers)).await;
    acting.pull(&paths("app", "v2", &others)).await;
    hub.forget();
    let body = json!({"registry": "hub.test", "repository": "app", "reference": "v1"});
    let (code, text) = acting.post("/purge", body).await;
    let purged: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &purged["tags"], &purged["manifests"]),
        (200, &json!(1), &json!(1)),
        "{text}"
    );
    assert!(purged["bytes"].as_u64().unwrap() > 0, "{text}");
    assert_eq!(acting.cache_status("app/manifests/v2").await, "HIT");
    for path in paths("app", "v2", &others).iter().skip(1) {
        assert_eq!(acting.cache_status(path).await, "HIT", "{path}");
    }
    assert_eq!(acting.cache_status("app/manifests/v1").await, "MISS");
    let own = paths("app", "v1", &layers[layers.len() - 1..]).pop().unwrap();
    assert_eq!(acting.cache_status(&own).await, "MISS");
    assert_eq!(hub.count("GET app/manifests/v1"), 1);
}

#[tokio::test]
async fn purge_of_repository_leaves_other_repositories() {
    let hub = Hub::start().await;
    let (_, layers) = hub.push_image("app", "v1", &[b"layer"]);
    let (_, same) = hub.push_image("copy", "v1", &[b"layer"]);
    let acting = Acting::start(&hub, "").await;
    acting.pull(&paths("app", "v1", &layers)).await;
    acting.pull(&paths("copy", "v1", &same)).await;
    let body = json!({"registry": "hub.test", "repository": "app"});
    let (code, text) = acting.post("/purge", body).await;
    assert_eq!(code, 200, "{text}");
    let images = acting.images("/images").await;
    assert_eq!(images.len(), 1, "{images:?}");
    assert_eq!(images[0]["repository"], "hub.test/copy");
    for path in paths("copy", "v1", &same) {
        assert_eq!(acting.cache_status(&path).await, "HIT", "{path}");
    }
    for path in paths("app", "v1", &[] as &[&str]) {
        assert_eq!(acting.cache_status(&path).await, "MISS", "{path}");
    }
}

#[tokio::test]
async fn purge_of_read_only_cache_is_refused() {
    let hub = Hub::start().await;
    let acting = Acting::start(&hub, ", readonly: true").await;
    let body = json!({"registry": "hub.test", "repository": "app"});
    let (code, text) = acting.post("/purge", body).await;
    assert!(code == 409 && text.contains("read-only"), "{code} {text}");
}

/// Prewarming reports each part, and clients get hits afterwards.
#[tokio::test]
async fn prewarmed_image_is_a_hit() {
    let hub = Hub::start().await;
    let (digest, layers) = hub.push_image("app", "v1", &[&vec![1; 300_000], b"two"]);
    let acting = Acting::start(&hub, "").await;
    let body = json!({"registry": "hub.test", "repository": "app", "reference": "v1"});
    let (code, text) = acting.post("/prewarm", body.clone()).await;
    let events = lines(&text);
    assert_eq!(code, 200, "{text}");
    assert_eq!(
        (&events[0]["event"], &events[0]["digest"], &events[0]["cache"]),
        (&json!("manifest"), &json!(digest.to_string()), &json!("MISS"))
    );
    let blobs = events.iter().filter(|event| event["event"] == "blob").count();
    let done = events.last().unwrap();
    assert_eq!(done["event"], "done", "{text}");
    assert_eq!(done["blobs"].as_u64(), Some(blobs as u64));
    assert_eq!(done["bytes"], done["fetched"]);
    for path in paths("app", "v1", &layers) {
        assert_eq!(acting.cache_status(&path).await, "HIT", "{path}");
    }
    let again = lines(&acting.post("/prewarm", body).await.1);
    assert_eq!(again.last().unwrap()["fetched"], 0);
}

/// Of an index, the chosen platform is cached; a missing platform is named with those that exist.
#[tokio::test]
async fn prewarm_of_index_takes_chosen_platforms() {
    let hub = Hub::start().await;
    let [amd, arm] = [b"amd", b"arm"].map(|layer| hub.push_image("app", "one", &[layer]).0);
    let entry = |digest: &dyn ToString, architecture: &str| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": 1,
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(&amd, "amd64"), entry(&arm, "arm64")]});
    let media_type = "application/vnd.oci.image.index.v1+json";
    hub.push_manifest("app", Some("all"), media_type, index.to_string());
    let acting = Acting::start(&hub, "").await;
    let wanted = |platforms: &[&str]| json!({"registry": "hub.test", "repository": "app", "reference": "all", "platforms": platforms});
    let events = lines(&acting.post("/prewarm", wanted(&["linux/arm64"])).await.1);
    assert_eq!(events.last().unwrap()["manifests"], 2, "{events:?}");
    assert_eq!(acting.cache_status(&format!("app/manifests/{arm}")).await, "HIT");
    assert_eq!(acting.cache_status(&format!("app/manifests/{amd}")).await, "MISS");
    let events = lines(&acting.post("/prewarm", wanted(&["all"])).await.1);
    assert_eq!(events.last().unwrap()["manifests"], 3, "{events:?}");
    let events = lines(&acting.post("/prewarm", wanted(&["linux/s390x"])).await.1);
    let last = events.last().unwrap();
    assert_eq!(last["event"], "error");
    let message = last["message"].as_str().unwrap();
    assert!(message.contains("linux/amd64, linux/arm64"), "{message}");
    let (code, text) = acting.post("/prewarm", wanted(&["amd64"])).await;
    assert!(code == 400 && text.contains("OS/ARCHITECTURE"), "{code} {text}");
}

#[tokio::test]
async fn failed_prewarm_ends_with_the_reason() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    hub.always("GET blobs", Fault::status(500));
    let acting = Acting::start(&hub, "").await;
    for (reference, reason) in [("missing", "manifest missing"), ("v1", "layer sha256:")] {
        let body = json!({"registry": "hub.test", "repository": "app", "reference": reference});
        let events = lines(&acting.post("/prewarm", body).await.1);
        let last = events.last().unwrap();
        assert_eq!(last["event"], "error", "{last}");
        assert!(last["message"].as_str().unwrap().contains(reason), "{last}");
    }
}

/// Neither the port for clients nor the admin port has actions, and no other address of the machine reaches them.
#[tokio::test]
async fn actions_are_on_their_loopback_port_only() {
    let hub = Hub::start().await;
    let mut acting = Acting::start(&hub, "").await;
    acting.served.forget_log();
    let body = json!({"registry": "hub.test", "repository": "app"}).to_string();
    for (address, path, expected) in [
        (&acting.served.address, "/purge", 404),
        (&acting.served.address, "/v2/purge", 405),
        (&acting.served.admin, "/purge", 404),
        (&acting.served.admin, "/prewarm", 404),
    ] {
        let request = client()
            .post(format!("http://{address}{path}"))
            .header("content-type", "application/json");
        let answer = request.body(body.clone()).send().await.unwrap();
        let code = answer.status().as_u16();
        assert!(code == expected || code == 405, "{address}{path}: {code}");
    }
    assert!(acting.served.get("/images").await.0 >= 400);
    let port = acting.actions.rsplit_once(':').unwrap().1;
    for address in ["127.0.0.2", "[::1]"] {
        let elsewhere = client()
            .get(format!("http://{address}:{port}/images"))
            .send()
            .await;
        assert!(elsewhere.is_err(), "{address}");
    }
}

/// A page of a browser on the machine can't act, whichever name leads it to the listener.
#[tokio::test]
async fn actions_refuse_requests_of_web_pages() {
    let hub = Hub::start().await;
    let acting = Acting::start(&hub, "").await;
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    let images = || client().get(acting.url("/images"));
    assert_eq!(status(images()).await, 200);
    assert_eq!(status(images().header("host", "evil.example")).await, 421);
    assert_eq!(
        status(images().header("origin", "https://evil.example")).await,
        403
    );
    let plain = client().post(acting.url("/purge")).body("{}");
    assert_eq!(status(plain.header("content-type", "text/plain")).await, 415);
}

/// Without configuration there is no listener.
#[tokio::test]
async fn actions_are_off_by_default() {
    let hub = Hub::start().await;
    let rest = format!("proxy: {{remoteurl: '{}', cache: {{maxsize: 1Gi}}}}", hub.url());
    let (served, line) = Home::new().serve_with_line("", &rest).await;
    assert_eq!(line["actions"], Value::Null);
    eventually("it serves", async || served.get("/v2/").await.0 == 200).await;
}

/// A page of a browser on this machine can run no action, whatever headers its browser sends.
#[tokio::test]
async fn requests_of_web_pages_run_no_action() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"one"]);
    let acting = Acting::start(&hub, "").await;
    acting.pull(&paths("app", "v1", &[] as &[&str])).await;
    let body = json!({"registry": "hub.test", "repository": "app", "reference": "v1"}).to_string();
    for (name, value, code) in [
        ("sec-fetch-site", "cross-site", 403),
        ("sec-fetch-site", "same-site", 403),
        ("sec-fetch-site", "same-origin", 403),
        ("origin", "null", 403),
        ("origin", "http://localhost:3000", 403),
        ("host", "evil.example", 421),
        ("content-type", "text/plain", 415),
        ("content-type", "application/x-www-form-urlencoded", 415),
    ] {
        for path in ["/purge", "/prewarm"] {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", HeaderValue::from_static("application/json"));
            headers.insert(name, HeaderValue::from_static(value));
            let request = client().post(acting.url(path)).headers(headers);
            let answer = request.body(body.clone()).send().await.unwrap();
            assert_eq!(answer.status(), code, "{path} {name}: {value}");
        }
    }
    let request = client()
        .get(acting.url("/images"))
        .header("sec-fetch-site", "cross-site");
    assert_eq!(request.send().await.unwrap().status(), 403);
    let request = client()
        .get(acting.url("/images"))
        .header("sec-fetch-site", "none");
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(acting.cache_status("app/manifests/v1").await, "HIT");
}

/// A body that is no request is refused with the member and the place, and with no name of a type.
#[tokio::test]
async fn invalid_body_of_action_is_explained() {
    let hub = Hub::start().await;
    let acting = Acting::start(&hub, "").await;
    let long = json!({"registry": "r".repeat(70_000), "repository": "app"});
    for path in ["/purge", "/prewarm"] {
        for (body, status, words) in [
            (json!([]), 422, "expected an object with registry"),
            (json!({"registry": 1}), 422, "registry"),
            (json!({"registry": "hub.test"}), 422, "missing field `repository`"),
            (long.clone(), 413, "larger than 65536 bytes"),
        ] {
            let (got, answer) = acting.post(path, body).await;
            assert_eq!(got, status, "{answer}");
            let message = serde_json::from_str::<Value>(&answer).unwrap()["message"].to_string();
            assert!(
                message.contains(words) && !message.contains("Request"),
                "{message}"
            );
        }
        let untyped = client().post(acting.url(path)).body("{}").send().await.unwrap();
        assert_eq!(untyped.status(), 415);
    }
}
