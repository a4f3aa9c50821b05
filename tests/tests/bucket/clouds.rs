//! Object stores with other APIs than S3.

use std::net::SocketAddr;
use std::path::PathBuf;

use testbed::binaries;
use testbed::process::{Daemon, command};
use testbed::wait;

use crate::place::{LAYERS, LIMIT, Mirror, Place};

/// Starts gofakes3, which checks no signatures and has the APIs of S3 and Google Cloud Storage, with a bucket `bucket`;
/// returns its address and its log.
pub(crate) async fn start_gofakes3(place: &Place) -> (Daemon, SocketAddr, PathBuf) {
    let program = binaries::get("gofakes3").await.expect("gofakes3");
    let log = place.scratch.path().join("gofakes3.log");
    let (daemon, address) = Daemon::listening("gofakes3", &log, |address: SocketAddr| {
        let mut command = command(&program);
        command.args(["-backend", "memory", "-initialbucket", "bucket"]);
        command.args(["-host", &address.to_string()]);
        Ok(command)
    })
    .await
    .expect("a store");
    (daemon, address, log)
}

/// A mirror fills a bucket with the API of Google Cloud Storage, and another one pulls from it while the registry is
/// down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcs_bucket_serves_an_empty_local_tier() {
    let mut place = Place::new(&LAYERS).await;
    let (_store, address, log) = start_gofakes3(&place).await;
    let key = format!(
        r#"{{"gcs_base_url": "http://{address}", "disable_oauth": true, "client_email": "", "private_key": "",
           "private_key_id": ""}}"#
    );
    let key = place.scratch.write("key.json", key).expect("a file");
    let start = async |tier: &str| {
        let keys = format!("bucket: bucket, keyfile: '{}', rootdirectory: a/b", key.display());
        let path = place.configuration(tier, "", "cache: {maxsize: 1Gi}");
        let text = std::fs::read_to_string(&path).expect("a file");
        std::fs::write(&path, text.replace("s3: {}", &format!("gcs: {{{keys}}}"))).expect("a file");
        Mirror::start(&path).await
    };
    let (first, second) = (start("first").await, start("second").await);
    place.pull(&first, "pulled-1").await;
    let uploaded = || async {
        let status = first.status().await;
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        (status["pendingUploads"] == 0 && log.contains("tags/1/current/link")).then_some(())
    };
    wait::until("end of the uploads", LIMIT, uploaded)
        .await
        .expect("they end");
    place.upstream.go_down();
    place.pull(&second, "pulled-2").await;
}

/// A mirror fills a container of Azure, and another one pulls from it while the registry is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs azurite 3.37: AZURITE=node_modules/azurite/dist/src/blob/main.js cargo test --test bucket -- --ignored azure"]
async fn azure_container_serves_an_empty_local_tier() {
    let program = std::env::var("AZURITE").expect("AZURITE, the path of azurite's main.js");
    let mut place = Place::new(&LAYERS).await;
    let data = place.scratch.subdirectory("azure").expect("a directory");
    let log = place.scratch.path().join("azure.log");
    let (_store, address) = Daemon::listening("azurite", &log, |address: SocketAddr| {
        let mut node = command("node");
        node.args([&program, "--blobHost", "127.0.0.1", "--blobPort"]);
        node.arg(address.port().to_string()).arg("--location").arg(&data);
        node.args(["--loose", "--skipApiVersionCheck"]);
        Ok(node)
    })
    .await
    .expect("a store");
    make_container(&address.to_string()).await;
    let start = async |tier: &str| {
        let keys = format!(
            "accountname: {ACCOUNT}, accountkey: {ACCOUNT_KEY}, container: images, rootdirectory: a/b, serviceurl: \
             'http://{address}/{ACCOUNT}'"
        );
        let path = place.configuration(tier, "", "cache: {maxsize: 1Gi}");
        let text = std::fs::read_to_string(&path).expect("a file");
        std::fs::write(&path, text.replace("s3: {}", &format!("azure: {{{keys}}}"))).expect("a file");
        Mirror::start(&path).await
    };
    let (first, second) = (start("first").await, start("second").await);
    place.pull(&first, "pulled-1").await;
    let uploaded = || async { (first.status().await["pendingUploads"] == 0).then_some(()) };
    wait::until("end of the uploads", LIMIT, uploaded)
        .await
        .expect("they end");
    place.upstream.go_down();
    place.pull(&second, "pulled-2").await;
}

/// The account that azurite always has.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Makes the container, signed with the account's key by openssl.
async fn make_container(address: &str) {
    use base64::Engine as _;
    let date = "Mon, 30 Nov 2026 00:00:00 GMT";
    let version = "2021-08-06";
    let signed = format!(
        "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/images\nrestype:container"
    );
    let base64 = base64::engine::general_purpose::STANDARD;
    let key = hex::encode(base64.decode(ACCOUNT_KEY).expect("a key"));
    let script = format!(
        "printf %s \"$1\" | openssl dgst -sha256 -mac HMAC -macopt hexkey:{key} -binary | base64 -w0"
    );
    let output = tokio::process::Command::new("sh")
        .args(["-c", &script, "sh", &signed])
        .output();
    let output = output.await.expect("openssl");
    let signature = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = reqwest::Client::new()
        .put(format!("http://{address}/{ACCOUNT}/images?restype=container"))
        .header("x-ms-date", date)
        .header("x-ms-version", version)
        .header("content-length", "0")
        .header("authorization", format!("SharedKey {ACCOUNT}:{signature}"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 201, "{:?}", answer.text().await);
}
