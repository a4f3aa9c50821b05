//! The RBAC permissions of the operator: its requests need them, the chart grants them, and `doctor` checks them. A
//! test compares all three.

/// The verbs on resources of one API group, as in a rule of a Role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// Plurals, with a subresource after a slash.
    pub resources: &'static [&'static str],
    /// The verbs.
    pub verbs: &'static [&'static str],
}

/// In every namespace that is looked after. Server-side apply is `patch`, and `create` where nothing was. [`BY_ADMISSION`]
/// has those that no request of the operator uses.
pub const ON_MIRRORS: &[Rule] = &[
    Rule {
        group: "registrymirror.io",
        resources: &["registrymirrors"],
        verbs: &["list", "watch"],
    },
    Rule {
        group: "registrymirror.io",
        resources: &["registrymirrors/status"],
        verbs: &["patch"],
    },
    Rule {
        group: "",
        resources: &["configmaps", "secrets"],
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
    },
    Rule {
        group: "",
        resources: &["serviceaccounts", "services"],
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
    },
    Rule {
        group: "apps",
        resources: &["deployments", "statefulsets"],
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
    },
    Rule {
        group: "policy",
        resources: &["poddisruptionbudgets"],
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
    },
    Rule {
        group: "",
        resources: &["persistentvolumeclaims"],
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
    },
    Rule {
        group: "",
        resources: &["pods"],
        verbs: &["list", "watch", "patch"],
    },
    Rule {
        group: "coordination.k8s.io",
        resources: &["leases"],
        verbs: &["get"],
    },
    Rule {
        group: "events.k8s.io",
        resources: &["events"],
        verbs: &["create", "patch"],
    },
];

/// The part of [`ON_MIRRORS`] that the admission plugin `OwnerReferencesPermissionEnforcement` asks for, which some
/// distributions switch on: only a user that may delete an object may change its owner references. The operator does so when a
/// retention policy changes and when it adopts an object. It sends no such request itself.
pub const BY_ADMISSION: &[Rule] = &[
    Rule {
        group: "",
        resources: &["persistentvolumeclaims", "serviceaccounts", "services"],
        verbs: &["delete"],
    },
    Rule {
        group: "apps",
        resources: &["deployments", "statefulsets"],
        verbs: &["delete"],
    },
];

/// In the namespace of the Lease by which one operator leads, for the Lease of this name alone (`resourceNames`).
pub const ON_THE_LEASE: &[Rule] = &[Rule {
    group: "coordination.k8s.io",
    resources: &["leases"],
    verbs: &["get", "update"],
}];

/// In the same namespace. RBAC can't limit `create` to a name; the chart's admission policy does.
pub const LEASE_CREATION: &[Rule] = &[Rule {
    group: "coordination.k8s.io",
    resources: &["leases"],
    verbs: &["create"],
}];

/// In the namespace of the node agents, if the operator polls them.
pub const ON_AGENTS: &[Rule] = &[Rule {
    group: "discovery.k8s.io",
    resources: &["endpointslices"],
    verbs: &["list", "watch"],
}];
