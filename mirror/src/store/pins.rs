//! Pins: content that neither expires nor gives way, and everything that it is made of.

use std::collections::HashSet;

use crate::config::Globs;
use crate::digest::Digest;
use crate::manifest::Document;
use crate::store::index::Link;
use crate::store::manifests::MAX_MANIFEST;
use crate::store::path::Layout;
use crate::store::{Error, Inner, IoError, Store, durable, link, rebuild};
use parking_lot::Mutex;

/// The pinned content, as far as it is known.
#[derive(Debug)]
pub(super) struct Pins(Mutex<State>);

#[derive(Debug)]
struct State {
    patterns: Globs,
    /// Pinned manifests and what they name, down to the layers.
    held: HashSet<Digest>,
    /// Something pinned came or went since `held` was found.
    stale: bool,
}

impl Pins {
    /// Creates pins of content that is not known yet.
    pub(super) fn new(patterns: Globs) -> Self {
        Self(Mutex::new(State {
            patterns,
            held: HashSet::new(),
            stale: true,
        }))
    }
}

impl Store {
    /// Sets what stays: patterns of `host/name:tag` and `host/name@digest`. What a pinned manifest names stays
    /// with it.
    pub fn set_pinned(&self, patterns: &Globs) {
        let mut state = self.inner.maintenance.pins.0.lock();
        if state.patterns != *patterns {
            state.patterns = patterns.clone();
            state.stale = true;
        }
    }
}

impl Inner {
    /// Returns the patterns of what is pinned.
    pub(super) fn pinned_patterns(&self) -> Globs {
        self.maintenance.pins.0.lock().patterns.clone()
    }

    /// A link is about to be written or removed: what is pinned may be something else afterwards.
    pub(super) fn note_pin(&self, digest: &Digest, link: &Link) {
        let mut state = self.maintenance.pins.0.lock();
        let of_manifest = !matches!(link, Link::Layer(..));
        if !state.patterns.is_empty()
            && of_manifest
            && (state.held.contains(digest) || state.patterns.matches(&link.pin_name()))
        {
            state.stale = true;
        }
    }

    /// Returns `true` if this content must stay.
    pub(super) fn is_pinned(&self, digest: &Digest) -> Result<bool, Error> {
        let patterns = {
            let mut state = self.maintenance.pins.0.lock();
            if state.patterns.is_empty() {
                return Ok(false);
            }
            if state.stale {
                state.held = self.all_pinned(&state.patterns)?;
                state.stale = false;
            }
            if state.held.contains(digest) {
                return Ok(true);
            }
            state.patterns.clone()
        };
        // A blob that is pinned by its own digest.
        let links = self.index.links(digest)?;
        let layer = |link: &Link| matches!(link, Link::Layer(..)) && patterns.matches(&link.pin_name());
        Ok(links.iter().any(layer))
    }

    fn all_pinned(&self, patterns: &Globs) -> Result<HashSet<Digest>, Error> {
        let mut found = Vec::new();
        self.index.each_link::<Error>(|digest, link, _| {
            if !matches!(link, Link::Layer(..))
                && patterns.matches(&link.pin_name())
                && is_current(&self.layout, digest, link)?
            {
                found.push(digest.clone());
            }
            Ok(())
        })?;
        Ok(with_named(&self.layout, found))
    }
}

/// Returns the pinned content that the links on the disk show, without an index.
pub(super) fn pinned_on_disk(layout: &Layout, patterns: &Globs) -> Result<HashSet<Digest>, IoError> {
    let mut found = Vec::new();
    if !patterns.is_empty() {
        rebuild::each_link::<IoError>(layout, &mut |digest, link| {
            if patterns.matches(&link.pin_name()) && is_current(layout, &digest, &link)? {
                found.push(digest);
            }
            Ok(())
        })?;
    }
    Ok(with_named(layout, found))
}

/// Returns `true` unless the link is of a tag that points to other content now.
fn is_current(layout: &Layout, digest: &Digest, link: &Link) -> Result<bool, IoError> {
    match link {
        Link::Tag(repository, tag) => {
            let current = link::read(&layout.tag_current(repository, tag))?;
            Ok(current.as_ref() == Some(digest))
        }
        _ => Ok(true),
    }
}

/// Returns these manifests and all that they name, down to the layers.
fn with_named(layout: &Layout, mut found: Vec<Digest>) -> HashSet<Digest> {
    let mut held = HashSet::new();
    while let Some(digest) = found.pop() {
        if held.insert(digest.clone()) {
            found.extend(named_by(layout, &digest));
        }
    }
    held
}

/// Returns the digests that a manifest names; none for other content. Reads only content whose size a manifest can
/// have.
pub(super) fn named_by(layout: &Layout, digest: &Digest) -> Vec<Digest> {
    let bytes = durable::read(&layout.blob_data(digest), MAX_MANIFEST).unwrap_or_default();
    let document = Document::read(&bytes).unwrap_or_default();
    document.named().cloned().collect()
}

impl Link {
    /// Returns the name of the link as patterns of pins write it.
    pub(crate) fn pin_name(&self) -> String {
        match self {
            Self::Layer(repository, digest) | Self::Revision(repository, digest) => {
                format!("{repository}@{digest}")
            }
            Self::Tag(repository, tag) => format!("{repository}:{}", tag.as_str()),
        }
    }
}
