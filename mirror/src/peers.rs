//! The other replicas of this mirror, as origins of content: each shard of it has one owner, which asks the upstream for
//! all.
//!
//! Members find each other by a list of addresses and names, and say hello every 5 s. Members that disagree about an owner
//! ask the upstream more often and serve nothing wrong: there is no lease, no consensus and no lock. A request of a member
//! is never forwarded. Content is verified by its digest; other answers are signed with the secret of the mirror.

mod answer;
mod blob;
mod client;
mod documents;
mod hello;
mod keys;
mod member;
mod membership;
mod metadata;
mod request;
mod shard;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

pub(crate) use answer::{ANSWER_SIGNATURE, PEER_ERROR, answer_text, encode_error};
pub(crate) use blob::{PeerBlob, PeerBlobAnswer};
pub(crate) use client::PeerClientError;
pub(crate) use documents::{DocumentAnswer, DocumentSource, PEER_PATH};
pub(crate) use hello::HELLO_PATH;
pub(crate) use keys::{AuthorizationError, MAX_KEYS, PeerAuthorization, read as read_secret};
pub(crate) use member::{Member, MemberReport};
pub(crate) use shard::Shard;

use crate::clock::Clock;
use crate::config::{PeerSettings, Proxy, Upstream};
use crate::digest::{Algorithm, Digest};
use hello::{Hello, HelloState, SENDER};
use keys::PeerKeys;
use membership::{Hellos, ResolvedEntries};

/// The most requests to one peer at a time.
pub(crate) const PER_PEER: usize = 128;
/// The most requests to one peer at a time for content of one upstream, which may never answer.
pub(crate) const PER_UPSTREAM: usize = 96;
/// The most members that are asked for what they hold.
pub(crate) const MAX_HOLDERS: usize = 4;
/// The most large documents from peers that are in memory at a time.
const LARGE_DOCUMENTS: usize = 8;

/// The replicas of this mirror, as this one sees them.
pub(crate) struct Fleet {
    /// The random id of this member.
    id: String,
    clock: Clock,
    keys: PeerKeys,
    settings: PeerSettings,
    client: ArcSwap<reqwest::Client>,
    members: ArcSwap<Vec<Arc<Member>>>,
    resolved: Mutex<ResolvedEntries>,
    hellos: Mutex<Hellos>,
    /// A hash of the upstreams: members with other ones are not asked.
    upstreams: ArcSwap<String>,
    is_serving: AtomicBool,
    is_draining: AtomicBool,
    documents: Arc<Semaphore>,
    /// Notified when a member may be lost.
    wake: Notify,
    /// It has looked for the other members.
    has_searched: AtomicBool,
    /// The sources of documents about the bucket.
    sources: Mutex<Vec<Arc<dyn DocumentSource>>>,
}

impl Fleet {
    /// Creates the view of a member that knows no other yet.
    ///
    /// # Errors
    /// The HTTP client cannot be built, or a file of its certificates cannot be used.
    pub(crate) fn new(
        settings: PeerSettings,
        proxy: &Proxy,
        id: String,
        clock: Clock,
    ) -> Result<Arc<Self>, PeerClientError> {
        let client = ArcSwap::from_pointee(client::load(&settings)?);
        Ok(Arc::new(Self {
            id,
            keys: PeerKeys::new(settings.secret_file.clone(), clock.clone()),
            clock,
            settings,
            client,
            members: ArcSwap::default(),
            resolved: Mutex::default(),
            hellos: Mutex::default(),
            upstreams: ArcSwap::from_pointee(upstreams_hash(proxy)),
            is_serving: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            documents: Arc::new(Semaphore::new(LARGE_DOCUMENTS)),
            wake: Notify::new(),
            has_searched: AtomicBool::new(false),
            sources: Mutex::default(),
        }))
    }

    /// Follows the other members until `end`.
    pub(crate) async fn run(self: Arc<Self>, end: CancellationToken) {
        self.is_serving.store(true, Ordering::Relaxed);
        end.run_until_cancelled(self.follow_members()).await;
    }

    /// Reads the secret, and the certificate for other members with its CAs, again; what cannot be used is left as it was.
    /// Blocks. Returns `false` if the secret cannot be read for the moment.
    pub(crate) fn reload_files(&self) -> bool {
        let is_read = self.keys.reload();
        if self.settings.tls.is_none() {
            return is_read;
        }
        match client::load(&self.settings) {
            Ok(client) => self.client.store(Arc::new(client)),
            Err(error) => tracing::warn!(%error, "the old certificate for other replicas stays in use"),
        }
        self.wake.notify_one();
        is_read
    }

    /// Announces to the other members at once that this one drains; it still answers.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Uses the upstreams of a new configuration.
    pub(crate) fn reload(&self, proxy: &Proxy) {
        self.upstreams.store(Arc::new(upstreams_hash(proxy)));
        self.wake.notify_one();
    }

    /// Checks the authorization of a request to the peer port.
    pub(crate) fn admit(
        &self,
        authorization: Option<&HeaderValue>,
        method: &str,
        target: &str,
    ) -> Result<PeerAuthorization, AuthorizationError> {
        self.keys.verify(authorization, method, target)
    }

    /// Returns the answer to `GET /peer/v1/hello`. A sender that has come, restarted or begun to drain is asked for its own
    /// hello at once: members that see each other alike ask the upstream once.
    pub(crate) fn answer_hello(&self, request: &HeaderMap) -> String {
        let sender = request.get(SENDER);
        if let Some(hello) = sender.and_then(|sender| Hello::parse(sender.as_bytes()))
            && hello.id != self.id
            && self.is_changed(&hello)
        {
            self.wake.notify_one();
        }
        self.hello().to_json()
    }

    fn is_changed(&self, sender: &Hello) -> bool {
        let is_missed = |member: &Arc<Member>| member.is_missed(&sender.id);
        let has_changed = self.hellos.lock().record(&sender.id, sender.state);
        has_changed || self.members.load().iter().any(is_missed)
    }

    /// Returns the hello of this member.
    fn hello(&self) -> Hello {
        let state = if self.is_draining.load(Ordering::Relaxed) {
            HelloState::Draining
        } else if self.is_serving.load(Ordering::Relaxed) {
            HelloState::Serving
        } else {
            HelloState::Starting
        };
        Hello::new(self.id.clone(), state, self.upstreams.load().to_string())
    }

    /// Returns the other members, for `/status`.
    pub(crate) fn report(&self) -> Vec<MemberReport> {
        self.members.load().iter().map(|member| member.report()).collect()
    }

    /// Returns the members that own a shard before this one, the owner first; none where this member is the owner.
    pub(crate) fn owners(&self, shard: Shard) -> Vec<Arc<Member>> {
        let own = (!self.is_draining.load(Ordering::Relaxed)).then(|| shard.weight(&self.id));
        let mut owners: Vec<_> = self
            .members
            .load()
            .iter()
            .filter_map(|member| Some((shard.weight(&member.id_if_serving()?), Arc::clone(member))))
            .filter(|(weight, _)| own.as_ref().is_none_or(|own| weight > own))
            .collect();
        owners.sort_unstable_by(|(one, _), (other, _)| other.cmp(one));
        owners.into_iter().map(|(_, member)| member).collect()
    }

    /// Returns all other members that answer, the next owner of a shard first: one may hold what a new owner lacks.
    pub(crate) fn others(&self, shard: Shard) -> Vec<Arc<Member>> {
        let mut others: Vec<_> = self
            .members
            .load()
            .iter()
            .filter_map(|member| Some((shard.weight(&member.id_if_answering()?), Arc::clone(member))))
            .collect();
        others.sort_unstable_by(|(one, _), (other, _)| other.cmp(one));
        others.into_iter().map(|(_, member)| member).collect()
    }
}

/// Returns a random id of 32 hexadecimal digits.
pub(crate) fn random_id() -> String {
    let mut bytes = [0_u8; 16];
    // An error of the system's source of random numbers ends the process long before, in TLS.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    hex::encode(bytes)
}

/// Returns a hash of the names and addresses of all upstreams, the default one first.
fn upstreams_hash(proxy: &Proxy) -> String {
    let line = |upstream: &Upstream| {
        let prefix = upstream.repository_prefix.as_ref().map(ToString::to_string);
        let (host, remote) = (&upstream.host, upstream.remote.as_str());
        [host.as_str(), remote, &prefix.unwrap_or_default()].join(" ")
    };
    let lines: Vec<_> = proxy.upstreams.iter().map(line).collect();
    let text = lines.join("\n");
    Digest::compute(Algorithm::Sha256, text.as_bytes()).hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use jiff::Timestamp;

    use super::*;
    use crate::config::Config;
    use crate::config::file::File;

    fn fleet() -> Arc<Fleet> {
        crate::tls::provider();
        let yaml = "{proxy: {remoteurl: 'https://a.example'}, peers: {addr: ':1', secretfile: /none, addresses: ['h:1']}}";
        let config = Config::new(&File::parse(yaml).unwrap()).unwrap();
        let settings = config.peers.unwrap();
        Fleet::new(settings, &config.proxy, "own".into(), Clock::system()).unwrap()
    }

    /// The hello of a member in another state than before, or of one that is missed, makes this one ask all members for
    /// theirs at once.
    #[test]
    fn hello_with_a_change_is_followed_by_hellos() {
        let (fleet, now) = (fleet(), Timestamp::now());
        let member = Arc::new(Member::new("127.0.0.1:1".parse().unwrap(), "h".into(), now));
        fleet.members.store(Arc::new(vec![Arc::clone(&member)]));
        member.on_hello("other".into(), member::MemberState::Serving, now);
        let is_woken = |id: &str, state| {
            let headers = Hello::new(id.into(), state, String::new()).to_headers();
            fleet.answer_hello(&headers);
            fleet.wake.notified().now_or_never().is_some()
        };
        assert!(is_woken("other", HelloState::Serving) && !is_woken("other", HelloState::Serving));
        assert!(is_woken("other", HelloState::Draining) && is_woken("other", HelloState::Serving));
        member.suspect_until_hello(now);
        assert!(is_woken("other", HelloState::Serving));
        assert!(!is_woken("own", HelloState::Draining));
        fleet.answer_hello(&HeaderMap::new());
        assert!(fleet.wake.notified().now_or_never().is_none());
        fleet.drain();
        assert!(fleet.wake.notified().now_or_never().is_some());
    }
}
