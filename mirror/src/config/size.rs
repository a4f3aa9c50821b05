//! Sizes: Kubernetes quantities or percentages.

/// What the cache may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxSize {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the file system, 1 to 100.
    Percent(u8),
}
