//! The nodes of a mirror, as their agents report.

use std::collections::BTreeMap;

use crds::{conditions::Reason, status::NodesStatus};

/// The maximum number of nodes that a message names for a reason.
const MAX_NAMES: usize = 5;

/// The nodes with an agent, by the state of one mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSummary {
    /// The number of nodes whose container runtime has the files.
    pub configured: usize,
    /// The nodes that are not configured, by reason.
    pub faulty: BTreeMap<Reason, FaultyNodes>,
    /// The number of nodes that pulled through the mirror in the last 24 hours; `None` until each server was polled.
    pub pulling: Option<usize>,
}

/// The nodes with one fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultyNodes {
    /// Their number.
    pub count: usize,
    /// The names of the first ones.
    pub names: Vec<String>,
}

impl NodeSummary {
    /// Counts a node. `fault` is the reason for which it is not configured.
    pub fn add(&mut self, node: &str, fault: Option<Reason>) {
        let Some(reason) = fault else {
            self.configured += 1;
            return;
        };
        let nodes = self.faulty.entry(reason).or_default();
        nodes.count += 1;
        if nodes.names.len() < MAX_NAMES {
            nodes.names.push(node.to_owned());
        }
    }

    /// Returns the number of nodes.
    pub fn total(&self) -> usize {
        self.configured + self.faulty.values().map(|nodes| nodes.count).sum::<usize>()
    }

    /// Returns the numbers for the status. `before` are the previous ones.
    pub fn status(&self, before: Option<&NodesStatus>) -> NodesStatus {
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let bypassed = self.faulty.get(&Reason::Bypassed).map_or(0, |nodes| nodes.count);
        NodesStatus {
            total: number(self.total()),
            configured: number(self.configured),
            bypassed: number(bypassed),
            failing: number(self.total() - self.configured - bypassed),
            pulling: match self.pulling {
                Some(pulling) => number(pulling),
                None => before.map_or(0, |before| before.pulling),
            },
        }
    }
}

impl FaultyNodes {
    /// Returns the names of some nodes, and the number of the others.
    pub fn describe(&self) -> String {
        let names = self.names.join(", ");
        match self.count - self.names.len() {
            0 => names,
            others => format!("{names} and {others} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A summary counts each node once, and names the first five of a reason.
    #[test]
    fn summary_counts_all_and_names_five() {
        let mut summary = NodeSummary::default();
        for node in 0..1000 {
            let fault = match node % 4 {
                0 => Some(Reason::Bypassed),
                1 => Some(Reason::ReadOnly),
                _ => None,
            };
            summary.add(&format!("node-{node}"), fault);
        }
        let expected = NodesStatus {
            total: 1000,
            configured: 500,
            bypassed: 250,
            failing: 250,
            pulling: 7,
        };
        let before = NodesStatus {
            pulling: 7,
            ..NodesStatus::default()
        };
        assert_eq!(summary.status(Some(&before)), expected);
        let described = summary.faulty[&Reason::Bypassed].describe();
        assert_eq!(described, "node-0, node-4, node-8, node-12, node-16 and 245 more");
    }
}
