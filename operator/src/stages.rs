//! When a mirror may take up what a new version of the operator brings along, such as a new server image: some mirrors
//! at a time, and no more once one of them fails. What its own spec asks for, a mirror gets at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use crds::RegistryMirror;
use futures::{
    StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
    stream::BoxStream,
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    ResourceExt,
    runtime::{
        controller::{ReconcileReason, ReconcileRequest},
        reflector::ObjectRef,
    },
};

use crate::{
    cluster::{
        Scope,
        watch::{Stored, Trigger},
    },
    metrics::{Metrics, Upgrades},
    observed::{Observed, Rendered, Workload},
};

mod objects;

/// How new versions are rolled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many mirrors take one up at a time.
    pub at_a_time: usize,
    /// How long one may take to be ready again before the others have to wait for it.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            at_a_time: 3,
            patience: Duration::from_mins(10),
        }
    }
}

/// Namespace and name of a mirror.
pub type Key = (String, String);

/// Why a mirror's Pod template is to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is not.
    None,
    /// Its spec was changed since.
    OfTheSpec,
    /// The operator was: it is another version, or was told of another server image.
    OfTheOperator,
}

/// What would be applied now, beside what was applied last.
pub fn change(applied: Option<&Workload>, wanted: &Rendered) -> Change {
    let Some(workload) = applied else {
        return Change::None;
    };
    match &workload.rendered {
        Some(applied) if applied.template == wanted.template => Change::None,
        Some(applied) if applied.generation != wanted.generation => Change::OfTheSpec,
        Some(_) | None => Change::OfTheOperator,
    }
}

/// Whether a mirror's turn has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has, and counts since then.
    Come(Timestamp),
    /// It waits, for this.
    Waits(String),
}

/// What the controller of one scope is given.
pub struct Part {
    /// Its share in them.
    pub share: Share,
    /// The triggers of its mirrors whose turn has come, or that wait for something else now.
    pub woken: BoxStream<'static, Trigger>,
}

/// All scopes' stages, in the hands of one scope's controller.
pub struct Share {
    stages: Arc<Stages>,
    begun: Once,
}

impl Share {
    /// Tells what was under way in the scope when the operator started, the first time that it is called.
    pub fn begin(&self, rolling: impl FnOnce() -> Vec<(Key, Timestamp)>) {
        self.begun.call_once(|| self.stages.found(rolling()));
    }
}

impl Deref for Share {
    type Target = Stages;

    fn deref(&self) -> &Stages {
        &self.stages
    }
}

/// The mirrors that take up a new version, and those that wait for their turn.
pub struct Stages {
    limits: Limits,
    queue: Mutex<Queue>,
    metrics: Arc<Metrics>,
    news: Vec<(Scope, UnboundedSender<Key>)>,
}

impl Stages {
    /// What the controller of each scope is given. What is under way in each it tells by [`Share::begin`].
    pub fn in_parts(scopes: &[Scope], limits: Limits, metrics: &Arc<Metrics>) -> Vec<Part> {
        let (news, woken): (Vec<_>, Vec<_>) = scopes
            .iter()
            .map(|scope| {
                let (sender, receiver) = unbounded();
                ((scope.clone(), sender), receiver)
            })
            .unzip();
        let queue = Queue {
            unknown_scopes: scopes.len(),
            ..Queue::default()
        };
        let stages = Arc::new(Self {
            limits,
            queue: Mutex::new(queue),
            metrics: Arc::clone(metrics),
            news,
        });
        let part = |woken: UnboundedReceiver<Key>| Part {
            share: Share {
                stages: Arc::clone(&stages),
                begun: Once::new(),
            },
            woken: woken.map(|mirror| Ok(request(mirror))).boxed(),
        };
        woken.into_iter().map(part).collect()
    }

    /// What was under way in a scope when the operator started. Until that is known of all, nobody's turn comes.
    fn found(&self, rolling: impl IntoIterator<Item = (Key, Timestamp)>) {
        let mut queue = self.lock();
        queue.rolling.extend(rolling);
        queue.unknown_scopes = queue.unknown_scopes.saturating_sub(1);
        self.announce(&mut queue, Timestamp::now());
    }

    /// Asks for a turn, for a mirror that took up another version before, if it did.
    pub fn turn(&self, mirror: &Key, before: Option<Timestamp>, now: Timestamp) -> Turn {
        let mut queue = self.lock();
        let turn = queue.turn(mirror, before, now, self.limits);
        self.announce(&mut queue, now);
        turn
    }

    /// Takes in how a mirror's roll-out goes. One that is paused is its admin's business.
    pub fn saw(&self, mirror: &RegistryMirror, observed: &Observed) {
        let workload = observed.workload.as_ref();
        let done = workload.is_some_and(|workload| workload.is_upgraded() && workload.rolled_out());
        let (paused, mirror) = (mirror.spec.paused, key(mirror));
        let mut queue = self.lock();
        if paused {
            queue.forget(&mirror);
        } else if done && queue.rolling.remove(&mirror).is_some() {
            tracing::info!(namespace = mirror.0, name = mirror.1, "took up the new version");
        }
        self.announce(&mut queue, observed.at);
    }

    /// Nothing is to be taken up any more, or by hand only.
    pub fn leave(&self, mirror: &Key, now: Timestamp) {
        let mut queue = self.lock();
        queue.forget(mirror);
        self.announce(&mut queue, now);
    }

    /// Nothing is to be taken up for now, though it may be under way.
    pub fn is_up_to_date(&self, mirror: &Key) {
        self.lock().waiting.remove(mirror);
    }

    /// How long a mirror has left to become ready; nothing if it has failed. `None`: it takes up nothing.
    pub fn left(&self, mirror: &Key, now: Timestamp) -> Option<Duration> {
        let queue = self.lock();
        let since = queue.rolling.get(mirror)?;
        Some(left(*since, now, self.limits.patience))
    }

    /// When to look at a mirror again, as its time to become ready is over then.
    pub fn rest(&self, mirror: &RegistryMirror, now: Timestamp) -> Duration {
        match self.left(&key(mirror), now) {
            Some(left) if !left.is_zero() => left + Duration::from_secs(1),
            Some(_) | None => Duration::MAX,
        }
    }

    /// Wakes those who are concerned by what has changed, and has it measured.
    fn announce(&self, queue: &mut Queue, now: Timestamp) {
        for mirror in queue.wake(now, self.limits) {
            let mut news = self.news.iter();
            if let Some((_, news)) = news.find(|(scope, _)| scope.covers(&mirror.0)) {
                // Nobody listens any more once the controllers end.
                let _ = news.unbounded_send(mirror);
            }
        }
        let failed = queue.failed(now, self.limits).count();
        self.metrics.upgrades(&Upgrades {
            waiting: queue.waiting.len(),
            rolling: queue.rolling.len() - failed,
            failed,
        });
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(mirror: &RegistryMirror) -> Key {
    (mirror.namespace().unwrap_or_default(), mirror.name_any())
}

fn request((namespace, name): Key) -> ReconcileRequest<Stored> {
    ReconcileRequest {
        obj_ref: ObjectRef::new(&name).within(&namespace),
        reason: ReconcileReason::Custom {
            reason: "the turn to take up a new version may have come".to_owned(),
        },
    }
}

/// The policy.
#[derive(Debug, Default)]
struct Queue {
    /// Who takes it up, and since when.
    rolling: BTreeMap<Key, Timestamp>,
    waiting: BTreeSet<Key>,
    unknown_scopes: usize,
    /// What those who wait were last told.
    paused: bool,
}

impl Queue {
    fn forget(&mut self, mirror: &Key) {
        self.rolling.remove(mirror);
        self.waiting.remove(mirror);
    }

    fn turn(&mut self, mirror: &Key, before: Option<Timestamp>, now: Timestamp, limits: Limits) -> Turn {
        match self.obstacle(mirror, now, limits) {
            None => {
                self.waiting.remove(mirror);
                // What it was given and could not be applied yet goes on; what it was given before is given up: it may
                // be what fails.
                let going_on = self
                    .rolling
                    .get(mirror)
                    .copied()
                    .filter(|since| Some(*since) != before);
                let since = going_on.unwrap_or(now);
                self.rolling.insert(mirror.clone(), since);
                Turn::Come(since)
            }
            Some(obstacle) => {
                self.waiting.insert(mirror.clone());
                Turn::Waits(obstacle)
            }
        }
    }

    fn obstacle(&self, mirror: &Key, now: Timestamp, limits: Limits) -> Option<String> {
        if self.rolling.contains_key(mirror) {
            return None;
        }
        if self.unknown_scopes > 0 {
            return Some("what other mirrors do is not known yet".to_owned());
        }
        if let Some((namespace, name)) = self.failed(now, limits).next() {
            return Some(format!(
                "the upgrade is paused, as {namespace}/{name} has not become ready with it"
            ));
        }
        (self.rolling.len() >= limits.at_a_time).then(|| match limits.at_a_time {
            1 => "it is given to one mirror at a time".to_owned(),
            several => format!("it is given to {several} mirrors at a time"),
        })
    }

    fn failed(&self, now: Timestamp, limits: Limits) -> impl Iterator<Item = &Key> {
        let over = move |since: &Timestamp| left(*since, now, limits.patience).is_zero();
        self.rolling
            .iter()
            .filter(move |(_, since)| over(since))
            .map(|(mirror, _)| mirror)
    }

    /// All who wait when that changes what they wait for; else as many as there is room for, and some more, as not
    /// everyone who waited still does. Who is woken waits no more until it asks again.
    fn wake(&mut self, now: Timestamp, limits: Limits) -> Vec<Key> {
        let paused = self.failed(now, limits).next().is_some();
        let changed = std::mem::replace(&mut self.paused, paused) != paused;
        let free = limits.at_a_time.saturating_sub(self.rolling.len());
        let number = match (changed, paused || self.unknown_scopes > 0 || free == 0) {
            (true, _) => self.waiting.len(),
            (false, true) => 0,
            (false, false) => free + limits.at_a_time,
        };
        let woken: Vec<_> = self.waiting.iter().take(number).cloned().collect();
        if !changed {
            for mirror in &woken {
                self.waiting.remove(mirror);
            }
        }
        woken
    }
}

fn left(since: Timestamp, now: Timestamp, patience: Duration) -> Duration {
    let spent = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    patience.saturating_sub(spent)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const LIMITS: Limits = Limits {
        at_a_time: 2,
        patience: Duration::from_mins(1),
    };

    fn key(name: &str) -> Key {
        ("ns".to_owned(), name.to_owned())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn waits_for(turn: Turn) -> String {
        match turn {
            Turn::Come(_) => "nothing".to_owned(),
            Turn::Waits(obstacle) => obstacle,
        }
    }

    fn asked(queue: &mut Queue, name: &str, second: i64) -> String {
        waits_for(queue.turn(&key(name), None, at(second), LIMITS))
    }

    #[test]
    fn no_more_than_so_many_take_it_up_at_a_time() {
        let mut queue = Queue::default();
        assert_eq!(asked(&mut queue, "a", 0), "nothing");
        assert_eq!(asked(&mut queue, "b", 0), "nothing");
        assert_eq!(asked(&mut queue, "c", 0), "it is given to 2 mirrors at a time");
        assert!(queue.wake(at(1), LIMITS).is_empty());
        queue.rolling.remove(&key("a"));
        assert_eq!(queue.wake(at(2), LIMITS), [key("c")]);
        assert_eq!(asked(&mut queue, "c", 2), "nothing");
    }

    #[test]
    fn who_has_not_become_ready_in_time_pauses_the_rest_until_it_is() {
        let mut queue = Queue::default();
        asked(&mut queue, "a", 0);
        asked(&mut queue, "b", 50);
        queue.rolling.remove(&key("b"));
        let paused = "the upgrade is paused, as ns/a has not become ready with it";
        assert_eq!(asked(&mut queue, "c", 60), paused, "though there is room");
        assert_eq!(queue.wake(at(60), LIMITS), [key("c")], "to tell of it");
        assert!(queue.wake(at(61), LIMITS).is_empty(), "once");
        assert_eq!(asked(&mut queue, "c", 61), paused);
        queue.rolling.remove(&key("a"));
        assert_eq!(queue.wake(at(70), LIMITS), [key("c")]);
        assert_eq!(asked(&mut queue, "c", 70), "nothing");
    }

    #[test]
    fn who_failed_is_the_first_to_get_what_is_better() {
        let mut queue = Queue::default();
        asked(&mut queue, "a", 0);
        assert_eq!(
            queue.turn(&key("a"), Some(at(0)), at(100), LIMITS),
            Turn::Come(at(100))
        );
        assert!(
            queue.failed(at(100), LIMITS).next().is_none(),
            "its time starts anew"
        );
    }

    #[test]
    fn what_can_not_be_applied_fails_in_time() {
        let mut queue = Queue::default();
        asked(&mut queue, "a", 0);
        assert_eq!(queue.turn(&key("a"), None, at(100), LIMITS), Turn::Come(at(0)));
        assert_eq!(queue.failed(at(100), LIMITS).next(), Some(&key("a")));
    }

    #[test]
    fn before_all_is_known_nobody_begins() {
        let mut queue = Queue {
            unknown_scopes: 1,
            ..Queue::default()
        };
        assert_eq!(
            asked(&mut queue, "a", 0),
            "what other mirrors do is not known yet"
        );
        assert!(queue.wake(at(0), LIMITS).is_empty());
        queue.unknown_scopes = 0;
        assert_eq!(queue.wake(at(0), LIMITS), [key("a")]);
    }

    #[test]
    fn what_was_under_way_before_the_operator_started_counts() {
        let metrics = Arc::<Metrics>::default();
        let part = Stages::in_parts(&[Scope::Cluster], LIMITS, &metrics).remove(0);
        let stages = &part.share;
        stages.found([(key("a"), at(0)), (key("b"), at(50))]);
        assert!(matches!(stages.turn(&key("c"), None, at(55)), Turn::Waits(_)));
        assert_eq!(stages.left(&key("b"), at(55)), Some(Duration::from_secs(55)));
        assert_eq!(stages.left(&key("c"), at(55)), None);
        let text = metrics.render().unwrap();
        assert!(text.contains(r#"upgrades{state="waiting"} 1"#), "{text}");
        assert!(text.contains(r#"upgrades{state="rolling"} 2"#), "{text}");
    }

    fn rendered(template: &str, generation: i64) -> Rendered {
        Rendered {
            template: template.to_owned(),
            generation: Some(generation),
            ..Rendered::default()
        }
    }

    #[test_case(Some(("t", 1)) => Change::None; "nothing is other")]
    #[test_case(Some(("t", 0)) => Change::None; "a spec that comes to the same")]
    #[test_case(Some(("s", 0)) => Change::OfTheSpec; "another spec")]
    #[test_case(Some(("s", 1)) => Change::OfTheOperator; "the same spec")]
    #[test_case(None => Change::OfTheOperator; "of a version that noted nothing")]
    fn the_change_is(applied: Option<(&str, i64)>) -> Change {
        let workload = Workload {
            rendered: applied.map(|(template, generation)| rendered(template, generation)),
            ..Workload::default()
        };
        change(Some(&workload), &rendered("t", 1))
    }

    #[test]
    fn a_mirror_without_servers_takes_up_nothing() {
        assert_eq!(change(None, &rendered("t", 1)), Change::None);
    }
}
