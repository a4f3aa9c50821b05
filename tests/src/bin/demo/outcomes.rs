//! Counts of a mirror's answers by cache outcome, from its metrics.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

/// Answers by outcome: `MISS` (from upstream), `HIT` (from the cache), `STALE` (from the cache, upstream being gone).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcomes(BTreeMap<String, u64>);

impl Outcomes {
    /// Reads the counts since the mirror's start.
    pub(crate) async fn read(admin: &str) -> Result<Self, Box<dyn Error>> {
        let answer = reqwest::get(format!("http://{admin}/metrics"))
            .await?
            .error_for_status()?;
        Ok(Self::parse(&answer.text().await?))
    }

    fn parse(metrics: &str) -> Self {
        let mut outcomes = Self::default();
        for line in metrics
            .lines()
            .filter(|line| line.starts_with("registry_mirror_requests_total{"))
        {
            let outcome = line
                .split_once("outcome=\"")
                .and_then(|(_, rest)| rest.split_once('"'));
            let count = line
                .rsplit_once(' ')
                .and_then(|(_, count)| count.parse::<u64>().ok());
            if let (Some((outcome, _)), Some(count)) = (outcome, count) {
                *outcomes.0.entry(outcome.to_uppercase()).or_default() += count;
            }
        }
        outcomes
            .0
            .retain(|outcome, _| ["MISS", "COALESCED", "HIT", "STALE"].contains(&outcome.as_str()));
        outcomes
    }

    /// Returns the counts of the answers after `before`.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        for (outcome, count) in &mut self.0 {
            *count -= before.count(outcome).min(*count);
        }
        self.0.retain(|_, count| *count > 0);
        self
    }

    /// Returns the number of answers with this outcome.
    pub(crate) fn count(&self, outcome: &str) -> u64 {
        self.0.get(outcome).copied().unwrap_or(0)
    }
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.iter().map(|(outcome, count)| format!("{outcome} {count}"));
        // Outcomes that depend on the upstream come before those of the cache.
        f.pad(&counts.rev().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Responses are counted by outcome since a moment.
    #[test]
    fn outcomes_are_counted_since_a_moment() {
        let line = |kind: &str, outcome: &str, count| {
            format!("registry_mirror_requests_total{{kind=\"{kind}\",outcome=\"{outcome}\"}} {count}\n")
        };
        let before = Outcomes::parse(&line("blob", "HIT", 2));
        let text = [
            line("blob", "HIT", 5),
            line("manifest", "HIT", 1),
            line("manifest", "STALE", 1),
            line("ping", "none", 9),
        ];
        let since = Outcomes::parse(&text.concat()).since(&before);
        assert_eq!(since.to_string(), "STALE 1, HIT 4");
        assert_eq!((since.count("HIT"), since.count("MISS")), (4, 0));
    }
}
