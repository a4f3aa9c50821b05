use serde_json::json;

use super::*;

fn hub() -> MirrorKey {
    MirrorKey {
        namespace: "mirrors".to_owned(),
        name: "hub".to_owned(),
    }
}

fn mirror(mode: &str) -> RegistryMirror {
    serde_json::from_value(json!({
        "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
        "metadata": {"name": "hub", "namespace": "mirrors"},
        "spec": {
            "upstreams": [{"host": "docker.io"}], "storage": {"type": "Ephemeral"}, "nodeConfiguration": {"mode": mode},
        },
    }))
    .unwrap()
}

fn agent(addresses: &[&str], since: Instant) -> Agent {
    let report = json!({
        "version": "1", "node": "lie", "runtime": "containerd", "directory": null, "addresses": addresses,
        "mirrors": [
            {"namespace": "mirrors", "name": "hub", "state": "Configured", "since": "2026-01-01T00:00:00Z", "message": ""},
            {"namespace": "mirrors", "name": "no", "state": "Conflict", "since": "2026-01-01T00:00:00Z", "message": ""},
        ],
    });
    let address = "192.0.2.1:18081".parse().unwrap();
    let report = serde_json::from_value(report).unwrap();
    Agent {
        report: Some(AgentReport::new(report, address, &[hub()].into())),
        ..Agent::new(address, since)
    }
}

#[test]
fn report_keeps_tracked_mirrors_only() {
    let report = agent(&["10.0.0.1"], Instant::now()).report.unwrap();
    assert_eq!(report.mirrors.len(), 1);
    let addresses: Vec<_> = report.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "192.0.2.1"]);
}

#[test]
fn silent_agent_keeps_its_report_for_a_while() {
    let start = Instant::now();
    let known = agent(&[], start);
    assert_eq!(known.fault(&hub(), start + GRACE / 2), Some(None));
    assert_eq!(
        known.fault(&hub(), start + GRACE),
        Some(Some(Reason::AgentUnresponsive))
    );
    let unknown = Agent::new(known.address, start);
    assert_eq!(unknown.fault(&hub(), start + GRACE / 2), None, "not polled yet");
    assert_eq!(
        unknown.fault(&hub(), start + GRACE),
        Some(Some(Reason::AgentUnresponsive))
    );
}

#[test]
fn address_of_two_nodes_counts_for_none() {
    let now = Instant::now();
    let agents = [
        ("a".to_owned(), agent(&["10.0.0.1", "10.0.0.9"], now)),
        ("b".to_owned(), agent(&["10.0.0.2", "10.0.0.9"], now)),
    ];
    let agents = agents.into();
    let nodes = nodes_by_address(&agents);
    let node = |ip: &str| nodes.get(&ip.parse().unwrap()).copied().flatten();
    assert_eq!((node("10.0.0.1"), node("10.0.0.2")), (Some("a"), Some("b")));
    assert_eq!((node("10.0.0.9"), node("192.0.2.1")), (None, None));
}

#[test]
fn clients_of_servers_are_bounded_and_expire() {
    let service = "mirrors/rm-agent".parse().ok();
    let (handle, _triggers) = NodePoller::new(service).handle();
    handle.track(&mirror("Manage"));
    let now = Timestamp::now();
    let ip = |number: u32| IpAddr::from(number.to_be_bytes());
    handle.add_clients(
        &hub(),
        [(ip(1), now - SignedDuration::from_hours(25)), (ip(2), now)],
    );
    handle.add_clients(&hub(), [(ip(3), now + SignedDuration::from_hours(99))]);
    let nodes = [(ip(1), Some("a")), (ip(2), Some("b")), (ip(3), Some("c"))].into();
    let pulling = |handle: &NodePollerHandle| handle.poller.mirrors.lock()[&hub()].count_pulling(&nodes);
    assert_eq!(pulling(&handle), Some(2));
    handle.add_clients(&hub(), (0..200_000).map(|number| (ip(number), now)));
    let mirrors = handle.poller.mirrors.lock();
    let clients = mirrors[&hub()].clients.as_ref().unwrap();
    assert_eq!(clients.len(), MAX_CLIENTS);
    assert!(clients.values().all(|last| *last <= Timestamp::now()));
}

/// A mirror that leaves mode Manage is forgotten, and one in it has no summary before its agents were polled.
#[test]
fn only_managed_mirrors_have_a_summary() {
    let (handle, _triggers) = NodePoller::new("mirrors/rm-agent".parse().ok()).handle();
    handle.track(&mirror("Manage"));
    assert_eq!(handle.summary(&mirror("Manage")), None);
    handle.track(&mirror("Publish"));
    assert!(handle.poller.mirrors.lock().is_empty());
    let (handle, _triggers) = NodePoller::new(None).handle();
    assert_eq!(handle.summary(&mirror("Publish")), None);
    assert_eq!(
        handle.summary(&mirror("Manage")).map(|summary| summary.total()),
        Some(0)
    );
}
