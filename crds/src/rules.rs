//! CEL rules that several fields share. The API server and offline validation evaluate the same rules.
//!
//! A pattern is part of a rule and not of the schema, because only a rule has a message. Values that the cost budget of
//! the API server limits have their `maxLength` at their declaration.

use kube::core::{Reason, Rule};

/// The labels that select a mirror's Pods. They never change, and a spec can't set them.
pub const SELECTOR_LABELS: [&str; 4] = [
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "app.kubernetes.io/managed-by",
];

/// The prefix of the labels and annotations that the operator keeps for itself.
pub const OWN_PREFIX: &str = "registrymirror.io/";

/// The maximum length of the values of annotations together: a quarter of what Kubernetes allows an object.
const MAX_ANNOTATIONS: usize = 65_536;
const PORT: &str = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})";
const LOWER_HOST: &str =
    r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*|\[[0-9a-f.]*:[0-9a-f:.]*\])";
const ANY_HOST: &str = r"([A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?)*|\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\])";
const LOOPBACK_URL: &str = r"^http://(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]+)?(/.*)?$";
const QUANTITY: &str = r"^[0-9]{1,12}(\.[0-9]{1,6})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$";
/// Every unit has as many digits as keep the sum far below the 292 years that Go's durations end at.
const DURATION: &str = r"^(0|([0-9]{1,5}(\.[0-9]{1,9})?h|[0-9]{1,7}(\.[0-9]{1,9})?m|[0-9]{1,9}(\.[0-9]{1,9})?(s|ms|us|µs|ns)){1,6})$";
const LABEL_KEY: &str =
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$";

/// Returns a CEL expression: `subject` matches `pattern`.
fn matches(subject: &str, pattern: &str) -> String {
    format!("{subject}.matches('{}')", pattern.replace('\\', r"\\"))
}

/// Returns a CEL expression: the text in brackets, if there is any, is an IP address.
fn has_address(subject: &str) -> String {
    format!(
        "(!{subject}.contains('[') || isIP({subject}.substring({subject}.indexOf('[') + 1, {subject}.indexOf(']'))))"
    )
}

/// Returns a CEL expression: `subject` matches `pattern`, and a host in brackets is an address.
fn matches_host(subject: &str, pattern: &str) -> String {
    format!("{} && {}", matches(subject, pattern), has_address(subject))
}

/// Returns the pattern of a URL of scheme, host, port and path.
fn url() -> String {
    format!(r"^https?://{ANY_HOST}(:{PORT})?(/[A-Za-z0-9._~%-]+)*/?$")
}

/// Returns the rule of a registry's name in image names.
pub(crate) fn host() -> Rule {
    Rule::new(matches_host("self", &format!("^{LOWER_HOST}(:{PORT})?$"))).message(
        "must be a registry's host name in lower case, with an optional port, such as docker.io or registry.example.com:5000: no scheme, no path",
    )
}

/// Returns the rule of the URL of a registry.
pub(crate) fn remote_url() -> Rule {
    Rule::new(matches_host("self", &url())).message(
        "must be http:// or https://, a host, and optionally a port and a path, such as https://registry.example.com:5000/v2-proxy: no user name, query or fragment",
    )
}

/// Returns the rule of the URL of a trace collector.
pub(crate) fn collector_url() -> Rule {
    Rule::new(matches_host("self", &url())).message(
        "must be http:// or https://, a host, and optionally a port and a path, such as http://collector.monitoring:4318: no user name, query or fragment",
    )
}

/// Returns the rule of the URL of an HTTP proxy.
pub(crate) fn proxy_url() -> Rule {
    Rule::new(matches_host("self", &format!(r"^https?://{ANY_HOST}(:{PORT})?/?$"))).message(
        "must be http:// or https://, a host and optionally a port, such as http://proxy.example.com:3128: no user name, no path",
    )
}

/// Patterns of repositories.
pub(crate) fn repository_globs() -> Rule {
    Rule::new(format!(
        "self.all(g, {})",
        matches("g", "^[a-z0-9._*-]+(/[a-z0-9._*-]+)*$")
    ))
    .message("must be patterns of repositories in lower case, such as library/* or team/**: no host, no tag")
}

/// Patterns of images with host and tag or digest.
pub(crate) fn image_globs() -> Rule {
    let pattern = r"^[a-z0-9.:*-]+(/[a-z0-9._*-]+)+(:[A-Za-z0-9._*-]+|@[a-z0-9*]+(:[a-f0-9*]+)?)$";
    Rule::new(format!("self.all(g, {})", matches("g", pattern))).message(
        "must be patterns of images with host and tag or digest, such as docker.io/library/nginx:1.* or quay.io/team/**:*",
    )
}

/// Hosts.
pub(crate) fn hosts() -> Rule {
    Rule::new(format!(
        "self.all(h, {})",
        matches_host("h", &format!("^{LOWER_HOST}(:{PORT})?$"))
    ))
    .message("must be host names in lower case, with an optional port, such as auth.example.com")
}

/// Hosts or networks.
pub(crate) fn hosts_or_networks() -> Rule {
    let host = matches("h", &format!("^{LOWER_HOST}$"));
    Rule::new(format!("self.all(h, isCIDR(h) || isIP(h) || {host})"))
        .message("must be host names in lower case, or networks such as 10.0.0.0/8 or fd00::/8")
}

/// Returns a CEL expression: a `remoteURL` is on this machine, so that requests cross no network.
pub(crate) fn is_loopback(subject: &str) -> String {
    matches(subject, LOOPBACK_URL)
}

/// Returns the rule of the prefix that an upstream requires in repository names.
pub(crate) fn repository_prefix() -> Rule {
    let component = "[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*";
    Rule::new(matches("self", &format!("^{component}(/{component})*$")))
        .message("must be the beginning of a repository's name in lower case, such as dockerhub-proxy or cache/hub: no slash at either end")
}

/// Returns the rule of the name of an object.
pub(crate) fn object_name() -> Rule {
    Rule::new(matches("self", r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")).message(
        "must be an object's name: lower-case letters, digits, '-' and '.', with a letter or digit at either end",
    )
}

/// Returns the rule of the name of a bucket or container.
pub(crate) fn bucket_name() -> Rule {
    Rule::new(matches("self", "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"))
        .message("must be the name of a bucket: letters, digits, '-', '_' and '.', with a letter or digit at either end")
}

/// Returns the rule of the prefix of the keys of objects.
pub(crate) fn key_prefix() -> Rule {
    let part = "[.]*[A-Za-z0-9_-][A-Za-z0-9._-]*";
    Rule::new(matches("self", &format!("^({part}(/{part})*)?$"))).message(
        "must be parts of letters, digits, '-', '_' and '.' with a slash between them, such as mirrors/hub: no slash at either end, and no part of dots alone",
    )
}

/// Returns the rule of the name of a region.
pub(crate) fn region() -> Rule {
    Rule::new(matches("self", "^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$"))
        .message("must be the name of a region, such as eu-central-1")
}

/// Returns the rule of the URL of an object store.
pub(crate) fn store_url() -> Rule {
    Rule::new(matches_host("self", &url())).message(
        "must be http:// or https://, a host, and optionally a port and a path, such as https://s3.example.com:9000: no user name, query or fragment",
    )
}

/// Returns the rule of the name of a storage class.
pub(crate) fn storage_class() -> Rule {
    Rule::new(matches("self", "^[A-Z0-9_]+$"))
        .message("must be the name of a storage class, such as STANDARD_IA")
}

/// Returns the rule of the ID of a key.
pub(crate) fn key_id() -> Rule {
    Rule::new(matches("self", "^[A-Za-z0-9:/_+=,.@-]+$"))
        .message("must be the ID or the ARN of a key: letters, digits and :/_+=,.@-")
}

/// Returns the rule of the name of a storage account.
pub(crate) fn account_name() -> Rule {
    Rule::new(matches("self", "^[a-z0-9]+$"))
        .message("must be the name of a storage account: lower-case letters and digits")
}

/// Returns the rule of a key of a Secret or ConfigMap.
pub(crate) fn data_key() -> Rule {
    Rule::new(matches("self", "^[-._A-Za-z0-9]+$"))
        .message("must be a key of a Secret or ConfigMap: letters, digits, '-', '_' and '.'")
}

/// Returns the rule of a duration that is not negative.
pub(crate) fn duration() -> Rule {
    Rule::new(matches("self", DURATION))
        .message("must be a duration such as 30s, 5m or 168h, at most 99999h, and not negative")
}

/// Returns the rule of the name of an HTTP header (RFC 9110, 5.1), without characters that no header uses.
pub(crate) fn header_name() -> Rule {
    Rule::new(matches("self", "^[A-Za-z0-9!#$%&*+.^_|~-]+$"))
        .message("must be the name of an HTTP header, such as X-Frame-Options: letters, digits and '-'")
}

/// Returns the rule against headers that only the server sets (RFC 9112, 6 and 9).
pub(crate) fn not_framing() -> Rule {
    let framing =
        "(?i)^(connection|content-length|keep-alive|proxy-connection|te|trailer|transfer-encoding|upgrade)$";
    Rule::new(format!("!{}", matches("self", framing)))
        .message("the server sets this header itself: remove it")
        .reason(Reason::FieldValueForbidden)
}

/// Returns the rule of the value of an HTTP header (RFC 9110, 5.5).
pub(crate) fn header_value() -> Rule {
    Rule::new(matches("self", "^[!-~]([ -~]*[!-~])?$"))
        .message("must be printable ASCII, without spaces at either end")
}

/// Returns the rule of a size in bytes. A smaller value lacks its unit, a larger one can't be counted.
pub(crate) fn quantity() -> Rule {
    Rule::new(format!(
        "{} && !quantity(self).isLessThan(quantity('1Mi')) && quantity(self).isLessThan(quantity('7168Pi'))",
        is_quantity("self")
    ))
    .message("must be a size of at least 1Mi, and below 7Ei, such as 500Mi, 50Gi or 1.5Ti")
}

/// Returns a CEL expression: `quantity()` parses a string without an error. Rules that compare two quantities need it,
/// because they run even if the rule of a field has failed.
pub(crate) fn is_quantity(subject: &str) -> String {
    matches(subject, QUANTITY)
}

/// Returns the rule of labels.
pub(crate) fn labels() -> Rule {
    Rule::new(format!("self.all(k, {} && {})", matches("k", LABEL_KEY), matches("self[k]", LABEL_VALUE)))
        .message("must be label names such as example.com/team, with values of at most 63 letters, digits, '-', '_' and '.'")
}

/// Returns the rule of the names of annotations.
pub(crate) fn annotations() -> Rule {
    Rule::new(format!("self.all(k, {})", matches("k", LABEL_KEY)))
        .message("must be annotation names such as example.com/team")
}

/// Returns the rule of the size of annotations: the operator keeps every spec in memory.
pub(crate) fn annotations_size() -> Rule {
    Rule::new(format!("self.map(k, self[k].size()).sum() <= {MAX_ANNOTATIONS}"))
        .message(format!("must have values of at most {MAX_ANNOTATIONS} characters together").as_str())
}

/// Labels and annotations that are the operator's.
pub(crate) fn not_ours() -> Rule {
    Rule::new(format!("self.all(k, !k.startsWith('{OWN_PREFIX}'))")).message(
        format!("names that start with {OWN_PREFIX} are the operator's: choose another prefix").as_str(),
    )
}

/// Returns the rule that a container has no rights on its node and no capability of its own.
pub(crate) fn no_privileges() -> Rule {
    Rule::new(
        "(!has(self.privileged) || !self.privileged) \
         && (!has(self.allowPrivilegeEscalation) || !self.allowPrivilegeEscalation) \
         && (!has(self.capabilities) || !has(self.capabilities.add) || self.capabilities.add.size() == 0) \
         && (!has(self.procMount) || self.procMount != 'Unmasked')",
    )
    .message(
        "a mirror needs no privileges: remove privileged, allowPrivilegeEscalation, capabilities.add and procMount",
    )
    .reason(Reason::FieldValueForbidden)
}

/// Returns the rule that a security context asks for no process of the node itself.
pub(crate) fn no_host_process() -> Rule {
    Rule::new(
        "!has(self.windowsOptions) || !has(self.windowsOptions.hostProcess) || !self.windowsOptions.hostProcess",
    )
    .message("a mirror needs no rights on its node: remove windowsOptions.hostProcess")
    .reason(Reason::FieldValueForbidden)
}

/// Labels that select Pods.
pub(crate) fn not_the_selector() -> Rule {
    Rule::new(format!("self.all(k, !(k in {SELECTOR_LABELS:?}))")).message(
        format!(
            "these labels select the mirror's Pods and can't be set: {}",
            SELECTOR_LABELS.join(", ")
        )
        .as_str(),
    )
}

#[cfg(test)]
mod tests {
    use kube::core::cel::Validator;
    use serde_json::json;
    use test_case::test_case;

    use super::*;

    fn holds(rule: &Rule, value: &str) -> bool {
        Validator::new()
            .validate(
                &json!({"type": "string", "x-kubernetes-validations": [rule]}),
                &json!(value),
                None,
            )
            .is_ok()
    }

    #[test_case("docker.io", true)]
    #[test_case("registry.example.com:5000", true)]
    #[test_case("localhost:65535", true)]
    #[test_case("[2001:db8::1]:5000", true)]
    #[test_case("[1:::2]", false; "no address in brackets")]
    #[test_case("[10.0.0.1]", false; "an address that has no brackets")]
    #[test_case("Docker.io", false; "upper case")]
    #[test_case("docker.io/library", false; "a path")]
    #[test_case("https://docker.io", false; "a scheme")]
    #[test_case("docker.io:65536", false; "a port that does not exist")]
    #[test_case("docker.io:0", false; "port zero")]
    #[test_case("docker..io", false; "an empty label")]
    #[test_case("-docker.io", false; "a label that starts with a dash")]
    #[test_case("docker.io\n", false; "a line break")]
    fn a_host_is_a_registrys_name(value: &str, accepted: bool) {
        assert_eq!(holds(&host(), value), accepted);
    }

    /// The rule accepts a remote URL of a scheme, a host, a port and a path, and refuses any other.
    #[test_case("https://registry-1.docker.io", true)]
    #[test_case("http://10.0.0.1:5000/", true)]
    #[test_case("https://harbor.example.com/proxy/hub", true)]
    #[test_case("https://[::1]:5000", true)]
    #[test_case("https://[1:::2]:5000", false; "no address in brackets")]
    #[test_case("ftp://example.com", false; "another scheme")]
    #[test_case("https://", false; "no host")]
    #[test_case("https://me:secret@example.com", false; "user info")]
    #[test_case("https://example.com?x=1", false; "a query")]
    #[test_case("https://example.com/#here", false; "a fragment")]
    #[test_case("https://example.com:99999", false; "a port that does not exist")]
    #[test_case("https://exa mple.com", false; "a space")]
    fn remote_url_has_scheme_host_port_path(value: &str, accepted: bool) {
        assert_eq!(holds(&remote_url(), value), accepted);
    }

    /// The rule accepts the durations that Go parses, and refuses all others.
    #[test_case("0", true)]
    #[test_case("0s", true)]
    #[test_case("168h", true)]
    #[test_case("1h30m", true)]
    #[test_case("1.5h", true)]
    #[test_case("604800s", true; "as kube writes a week")]
    #[test_case("-5s", false; "negative")]
    #[test_case("7d", false; "days")]
    #[test_case("5", false; "no unit")]
    #[test_case("", false; "empty")]
    #[test_case("999999h", false; "beyond what Go can count")]
    #[test_case("1h 5m", false; "a space")]
    fn duration_rule_accepts_go_durations(value: &str, accepted: bool) {
        assert_eq!(holds(&duration(), value), accepted);
        if accepted {
            assert!(value.parse::<kube::core::Duration>().is_ok());
        }
    }

    #[test_case("50Gi", true)]
    #[test_case("1.5Ti", true)]
    #[test_case("1Mi", true)]
    #[test_case("53687091200", true; "in bytes")]
    #[test_case("1000", false; "a unit that was forgotten")]
    #[test_case("0.5Gi", true)]
    #[test_case("0", false; "zero")]
    #[test_case("0Gi", false; "zero gibibytes")]
    #[test_case("0.0Gi", false; "zero with a fraction")]
    #[test_case("7167Pi", true)]
    #[test_case("7168Pi", false; "more than can be counted")]
    #[test_case("999999999999Pi", false; "far more than can be counted")]
    #[test_case("-5Gi", false; "negative")]
    #[test_case("5GB", false; "a unit that Kubernetes does not have")]
    #[test_case("1e1000", false; "an exponent")]
    #[test_case("lots", false; "a word")]
    fn quantity_is_at_least_a_mebibyte(value: &str, accepted: bool) {
        assert_eq!(holds(&quantity(), value), accepted);
    }

    /// The rule accepts what can begin the name of a repository.
    #[test_case("dockerhub-proxy", true)]
    #[test_case("cache/hub", true)]
    #[test_case("/cache", false; "a slash before")]
    #[test_case("cache/", false; "a slash behind")]
    #[test_case("Cache", false; "upper case")]
    #[test_case("a//b", false; "an empty component")]
    fn repository_prefix_rule_accepts_name_starts(value: &str, accepted: bool) {
        assert_eq!(holds(&repository_prefix(), value), accepted);
    }
}
