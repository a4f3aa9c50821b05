//! Credentials that change under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::hub::{Auth, Hub, Tokens};
use crate::served::{Home, Served, eventually, publish};

const PULLS: usize = 1_000;
const ROTATIONS: u64 = 50;

fn rotate(served: &Served, version: u64, user: &str) {
    let entry =
        format!(r#"{{"auths":{{"registry.test":{{"username":"{user}","password":"secret-{user}"}}}}}}"#);
    let files = [("config.json", entry), ("version", version.to_string())];
    publish(&served.home.path("credentials"), version, &files);
}

fn admit(hub: &Hub, user: &str) {
    let mut auth = hub.auth();
    auth.tokens().users.insert(user.into(), format!("secret-{user}"));
}

/// Returns the state of the upstream's credentials in `/status`.
async fn reported(served: &Served) -> (String, Option<u64>, Option<u64>) {
    let status = served.status().await;
    let credentials = &status["upstreams"][0]["credentials"];
    let state = credentials["state"].as_str().unwrap_or_default().to_owned();
    (
        state,
        credentials["versionLoaded"].as_u64(),
        credentials["versionSeen"].as_u64(),
    )
}

async fn begin(hub: &Hub) -> Served {
    hub.push_image("library/app", "v1", &[b"layer"]);
    let tokens = Tokens::at(hub).only("user-0", "secret-user-0");
    *hub.auth() = Auth::Tokens(tokens);
    let proxy = format!(
        "proxy: {{credentialsdirectory: HOME/credentials, cache: {{staleiferror: 0, maxsize: 1Gi}}, \
         upstreams: [{{host: registry.test, remoteurl: '{}'}}]}}",
        hub.url()
    );
    let home = Home::new();
    std::fs::create_dir(home.path("credentials")).unwrap();
    let mut served = home.serve("", &proxy, &[]).await;
    served.forget_log();
    rotate(&served, 1, "user-0");
    eventually("the first credential", async || {
        reported(&served).await == ("Active".into(), Some(1), Some(1))
    })
    .await;
    served
}

#[tokio::test]
async fn rejected_candidate_keeps_last_good_one() {
    let hub = Hub::start().await;
    let served = begin(&hub).await;
    rotate(&served, 2, "unknown");
    eventually("a rejection", async || {
        reported(&served).await == ("Rejected".into(), Some(1), Some(2))
    })
    .await;
    hub.auth().tokens().revoke();
    assert_eq!(served.get("/v2/library/app/manifests/v1").await.0, 200);
    let (_, status) = served.admin("/status").await;
    assert!(!status.contains("secret-"), "{status}");
}

#[tokio::test]
async fn candidate_waits_until_upstream_is_back() {
    let mut hub = Hub::start().await;
    let served = begin(&hub).await;
    admit(&hub, "user-1");
    hub.stop();
    rotate(&served, 2, "user-1");
    eventually("pending", async || {
        reported(&served).await == ("Pending".into(), Some(1), Some(2))
    })
    .await;
    hub.restart().await;
    eventually("the swap", async || {
        reported(&served).await == ("Active".into(), Some(2), Some(2))
    })
    .await;
}

/// A configuration of Distribution for one upstream, with a user.
fn configured(hub: &Hub, password: &str) -> String {
    let tokens = Tokens::at(hub).only("robot", "right");
    *hub.auth() = Auth::Tokens(tokens);
    hub.push_image("app", "v1", &[b"layer"]);
    format!(
        "proxy: {{remoteurl: '{}', username: robot, password: {password}}}",
        hub.url()
    )
}

async fn is_counted(served: &Served, state: &str) -> bool {
    let metrics = served.admin("/metrics").await.1;
    let of = |line: &&str| line.contains("credential_state") && line.contains(&format!("\"{state}\""));
    metrics.lines().any(|line| of(&line) && line.ends_with(" 1"))
}

#[tokio::test]
async fn configured_credential_is_tried_at_start() {
    let hub = Hub::start().await;
    let served = Home::new().serve("", &configured(&hub, "right"), &[]).await;
    eventually("proven", async || {
        reported(&served).await == ("Active".into(), None, None)
    })
    .await;
    assert!(is_counted(&served, "active").await);
    assert_eq!(served.get("/v2/app/manifests/v1").await.0, 200);
    // From now on upstream refuses; it is still asked, and the state says why pulls fail.
    hub.auth().tokens().users.clear();
    hub.auth().tokens().revoke();
    hub.push_image("app", "v2", &[b"other"]);
    assert_eq!(served.get("/v2/app/manifests/v2").await.0, 403);
    eventually("rejected", async || reported(&served).await.0 == "Rejected").await;
    assert!(is_counted(&served, "rejected").await);
}

/// The server sends no request with it after the trial, and serves cached content.
#[tokio::test]
async fn rejected_configured_credential_is_reported() {
    let hub = Hub::start().await;
    let mut served = Home::new().serve("", &configured(&hub, "wrong"), &[]).await;
    eventually("rejected", async || reported(&served).await.0 == "Rejected").await;
    assert!(is_counted(&served, "rejected").await);
    hub.forget();
    let (code, body) = served.get("/v2/app/manifests/v1").await;
    let body = String::from_utf8(body).unwrap();
    assert!(
        code == 403 && body.contains("rejects the credential"),
        "{code} {body}"
    );
    assert_eq!(hub.seen("*").len(), 0, "asked with a credential that is refused");
    let path = served.home.path("config.yml");
    let right = std::fs::read_to_string(&path).unwrap().replace("wrong", "right");
    std::fs::write(&path, right).unwrap();
    served.signal(rustix::process::Signal::HUP);
    served.line("the new configuration is in force").await;
    eventually("accepted", async || reported(&served).await.0 == "Active").await;
    assert_eq!(served.get("/v2/app/manifests/v1").await.0, 200);
}

/// If the upstream is down at the start, the credential is pending until it is back.
#[tokio::test]
async fn upstream_down_at_start_is_pending() {
    let mut hub = Hub::start().await;
    let yaml = configured(&hub, "right");
    hub.stop();
    let served = Home::new().serve("", &yaml, &[]).await;
    eventually("pending", async || reported(&served).await.0 == "Pending").await;
    assert_eq!(served.admin("/readyz").await.0, 200);
    hub.restart().await;
    eventually("active", async || reported(&served).await.0 == "Active").await;
    eventually("served", async || {
        served.get("/v2/app/manifests/v1").await.0 == 200
    })
    .await;
}

#[tokio::test]
async fn offline_no_credential_is_tried() {
    let hub = Hub::start().await;
    let yaml = configured(&hub, "right").replace("proxy: {", "proxy: {cache: {offline: true}, ");
    let mut served = Home::new().serve("", &yaml, &[]).await;
    let (_, status) = served.admin("/status").await;
    assert!(
        status.contains("Pending") && status.contains("proxy.cache.offline"),
        "{status}"
    );
    assert_eq!(served.get("/v2/app/manifests/v1").await.0, 503);
    assert_eq!(hub.seen("*").len(), 0, "asked though it is offline");
    let path = served.home.path("config.yml");
    let online = std::fs::read_to_string(&path)
        .unwrap()
        .replace("offline: true", "offline: false");
    std::fs::write(&path, online).unwrap();
    served.signal(rustix::process::Signal::HUP);
    served.line("the new configuration is in force").await;
    eventually("active", async || reported(&served).await.0 == "Active").await;
}

/// Old and new overlap for one rotation; every fifth one is a mistake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_pull_fails_during_fifty_rotations() {
    let hub = Arc::new(Hub::start().await);
    let served = Arc::new(begin(&hub).await);
    let (done, pulls, rotated) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicU64::new(0));
    let rotations = async {
        let mut good = 0;
        for version in 2..2 + ROTATIONS {
            if version % 5 == 0 {
                rotate(&served, version, "unknown");
                eventually("a rejection", async || {
                    let (state, _, seen) = reported(&served).await;
                    (state.as_str(), seen) == ("Rejected", Some(version))
                })
                .await;
            } else {
                good += 1;
                admit(&hub, &format!("user-{good}"));
                rotate(&served, version, &format!("user-{good}"));
                eventually("a swap", async || {
                    reported(&served).await == ("Active".into(), Some(version), Some(version))
                })
                .await;
                if let Some(old) = u64::checked_sub(good, 2) {
                    hub.auth().tokens().users.remove(&format!("user-{old}"));
                }
            }
            rotated.fetch_add(1, Ordering::SeqCst);
            // As many pulls see each credential, whatever is faster.
            let share = PULLS * usize::try_from(version - 1).unwrap() / usize::try_from(ROTATIONS).unwrap();
            eventually("enough pulls", async || pulls.load(Ordering::SeqCst) >= share).await;
        }
        done.store(true, Ordering::SeqCst);
    };
    let client = crate::served::client();
    let pull = async |worker: usize| {
        let mut number = 0;
        while !done.load(Ordering::SeqCst) {
            number += 1;
            // Small uncached blobs: each asks upstream with the current credentials.
            let data = format!("blob {number} of {worker}");
            let digest = hub.push_blob("library/app", &data);
            for (path, body) in [
                ("manifests/v1".to_owned(), None),
                (format!("blobs/{digest}"), Some(data)),
            ] {
                let answer = client.get(format!("http://{}/v2/library/app/{path}", served.address));
                let answer = answer.send().await.unwrap();
                let (status, got) = (answer.status(), answer.text().await.unwrap());
                assert_eq!(
                    status,
                    200,
                    "{path} after {} rotations: {got}",
                    rotated.load(Ordering::SeqCst)
                );
                assert!(body.is_none_or(|body| body == got));
            }
            pulls.fetch_add(1, Ordering::SeqCst);
        }
    };
    tokio::join!(rotations, pull(0), pull(1), pull(2), pull(3));
    assert!(pulls.load(Ordering::SeqCst) >= PULLS && rotated.load(Ordering::SeqCst) == ROTATIONS);
}
