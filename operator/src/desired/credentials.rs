//! The Secret with what upstreams are asked with.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use mirror::credentials::Credential;
use serde_json::{Map, Value, json};

use super::{
    child::{Child, data},
    names,
};
use crate::{
    dereference::Contents,
    kind::Kind,
    validate::{Accepted, Credentials},
};

/// The candidate: what the server is to use once upstream took it.
const CANDIDATE: &str = "config.json";
/// What upstream took last.
const LAST_GOOD: &str = "last-good.json";
/// Counts the candidates.
const VERSION: &str = "version";

/// What the servers are handed.
pub struct HandedOut {
    /// The candidate: a dockerconfigjson, keyed by upstream host. An upstream whose credentials are not known has an
    /// entry without any, so that it is never asked anonymously instead.
    candidate: Vec<u8>,
    last_good: Option<Vec<u8>>,
    /// Moves when the candidate does.
    pub version: u64,
    /// Upstreams, by host, that still have what an earlier Secret held although the present one can't be read.
    pub kept: Vec<String>,
    origins: String,
}

impl HandedOut {
    /// Goes on from what the servers have, if they have something.
    pub(super) fn new(accepted: &Accepted<'_>, before: Option<&Contents>) -> Self {
        let before = Before::new(before);
        let mut entries = Map::new();
        let mut kept = Vec::new();
        let mut origins = BTreeMap::new();
        for (host, credentials) in with_credentials(accepted) {
            origins.insert(host, &credentials.origin);
            let entry = match &credentials.found {
                Ok(credential) => entry(credential),
                Err(_) => match before.entry(CANDIDATE, host, &credentials.origin) {
                    Some(entry) => {
                        kept.push(host.to_owned());
                        entry
                    }
                    None => json!({}),
                },
            };
            entries.insert(host.to_owned(), entry);
        }
        let last_good: Map<_, _> = with_credentials(accepted)
            .filter_map(|(host, credentials)| {
                Some((
                    host.to_owned(),
                    before.entry(LAST_GOOD, host, &credentials.origin)?,
                ))
            })
            .collect();
        let candidate = document(&entries);
        Self {
            version: before.next_version(&candidate, told(accepted)),
            candidate,
            last_good: (!last_good.is_empty()).then(|| document(&last_good)),
            kept,
            origins: json!(origins).to_string(),
        }
    }

    /// The files of the credentials directory.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
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
        .collect()
    }

    pub(super) fn object(&self, accepted: &Accepted<'_>) -> Child {
        let name = names::credentials(&accepted.mirror.name_any());
        let mut metadata = names::owned(accepted.mirror, name.clone());
        metadata.annotations = Some(BTreeMap::from([(
            names::ORIGINS.to_owned(),
            self.origins.clone(),
        )]));
        let secret = Secret {
            metadata,
            data: Some(data(self.files())),
            ..Secret::default()
        };
        Child::new(Kind::Secret, name, &secret)
    }
}

/// The latest version that the status tells of: servers may have it although the Secret is gone.
fn told(accepted: &Accepted<'_>) -> u64 {
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

/// Says that an entry is for the upstream of that host only: another one may be asked at that host, too.
fn document(entries: &Map<String, Value>) -> Vec<u8> {
    json!({ "auths": entries, "keyedBy": "upstreamHost" })
        .to_string()
        .into_bytes()
}

/// What the Secret holds now.
struct Before<'a> {
    contents: Option<&'a Contents>,
    origins: BTreeMap<String, String>,
}

impl<'a> Before<'a> {
    fn new(contents: Option<&'a Contents>) -> Self {
        let origins = contents.and_then(|contents| contents.annotations.get(names::ORIGINS));
        let origins = origins
            .and_then(|origins| serde_json::from_str(origins).ok())
            .unwrap_or_default();
        Self { contents, origins }
    }

    /// An upstream's entry, if it came from the same Secret and goes to the same place.
    fn entry(&self, file: &str, host: &str, origin: &str) -> Option<Value> {
        if self.origins.get(host).map(String::as_str) != Some(origin) {
            return None;
        }
        let document: Value = serde_json::from_slice(self.contents?.data.get(file)?).ok()?;
        let entry = document.get("auths")?.get(host)?;
        entry
            .as_object()
            .is_some_and(|fields| !fields.is_empty())
            .then(|| entry.clone())
    }

    /// Never goes back, though the Secret was deleted or its version changed: servers would take the new one for old.
    fn next_version(&self, candidate: &[u8], told: u64) -> u64 {
        let file = |name| Some(self.contents?.data.get(name)?.as_slice());
        let version = file(VERSION).and_then(|version| std::str::from_utf8(version).ok()?.parse().ok());
        match version {
            Some(version) if version >= told && file(CANDIDATE) == Some(candidate) => version,
            version => version.unwrap_or(0_u64).max(told).saturating_add(1),
        }
    }
}
