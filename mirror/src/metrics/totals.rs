//! The sums of the metrics that the page and its reports have.

/// The most buckets of totals that are read.
const MAX_BUCKETS: usize = 64;

/// The traffic of a server, or of one upstream, since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Requests for manifests and blobs without a download of their own.
    pub hits: u64,
    /// Requests for manifests and blobs that the upstream answered.
    pub misses: u64,
    /// Responses with a status from 500 on.
    pub errors: u64,
    /// Bytes of content that clients received.
    pub served: u64,
    /// Bytes that upstreams sent.
    pub received: u64,
    /// Responses by the time to their first byte: upper bounds in seconds, and the responses within them.
    pub(crate) buckets: Vec<(f64, u64)>,
}

impl Totals {
    /// Adds responses whose first byte came within a bound in seconds.
    pub(super) fn add_to_bucket(&mut self, bound: f64, value: u64) {
        let found = self
            .buckets
            .binary_search_by(|(known, _)| known.total_cmp(&bound));
        match found {
            Ok(place) => self.buckets[place].1 = self.buckets[place].1.saturating_add(value),
            Err(place) => self.buckets.insert(place, (bound, value)),
        }
    }

    /// Returns the growth since earlier totals.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let earlier = |bound: f64| {
            let found = before
                .buckets
                .iter()
                .find(|(known, _)| known.total_cmp(&bound).is_eq());
            found.map_or(0, |(_, count)| *count)
        };
        let bucket = |(bound, count): &(f64, u64)| (*bound, count.saturating_sub(earlier(*bound)));
        Self {
            hits: self.hits.saturating_sub(before.hits),
            misses: self.misses.saturating_sub(before.misses),
            errors: self.errors.saturating_sub(before.errors),
            served: self.served.saturating_sub(before.served),
            received: self.received.saturating_sub(before.received),
            buckets: self.buckets.iter().map(bucket).collect(),
        }
    }

    /// Returns the sum with other totals.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        let mut sum = Self {
            hits: self.hits.saturating_add(other.hits),
            misses: self.misses.saturating_add(other.misses),
            errors: self.errors.saturating_add(other.errors),
            served: self.served.saturating_add(other.served),
            received: self.received.saturating_add(other.received),
            buckets: self.buckets.clone(),
        };
        for (bound, count) in &other.buckets {
            sum.add_to_bucket(*bound, *count);
        }
        sum
    }

    pub(crate) fn is_zero(&self) -> bool {
        [self.hits, self.misses, self.errors, self.served, self.received] == [0; 5]
            && self.buckets.iter().all(|(_, count)| *count == 0)
    }

    /// Returns the totals as numbers of eight bytes each, the least significant first: the five sums, then the bound
    /// (IEEE 754) and the count of each bucket.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let sums = [self.hits, self.misses, self.errors, self.served, self.received];
        let buckets = self
            .buckets
            .iter()
            .flat_map(|(bound, count)| [bound.to_bits(), *count]);
        sums.into_iter()
            .chain(buckets)
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    /// Reads what [`Self::to_bytes`] wrote; `None` for other bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        let words: Vec<_> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let ([hits, misses, errors, served, received], buckets) = words.split_first_chunk::<5>()?;
        let (buckets, []) = buckets.as_chunks::<2>() else {
            return None;
        };
        if buckets.len() > MAX_BUCKETS {
            return None;
        }
        let mut totals = Self {
            hits: *hits,
            misses: *misses,
            errors: *errors,
            served: *served,
            received: *received,
            buckets: Vec::new(),
        };
        for [bound, count] in buckets {
            totals.add_to_bucket(f64::from_bits(*bound), *count);
        }
        Some(totals)
    }

    /// Returns the upper bound of the bucket in which the 99th of 100 responses lies; `None` without responses, or
    /// beyond the last bound.
    pub(crate) fn p99(&self) -> Option<f64> {
        let (_, count) = self.buckets.last().filter(|(_, count)| *count > 0)?;
        let rank = count - count / 100;
        let bucket = self.buckets.iter().find(|(_, count)| *count >= rank);
        bucket.map(|(bound, _)| *bound).filter(|bound| bound.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Kept totals are read as they were written, and no bytes make the reader panic.
        #[test]
        fn kept_totals_are_read_back(numbers: [u64; 5], counts: Vec<u32>, bytes: Vec<u8>) {
            let [hits, misses, errors, served, received] = numbers;
            let buckets = counts.iter().take(MAX_BUCKETS).enumerate();
            let buckets = buckets.map(|(bound, count)| (f64::from(u32::try_from(bound).unwrap()), u64::from(*count)));
            let buckets = buckets.collect();
            let totals = Totals { hits, misses, errors, served, received, buckets };
            proptest::prop_assert_eq!(Totals::from_bytes(&totals.to_bytes()), Some(totals));
            let _ = Totals::from_bytes(&bytes);
        }
    }
}
