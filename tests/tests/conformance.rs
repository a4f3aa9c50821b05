//! The requirements of distribution-spec 1.1 on registries that clients pull from, one function for each. They run
//! against three other registries: directly, through a mirror with an empty cache, and through the same mirror again. A
//! requirement that holds directly must hold through the mirror. docs/conformance.md has the table.
#![expect(clippy::expect_used, reason = "a failure here is the test's")]

#[path = "conformance/base.rs"]
mod base;
#[path = "conformance/blobs.rs"]
mod blobs;
#[path = "conformance/client.rs"]
mod client;
#[path = "conformance/content.rs"]
mod content;
#[path = "conformance/manifests.rs"]
mod manifests;
#[path = "conformance/referrers.rs"]
mod referrers;
#[path = "conformance/tags.rs"]
mod tags;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use mirror::config;
use mirror::server::Server;
use testbed::registry::{Kind, Registry};
use testbed::scratch::Scratch;
use tokio_util::sync::{CancellationToken, DropGuard};

use client::Place;
use content::Content;

/// The results of a requirement, for each thing that it was tried on.
type Findings = Vec<(String, Result<(), String>)>;

/// One sentence of the specification.
struct Requirement {
    name: &'static str,
    check: fn(Place) -> Pin<Box<dyn Future<Output = Findings>>>,
}

/// The requirements of a module, in order.
macro_rules! requirements {
    ($($name:ident),* $(,)?) => {
        pub(crate) fn requirements() -> Vec<crate::Requirement> {
            vec![$(crate::Requirement {
                name: stringify!($name),
                check: |place| Box::pin($name(place)),
            }),*]
        }
    };
}
pub(crate) use requirements;

/// Ends a check that does not hold, with why.
macro_rules! ensure {
    ($holds:expr, $($why:tt)*) => {
        if !$holds {
            return Err(format!($($why)*));
        }
    };
}
pub(crate) use ensure;

fn all() -> Vec<Requirement> {
    let modules = [
        base::requirements(),
        manifests::requirements(),
        blobs::requirements(),
        tags::requirements(),
        referrers::requirements(),
    ];
    modules.into_iter().flatten().collect()
}

/// A mirror with an empty cache; gone when dropped.
struct Cold {
    url: String,
    _running: DropGuard,
    _scratch: Scratch,
}

impl Cold {
    async fn start(upstream: &str) -> Self {
        let scratch = Scratch::new("conformance").expect("a directory");
        let yaml = format!(
            "version: 0.1\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\n\
             http: {{addr: '127.0.0.1:0'}}\n\
             proxy: {{remoteurl: '{upstream}', cache: {{tagttl: 1h, maxsize: 1Gi}}}}\n",
            scratch.path().join("cache").display()
        );
        let path = scratch.write("config.yml", yaml).expect("a file");
        let (config, _) = config::load(Some(&path), std::iter::empty()).expect("a configuration");
        let server = Server::start(config).await.expect("a mirror");
        let (url, stop) = (format!("http://{}", server.address()), CancellationToken::new());
        tokio::spawn(server.run(stop.clone()));
        Self {
            url,
            _running: stop.drop_guard(),
            _scratch: scratch,
        }
    }
}

async fn checked(
    requirement: &Requirement,
    url: &str,
    content: &Arc<Content>,
) -> BTreeMap<String, Result<(), String>> {
    let place = Place::new(url, content.clone());
    (requirement.check)(place).await.into_iter().collect()
}

/// The requirements that hold at a registry itself, and through a mirror of it.
#[derive(Default)]
struct Outcome {
    /// Directly.
    held: usize,
    /// Not directly.
    failed: Vec<String>,
    /// Directly, and not through the mirror.
    lost: Vec<String>,
    /// Through the mirror, cold and warm.
    served: Vec<String>,
}

async fn tried(kind: Kind) -> Outcome {
    let registry = Registry::start(kind).await.expect("a registry");
    let content = Arc::new(Content::push(&registry.url).await);
    eprintln!("{kind:?} takes no {:?}", content.refused());
    let mut outcome = Outcome::default();
    for requirement in all() {
        let directly = checked(&requirement, &registry.url, &content).await;
        let mirror = Cold::start(&registry.url).await;
        let cold = checked(&requirement, &mirror.url, &content).await;
        let warm = checked(&requirement, &mirror.url, &content).await;
        for (of, held) in directly {
            let name = format!("{}: {of}", requirement.name);
            let through = [("cold", &cold), ("warm", &warm)].map(|(how, findings)| match findings.get(&of) {
                Some(Ok(())) => Ok(()),
                Some(Err(why)) => Err(format!("{name}: {how}: {why}")),
                None => Err(format!("{name}: {how}: not tried")),
            });
            if through.iter().all(Result::is_ok) {
                outcome.served.push(name.clone());
            }
            match held {
                Ok(()) => {
                    outcome.held += 1;
                    outcome.lost.extend(through.into_iter().filter_map(Result::err));
                }
                Err(why) => outcome.failed.push(format!("{name}: {why}")),
            }
        }
    }
    eprintln!(
        "{kind:?}: {} hold directly, {} through the mirror; directly these do not: {:#?}",
        outcome.held,
        outcome.served.len(),
        outcome.failed
    );
    outcome
}

fn nothing_is_lost(outcome: &Outcome) {
    assert!(outcome.lost.is_empty(), "{:#?}", outcome.lost);
}

/// Each requirement that Distribution 2 meets is met through the mirror, cold and warm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_to_distribution_2_is_kept() {
    nothing_is_lost(&tried(Kind::Distribution2).await);
}

/// Each requirement that Distribution 3 meets is met through the mirror, cold and warm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_to_distribution_3_is_kept() {
    nothing_is_lost(&tried(Kind::Distribution3).await);
}

/// The one registry of the three that knows referrers: through a mirror of it each requirement holds for something,
/// or it would be shown of nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_to_olareg_is_kept_and_complete() {
    let outcome = tried(Kind::Olareg).await;
    nothing_is_lost(&outcome);
    let holds = |requirement: &Requirement| {
        let start = format!("{}: ", requirement.name);
        outcome.served.iter().any(|served| served.starts_with(&start))
    };
    let never: Vec<_> = all()
        .into_iter()
        .filter(|one| !holds(one))
        .map(|one| one.name)
        .collect();
    assert!(never.is_empty(), "{never:#?}");
}
