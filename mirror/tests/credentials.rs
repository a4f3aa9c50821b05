//! The credentials that an upstream receives while its entry in the credentials directory changes.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use test_case::test_case;

use mirror::config::Config;
use mirror::config::file::File;
use mirror::credential::Credential;
use mirror::credentials::rotator::CredentialRotator;
use mirror::credentials::{
    CredentialSink, CredentialState, CredentialVerdict, Entries, Problem, Report, RetryIntervals,
    RotationState, Snapshot,
};
use mirror::secret::Secret;
use parking_lot::Mutex;
use tokio::sync::watch;

/// An upstream with prepared verdicts, which records the credentials it gets.
#[derive(Default)]
struct Fake {
    verdicts: Mutex<VecDeque<CredentialVerdict>>,
    tried: Mutex<Vec<String>>,
    shown: Mutex<Vec<String>>,
    refusals: tokio::sync::Notify,
}

fn user(credential: &Credential) -> String {
    match credential {
        Credential::Basic { username, .. } => username.clone(),
        other => format!("{other:?}"),
    }
}

impl CredentialSink for Fake {
    async fn verify(&self, candidate: &Credential) -> CredentialVerdict {
        self.tried.lock().push(user(candidate));
        let verdict = self.verdicts.lock().pop_front();
        match verdict {
            Some(verdict) => verdict,
            None => std::future::pending().await,
        }
    }

    fn use_credential(&self, credential: Credential, version: u64) {
        let line = format!("{} {version}", user(&credential));
        self.shown.lock().push(line);
    }

    fn refuse(&self, reason: String) {
        self.shown.lock().push(format!("refuse: {reason}"));
    }

    fn suspend(&self, reason: String) {
        self.shown.lock().push(format!("suspend: {reason}"));
    }

    async fn refused(&self) {
        self.refusals.notified().await;
    }
}

/// A rotator that runs, its upstream, and the directory in our hands.
struct Scene {
    upstream: Arc<Fake>,
    directory: watch::Sender<Arc<Snapshot>>,
    rotation: watch::Receiver<RotationState>,
}

fn entries(user: &str) -> Entries {
    let json = match user {
        "" => r#"{"auths":{}}"#.to_owned(),
        "empty" => r#"{"auths":{"quay.io":{}}}"#.to_owned(),
        user => format!(r#"{{"auths":{{"quay.io":{{"username":"{user}","password":"p"}}}}}}"#),
    };
    Entries::parse(json.as_bytes()).unwrap()
}

fn snapshot(candidate: &str, last_good: &str, version: u64) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        candidates: match candidate {
            "missing" => Err(Problem::Missing),
            "unavailable" => Err(Problem::Unavailable("Too many open files".into())),
            "malformed" => Err(Problem::Malformed("broken".into())),
            user => Ok(entries(user)),
        },
        last_good: entries(last_good),
        version,
    })
}

fn scene(first: Arc<Snapshot>, verdicts: &[CredentialVerdict], held: RotationState) -> Scene {
    configured(Credential::Anonymous, first, verdicts, held)
}

/// The same with a credential in the configuration.
fn configured(
    credential: Credential,
    first: Arc<Snapshot>,
    verdicts: &[CredentialVerdict],
    held: RotationState,
) -> Scene {
    let file = File::parse("proxy: {upstreams: [{host: quay.io}]}").unwrap();
    let mut config = Config::new(&file).unwrap().proxy.upstreams.remove(0);
    config.credential = credential;
    let upstream = Arc::new(Fake {
        verdicts: Mutex::new(verdicts.iter().cloned().collect()),
        ..Fake::default()
    });
    let (directory, snapshots) = watch::channel(first);
    let (rotation, receiver) = watch::channel(held);
    let soon = Duration::from_millis(1);
    let pace = RetryIntervals {
        no_verdict: soon,
        no_verdict_most: soon,
        rejected: soon,
        rejected_most: soon,
    };
    tokio::spawn(CredentialRotator::new(config, upstream.clone(), pace, rotation).run(snapshots));
    Scene {
        upstream,
        directory,
        rotation: receiver,
    }
}

impl Scene {
    async fn becomes(&mut self, state: CredentialState, loaded: Option<u64>) {
        let there = |rotation: &RotationState| {
            rotation.report.state == state && rotation.report.version_loaded == loaded
        };
        let wait = self.rotation.wait_for(there);
        let in_time = tokio::time::timeout(Duration::from_secs(10), wait).await;
        assert!(in_time.is_ok(), "never {state:?} {loaded:?}");
    }

    fn shown(&self) -> Vec<String> {
        self.upstream.shown.lock().clone()
    }
}

fn no() -> CredentialVerdict {
    CredentialVerdict::Rejected("401".into())
}

fn down() -> CredentialVerdict {
    CredentialVerdict::NoVerdict("connection refused".into())
}

/// A first candidate is used at once, and the upstream confirms it later.
#[tokio::test]
async fn first_candidate_is_used_then_proven() {
    let mut scene = scene(
        snapshot("ann", "", 1),
        &[down(), CredentialVerdict::Accepted],
        RotationState::default(),
    );
    scene.becomes(CredentialState::Active, Some(1)).await;
    assert_eq!(scene.shown(), ["ann 1"]);
}

fn eve() -> Credential {
    Credential::Basic {
        username: "eve".to_owned(),
        password: Secret::new("p"),
    }
}

/// It has no version; a directory without an entry for the upstream changes nothing.
#[tokio::test]
async fn configured_credential_is_tried_like_directorys() {
    let verdicts = [down(), CredentialVerdict::Accepted];
    let mut alone = configured(eve(), Arc::default(), &verdicts, RotationState::default());
    alone.becomes(CredentialState::Active, None).await;
    assert_eq!(alone.rotation.borrow().report.version_seen, None);
    let mut beside = configured(eve(), snapshot("", "", 1), &verdicts, RotationState::default());
    beside.becomes(CredentialState::Active, Some(1)).await;
    for scene in [alone, beside] {
        assert_eq!(*scene.upstream.tried.lock(), ["eve", "eve"]);
        assert!(scene.shown()[0].starts_with("eve "), "{:?}", scene.shown());
    }
}

/// A directory that cannot be read for the moment changes nothing: a credential stays in use, and so does anonymous
/// access. The report names the failure until the directory is read again.
#[test_case("ann", CredentialState::Active, &["ann 1"]; "a credential")]
#[test_case("", CredentialState::None, &[]; "no credential")]
#[tokio::test]
async fn transient_failure_keeps_what_is_in_use(user: &str, state: CredentialState, shown: &[&str]) {
    let verdicts = [CredentialVerdict::Accepted];
    let mut scene = scene(snapshot(user, "", 1), &verdicts, RotationState::default());
    scene.becomes(state, Some(1)).await;
    scene.directory.send_replace(snapshot("unavailable", "", 0));
    let reported = |rotation: &RotationState| rotation.report.message.contains("Too many open files");
    let wait = tokio::time::timeout(Duration::from_secs(10), scene.rotation.wait_for(reported));
    assert_eq!(wait.await.unwrap().unwrap().report.state, state);
    scene.directory.send_replace(snapshot(user, "", 1));
    let recovered = |rotation: &RotationState| rotation.report.message.is_empty();
    let wait = tokio::time::timeout(Duration::from_secs(10), scene.rotation.wait_for(recovered));
    assert_eq!(wait.await.unwrap().unwrap().report.state, state);
    let own: Vec<_> = scene
        .shown()
        .into_iter()
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(
        own.iter().filter(|line| line.starts_with("refuse")).count(),
        0,
        "{own:?}"
    );
    assert!(
        own.starts_with(&shown.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "{own:?}"
    );
}

/// Requests wait, and are not refused, until the directory was read once.
#[tokio::test]
async fn directory_that_was_never_read_suspends_requests() {
    let verdicts = [CredentialVerdict::Accepted];
    let mut scene = scene(
        snapshot("unavailable", "", 0),
        &verdicts,
        RotationState::default(),
    );
    scene.becomes(CredentialState::Pending, None).await;
    assert!(scene.shown()[0].starts_with("suspend: "), "{:?}", scene.shown());
    scene.directory.send_replace(snapshot("ann", "", 1));
    scene.becomes(CredentialState::Active, Some(1)).await;
    assert_eq!(scene.shown()[1], "ann 1");
}

/// A configured credential that the upstream rejects leaves no credential in use.
#[tokio::test]
async fn rejected_configured_credential_is_not_used() {
    let mut scene = configured(eve(), Arc::default(), &[no()], RotationState::default());
    scene.becomes(CredentialState::Rejected, None).await;
    assert_eq!(
        scene.shown(),
        ["eve 0", "refuse: the upstream rejects the credential: 401"]
    );
}

/// A credential that was accepted stays in use; the state reports the rejection, and its end.
#[tokio::test]
async fn revoked_credential_is_reported_and_kept() {
    let verdicts = [
        CredentialVerdict::Accepted,
        down(),
        no(),
        CredentialVerdict::Accepted,
    ];
    let mut scene = scene(snapshot("ann", "", 1), &verdicts, RotationState::default());
    scene.becomes(CredentialState::Active, Some(1)).await;
    scene.upstream.refusals.notify_one();
    scene.becomes(CredentialState::Rejected, Some(1)).await;
    scene.becomes(CredentialState::Active, Some(1)).await;
    assert_eq!(scene.shown(), ["ann 1"]);
}

/// A first candidate that the upstream rejects leaves no credential in use.
#[tokio::test]
async fn rejected_first_candidate_is_not_used() {
    let mut scene = scene(snapshot("ann", "", 1), &[no()], RotationState::default());
    scene.becomes(CredentialState::Rejected, None).await;
    assert_eq!(
        scene.shown(),
        ["ann 1", "refuse: the upstream rejects the credential: 401"]
    );
}

/// A rejected candidate is tried again, and used once the upstream accepts it.
#[tokio::test]
async fn rejected_candidate_is_retried_until_accepted() {
    let mut scene = scene(
        snapshot("ann", "", 1),
        &[no(), no(), CredentialVerdict::Accepted],
        RotationState::default(),
    );
    scene.becomes(CredentialState::Active, Some(1)).await;
    assert_eq!(scene.shown().last().unwrap(), "ann 1");
}

/// The last good credential serves until the upstream accepts the candidate.
#[tokio::test]
async fn last_good_serves_until_candidate_is_accepted() {
    let mut scene = scene(
        snapshot("bob", "ann", 2),
        &[down(), CredentialVerdict::Accepted],
        RotationState::default(),
    );
    scene.becomes(CredentialState::Active, Some(2)).await;
    assert_eq!(scene.shown(), ["ann 0", "bob 2"]);
}

/// A rejected candidate never replaces the last good credential.
#[tokio::test]
async fn rejected_candidate_keeps_last_good() {
    let mut scene = scene(snapshot("bob", "ann", 2), &[no()], RotationState::default());
    scene.becomes(CredentialState::Rejected, None).await;
    assert_eq!(scene.shown(), ["ann 0"]);
}

/// A candidate that equals the last good credential needs no trial.
#[tokio::test]
async fn candidate_equal_to_last_good_needs_no_trial() {
    let mut scene = scene(snapshot("ann", "ann", 3), &[], RotationState::default());
    scene.becomes(CredentialState::Active, Some(3)).await;
    assert_eq!(*scene.upstream.tried.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn a_change_is_tried_and_swapped() {
    let mut scene = scene(
        snapshot("ann", "", 1),
        &[CredentialVerdict::Accepted, CredentialVerdict::Accepted],
        RotationState::default(),
    );
    scene.becomes(CredentialState::Active, Some(1)).await;
    scene.directory.send_replace(snapshot("bob", "ann", 2));
    scene.becomes(CredentialState::Active, Some(2)).await;
    assert_eq!(scene.shown(), ["ann 1", "bob 2"]);
}

#[tokio::test]
async fn version_change_of_other_upstream_needs_no_trial() {
    let mut scene = scene(
        snapshot("ann", "", 1),
        &[CredentialVerdict::Accepted],
        RotationState::default(),
    );
    scene.becomes(CredentialState::Active, Some(1)).await;
    scene.directory.send_replace(snapshot("ann", "", 2));
    scene.becomes(CredentialState::Active, Some(2)).await;
    assert_eq!(*scene.upstream.tried.lock(), ["ann"]);
}

/// A file that breaks or disappears leaves the credential in use.
#[tokio::test]
async fn missing_or_broken_file_keeps_credential() {
    let mut scene = scene(
        snapshot("ann", "", 1),
        &[CredentialVerdict::Accepted],
        RotationState::default(),
    );
    scene.becomes(CredentialState::Active, Some(1)).await;
    for (candidate, state) in [
        ("malformed", CredentialState::Malformed),
        ("missing", CredentialState::Missing),
        ("empty", CredentialState::Missing),
    ] {
        scene.directory.send_replace(snapshot(candidate, "", 2));
        scene.becomes(state, Some(1)).await;
    }
    assert_eq!(scene.shown(), ["ann 1"]);
}

/// Without a usable credential the upstream refuses requests with the reason.
#[tokio::test]
async fn no_usable_credential_refuses_with_reason() {
    for (candidate, state, reason) in [
        ("malformed", CredentialState::Malformed, "config.json is broken"),
        ("missing", CredentialState::Missing, "there is no config.json"),
        (
            "empty",
            CredentialState::Missing,
            "the entry of quay.io has no credential",
        ),
    ] {
        let mut scene = scene(snapshot(candidate, "", 1), &[], RotationState::default());
        scene.becomes(state, None).await;
        assert!(
            scene.shown()[0].starts_with(&format!("refuse: {reason}")),
            "{:?}",
            scene.shown()
        );
    }
}

/// An upstream without an entry is requested anonymously.
#[tokio::test]
async fn upstream_without_entry_is_anonymous() {
    let mut scene = scene(snapshot("", "", 1), &[], RotationState::default());
    scene.becomes(CredentialState::None, Some(1)).await;
    assert_eq!(scene.shown(), ["Anonymous 1"]);
}

#[tokio::test]
async fn bad_first_credential_never_falls_back_to_anonymous() {
    for (candidate, state, reason) in [
        (
            "ann",
            CredentialState::Rejected,
            "refuse: the upstream rejects the credential: 401",
        ),
        (
            "malformed",
            CredentialState::Malformed,
            "refuse: config.json is broken",
        ),
    ] {
        let mut scene = scene(snapshot("", "", 1), &[no()], RotationState::default());
        scene.becomes(CredentialState::None, Some(1)).await;
        scene.directory.send_replace(snapshot(candidate, "", 2));
        scene.becomes(state, None).await;
        assert_eq!(scene.shown().last().unwrap(), reason);
    }
}

/// An entry that is removed leaves the last good credential in use.
#[tokio::test]
async fn removed_entry_keeps_last_good() {
    let mut scene = scene(snapshot("", "ann", 1), &[], RotationState::default());
    scene.becomes(CredentialState::Missing, None).await;
    assert_eq!(scene.shown(), ["ann 0"]);
}

/// A keeper that follows another one continues with its credential.
#[tokio::test]
async fn successor_keeper_keeps_active_credential() {
    let ann = Credential::Basic {
        username: "ann".into(),
        password: Secret::new("p"),
    };
    let report = Report {
        state: CredentialState::Active,
        version_loaded: Some(4),
        ..Report::default()
    };
    let held = RotationState {
        report,
        active: Some(ann),
    };
    let mut scene = scene(snapshot("bob", "old", 5), &[no()], held);
    scene.becomes(CredentialState::Rejected, Some(4)).await;
    assert_eq!(scene.shown(), ["ann 4"]);
}
