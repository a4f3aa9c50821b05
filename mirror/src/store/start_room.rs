//! Room for the files of the server on a file system that is full at the start: without them nothing could be evicted.

use std::collections::BinaryHeap;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::statvfs;

use crate::store::catalog::directories;
use crate::store::durable::{IoError, on, remove};
use crate::store::no_links;
use crate::store::path::{ALGORITHMS, Layout};

/// The share of the file system that is freed: a twentieth, as it stays free later.
const SHARE: u64 = 20;
/// The fewest and the most bytes that are freed: a new index takes more than a megabyte.
const BOUNDS: (u64, u64) = (4 << 20, 64 << 20);
/// The bytes that a file takes at least.
const BLOCK: u64 = 4096;

/// Removes the oldest content, as the order of use is in no index yet.
pub(super) fn free_room(layout: &Layout) -> Result<(), IoError> {
    let system = statvfs(layout.root()).map_err(|error| on("measure", layout.root())(error.into()))?;
    let wanted = (system.f_blocks.saturating_mul(system.f_frsize) / SHARE).clamp(BOUNDS.0, BOUNDS.1);
    let root = layout.root().display();
    tracing::warn!(%root, wanted, "the file system of the cache is full at the start: the oldest content is removed");
    for (_, _, data) in oldest(layout, wanted)? {
        remove(&data)?;
    }
    Ok(())
}

/// Returns the oldest content that takes so many bytes.
fn oldest(layout: &Layout, wanted: u64) -> Result<BinaryHeap<(SystemTime, u64, PathBuf)>, IoError> {
    let (mut found, mut bytes) = (BinaryHeap::new(), 0);
    for algorithm in ALGORITHMS {
        for prefix in directories(&layout.blobs().join(algorithm.as_str()))? {
            for directory in directories(&prefix)? {
                let data = directory.join("data");
                let Ok(metadata) = no_links::file_metadata(&data) else {
                    continue;
                };
                if layout.digest_at(&data).is_none() {
                    continue;
                }
                let size = metadata.len().max(BLOCK);
                bytes += size;
                found.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), size, data));
                while found
                    .peek()
                    .is_some_and(|(_, newest, _)| bytes - newest >= wanted)
                {
                    bytes -= found.pop().map_or(0, |(_, newest, _)| newest);
                }
            }
        }
    }
    Ok(found)
}
