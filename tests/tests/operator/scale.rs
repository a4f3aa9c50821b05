//! The operator at scale, as a process with a real API server: figures to read, and counts with limits.
//!
//! ```sh
//! make bench-operator                  # 1,000 mirrors
//! make bench-operator MIRRORS=5000
//! make bench-operator PROFILE=dev      # the operator as it is debugged; else a release
//! make bench-operator CONTROLLERS=true # with kube-controller-manager
//! ```
//!
//! etcd, API server, operator and the client that applies share the machine. Without being asked for, no
//! kube-controller-manager runs: its work on as many workloads is most of what is measured.

#[path = "scale/figures.rs"]
mod figures;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crds::RegistryMirror;
use futures::{StreamExt, stream};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use testbed::ControlPlane;
use testbed::audit::{Event, Mark};
use testbed::control_plane::{Options, skip_on_existing_cluster};
use testbed::process::free_ports;
use testbed::scratch::Scratch;
use testbed::wait;

use crate::bench::{Bench, with_claims};
use crate::process::Process;
use figures::{Figures, cpu_of};

/// The number of the client's concurrent requests.
const CLIENT: usize = 32;
/// The largest number of mirrors that are changed once while another one keeps changing or failing.
const PROBES: usize = 50;
/// The largest number of writes until a mirror of this spec has its status, events excluded.
const WRITES: usize = 12;
/// For all mirrors to be done, on a machine that does other things too.
const LONG: Duration = Duration::from_mins(20);

fn mirrors() -> usize {
    let asked = std::env::var("MIRRORS").ok();
    asked.map_or(1_000, |asked| asked.parse().expect("MIRRORS is a number"))
}

/// Returns true if workloads get their Pods, which nothing schedules, and PVCs are read.
fn controllers() -> bool {
    std::env::var("CONTROLLERS").as_deref() == Ok("true")
}

/// The operator that is measured.
struct Measured {
    process: Process,
    port: u16,
}

impl Measured {
    async fn start(bench: &Bench, scratch: &Scratch) -> Self {
        let [port] = free_ports().unwrap();
        let listen = format!("--listen=127.0.0.1:{port}");
        let process = Process::start(bench, scratch.path(), "operator", &[&listen]).await;
        Self { process, port }
    }

    fn proc_file(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.process.daemon.id())).unwrap()
    }

    /// Anonymous memory, MiB.
    fn memory(&self) -> f64 {
        let status = self.proc_file("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kib / 1024.0
    }

    /// Seconds of CPU so far.
    fn cpu(&self) -> f64 {
        cpu_of(self.process.daemon.id())
    }

    /// One of its metrics.
    async fn metric(&self, name: &str) -> Option<usize> {
        let url = format!("http://127.0.0.1:{}/metrics", self.port);
        let metrics = reqwest::get(url).await.ok()?.text().await.ok()?;
        let name = format!("registry_mirror_operator_{name} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name))?;
        value.parse().ok()
    }

    /// Waits until it has written nothing for two seconds; the time of the last write.
    async fn quiet(&self, bench: &Bench) {
        let mut mark = bench.mark().await;
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if self.writes(bench, mark).is_empty() {
                return;
            }
            mark = bench.mark().await;
        }
    }

    /// All but the Lease's and events.
    fn writes(&self, bench: &Bench, mark: Mark) -> Vec<Event> {
        let audit = bench.control_plane.audit().unwrap();
        let writes = audit
            .writes(mark, &self.process.user, bench.namespace.name())
            .unwrap();
        let apart = ["leases", "events"];
        writes
            .into_iter()
            .filter(|write| !apart.contains(&write.object_ref.resource.as_str()))
            .collect()
    }
}

fn name(number: usize) -> String {
    format!("m{number:05}")
}

/// Returns the mirror of an object, from the object's name.
fn mirror_of(object: &str) -> Option<String> {
    let bare = object.strip_prefix("cache-").unwrap_or(object);
    let name = bare.get(..6)?;
    (name.starts_with('m') && name[1..].bytes().all(|b| b.is_ascii_digit())).then(|| name.to_owned())
}

/// Applies mirrors as fast as the client can; when the API server had each.
async fn apply(bench: &Bench, numbers: std::ops::Range<usize>) -> BTreeMap<String, Timestamp> {
    let audit = bench.control_plane.audit().unwrap();
    let mark = bench.mark().await;
    stream::iter(numbers.clone())
        .map(|number| async move {
            bench.mirror(&name(number), with_claims("50Gi")).await;
        })
        .buffer_unordered(CLIENT)
        .collect::<Vec<()>>()
        .await;
    bench.mark().await;
    let events = audit.since(mark).unwrap();
    let applied = events
        .into_iter()
        .filter(|e| {
            e.object_ref.resource == "registrymirrors"
                && e.verb == "patch"
                && e.object_ref.subresource.is_empty()
        })
        .map(|event| (event.object_ref.name, event.stage_timestamp));
    applied.collect()
}

/// Returns, for each mirror, the time in ms from its creation to the answer of the operator's last write, and the
/// number of writes, status included.
fn per_mirror(writes: &[Event], applied: &BTreeMap<String, Timestamp>) -> (Vec<f64>, Vec<usize>) {
    let mut last: BTreeMap<String, Timestamp> = BTreeMap::new();
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for write in writes {
        let Some(mirror) = mirror_of(&write.object_ref.name) else {
            continue;
        };
        *count.entry(mirror.clone()).or_default() += 1;
        if write.object_ref.resource != "registrymirrors" {
            let last = last.entry(mirror).or_insert(write.stage_timestamp);
            *last = write.stage_timestamp.max(*last);
        }
    }
    let took = last
        .iter()
        .filter_map(|(mirror, last)| Some(last.duration_since(*applied.get(mirror)?).as_secs_f64() * 1000.0));
    (took.collect(), count.into_values().collect())
}

fn percentiles(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank among thousands"
        )]
        let rank = ((values.len() - 1) as f64 * share).round() as usize;
        values[rank]
    };
    format!(
        "p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

/// Changes some mirrors once each, ten a second; how long after each change its configuration was written.
async fn probe(bench: &Bench, operator: &Measured, ttl: &str) -> String {
    let mark = bench.mark().await;
    let probes = PROBES.min(mirrors() - 1);
    for number in 1..=probes {
        let spec = json!({"spec": {"cache": {"tagTTL": ttl}}});
        bench.merge::<RegistryMirror>(&name(number), spec).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let audit = bench.control_plane.audit().unwrap();
    let applied: BTreeMap<_, _> = wait::until("answer to every change", LONG, async || {
        let events = audit.since(mark).unwrap();
        let configured = events
            .iter()
            .filter(|e| e.user() == operator.process.user && e.object_ref.resource == "configmaps")
            .filter_map(|event| Some((mirror_of(&event.object_ref.name)?, event.stage_timestamp)));
        let configured: BTreeMap<_, _> = configured.collect();
        let changed = events
            .iter()
            .filter(|e| e.object_ref.resource == "registrymirrors" && e.verb == "patch")
            .filter(|e| e.object_ref.subresource.is_empty() && e.object_ref.name != name(0))
            .map(|event| (event.object_ref.name.clone(), event.stage_timestamp));
        let changed: BTreeMap<_, _> = changed.collect();
        changed
            .into_iter()
            .map(|(mirror, at)| Some((mirror.clone(), configured.get(&mirror)?.duration_since(at))))
            .collect::<Option<BTreeMap<_, _>>>()
    })
    .await
    .unwrap();
    assert_eq!(applied.len(), probes);
    percentiles(applied.values().map(|took| took.as_secs_f64() * 1000.0).collect())
}

/// Has the API server refuse one mirror's configuration for ever.
async fn refuse(bench: &Bench, config_map: &str) {
    let client = bench.namespace.client();
    let metadata = json!({"name": "refuse-one"});
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": metadata,
        "spec": {
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"],
            }]},
            "validations": [{"expression": format!("object.metadata.name != '{config_map}'"), "reason": "Forbidden"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": metadata,
        "spec": {"policyName": "refuse-one", "validationActions": ["Deny"]},
    });
    let params = PatchParams::apply("admin");
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    policies
        .patch("refuse-one", &params, &Patch::Apply(&policy))
        .await
        .unwrap();
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client);
    bindings
        .patch("refuse-one", &params, &Patch::Apply(&binding))
        .await
        .unwrap();
}

/// Many mirrors get their objects with few writes, and then with none.
#[tokio::test]
#[ignore = "minutes of work for figures: make bench-operator"]
async fn many_mirrors_need_few_writes_then_none() {
    if skip_on_existing_cluster("many_mirrors_need_few_writes_then_none") {
        return;
    }
    let options = Options {
        controller_manager: controllers(),
        ..Options::default()
    };
    let control_plane: &'static ControlPlane =
        Box::leak(Box::new(ControlPlane::start(options).await.unwrap()));
    let bench = Bench::on(control_plane, "scale").await;
    let scratch = Scratch::new("scale").unwrap();
    let operator = Measured::start(&bench, &scratch).await;
    let count = mirrors();

    let mut figures = Figures::new(count, controllers());

    apply(&bench, 0..1).await;
    bench.until_accepted(&name(0)).await;
    operator.quiet(&bench).await;
    figures.say(
        "operator, anonymous memory with 1 mirror",
        format!("{:.1} MiB", operator.memory()),
    );

    measure_creation(&bench, &operator, &mut figures).await;
    let operator = measure_restart(&bench, operator, &scratch, &mut figures).await;
    measure_changes(&bench, &operator, &mut figures).await;
    figures.write();
}

/// All mirrors are applied at once.
async fn measure_creation(bench: &Bench, operator: &Measured, figures: &mut Figures) {
    let (count, beside) = (mirrors(), bench.control_plane.ids());
    let used = || -> Vec<(&str, f64)> {
        let beside = beside.iter().map(|(what, id)| (*what, cpu_of(*id)));
        [("operator", operator.cpu())].into_iter().chain(beside).collect()
    };
    let (mark, before, started) = (bench.mark().await, used(), Instant::now());
    let applied = apply(bench, 1..count).await;
    figures.say(
        "all applied by the client",
        format!("{:.1} s", started.elapsed().as_secs_f64()),
    );
    // The log is long: who counts in it takes the time that is measured.
    let done = wait::until("objects of every mirror", LONG, async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let accepted = operator
            .metric(r#"mirrors{condition="Accepted",status="True",reason="SpecAccepted"}"#)
            .await?;
        (accepted == count).then_some(())
    });
    done.await.unwrap();
    operator.quiet(bench).await;
    let writes = operator.writes(bench, mark);
    let (first, last) = (
        applied.values().min().unwrap(),
        writes.iter().map(|write| write.stage_timestamp).max(),
    );
    figures.say(
        "first applied to the last write",
        format!("{:.1} s", last.unwrap().duration_since(*first).as_secs_f64()),
    );
    let (took, writes) = per_mirror(&writes, &applied);
    figures.say("a mirror applied to all of its objects", percentiles(took));
    let (fewest, most) = (writes.iter().min().unwrap(), writes.iter().max().unwrap());
    figures.say("writes a mirror, status included", format!("{fewest} to {most}"));
    for ((what, after), (_, before)) in used().into_iter().zip(before) {
        figures.say(&format!("{what}, CPU for it"), format!("{:.1} s", after - before));
    }
    figures.say(
        "operator, anonymous memory after it",
        format!("{:.1} MiB", operator.memory()),
    );
    assert!(*most <= WRITES, "{most} writes for one mirror");
}

/// The operator ends and starts again: it reconciles every mirror, and writes nothing.
async fn measure_restart(
    bench: &Bench,
    mut operator: Measured,
    scratch: &Scratch,
    figures: &mut Figures,
) -> Measured {
    operator.process.daemon.terminate().unwrap();
    assert_eq!(
        operator.process.code().await,
        Some(0),
        "{}",
        operator.process.daemon.log_tail()
    );
    let (mark, started) = (bench.mark().await, Instant::now());
    let operator = Measured::start(bench, scratch).await;
    let looked = wait::until("a look at every mirror", LONG, async || {
        let looks = operator.metric("reconciles_total").await?;
        (looks >= mirrors()).then_some(())
    });
    looked.await.unwrap();
    figures.say(
        "restart to every mirror reconciled",
        format!("{:.1} s", started.elapsed().as_secs_f64()),
    );
    operator.quiet(bench).await;
    figures.say(
        "operator, CPU for it after a restart",
        format!("{:.1} s", operator.cpu()),
    );
    figures.say(
        "operator, anonymous memory after a restart",
        format!("{:.1} MiB", operator.memory()),
    );
    let written = operator.writes(bench, mark);
    figures.say("writes after a restart", written.len().to_string());
    assert!(
        written.is_empty(),
        "{} writes after a restart, such as {:?}",
        written.len(),
        written.first()
    );
    operator
}

/// Some mirrors change, alone and while others change all the time.
async fn measure_changes(bench: &Bench, operator: &Measured, figures: &mut Figures) {
    figures.say("a change at rest", probe(bench, operator, "1m").await);
    let storm = async {
        let mut seconds = 0;
        loop {
            seconds += 1;
            let spec = json!({"spec": {"cache": {"tagTTL": format!("{seconds}s")}}});
            bench.merge::<RegistryMirror>(&name(0), spec).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = storm => {}
        reported = probe(bench, operator, "2m") => figures.say("a change beside a mirror that changes ten times a second", reported),
    }
    refuse(bench, "m00000-config").await;
    bench
        .merge::<RegistryMirror>(&name(0), json!({"spec": {"cache": {"tagTTL": "3m"}}}))
        .await;
    figures.say(
        "a change beside a mirror whose configuration is refused for ever",
        probe(bench, operator, "3m").await,
    );
}
