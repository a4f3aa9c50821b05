//! Room for the files of the server on a file system that is full at the start: without them nothing could be evicted.

use std::collections::{BinaryHeap, HashSet};
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::statvfs;

use crate::config::Globs;
use crate::digest::Digest;
use crate::store::catalog::directories;
use crate::store::durable::{IoError, on, remove};
use crate::store::no_links;
use crate::store::path::{ALGORITHMS, Layout};
use crate::store::pins::pinned_on_disk;

/// The share of the file system that is freed: a twentieth, as it stays free later.
const SHARE: u64 = 20;
/// The fewest and the most bytes that are freed: a new index takes more than a megabyte.
const BOUNDS: (u64, u64) = (4 << 20, 64 << 20);
/// The bytes that a file takes at least.
const BLOCK: u64 = 4096;

/// Content that may be removed, in this order: content that is not pinned, then by age.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Removable {
    is_pinned: bool,
    modified: SystemTime,
    size: u64,
    data: PathBuf,
}

/// Removes the oldest content, as the order of use is in no index yet; pinned content only if nothing else is left.
pub(super) fn free_room(layout: &Layout, pinned: &Globs) -> Result<(), IoError> {
    let system = statvfs(layout.root()).map_err(|error| on("measure", layout.root())(error.into()))?;
    let wanted = (system.f_blocks.saturating_mul(system.f_frsize) / SHARE).clamp(BOUNDS.0, BOUNDS.1);
    let root = layout.root().display();
    tracing::warn!(%root, wanted, "the file system of the cache is full at the start: the oldest content is removed");
    let pinned = pinned_on_disk(layout, pinned)?;
    for removable in first_to_go(layout, &pinned, wanted)? {
        remove(&removable.data)?;
    }
    Ok(())
}

/// Returns the first content to go that takes so many bytes.
fn first_to_go(
    layout: &Layout,
    pinned: &HashSet<Digest>,
    wanted: u64,
) -> Result<BinaryHeap<Removable>, IoError> {
    let (mut found, mut bytes): (BinaryHeap<Removable>, u64) = (BinaryHeap::new(), 0);
    for algorithm in ALGORITHMS {
        for prefix in directories(&layout.blobs().join(algorithm.as_str()))? {
            for directory in directories(&prefix)? {
                let data = directory.join("data");
                let Ok(metadata) = no_links::file_metadata(&data) else {
                    continue;
                };
                let Some(digest) = layout.digest_at(&data) else {
                    continue;
                };
                let size = metadata.len().max(BLOCK);
                bytes += size;
                found.push(Removable {
                    is_pinned: pinned.contains(&digest),
                    modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    size,
                    data,
                });
                while found.peek().is_some_and(|last| bytes - last.size >= wanted) {
                    bytes -= found.pop().map_or(0, |last| last.size);
                }
            }
        }
    }
    Ok(found)
}
