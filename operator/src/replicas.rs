//! What the replicas report: the admin port of each is asked in the background, often while something is pending and
//! seldom at rest. A mirror is looked at again when an answer says something new; no reconcile waits for one.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use crds::RegistryMirror;
use futures::{
    Stream, StreamExt,
    channel::mpsc::{UnboundedSender, unbounded},
    stream,
};
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    ResourceExt,
    runtime::{
        controller::{ReconcileReason, ReconcileRequest},
        reflector::ObjectRef,
    },
};
use mirror::admin::Status;
use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    cluster::{children::Children, watch::Trigger},
    desired::ADMIN_PORT,
    observed::{Answer, Observed, Report, Server},
    retry::jittered,
};

/// How often it is looked whom to ask.
const TICK: Duration = Duration::from_millis(250);
/// How long a server may take; its answer is a few kilobytes.
const PATIENCE: Duration = Duration::from_secs(3);
/// An answer's size at most.
const ANSWER_BYTES: usize = 1 << 20;
/// How many mirrors are asked at a time, and how many replicas of each.
const MIRRORS_AT_A_TIME: usize = 32;
const REPLICAS_AT_A_TIME: usize = 4;
/// So often in a row a server is without an answer before that is told.
const MISSES: u32 = 3;
/// While a change is on its way; then, while it does not arrive; and at rest.
const SHORT: Duration = Duration::from_secs(1);
const SHORT_FOR: Duration = Duration::from_mins(1);
const MIDDLE: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(30);

/// Namespace and name.
type Key = (String, String);

/// What the replicas of all mirrors of a scope last said.
pub struct Replicas {
    children: Arc<Children>,
    client: Client<HttpConnector, Empty<Bytes>>,
    mirrors: Mutex<HashMap<Key, Asked>>,
    news: UnboundedSender<Key>,
    places: Arc<Semaphore>,
}

/// A mirror whose replicas are asked.
struct Asked {
    /// By the Pods' UIDs.
    answers: BTreeMap<String, Heard>,
    due: Instant,
    /// Since when something is pending.
    pending: Option<Instant>,
    asking: bool,
}

/// A server's last answer, and how often it gave none since.
#[derive(Clone, Debug, Default)]
struct Heard {
    answer: Answer,
    misses: u32,
}

impl Replicas {
    /// What asks, and what triggers a look at the mirrors whose replicas said something new.
    pub fn new(children: Arc<Children>) -> (Arc<Self>, impl Stream<Item = Trigger> + Send + use<>) {
        let (news, receiver) = unbounded();
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(PATIENCE));
        let replicas = Self {
            children,
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(connector),
            mirrors: Mutex::default(),
            news,
            places: Arc::new(Semaphore::new(MIRRORS_AT_A_TIME)),
        };
        let triggers = receiver.map(|(namespace, name): Key| {
            Ok(ReconcileRequest {
                obj_ref: ObjectRef::new(&name).within(&namespace),
                reason: ReconcileReason::Custom {
                    reason: "a replica reports something new".to_owned(),
                },
            })
        });
        (Arc::new(replicas), triggers)
    }

    /// Adds to what was observed what the servers said.
    pub fn tell(&self, mirror: &RegistryMirror, observed: &mut Observed) {
        let mirrors = self.lock();
        let asked = mirrors.get(&key(mirror));
        for server in &mut observed.servers {
            let heard = asked.and_then(|asked| asked.answers.get(&server.uid));
            server.answer = heard.map(|heard| heard.answer.clone()).unwrap_or_default();
        }
    }

    /// From now on the mirror's replicas are asked: at once if something is pending or a replica was never asked.
    pub fn follow(&self, mirror: &RegistryMirror, observed: &Observed, pending: bool) {
        let now = Instant::now();
        let mut mirrors = self.lock();
        let asked = mirrors.entry(key(mirror)).or_insert_with(|| Asked {
            answers: BTreeMap::new(),
            due: now,
            pending: None,
            asking: false,
        });
        if pending && asked.pending.is_none() || observed.servers.iter().any(|s| s.answer == Answer::Unasked)
        {
            asked.due = now;
        }
        asked.pending = pending.then(|| asked.pending.unwrap_or(now));
    }

    /// Forgets a mirror.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Asks whenever a mirror's time has come, for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for mirror in self.due() {
                // Never closed.
                let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                    return;
                };
                let replicas = Arc::clone(&self);
                tokio::spawn(async move {
                    replicas.ask(mirror).await;
                    drop(place);
                });
            }
        }
    }

    fn due(&self) -> Vec<Key> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (mirror, asked) in self.lock().iter_mut() {
            if !asked.asking && asked.due <= now {
                asked.asking = true;
                due.push(mirror.clone());
            }
        }
        due
    }

    async fn ask(&self, mirror: Key) {
        let servers = self.children.servers(&mirror.0, &mirror.1);
        let answers = stream::iter(servers)
            .map(|server| async move {
                let answer = self.answer(&server).await;
                (server.uid, answer)
            })
            .buffer_unordered(REPLICAS_AT_A_TIME)
            .collect()
            .await;
        if let Some(asked) = self.lock().get_mut(&mirror)
            && asked.heard(answers)
        {
            // Nobody listens any more once the controller ends.
            let _ = self.news.unbounded_send(mirror);
        }
    }

    /// What a server says; `None` if it says nothing that can be understood.
    async fn answer(&self, server: &Server) -> Option<Report> {
        let address = SocketAddr::new(server.address, ADMIN_PORT);
        let uri = Uri::builder()
            .scheme("http")
            .authority(address.to_string())
            .path_and_query("/status");
        let asked = async {
            let response = self.client.get(uri.build().ok()?).await.ok()?;
            if response.status() != StatusCode::OK {
                return None;
            }
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
            serde_json::from_slice::<Status>(&body.ok()?.to_bytes()).ok()
        };
        let status = timeout(PATIENCE, asked).await.ok().flatten();
        if status.is_none() {
            tracing::debug!(pod = server.pod, %address, "no answer from the admin port");
        }
        status.map(Report::from)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Asked>> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    /// Takes answers in; whether they say something new.
    fn heard(&mut self, answers: Vec<(String, Option<Report>)>) -> bool {
        let now: BTreeMap<_, _> = answers
            .into_iter()
            .map(|(uid, report)| {
                let before = self.answers.get(&uid).cloned().unwrap_or_default();
                (uid, before.followed_by(report))
            })
            .collect();
        let same = now.len() == self.answers.len()
            && now.iter().all(|(uid, heard)| {
                self.answers
                    .get(uid)
                    .is_some_and(|before| before.answer == heard.answer)
            });
        let missing = now.values().any(|heard| heard.misses > 0);
        self.answers = now;
        self.asking = false;
        self.due = Instant::now() + jittered(self.pause(missing));
        !same
    }

    fn pause(&self, missing: bool) -> Duration {
        match self.pending {
            Some(since) if since.elapsed() < SHORT_FOR => SHORT,
            Some(_) => MIDDLE,
            None if missing => MIDDLE,
            None => LONG,
        }
    }
}

impl Heard {
    /// One answer that is lost takes nothing back.
    fn followed_by(self, report: Option<Report>) -> Self {
        match report {
            Some(report) => Self {
                answer: Answer::Given(report),
                misses: 0,
            },
            None if self.misses + 1 >= MISSES => Self {
                answer: Answer::Silent,
                misses: MISSES,
            },
            None => Self {
                answer: self.answer,
                misses: self.misses + 1,
            },
        }
    }
}

fn key(mirror: &RegistryMirror) -> Key {
    (mirror.namespace().unwrap_or_default(), mirror.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        Asked {
            answers: BTreeMap::new(),
            due: Instant::now(),
            pending: None,
            asking: true,
        }
    }

    fn says(version: &str) -> Vec<(String, Option<Report>)> {
        let report = Report {
            version: version.to_owned(),
            ..Report::default()
        };
        vec![("u".to_owned(), Some(report))]
    }

    fn nothing() -> Vec<(String, Option<Report>)> {
        vec![("u".to_owned(), None)]
    }

    #[tokio::test]
    async fn only_news_are_told() {
        let mut asked = asked();
        assert!(asked.heard(says("1")));
        assert!(!asked.heard(says("1")));
        assert!(asked.heard(says("2")));
        assert!(asked.heard(Vec::new()), "a Pod that is gone is news");
        assert!(!asked.heard(Vec::new()));
    }

    #[tokio::test]
    async fn a_server_is_silent_only_after_several_questions() {
        let mut asked = asked();
        asked.heard(says("1"));
        assert!(!asked.heard(nothing()) && !asked.heard(nothing()));
        assert!(asked.heard(nothing()));
        assert_eq!(asked.answers["u"].answer, Answer::Silent);
        assert!(!asked.heard(nothing()));
        assert!(asked.heard(says("1")), "and counts again at its first answer");
    }

    #[tokio::test]
    async fn what_is_pending_is_asked_for_often() {
        let mut asked = asked();
        assert_eq!((asked.pause(false), asked.pause(true)), (LONG, MIDDLE));
        asked.pending = Some(Instant::now());
        assert_eq!(asked.pause(false), SHORT);
        asked.pending = Instant::now().checked_sub(SHORT_FOR);
        assert_eq!(asked.pause(false), MIDDLE, "but not for ever");
    }
}
