//! Renders the Secret with the credentials of upstreams.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::Secret,
    jiff::{SignedDuration, Timestamp, Unit},
};
use kube::ResourceExt;
use mirror::credential::Credential;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::child::{Child, data};
use crate::{
    dereference::Contents,
    kind::Kind,
    names,
    observed::Observed,
    validate::{Accepted, Credentials, bucket},
};

/// The key of the candidate, which servers use once the upstream has accepted it.
const CANDIDATE: &str = "config.json";
/// The key of the last good credentials.
const LAST_GOOD: &str = "last-good.json";
/// The key of the candidate's version.
const VERSION: &str = "version";

/// The credentials that are issued to servers.
pub struct IssuedCredentials {
    /// The candidate: a dockerconfigjson, keyed by upstream host. An upstream with unknown credentials has an entry
    /// without any, so that servers never ask it anonymously.
    candidate: Vec<u8>,
    last_good: Option<Vec<u8>>,
    /// The version, which changes with the candidate.
    pub version: u64,
    hosts: Vec<String>,
    /// The hosts of upstreams that keep the credentials of an earlier Secret, because the current one can't be read.
    pub kept: Vec<String>,
    /// The time of each upstream's last rotation.
    pub rotated: BTreeMap<String, Timestamp>,
    /// The number of last good entries that replaced others.
    pub replaced: u64,
    /// The credentials for the bucket, with a version that changes with them.
    bucket: Option<(Vec<u8>, u64)>,
    origins: String,
}

impl IssuedCredentials {
    /// Continues from the stored credentials. An entry becomes the last good one once all servers report that its
    /// upstream accepts it.
    pub(super) fn new(accepted: &Accepted<'_>, before: Option<&Contents>, observed: &Observed) -> Self {
        let before = Before::new(before);
        let (mut entries, mut last_good) = (Map::new(), Map::new());
        let (mut kept, mut origins, mut rotated) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut replaced = before.replaced;
        for (host, credentials) in with_credentials(accepted) {
            let origin = &credentials.origin;
            origins.insert(host, origin);
            let held = before.candidate(host, origin);
            let entry = match (&credentials.found, &held) {
                (Ok(credential), _) => entry(credential),
                (Err(_), Some(held)) => {
                    kept.push(host.to_owned());
                    held.clone()
                }
                (Err(_), None) => json!({}),
            };
            let good = before.last_good(host, origin);
            let proven = held.as_ref() == Some(&entry) && before.is_proven(host, observed);
            if proven && good.as_ref() != Some(&entry) {
                replaced += u64::from(good.is_some());
                last_good.insert(host.to_owned(), entry.clone());
                rotated.insert(host.to_owned(), later(before.rotated(host), observed.at));
            } else if let Some(good) = good {
                last_good.insert(host.to_owned(), good);
                rotated.insert(host.to_owned(), before.rotated(host));
            }
            entries.insert(host.to_owned(), entry);
        }
        let candidate = document(&entries);
        Self {
            hosts: entries.keys().cloned().collect(),
            version: before.next_version(&candidate, reported_version(accepted)),
            candidate,
            last_good: (!last_good.is_empty()).then(|| document(&last_good)),
            kept,
            rotated,
            replaced,
            bucket: before.bucket(accepted),
            origins: json!(origins).to_string(),
        }
    }

    /// Returns the version of the credentials for the bucket, if there is one.
    pub(super) fn bucket_version(&self) -> Option<u64> {
        self.bucket.as_ref().map(|(_, version)| *version)
    }

    /// Returns the upstreams with an entry.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(String::as_str)
    }

    /// Returns the files of the credentials directory.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let bucket = self.bucket.clone();
        let version = self.version.to_string().into_bytes();
        let last_good = self
            .last_good
            .clone()
            .map(|document| (LAST_GOOD.to_owned(), document));
        [
            (CANDIDATE.to_owned(), self.candidate.clone()),
            (VERSION.to_owned(), version),
        ]
        .into_iter()
        .chain(last_good)
        .chain(bucket.map(|(file, _)| (bucket::CREDENTIALS_FILE.to_owned(), file)))
        .collect()
    }

    pub(super) fn object(&self, accepted: &Accepted<'_>) -> Child {
        let name = names::credentials(&accepted.mirror.name_any());
        let mut metadata = names::owned(accepted.mirror, name.clone());
        let mut annotations = BTreeMap::from([(names::ORIGINS.to_owned(), self.origins.clone())]);
        if !self.rotated.is_empty() {
            annotations.insert(names::ROTATED.to_owned(), json!(self.rotated).to_string());
        }
        if self.replaced > 0 {
            annotations.insert(names::REPLACED.to_owned(), self.replaced.to_string());
        }
        if let Some(version) = self.bucket_version() {
            annotations.insert(names::BUCKET_VERSION.to_owned(), version.to_string());
        }
        metadata.annotations = Some(annotations);
        let secret = Secret {
            metadata,
            data: Some(data(self.files())),
            ..Secret::default()
        };
        Child::new(Kind::Secret, name, &secret)
    }
}

/// Returns the latest version in the status: servers may have it although the Secret is gone.
fn reported_version(accepted: &Accepted<'_>) -> u64 {
    let status = accepted.mirror.status.iter();
    let versions = status
        .flat_map(|status| &status.upstreams)
        .filter_map(|upstream| u64::try_from(upstream.credentials.as_ref()?.version).ok());
    versions.max().unwrap_or(0)
}

fn with_credentials<'a>(accepted: &'a Accepted<'_>) -> impl Iterator<Item = (&'a str, &'a Credentials<'a>)> {
    accepted
        .upstreams
        .iter()
        .filter_map(|upstream| Some((upstream.spec.host.as_str(), upstream.credentials.as_ref()?)))
}

fn entry(credential: &Credential) -> Value {
    match credential {
        Credential::Anonymous => json!({}),
        Credential::Basic { username, password } => {
            json!({"username": username, "password": password.expose()})
        }
        Credential::IdentityToken { username, token } => {
            json!({"username": username, "identitytoken": token.expose()})
        }
    }
}

/// Returns a document whose entries are for upstreams of these hosts only: another upstream may be asked at the same
/// host.
fn document(entries: &Map<String, Value>) -> Vec<u8> {
    json!({ "auths": entries, "keyedBy": "upstreamHost" })
        .to_string()
        .into_bytes()
}

/// The stored credentials.
struct Before<'a> {
    contents: Option<&'a Contents>,
    origins: BTreeMap<String, String>,
    rotated: BTreeMap<String, Timestamp>,
    replaced: u64,
}

impl<'a> Before<'a> {
    fn new(contents: Option<&'a Contents>) -> Self {
        Self {
            contents,
            origins: annotation(contents, names::ORIGINS),
            rotated: annotation(contents, names::ROTATED),
            replaced: counted(contents, names::REPLACED),
        }
    }

    /// Returns the credentials for the bucket, with the next version if the stored ones differ.
    fn bucket(&self, accepted: &Accepted<'_>) -> Option<(Vec<u8>, u64)> {
        let file = accepted.bucket.as_ref()?.credentials.clone()?;
        let stored = self
            .contents
            .and_then(|contents| contents.data.get(bucket::CREDENTIALS_FILE));
        let version = counted(self.contents, names::BUCKET_VERSION);
        let is_new = stored != Some(&file);
        Some((file, version.saturating_add(u64::from(is_new))))
    }

    fn version(&self) -> Option<u64> {
        std::str::from_utf8(self.contents?.data.get(VERSION)?)
            .ok()?
            .parse()
            .ok()
    }

    /// Returns whether every server uses the stored credentials of an upstream and the upstream accepts them. Without
    /// servers, nothing is proven.
    fn is_proven(&self, host: &str, observed: &Observed) -> bool {
        let servers = &observed.servers;
        self.version()
            .is_some_and(|version| !servers.is_empty() && servers.iter().all(|s| s.has_proven(host, version)))
    }

    /// Returns the time of the last rotation; the epoch if none is recorded.
    fn rotated(&self, host: &str) -> Timestamp {
        self.rotated.get(host).copied().unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Returns the candidate of an upstream, if it has the same Secret and destination.
    fn candidate(&self, host: &str, origin: &str) -> Option<Value> {
        let came_from = self.origins.get(host)?;
        (came_from == origin)
            .then(|| self.entry(CANDIDATE, host))
            .flatten()
    }

    /// Returns the last good entry of an upstream, if it has the same destination: another Secret for it is not proven
    /// yet.
    fn last_good(&self, host: &str, origin: &str) -> Option<Value> {
        let came_from = self.origins.get(host)?;
        (place(came_from) == place(origin))
            .then(|| self.entry(LAST_GOOD, host))
            .flatten()
    }

    /// Returns the entry of an upstream, if it is not empty.
    fn entry(&self, file: &str, host: &str) -> Option<Value> {
        let document: Value = serde_json::from_slice(self.contents?.data.get(file)?).ok()?;
        let entry = document.get("auths")?.get(host)?;
        entry
            .as_object()
            .is_some_and(|fields| !fields.is_empty())
            .then(|| entry.clone())
    }

    /// Returns the version of a candidate. It never decreases, even if the Secret was deleted: servers would ignore a
    /// lower version.
    fn next_version(&self, candidate: &[u8], reported: u64) -> u64 {
        let file = |name| Some(self.contents?.data.get(name)?.as_slice());
        match self.version() {
            Some(version) if version >= reported && file(CANDIDATE) == Some(candidate) => version,
            version => version.unwrap_or(0_u64).max(reported).saturating_add(1),
        }
    }
}

/// Returns the destination in an origin, after the name of the Secret, which has no spaces.
fn place(origin: &str) -> Option<&str> {
    Some(origin.split_once(' ')?.1)
}

/// Returns the time of a rotation: now in whole seconds, as a status has it, and at least a second after the previous
/// one.
fn later(before: Timestamp, now: Timestamp) -> Timestamp {
    let next = before.checked_add(SignedDuration::from_secs(1));
    whole_seconds(now).max(next.unwrap_or(before))
}

/// Rounds a time to whole seconds, as Kubernetes does.
fn whole_seconds(at: Timestamp) -> Timestamp {
    at.round(Unit::Second).unwrap_or(at)
}

/// Returns the number in an annotation, or zero.
fn counted(contents: Option<&Contents>, name: &str) -> u64 {
    let text = contents.and_then(|contents| contents.annotations.get(name));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Returns the JSON object in an annotation, or an empty one.
fn annotation<T: DeserializeOwned>(contents: Option<&Contents>, name: &str) -> BTreeMap<String, T> {
    let text = contents.and_then(|contents| contents.annotations.get(name));
    text.and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}
