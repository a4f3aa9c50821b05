//! The exchange with the other members: owners ask for uploads, uses, shards and pins.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::document;
use super::entry::LedgerEntry;
use super::journal::JournalPage;
use super::load::{MOST, SLACK_MS};
use super::table::ShardTable;
use super::task::some_at_once;
use super::{LedgerError, Shared};
use crate::digest::Digest;
use crate::peers::{DocumentAnswer, DocumentSource, Fleet, Member, Shard};

/// The time from one question for uploads and uses to the next.
const INTERVAL: Duration = Duration::from_secs(30);
/// The time for which an ownership has to stay before it counts: members come and go while Pods are replaced.
const STABLE: Duration = Duration::from_secs(10);
/// The most batches that a member is asked for at a time.
const MAX_BATCHES: usize = 8;

/// The state of the exchange.
#[derive(Debug, Default)]
pub(super) struct PeerLedger {
    /// The last event of each member that is known, with its process.
    cursors: HashMap<String, (String, u64)>,
    last: Option<Instant>,
    owned: Option<Vec<u8>>,
    /// An ownership that is not stable yet, with the time since which it is seen.
    candidate: Option<(Vec<u8>, Instant)>,
}

impl PeerLedger {
    /// Returns the shards that this server owns; `None` until that is known.
    pub(super) fn owned(&mut self, shared: &Shared) -> Option<Vec<u8>> {
        let Some(fleet) = &shared.fleet else {
            return Some((0..=u8::MAX).collect());
        };
        let now = fleet.owned_shards()?;
        if self.owned.as_ref() == Some(&now) {
            self.candidate = None;
        } else if self.candidate.as_ref().is_none_or(|(seen, _)| *seen != now) {
            self.candidate = Some((now, Instant::now()));
        } else if let Some((seen, _)) = self.candidate.take_if(|(_, since)| since.elapsed() >= STABLE) {
            self.owned = Some(seen);
        }
        self.owned.clone()
    }

    /// Asks the other members for their uploads and uses, unless that was a short time ago and does not have to be.
    pub(super) async fn poll(
        &mut self,
        shared: &Shared,
        owned: &[u8],
        is_forced: bool,
    ) -> Result<(), LedgerError> {
        let Some(fleet) = &shared.fleet else { return Ok(()) };
        if !is_forced && self.last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        let members = fleet.answering();
        self.cursors
            .retain(|id, _| members.iter().any(|(member, _)| member == id));
        for (id, member) in members {
            self.poll_member(shared, fleet, (&id, &member), owned).await?;
        }
        Ok(())
    }

    async fn poll_member(
        &mut self,
        shared: &Shared,
        fleet: &Fleet,
        (id, member): (&String, &Member),
        owned: &[u8],
    ) -> Result<(), LedgerError> {
        for _ in 0..MAX_BATCHES {
            let (epoch, after) = self.cursors.get(id).cloned().unwrap_or_default();
            let target = format!("uses?epoch={epoch}&after={after}&shards={}", bitmap(owned));
            let DocumentAnswer::Document(text) = fleet.ask_document(member, &target).await else {
                return Ok(());
            };
            let Ok(batch) = serde_json::from_slice::<JournalPage>(&text) else {
                return Ok(());
            };
            if !batch.complete {
                shared.merge_all_of(fleet, member, owned).await?;
            }
            self.cursors.insert(id.clone(), (batch.epoch.clone(), batch.last));
            let more = batch.more;
            shared.record_batch(batch);
            if !more {
                break;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Records what another member uploaded and used.
    fn record_batch(&self, batch: JournalPage) {
        for line in &batch.uploads {
            if let Some((digest, entry)) = line.entry() {
                self.with_table(&digest, |table| {
                    table.merge(digest.clone(), entry);
                });
            }
        }
        for (digest, used) in batch.uses {
            if let Ok(digest) = digest.parse::<Digest>() {
                // A clock that is ahead must not keep content for ever.
                let used = used.min(self.now());
                self.with_table(&digest, |table| table.on_use(&digest, used));
            }
        }
    }

    fn with_table(&self, digest: &Digest, change: impl FnOnce(&mut ShardTable)) {
        let mut slot = self.slot(Shard::of_blob(digest).index()).lock();
        if let Some(table) = slot.as_mut() {
            change(table);
        }
    }

    /// Merges what a member knows of the shards that are in memory: events of it were lost, or it started.
    async fn merge_all_of(&self, fleet: &Fleet, member: &Member, owned: &[u8]) -> Result<(), LedgerError> {
        let merge = |shard: u8| {
            async move {
                let since = self.slot(shard).lock().as_ref().map(|table| table.written);
                let Some(since) = since else { return Ok(()) };
                let since = since.saturating_sub(SLACK_MS);
                let found = ask_shard(fleet, member, shard, since).await;
                if let Some(table) = self.slot(shard).lock().as_mut() {
                    for (digest, entry) in found {
                        table.merge(digest, entry);
                    }
                }
                Ok(())
            }
            .boxed()
        };
        some_at_once(owned.iter().map(|shard| merge(*shard)).collect()).await
    }

    /// Returns what the other members know of a shard: the previous owner has all of it, the others have their uploads.
    pub(super) async fn shard_of_members(&self, shard: u8, since: i64) -> Vec<(Digest, LedgerEntry)> {
        let Some(fleet) = &self.fleet else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (_, member) in fleet.answering() {
            found.extend(ask_shard(fleet, &member, shard, since).await);
        }
        found
    }

    /// Returns the pinned content that the other members know; `None` if one does not answer.
    pub(super) async fn pinned_of_members(&self) -> Option<HashSet<Digest>> {
        let mut pinned = HashSet::new();
        let Some(fleet) = &self.fleet else {
            return Some(pinned);
        };
        for (_, member) in fleet.answering() {
            match fleet.ask_document(&member, "pins").await {
                DocumentAnswer::Document(text) => {
                    let digests: Vec<String> = serde_json::from_slice(&text).ok()?;
                    pinned.extend(digests.iter().filter_map(|digest| digest.parse().ok()));
                }
                DocumentAnswer::Absent => {}
                DocumentAnswer::Failed => return None,
            }
        }
        Some(pinned)
    }

    /// Returns this server's document of a shard: the whole one if it is in memory, else the own uploads since a time.
    async fn own_shard(&self, shard: u8, since: i64) -> Option<Vec<u8>> {
        let held = {
            let slot = self.slot(shard).lock();
            slot.as_ref()
                .map(|table| document::encode(table, &self.writer, self.now()))
        };
        if held.is_some() {
            return held;
        }
        let mut table = ShardTable::default();
        for upload in self.store.own_uploads(shard, MOST).await.ok()? {
            if upload.uploaded >= since {
                table.merge(upload.digest.clone(), LedgerEntry::from(&upload));
            }
        }
        (table.len() > 0).then(|| document::encode(&table, &self.writer, self.now()))
    }

    async fn own_batch(&self, query: &str) -> Option<Vec<u8>> {
        // Uses that are in memory count; without them the order of eviction is less exact.
        let _ = self.store.flush_uses().await;
        self.record_uses();
        let wanted = shards(value(query, "shards")?)?;
        let is_ours = value(query, "epoch") == Some(self.writer.as_str());
        let after = value(query, "after")?.parse().ok()?;
        let is_wanted = |shard: u8| wanted.contains(&shard);
        let batch = self
            .journal
            .lock()
            .batch(&self.writer, is_ours.then_some(after), is_wanted);
        serde_json::to_vec(&batch).ok()
    }

    async fn own_pins(&self) -> Option<Vec<u8>> {
        let patterns = self.patterns.lock().clone();
        let loaded: Vec<_> = (0..=u8::MAX).filter(|shard| self.is_loaded(*shard)).collect();
        let pinned = self
            .pins
            .lock()
            .await
            .get(self, &loaded, &patterns)
            .await
            .ok()??;
        let digests: Vec<_> = pinned.iter().map(Digest::as_str).collect();
        serde_json::to_vec(&digests).ok()
    }
}

impl DocumentSource for Shared {
    fn answer<'a>(&'a self, target: &'a str) -> BoxFuture<'a, Option<Vec<u8>>> {
        async move {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            match path {
                "uses" => self.own_batch(query).await,
                "pins" => self.own_pins().await,
                _ => {
                    let shard = path.strip_prefix("ledger/").filter(|shard| shard.len() == 2)?;
                    let shard = u8::from_str_radix(shard, 16).ok()?;
                    let since = value(query, "since")?.parse().ok()?;
                    self.own_shard(shard, since).await
                }
            }
        }
        .boxed()
    }
}

async fn ask_shard(fleet: &Fleet, member: &Member, shard: u8, since: i64) -> Vec<(Digest, LedgerEntry)> {
    let target = format!("ledger/{shard:02x}?since={since}");
    match fleet.ask_document(member, &target).await {
        DocumentAnswer::Document(text) => {
            let document = document::decode(&text, shard);
            document.map(|document| document.entries).unwrap_or_default()
        }
        DocumentAnswer::Absent | DocumentAnswer::Failed => Vec::new(),
    }
}

/// Returns shards as 64 hexadecimal digits.
fn bitmap(shards: &[u8]) -> String {
    let mut bits = [0_u8; 32];
    for shard in shards {
        bits[usize::from(shard / 8)] |= 1 << (shard % 8);
    }
    hex::encode(bits)
}

/// Returns the shards of a bitmap.
fn shards(bitmap: &str) -> Option<HashSet<u8>> {
    let bits: [u8; 32] = hex::decode(bitmap).ok()?.try_into().ok()?;
    let is_set = |shard: &u8| bits[usize::from(shard / 8)] & (1 << (shard % 8)) != 0;
    Some((0..=u8::MAX).filter(is_set).collect())
}

/// Returns the value of a parameter.
fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
}

/// Returns the state as the source of documents for other members.
pub(super) fn source(shared: &Arc<Shared>) -> Arc<dyn DocumentSource> {
    shared.clone()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Shards read back from their bitmap.
        #[test]
        fn shards_read_back_from_bitmap(wanted: HashSet<u8>) {
            let text = bitmap(&wanted.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(shards(&text), Some(wanted));
        }

        #[test]
        fn any_query_is_read_without_panic(text: String) {
            let _ = (shards(&text), value(&text, "shards"));
        }
    }
}
