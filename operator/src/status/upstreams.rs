//! The condition `UpstreamReachable`, from the reports of servers.

use crds::{
    RegistryMirror,
    conditions::{ConditionType, Reason, Truth},
    status::UpstreamState,
};

use super::conditions::{ConditionUpdate, with_advice};
use crate::observed::Observed;

/// Returns the worst state that any server reports of an upstream.
pub(super) fn state(host: &str, observed: &Observed) -> UpstreamState {
    let states = observed
        .servers
        .iter()
        .filter_map(|server| Some(server.report()?.upstream(host)?.state));
    states.max_by_key(|state| weight(*state)).unwrap_or_default()
}

fn weight(state: UpstreamState) -> u8 {
    match state {
        UpstreamState::Unknown => 0,
        UpstreamState::Reachable => 1,
        UpstreamState::RateLimited => 2,
        UpstreamState::Unreachable => 3,
    }
}

/// Returns `UpstreamReachable`; `None` until each server was polled and one has asked an upstream.
pub(super) fn condition(mirror: &RegistryMirror, observed: &Observed) -> Option<ConditionUpdate> {
    if observed.has_unpolled() {
        return None;
    }
    let kind = ConditionType::UpstreamReachable;
    let hosts = mirror
        .spec
        .upstreams
        .iter()
        .map(|upstream| upstream.host.as_str());
    let states: Vec<_> = hosts.map(|host| (host, state(host, observed))).collect();
    let of = |wanted| {
        let hosts: Vec<_> = states
            .iter()
            .filter(|(_, state)| *state == wanted)
            .map(|(host, _)| *host)
            .collect();
        (!hosts.is_empty()).then(|| hosts.join(", "))
    };
    if let Some(hosts) = of(UpstreamState::Unreachable) {
        let message = format!("no response from {hosts}, cached content is served");
        let message = with_advice(message, Reason::Unreachable);
        return Some(ConditionUpdate::new(
            kind,
            Truth::False,
            Reason::Unreachable,
            message,
        ));
    }
    if let Some(hosts) = of(UpstreamState::RateLimited) {
        let message = format!("{hosts} limits requests, cached content is served and servers retry later");
        let message = with_advice(message, Reason::RateLimited);
        return Some(ConditionUpdate::new(
            kind,
            Truth::False,
            Reason::RateLimited,
            message,
        ));
    }
    let hosts = of(UpstreamState::Reachable)?;
    Some(ConditionUpdate::new(
        kind,
        Truth::True,
        Reason::Reachable,
        format!("{hosts} responds"),
    ))
}
