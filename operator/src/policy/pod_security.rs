//! The security contexts that the Pod Security Standard baseline refuses and the API's own rules do not.
//!
//! <https://kubernetes.io/docs/concepts/security/pod-security-standards/>

use crds::Pod;
use k8s_openapi::api::core::v1::{AppArmorProfile, SELinuxOptions, SeccompProfile, Sysctl};

/// Types of `SELinux` that confine a container.
const SELINUX_TYPES: &[&str] = &[
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
];
/// Kernel parameters that belong to the Pod's own namespaces.
const SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const POD: &str = "spec.pod.securityContext";
const CONTAINER: &str = "spec.pod.containerSecurityContext";

/// Returns the first security context that baseline refuses, as its field and what it asks for.
pub(super) fn beyond_baseline(pod: &Pod) -> Option<(&'static str, String)> {
    let of_pod = pod.security_context.as_ref().and_then(|context| {
        app_armor(context.app_armor_profile.as_ref())
            .or_else(|| seccomp(context.seccomp_profile.as_ref()))
            .or_else(|| selinux(context.se_linux_options.as_ref()))
            .or_else(|| sysctls(context.sysctls.as_deref().unwrap_or_default()))
    });
    let of_container = || {
        pod.container_security_context.as_ref().and_then(|context| {
            app_armor(context.app_armor_profile.as_ref())
                .or_else(|| seccomp(context.seccomp_profile.as_ref()))
                .or_else(|| selinux(context.se_linux_options.as_ref()))
        })
    };
    of_pod
        .map(|asked| (POD, asked))
        .or_else(|| of_container().map(|asked| (CONTAINER, asked)))
}

fn app_armor(profile: Option<&AppArmorProfile>) -> Option<String> {
    let is_unconfined = profile.is_some_and(|profile| profile.type_ == "Unconfined");
    is_unconfined.then(|| "AppArmor profile Unconfined".to_owned())
}

fn seccomp(profile: Option<&SeccompProfile>) -> Option<String> {
    let is_unconfined = profile.is_some_and(|profile| profile.type_ == "Unconfined");
    is_unconfined.then(|| "seccomp profile Unconfined".to_owned())
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<String> {
    let options = options?;
    let is_set = |field: &Option<String>| field.as_ref().is_some_and(|value| !value.is_empty());
    let confines = SELINUX_TYPES.contains(&options.type_.as_deref().unwrap_or_default());
    (!confines || is_set(&options.user) || is_set(&options.role))
        .then(|| "SELinux options with a user, a role or a type that is no container's".to_owned())
}

fn sysctls(sysctls: &[Sysctl]) -> Option<String> {
    let unsafe_one = sysctls
        .iter()
        .find(|sysctl| !SYSCTLS.contains(&sysctl.name.as_str()))?;
    Some(format!("sysctl {:?}", unsafe_one.name))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_pass_by_value, reason = "the tables read better")]

    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    #[test_case(json!({}) => None; "nothing")]
    #[test_case(json!({"runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}) => None; "a user")]
    #[test_case(json!({"appArmorProfile": {"type": "Unconfined"}}) => Some("AppArmor profile Unconfined".to_owned()))]
    #[test_case(json!({"appArmorProfile": {"type": "RuntimeDefault"}}) => None; "a profile")]
    #[test_case(json!({"seccompProfile": {"type": "Unconfined"}}) => Some("seccomp profile Unconfined".to_owned()))]
    #[test_case(json!({"seLinuxOptions": {"level": "s0:c1"}}) => None; "a level")]
    #[test_case(json!({"seLinuxOptions": {"type": "spc_t"}})
        => Some("SELinux options with a user, a role or a type that is no container's".to_owned()))]
    #[test_case(json!({"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}]}) => None; "a safe parameter")]
    #[test_case(json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]})
        => Some("sysctl \"kernel.msgmax\"".to_owned()))]
    fn pod_context_beyond_baseline(context: Value) -> Option<String> {
        let pod: Pod = serde_json::from_value(json!({"securityContext": context})).unwrap();
        let (field, asked) = beyond_baseline(&pod)?;
        assert_eq!(field, POD);
        Some(asked)
    }

    #[test_case(json!({"appArmorProfile": {"type": "Unconfined"}}))]
    #[test_case(json!({"seccompProfile": {"type": "Unconfined"}}))]
    #[test_case(json!({"seLinuxOptions": {"user": "system_u"}}))]
    fn container_context_beyond_baseline(context: Value) {
        let pod: Pod = serde_json::from_value(json!({"containerSecurityContext": context})).unwrap();
        assert!(beyond_baseline(&pod).is_some_and(|(field, _)| field == CONTAINER));
    }
}
