//! The condition `NodesConfigured`, from the reports of node agents.

use crds::{
    RegistryMirror, RegistryMirrorStatus,
    conditions::{ConditionType, Reason, Truth},
    node_configuration::NodeConfigurationMode,
    status::NodesStatus,
};

use super::conditions::{ConditionUpdate, with_advice};
use crate::observed::{FaultyNodes, NodeSummary, Observed};

/// Returns the numbers of nodes, if agents manage the mirror. Until agents were polled, the previous numbers stay.
pub(super) fn counts(
    mirror: &RegistryMirror,
    before: &RegistryMirrorStatus,
    observed: &Observed,
) -> Option<NodesStatus> {
    let before = before.nodes.as_ref();
    match &observed.nodes {
        Some(nodes) => Some(nodes.status(before)),
        None if is_unpolled(mirror, observed) => before.copied(),
        None => None,
    }
}

/// Returns whether agents manage the mirror and were not polled yet.
pub(super) fn is_unpolled(mirror: &RegistryMirror, observed: &Observed) -> bool {
    mirror.spec.node_configuration.mode == NodeConfigurationMode::Manage && observed.nodes.is_none()
}

/// Returns `NodesConfigured`; `None` if agents do not manage the mirror, or were not polled yet.
pub(super) fn condition(nodes: Option<&NodeSummary>) -> Option<ConditionUpdate> {
    let nodes = nodes?;
    let kind = ConditionType::NodesConfigured;
    let total = nodes.total();
    if total == 0 {
        let message = with_advice("no node agent answers".to_owned(), Reason::AgentAbsent);
        return Some(ConditionUpdate::new(
            kind,
            Truth::False,
            Reason::AgentAbsent,
            message,
        ));
    }
    let Some(reason) = nodes.faulty.keys().next().copied() else {
        let message = format!("{total} of {total} nodes have the files");
        return Some(ConditionUpdate::new(
            kind,
            Truth::True,
            Reason::AllNodesConfigured,
            message,
        ));
    };
    let fault = |(reason, nodes): (&Reason, &FaultyNodes)| {
        with_advice(format!("{reason} on {}", nodes.describe()), *reason)
    };
    let faults: Vec<_> = nodes.faulty.iter().map(fault).collect();
    let message = format!(
        "{} of {total} nodes have the files; {}",
        nodes.configured,
        faults.join("; ")
    );
    Some(ConditionUpdate::new(kind, Truth::False, reason, message))
}
