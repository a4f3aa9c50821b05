//! Pulls of one image through a mirror, and what each of them led to.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use testbed::Upstream;
use testbed::image::Layout;
use testbed::scratch::Scratch;
use testbed::skopeo;

use crate::outcomes::Outcomes;

/// The image's name in its registry.
pub(crate) const IMAGE: &str = "team/app:1.0";
/// Its tag.
pub(crate) const TAG: &str = "1.0";

/// A mirror, and the image that it should serve unchanged.
pub(crate) struct Pulls<'a> {
    /// The registry port of the mirror.
    pub(crate) mirror: skopeo::Registry,
    /// The admin port of the mirror.
    pub(crate) admin: String,
    /// The image as it was pushed.
    pub(crate) image: &'a Layout,
    /// The directory of pulled images.
    pub(crate) scratch: &'a Scratch,
}

/// The result of one pull.
pub(crate) struct Pull {
    what: &'static str,
    outcomes: Outcomes,
    requests: u64,
    bytes: u64,
    took: Duration,
    equal: bool,
    expected: Expected,
}

/// The expected source of a pull's content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The cache is empty.
    Cold,
    /// The cache has all content.
    Warm,
    /// The cache has all content, the tag is due for revalidation, and the upstream is down.
    Stale,
}

impl Pulls<'_> {
    /// Pulls every platform of the image.
    pub(crate) async fn pull(
        &self,
        what: &'static str,
        upstream: &Upstream,
        expected: Expected,
    ) -> Result<Pull, Box<dyn Error>> {
        let directory = self.scratch.path().join(what);
        let before = Outcomes::read(&self.admin).await?;
        upstream.reset_counts();
        let start = Instant::now();
        skopeo::pull(&self.mirror, IMAGE, &directory).await?;
        let took = start.elapsed();
        let counts = upstream.counts();
        Ok(Pull {
            what,
            outcomes: Outcomes::read(&self.admin).await?.since(&before),
            requests: counts.requests(),
            bytes: counts.bytes(),
            took,
            equal: is_equal(self.image, &directory)?,
            expected,
        })
    }
}

/// Returns true if the pulled image has the digest of the pushed one, and each blob the digest in its name.
fn is_equal(pushed: &Layout, pulled: &Path) -> Result<bool, Box<dyn Error>> {
    let pulled = Layout::open(pulled)?;
    if pulled.digest(TAG).is_none() || pulled.digest(TAG) != pushed.digest(TAG) {
        return Ok(false);
    }
    let (pushed, pulled) = (blobs(pushed)?, blobs(&pulled)?);
    Ok(pushed == pulled && pulled.iter().all(|(name, digest)| name == digest))
}

/// Returns the blobs of a layout by name, with their digests.
fn blobs(layout: &Layout) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let mut blobs = Vec::new();
    for entry in fs::read_dir(layout.path().join("blobs/sha256"))? {
        let entry = entry?;
        let digest = hex::encode(Sha256::digest(fs::read(entry.path())?));
        blobs.push((entry.file_name().to_string_lossy().into_owned(), digest));
    }
    blobs.sort();
    Ok(blobs)
}

impl Pull {
    /// Returns the difference from the expectation, if there is one.
    fn wrong(&self) -> Option<&'static str> {
        let (misses, stale) = (self.outcomes.count("MISS"), self.outcomes.count("STALE"));
        match self.expected {
            _ if !self.equal => Some("what came out is not what was pushed"),
            Expected::Cold if misses == 0 || self.bytes == 0 => Some("nothing came from upstream"),
            Expected::Warm if self.bytes > 0 || self.requests > 0 => Some("upstream was asked again"),
            Expected::Warm if misses + stale > 0 => Some("not everything came from the cache"),
            Expected::Stale if stale == 0 || misses > 0 => {
                Some("the tag did not come from the cache as stale")
            }
            _ => None,
        }
    }
}

/// Prints the results of the pulls, and returns true if all are as expected.
pub(crate) fn report(pulls: &[Pull]) -> bool {
    println!();
    println!(
        "{:<22} {:<18} {:>17} {:>14} {:>8}  digest equal",
        "pull", "outcome", "upstream requests", "upstream bytes", "time"
    );
    for pull in pulls {
        println!(
            "{:<22} {:<18} {:>17} {:>14} {:>6.2} s  {}",
            pull.what,
            pull.outcomes,
            pull.requests,
            pull.bytes,
            pull.took.as_secs_f64(),
            if pull.equal { "yes" } else { "no" }
        );
    }
    println!();
    let mut well = true;
    for pull in pulls {
        if let Some(wrong) = pull.wrong() {
            eprintln!("demo: {}: {wrong}", pull.what);
            well = false;
        }
    }
    well
}
