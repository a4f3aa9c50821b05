//! Membership: names are resolved and members say hello every 5 s, after a request failed, and when another
//! member comes, restarts or drains.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::Fleet;
use super::hello::{HELLO_PATH, Hello, HelloState, PROTOCOL};
use super::member::{Member, MemberState, PeerRequestKind};
use super::request::{PeerError, PeerRequest};

/// The time from one hello to the next.
const INTERVAL: Duration = Duration::from_secs(5);
/// The time from one hello to the next while the members probably start.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
/// The time for which they probably do.
const STARTING: Duration = Duration::from_secs(30);
/// The shortest time between two rounds.
const SPACING: Duration = Duration::from_millis(250);
/// The longest wait for the addresses of a name, and for a hello.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most bytes of the answer to a hello.
pub(crate) const MAX_HELLO: usize = 4096;
/// The time for which the members of a name stay that has no address any more, or cannot be resolved.
const KEPT_UNRESOLVED: Duration = Duration::from_mins(2);
/// The most members that one server follows.
pub(crate) const MAX_MEMBERS: usize = 64;

/// The times at which entries of the configuration last had addresses.
#[derive(Default)]
pub(super) struct ResolvedEntries(HashMap<String, Instant>);

impl ResolvedEntries {
    /// Records whether an entry has addresses now. Returns whether it has none, and had some lately.
    fn stays(&mut self, entry: &str, has_addresses: bool, now: Instant) -> bool {
        if has_addresses {
            self.0.insert(entry.to_owned(), now);
            return false;
        }
        let last = self.0.get(entry);
        last.is_some_and(|last| now.saturating_duration_since(*last) < KEPT_UNRESOLVED)
    }
}

/// The states of the members in their last hellos, by id.
#[derive(Default)]
pub(super) struct Hellos(HashMap<String, HelloState>);

impl Hellos {
    /// Records the state that a member announces. Returns whether it announced another one before, or none.
    pub(super) fn record(&mut self, id: &str, state: HelloState) -> bool {
        if self.0.get(id) == Some(&state) {
            return false;
        }
        if self.0.len() >= MAX_MEMBERS {
            self.0.clear();
        }
        self.0.insert(id.to_owned(), state);
        true
    }
}

impl Fleet {
    pub(super) async fn follow_members(&self) {
        let started = Instant::now();
        loop {
            self.refresh().await;
            sleep(SPACING).await;
            let is_starting = started.elapsed() < STARTING;
            let interval = if is_starting { FIRST_INTERVAL } else { INTERVAL };
            tokio::select! {
                () = sleep(interval) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Finds the members and says hello to each.
    async fn refresh(&self) {
        let found = self.find().await;
        let known = self.members.load_full();
        let now = self.clock.now();
        let members: Vec<_> = found
            .into_iter()
            .map(|(address, entry)| {
                let same = known.iter().find(|member| member.address == address);
                same.cloned()
                    .unwrap_or_else(|| Arc::new(Member::new(address, entry, now)))
            })
            .collect();
        let is_self = join_all(members.iter().map(|member| self.greet(member))).await;
        let others = members.into_iter().zip(is_self).filter(|(_, is_self)| !is_self);
        let others: Vec<_> = others.map(|(member, _)| member).collect();
        if others.len() != known.len() {
            info!(members = others.len(), "the number of other members changed");
        }
        self.members.store(Arc::new(others));
        self.has_searched.store(true, Ordering::Relaxed);
    }

    /// Returns the addresses of all members. An entry that cannot be resolved keeps the members that it had for 2 min.
    async fn find(&self) -> Vec<(SocketAddr, String)> {
        let entries = self.settings.addresses.iter();
        let resolved = join_all(entries.map(async |entry| {
            let looked_up = timeout(PATIENCE, tokio::net::lookup_host(entry)).await;
            let addresses = looked_up
                .ok()
                .and_then(Result::ok)
                .map(Iterator::collect::<Vec<_>>);
            (entry, addresses.unwrap_or_default())
        }))
        .await;
        let known = self.members.load();
        let mut found = Vec::new();
        for (entry, mut addresses) in resolved {
            if self
                .resolved
                .lock()
                .stays(entry, !addresses.is_empty(), Instant::now())
            {
                debug!(entry, "no address: the members of this entry stay for now");
                let of_entry = known.iter().filter(|member| member.entry == *entry);
                addresses.extend(of_entry.map(|member| member.address));
            }
            for address in addresses {
                if found.len() < MAX_MEMBERS && found.iter().all(|(other, _)| *other != address) {
                    found.push((address, entry.clone()));
                }
            }
        }
        found
    }

    /// Says hello to a member. Returns `true` if this member itself answered.
    async fn greet(&self, member: &Member) -> bool {
        let request = PeerRequest {
            limit: MAX_HELLO,
            kind: PeerRequestKind::Hello,
            headers: self.hello().to_headers(),
            ..PeerRequest::get(HELLO_PATH.to_owned())
        };
        let answer = timeout(PATIENCE, self.document(member, request)).await;
        let now = self.clock.now();
        match answer {
            Ok(Ok(answer)) => match Hello::parse(&answer.body) {
                Some(hello) if hello.id == self.id => return true,
                Some(hello) => {
                    let state = self.judge(&hello);
                    member.on_hello(hello.id, state, now);
                }
                None => _ = member.on_hello(String::new(), MemberState::Incompatible, now),
            },
            Ok(Err(PeerError::Refused(cause))) => member.on_refusal(cause, now),
            Ok(Err(error)) => {
                debug!(address = %member.address, %error, "a member does not answer");
                member.on_silence(now);
            }
            Err(_) => {
                member.on_silence(now);
                self.wake.notify_one();
            }
        }
        false
    }

    fn judge(&self, hello: &Hello) -> MemberState {
        match hello.state {
            _ if hello.protocol != PROTOCOL => MemberState::Incompatible,
            _ if hello.upstreams != **self.upstreams.load() => MemberState::OtherUpstreams,
            HelloState::Starting => MemberState::Starting,
            HelloState::Serving => MemberState::Serving,
            HelloState::Draining => MemberState::Draining,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member's state is a change once, and the number of members whose states are kept is bounded.
    #[test]
    fn state_in_hello_is_a_change_once() {
        let mut hellos = Hellos::default();
        let mut record = |id: usize, state| hellos.record(&id.to_string(), state);
        assert!(record(0, HelloState::Serving) && !record(0, HelloState::Serving));
        assert!(record(0, HelloState::Draining) && record(0, HelloState::Serving));
        assert!((1..1000).all(|id| record(id, HelloState::Serving)));
        assert!(hellos.0.len() <= MAX_MEMBERS);
    }

    /// Members of a name that has no address any more stay for 2 min, and again after it had one.
    #[test]
    fn members_of_lost_name_stay_for_2_min() {
        let (mut resolved, start) = (ResolvedEntries::default(), Instant::now());
        let mut stays = |seconds, has| resolved.stays("a:1", has, start + Duration::from_secs(seconds));
        assert!(!stays(0, false), "a name that never had an address");
        assert!(!stays(1, true));
        assert!(stays(120, false) && !stays(121, false));
        assert!(!stays(200, true) && stays(319, false));
    }
}
