//! The answer table as users of skopeo, crane, regctl and containerd see it.

use std::net::SocketAddr;

use futures::future::join_all;
use testbed::image::{Layout, Random};
use testbed::scratch::Scratch;

use crate::containerd::{Containerd, Written};
use crate::mirror::Mirror;
use crate::odd::{Odd, Says};
use crate::programs::{Ran, crane, regctl, skopeo};
use crate::tap::Tap;

struct Row {
    name: &'static str,
    says: Says,
    /// True if the mirror serves a cached tag.
    stale: bool,
    /// The messages of clients without cached content: each client prints one of these.
    words: &'static [&'static str],
}

const UNKNOWN: &[&str] = &["manifest unknown", "MANIFEST_UNKNOWN", "not found"];
const DENIED: &[&str] = &["denied", "DENIED"];
const LATER: &[&str] = &["503 Service Unavailable", "TOOMANYREQUESTS"];
/// regctl asks again for as long as it may, and does not say why then.
const LIMITED: &[&str] = &[
    "toomanyrequests",
    "TOOMANYREQUESTS",
    "429 Too Many Requests",
    "retry limit exceeded",
];

fn rows() -> Vec<Row> {
    let row = |name, says, stale, words| Row {
        name,
        says,
        stale,
        words,
    };
    let page = |status| {
        Says::This(
            status,
            &[("content-type", "text/html")],
            "<html>an ingress</html>".into(),
        )
    };
    let asks = &[("www-authenticate", "Basic realm=\"upstream\"")];
    vec![
        row("404", Says::error(404, "MANIFEST_UNKNOWN"), false, UNKNOWN),
        row("page", page(404), true, LATER),
        row("401", Says::This(401, asks, String::new()), false, DENIED),
        row("403", Says::error(403, "DENIED"), false, DENIED),
        row(
            "429",
            Says::This(429, &[("retry-after", "1")], String::new()),
            true,
            LIMITED,
        ),
        row("500", page(500), true, LATER),
        row("hang", Says::Nothing, true, LATER),
    ]
}

/// Asks for one tag with every client that there is.
async fn all_clients(
    tap: &Tap,
    containerd: Option<&Containerd>,
    row: &str,
    name: &str,
) -> Vec<(&'static str, Ran)> {
    let home = Scratch::new("answers").expect("a directory");
    let (at, image) = (tap.address, format!("{}/{name}", tap.address));
    let docker = format!("docker://{image}");
    let (inspect, manifest) = (
        ["inspect", "--raw", "--tls-verify=false", &docker],
        ["manifest", &image],
    );
    let (registries, get) = ([at], ["manifest", "get", "--format", "raw-body", &image]);
    let pull = async {
        match containerd {
            Some(containerd) => Some(containerd.pull(row, at, Written::Plain, name).await),
            None => None,
        }
    };
    let (one, two, three, four) = tokio::join!(
        skopeo(&inspect),
        crane(&manifest),
        regctl(home.path(), &registries, &get),
        pull,
    );
    let mut all = vec![("skopeo", one), ("crane", two), ("regctl", three)];
    all.extend(four.map(|ran| ("containerd", ran)));
    all
}

async fn holds(row: Row, layout: &Layout, containerd: Option<&Containerd>) {
    let odd = Odd::start(layout, "1").await;
    let mirror = Mirror::of_host("registry.test", &odd.url()).await;
    let tap = Tap::start(mirror.address).await;
    for (client, ran) in all_clients(&tap, containerd, row.name, "org/cached:1").await {
        ran.unwrap_or_else(|said| panic!("{}: {client}: {said}", row.name));
    }
    odd.says(row.says);
    for (client, ran) in all_clients(&tap, containerd, row.name, "org/cached:1").await {
        assert_eq!(ran.is_ok(), row.stale, "{}: {client}, cached: {ran:?}", row.name);
    }
    for (client, ran) in all_clients(&tap, containerd, row.name, "org/absent:1").await {
        let Err(said) = ran else {
            panic!("{}: {client} got what is not there", row.name);
        };
        eprintln!(
            "{:>5} {client:>10}: {}",
            row.name,
            said.lines().last().unwrap_or_default()
        );
        assert!(
            row.words.iter().any(|word| said.contains(word)),
            "{}: {client}: {said}",
            row.name
        );
    }
    if let Err(seen) = tap.saw_no_credentials() {
        panic!("{}: {seen}", row.name);
    }
}

/// Every client reports the error, and is not asked for credentials of upstreams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_report_errors_and_send_no_credentials() {
    let scratch = Scratch::new("answers").expect("a directory");
    let image = Random {
        platforms: vec![testbed::image::native_platform()],
        ..Random::new(31, &[1000])
    };
    let layout = image.write(&scratch.path().join("made"), "1").expect("an image");
    let containerd = Containerd::start().await;
    join_all(
        rows()
            .into_iter()
            .map(|row| holds(row, &layout, containerd.as_ref())),
    )
    .await;
}

/// The answer of each to a push: the place to push to instead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_fails_with_advice() {
    let scratch = Scratch::new("push").expect("a directory");
    let layout = Random::new(32, &[1000]).write(&scratch.path().join("made"), "1");
    let layout = layout.expect("an image");
    let odd = Odd::start(&layout, "1").await;
    odd.says(Says::error(404, "MANIFEST_UNKNOWN"));
    let mirror = Mirror::start_for(&odd.url()).await;
    let at: SocketAddr = mirror.address;
    let (from, to) = (layout.path().display().to_string(), format!("{at}/org/app:2"));
    let (oci, docker, dir) = (
        format!("oci:{from}:1"),
        format!("docker://{to}"),
        format!("ocidir://{from}:1"),
    );
    let pushes = [
        skopeo(&["copy", "--all", "--dest-tls-verify=false", &oci, &docker]).await,
        crane(&["push", "--index", &from, &to]).await,
        regctl(scratch.path(), &[at], &["image", "copy", &dir, &to]).await,
        crane(&["delete", &to]).await,
    ];
    for pushed in pushes {
        let said = pushed.expect_err("nothing is pushed here");
        eprintln!("{}", said.lines().last().unwrap_or_default());
        assert!(
            said.contains("405") || said.contains("pull-through mirror"),
            "{said}"
        );
    }
}
