//! The addresses of clients with the time of their last pull from each upstream, for `/status`.
//!
//! A connection records an upstream at most once a minute, so that a hit takes no lock that connections share.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp, Unit};
use parking_lot::Mutex;

use crate::admin::ClientStatus;
use crate::name::Host;

/// The maximum number of pulls in the table: pairs of a client address and an upstream.
const MAX_PULLS: usize = 4_096;
/// The number of the oldest pulls that make room for a new one.
const EVICTED: usize = 256;
/// The time for which a pull stays in the table.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// The interval at which a connection records an upstream.
const INTERVAL: Duration = Duration::from_mins(1);

/// A table of limited size with the last pulls of clients. Clones share their content.
#[derive(Clone, Default)]
pub(crate) struct ClientTable(Arc<Mutex<HashMap<(IpAddr, Host), Timestamp>>>);

/// The client of a connection, with the last pull that it recorded.
pub(crate) struct ConnectionClient {
    address: IpAddr,
    recorded: Mutex<Option<(Host, Instant)>>,
}

impl ConnectionClient {
    /// Returns the client of a connection with this peer.
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self {
            address: peer.ip().to_canonical(),
            recorded: Mutex::default(),
        }
    }

    /// Returns whether the connection is to record a pull, and remembers it.
    fn is_due(&self, upstream: &Host, now: Instant) -> bool {
        let mut recorded = self.recorded.lock();
        let is_recent = recorded
            .as_ref()
            .is_some_and(|(host, at)| host == upstream && now.duration_since(*at) < INTERVAL);
        if !is_recent {
            *recorded = Some((upstream.clone(), now));
        }
        !is_recent
    }
}

impl ClientTable {
    /// Records that a client pulled from an upstream.
    pub(crate) fn record(&self, client: &ConnectionClient, upstream: &Host, now: Instant) {
        if client.is_due(upstream, now) {
            self.insert(client.address, upstream, Timestamp::now());
        }
    }

    fn insert(&self, address: IpAddr, upstream: &Host, now: Timestamp) {
        let mut pulls = self.0.lock();
        let key = (address, upstream.clone());
        if pulls.len() >= MAX_PULLS && !pulls.contains_key(&key) {
            evict_oldest(&mut pulls);
        }
        pulls.insert(key, now);
    }

    /// Returns each client of the last 24 hours, by address.
    pub(crate) fn report(&self, now: Timestamp) -> Vec<ClientStatus> {
        let mut pulls = self.0.lock();
        pulls.retain(|_, at| now.duration_since(*at) < KEPT);
        let mut recent: Vec<_> = pulls.iter().map(|(key, at)| (key.clone(), *at)).collect();
        drop(pulls);
        recent.sort_unstable();
        let mut clients: Vec<ClientStatus> = Vec::new();
        for ((address, upstream), at) in recent {
            if clients.last().is_none_or(|last| last.address != address) {
                let last_pulls = BTreeMap::new();
                clients.push(ClientStatus { address, last_pulls });
            }
            if let Some(client) = clients.last_mut() {
                let at = at.round(Unit::Second).unwrap_or(at);
                client.last_pulls.insert(upstream.to_string(), at);
            }
        }
        clients
    }
}

fn evict_oldest(pulls: &mut HashMap<(IpAddr, Host), Timestamp>) {
    let mut times: Vec<_> = pulls.values().copied().collect();
    let (_, newest_evicted, _) = times.select_nth_unstable(EVICTED.min(pulls.len()) - 1);
    let newest_evicted = *newest_evicted;
    pulls.retain(|_, at| *at > newest_evicted);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        name.parse().unwrap()
    }

    fn ip(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn clients_are_listed_with_their_last_pulls() {
        let table = ClientTable::default();
        table.insert(ip(2), &host("quay.io"), at(5));
        table.insert(ip(1), &host("docker.io"), at(6));
        table.insert(ip(2), &host("docker.io"), at(7));
        table.insert(ip(2), &host("quay.io"), at(8));
        let json = serde_json::to_value(table.report(at(9))).unwrap();
        let expected = serde_json::json!([
            {"address": "0.0.0.1", "lastPulls": {"docker.io": "1970-01-01T00:00:06Z"}},
            {"address": "0.0.0.2", "lastPulls":
                {"docker.io": "1970-01-01T00:00:07Z", "quay.io": "1970-01-01T00:00:08Z"}},
        ]);
        assert_eq!(json, expected);
    }

    #[test]
    fn pull_leaves_the_table_after_a_day() {
        let table = ClientTable::default();
        table.insert(ip(1), &host("quay.io"), at(0));
        table.insert(ip(2), &host("quay.io"), at(1));
        assert_eq!(table.report(at(86_400)).len(), 1);
        assert_eq!(table.0.lock().len(), 1);
    }

    /// A flood of addresses evicts the oldest pulls, and the table stays below its limit.
    #[test]
    fn full_table_evicts_the_oldest_pulls() {
        let (table, quay) = (ClientTable::default(), host("quay.io"));
        for number in 0..20_000 {
            table.insert(ip(number), &quay, at(i64::from(number)));
            assert!(table.0.lock().len() <= MAX_PULLS);
        }
        let pulls = table.0.lock();
        assert!(pulls.len() > MAX_PULLS - EVICTED);
        assert!(pulls.contains_key(&(ip(19_999), quay.clone())));
        assert!(!pulls.contains_key(&(ip(0), quay)));
    }

    #[test]
    fn connection_records_an_upstream_once_a_minute() {
        let client = ConnectionClient::new("[::ffff:192.0.2.1]:80".parse().unwrap());
        assert_eq!(client.address.to_string(), "192.0.2.1");
        let (quay, start) = (host("quay.io"), Instant::now());
        assert!(client.is_due(&quay, start));
        assert!(!client.is_due(&quay, start + INTERVAL / 2));
        assert!(client.is_due(&host("docker.io"), start));
        assert!(client.is_due(&quay, start + INTERVAL));
    }
}
