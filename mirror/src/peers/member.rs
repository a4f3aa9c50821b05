//! One other member: its address, its state, and the requests to it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{PER_PEER, PER_UPSTREAM};
use crate::name::Host;

/// The time for which a member is not asked after a request to it failed.
pub(super) const SUSPECTED: Duration = Duration::from_secs(5);
/// The time for which a member is not asked after it sent wrong bytes.
const EXCLUDED: Duration = Duration::from_mins(5);

/// The state of a member as this one sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemberState {
    /// It has not answered yet.
    Unknown,
    /// It answers no client yet.
    Starting,
    /// It is asked for the content that it owns.
    Serving,
    /// It ends once its requests have ended.
    Draining,
    /// A request or a hello failed: it is asked again after 5 s, or after its next hello if nothing listened at its address.
    Suspect,
    /// It does not answer.
    Unreachable,
    /// It is no member, or takes this server for none.
    Refused(RefusalCause),
    /// It speaks another version of the protocol.
    Incompatible,
    /// It has other upstreams.
    OtherUpstreams,
    /// It sent wrong bytes: it is asked again after 5 min.
    Excluded,
}

/// The reason why two servers are no members of one fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefusalCause {
    /// They have no key in common.
    #[error("the peer and this server do not have the same secret: compare the files of peers.secretfile")]
    Secret,
    /// Their clocks differ by more than the age of an authorization.
    #[error(
        "the clocks of the peer and of this server differ by a minute or more: correct the clock that is wrong"
    )]
    Clock,
    /// One of them has no certificate that the other accepts, or no TLS.
    #[error(
        "TLS with the peer failed: compare peers.tls of both; each needs a certificate of the other's CAs"
    )]
    Tls,
}

/// Another member, as `/status` reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberReport {
    /// `IP:port`.
    pub(crate) address: String,
    /// Its random id; empty until it answered.
    pub(crate) id: String,
    /// Its state.
    pub(crate) state: &'static str,
    /// The reason of the state `refused`.
    pub(crate) cause: Option<&'static str>,
    /// The time since which it has this state.
    pub(crate) since: Timestamp,
}

/// Another member.
pub(crate) struct Member {
    pub(super) address: SocketAddr,
    /// The entry of the configuration that it was found by.
    pub(super) entry: String,
    requests: Arc<Semaphore>,
    /// The requests for content of each upstream.
    shares: Mutex<HashMap<Host, Arc<Semaphore>>>,
    /// The hello that is under way: it waits for no other request.
    hello: Arc<Semaphore>,
    facts: Mutex<Facts>,
}

/// The kind of a request to a member.
pub(super) enum PeerRequestKind {
    /// A hello.
    Hello,
    /// A request for a document of the member itself.
    Document,
    /// A request for content of an upstream.
    Content(Host),
}

/// A place among the requests to a member.
pub(super) struct PeerPlace {
    pub(super) permit: OwnedSemaphorePermit,
    /// The place among the requests for content of one upstream.
    pub(super) share: Option<OwnedSemaphorePermit>,
}

struct Facts {
    id: String,
    state: MemberState,
    since: Timestamp,
    /// It is not asked before this time, whatever it says.
    not_before: Option<Instant>,
    /// Failures of hello in a row.
    failures: u32,
    /// Ends the requests to it.
    lost: CancellationToken,
}

impl MemberState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Unreachable => "unreachable",
            Self::Refused(_) => "refused",
            Self::Incompatible => "incompatible",
            Self::OtherUpstreams => "otherUpstreams",
            Self::Excluded => "excluded",
        }
    }
}

impl RefusalCause {
    /// Returns the name of the reason in `/status` and in the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Clock => "clock",
            Self::Tls => "tls",
        }
    }
}

impl Member {
    pub(super) fn new(address: SocketAddr, entry: String, now: Timestamp) -> Self {
        Self {
            address,
            entry,
            requests: Arc::new(Semaphore::new(PER_PEER)),
            shares: Mutex::default(),
            hello: Arc::new(Semaphore::new(1)),
            facts: Mutex::new(Facts {
                id: String::new(),
                state: MemberState::Unknown,
                since: now,
                not_before: None,
                failures: 0,
                lost: CancellationToken::new(),
            }),
        }
    }

    /// Returns the id of a member that may be chosen as an owner.
    pub(super) fn id_if_serving(&self) -> Option<String> {
        let facts = self.facts.lock();
        (facts.state == MemberState::Serving).then(|| facts.id.clone())
    }

    /// Returns the id of a member that answers, also while it drains.
    pub(super) fn id_if_answering(&self) -> Option<String> {
        let facts = self.facts.lock();
        matches!(facts.state, MemberState::Serving | MemberState::Draining).then(|| facts.id.clone())
    }

    /// Waits for a place for a request; returns `None` only if a semaphore is closed, which none is.
    pub(super) async fn place(&self, kind: &PeerRequestKind) -> Option<PeerPlace> {
        let share = match kind {
            PeerRequestKind::Content(host) => Some(self.share(host).acquire_owned().await.ok()?),
            PeerRequestKind::Hello | PeerRequestKind::Document => None,
        };
        let all = match kind {
            PeerRequestKind::Hello => &self.hello,
            PeerRequestKind::Document | PeerRequestKind::Content(_) => &self.requests,
        };
        let permit = Arc::clone(all).acquire_owned().await.ok()?;
        Some(PeerPlace { permit, share })
    }

    /// Returns the places of an upstream.
    fn share(&self, host: &Host) -> Arc<Semaphore> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(host) {
            return Arc::clone(share);
        }
        // Those of upstreams that no request is for.
        shares.retain(|_, share| Arc::strong_count(share) > 1);
        let share = Arc::new(Semaphore::new(PER_UPSTREAM));
        shares.insert(host.clone(), Arc::clone(&share));
        share
    }

    /// Returns the token that ends when the member is lost.
    pub(super) fn lost(&self) -> CancellationToken {
        self.facts.lock().lost.clone()
    }

    pub(super) fn report(&self) -> MemberReport {
        let facts = self.facts.lock();
        MemberReport {
            address: self.address.to_string(),
            id: facts.id.clone(),
            state: facts.state.as_str(),
            cause: match facts.state {
                MemberState::Refused(cause) => Some(cause.as_str()),
                _ => None,
            },
            since: facts.since,
        }
    }

    /// Records an answer to a hello, unless the member has to be left alone for a while yet. Returns whether the state
    /// changed.
    pub(super) fn on_hello(&self, id: String, state: MemberState, now: Timestamp) -> bool {
        let mut facts = self.facts.lock();
        facts.failures = 0;
        facts.id = id;
        if facts.not_before.is_some_and(|time| Instant::now() < time) {
            return false;
        }
        facts.not_before = None;
        facts.set(state, now)
    }

    /// Records that the member refuses this server, or this server the member, and logs a new reason.
    pub(super) fn on_refusal(&self, cause: RefusalCause, now: Timestamp) {
        if self.on_hello(String::new(), MemberState::Refused(cause), now) {
            let (address, cause_name) = (self.address, cause.as_str());
            tracing::warn!(%address, cause = cause_name, "another replica is not asked: {cause}");
        }
    }

    /// Records that a hello failed. The first failure makes the member suspect; the second ends all requests to it.
    pub(super) fn on_silence(&self, now: Timestamp) {
        let mut facts = self.facts.lock();
        facts.failures = facts.failures.saturating_add(1);
        if facts.failures == 1 && facts.state != MemberState::Unknown {
            facts.set(MemberState::Suspect, now);
            return;
        }
        facts.set(MemberState::Unreachable, now);
        std::mem::take(&mut facts.lost).cancel();
    }

    /// Leaves a member alone for 5 s after a request to it failed.
    pub(super) fn suspect(&self, now: Timestamp) {
        self.leave_alone(MemberState::Suspect, SUSPECTED, now);
    }

    /// Leaves a member alone until its next hello, as nothing listened at its address: the others may have noticed nothing
    /// by the time at which it has restarted.
    pub(super) fn suspect_until_hello(&self, now: Timestamp) {
        let mut facts = self.facts.lock();
        if matches!(facts.state, MemberState::Serving | MemberState::Draining) {
            facts.set(MemberState::Suspect, now);
        }
    }

    /// Returns whether the member has this id, and is taken for lost or not known yet, though nothing but its next hello
    /// is missing.
    pub(super) fn is_missed(&self, id: &str) -> bool {
        let facts = self.facts.lock();
        let is_lost = matches!(
            facts.state,
            MemberState::Unknown | MemberState::Suspect | MemberState::Unreachable
        );
        facts.id == id && is_lost && facts.not_before.is_none_or(|time| time <= Instant::now())
    }

    /// Leaves a member alone for 5 min, as it sent wrong bytes.
    pub(super) fn exclude(&self, now: Timestamp) {
        self.leave_alone(MemberState::Excluded, EXCLUDED, now);
    }

    fn leave_alone(&self, state: MemberState, time: Duration, now: Timestamp) {
        let mut facts = self.facts.lock();
        let until = Instant::now() + time;
        if facts.not_before.is_none_or(|time| time < until) {
            facts.not_before = Some(until);
            facts.set(state, now);
        }
    }
}

impl Facts {
    fn set(&mut self, state: MemberState, now: Timestamp) -> bool {
        let differs = self.state != state;
        if differs {
            (self.state, self.since) = (state, now);
        }
        differs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn member() -> Member {
        Member::new("127.0.0.1:1".parse().unwrap(), "a".into(), Timestamp::now())
    }

    /// A hello does not end the time for which a member is left alone.
    #[test]
    fn excluded_member_is_not_chosen_after_hello() {
        let (member, now) = (member(), Timestamp::now());
        member.on_hello("id".into(), MemberState::Serving, now);
        assert_eq!(member.id_if_serving().as_deref(), Some("id"));
        member.exclude(now);
        member.on_hello("id".into(), MemberState::Serving, now);
        assert_eq!(
            (member.id_if_serving(), member.report().state),
            (None, "excluded")
        );
    }

    /// A member at whose address nothing listened is asked again after its next hello, and one that failed otherwise is not.
    #[test]
    fn refused_connection_lasts_until_hello() {
        let (member, now) = (member(), Timestamp::now());
        let mut states = Vec::new();
        let mut hello = |member: &Member| {
            member.on_hello("id".into(), MemberState::Serving, now);
            states.push(member.report().state);
        };
        hello(&member);
        member.suspect_until_hello(now);
        assert!(member.id_if_serving().is_none() && member.is_missed("id") && !member.is_missed("other"));
        hello(&member);
        member.suspect(now);
        member.suspect_until_hello(now);
        assert!(!member.is_missed("id"));
        hello(&member);
        assert_eq!(states, ["serving", "serving", "suspect"]);
    }

    /// Requests for content of one upstream leave places for that of others, and hellos have their own.
    #[test]
    fn requests_of_one_upstream_leave_places_to_others() {
        let member = member();
        let [bad, good] =
            ["bad.test", "good.test"].map(|host| PeerRequestKind::Content(host.parse().unwrap()));
        let mut held = Vec::new();
        while let Some(place) = member.place(&bad).now_or_never() {
            held.push(place.unwrap());
        }
        assert_eq!(held.len(), PER_UPSTREAM);
        while let Some(place) = member.place(&good).now_or_never() {
            held.push(place.unwrap());
        }
        assert_eq!(held.len(), PER_PEER);
        assert!(member.place(&PeerRequestKind::Document).now_or_never().is_none());
        assert!(member.place(&PeerRequestKind::Hello).now_or_never().is_some());
        held.clear();
        assert!(member.place(&bad).now_or_never().is_some());
    }

    /// One failed hello makes a member suspect, the second ends the requests to it.
    #[test]
    fn second_silence_ends_requests() {
        let (member, now) = (member(), Timestamp::now());
        member.on_hello("id".into(), MemberState::Serving, now);
        let lost = member.lost();
        member.on_silence(now);
        assert!(!lost.is_cancelled() && member.id_if_serving().is_none());
        member.on_silence(now);
        assert!(lost.is_cancelled() && !member.lost().is_cancelled());
        member.on_hello("id".into(), MemberState::Serving, now);
        assert!(member.id_if_serving().is_some());
    }
}
