//! Suggestions for likely mistakes in a `RegistryMirror`.

use serde_json::Value;

/// Units of sizes that Kubernetes does not know, with those that it knows.
const UNITS: [(&str, &str, &str); 4] = [
    ("kb", "k", "Ki"),
    ("mb", "M", "Mi"),
    ("gb", "G", "Gi"),
    ("tb", "T", "Ti"),
];

/// Returns the correction of a value that violates the schema, if the mistake is a likely one.
pub(super) fn suggest(document: &Value, path: &str) -> Option<String> {
    let value = document.pointer(&pointer(path))?;
    if let Some(patterns) = value.as_array() {
        return wrong_pattern(document, path, patterns);
    }
    let value = value.as_str()?;
    match path.rsplit('.').next()? {
        "name" if path == "metadata.name" => name(value),
        "host" => host(value),
        "remoteURL" => remote_url(value),
        _ => days(value).or_else(|| size(value)),
    }
}

/// Returns the JSON pointer (RFC 6901) of a path such as `spec.upstreams[0].host`.
fn pointer(path: &str) -> String {
    let path = path.replace('[', ".").replace(']', "");
    format!("/{}", path.replace('.', "/"))
}

/// Returns the first pattern of a list that violates the rule of the list by itself.
fn wrong_pattern(document: &Value, path: &str, patterns: &[Value]) -> Option<String> {
    if !path.ends_with(".include") && !path.ends_with(".exclude") && path != "spec.cache.pinned" {
        return None;
    }
    let is_wrong = |pattern: &Value| {
        let mut alone = document.clone();
        if let Some(list) = alone.pointer_mut(&pointer(path)) {
            *list = Value::Array(vec![pattern.clone()]);
        }
        let violations = crds::validate::created(&alone).err();
        violations.is_some_and(|violations| violations.iter().any(|violation| violation.path == path))
    };
    let wrong = patterns.iter().position(is_wrong)?;
    Some(format!("correct {path}[{wrong}]: {}", patterns[wrong]))
}

fn name(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let valid: String = lower
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let valid = valid.trim_matches('-');
    valid
        .starts_with(|c: char| c.is_ascii_alphabetic())
        .then(|| format!("use a-z, 0-9 and '-', such as {valid}"))
}

fn host(host: &str) -> Option<String> {
    let bare = host.split_once("://").map_or(host, |(_, rest)| rest);
    let bare = bare.split('/').next()?.to_ascii_lowercase();
    (bare != host && !bare.is_empty()).then(|| format!("write {bare}"))
}

fn remote_url(url: &str) -> Option<String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Some(format!("write https://{url}"));
    };
    let (host, port) = rest.split_once("/:")?;
    let is_port = port.parse::<u16>().is_ok();
    is_port.then(|| format!("the port follows the host: write {scheme}://{host}:{port}"))
}

fn days(duration: &str) -> Option<String> {
    let (number, hours) = match duration.split_at_checked(duration.len().checked_sub(1)?)? {
        (number, "d") => (number, 24),
        (number, "w") => (number, 24 * 7),
        _ => return None,
    };
    let hours = number.parse::<u64>().ok()?.checked_mul(hours)?;
    Some(format!("days and weeks are no units: write {hours}h"))
}

fn size(size: &str) -> Option<String> {
    let lower = size.trim().to_ascii_lowercase();
    UNITS.iter().find_map(|(unit, decimal, binary)| {
        let number = lower.strip_suffix(unit)?.trim();
        number.parse::<f64>().ok()?;
        Some(format!(
            "write {number}{binary}, or {number}{decimal} for powers of 1000"
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use test_case::test_case;

    use super::*;

    fn included(patterns: &[&str]) -> Value {
        json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "metadata": {"name": "hub"},
            "spec": {"upstreams": [{"host": "quay.io", "include": patterns}], "storage": {"type": "Ephemeral"}},
        })
    }

    fn pinned(patterns: &[&str]) -> Value {
        let mut document = included(&[]);
        document["spec"]["cache"] = json!({"pinned": patterns});
        document
    }

    #[test_case("metadata.name", &json!({"metadata": {"name": "Hub.v1"}}) => Some("use a-z, 0-9 and '-', such as hub-v1".to_owned()); "a name with dots")]
    #[test_case("spec.cache.ttl", &json!({"spec": {"cache": {"ttl": "7d"}}}) => Some("days and weeks are no units: write 168h".to_owned()); "days")]
    #[test_case("spec.a[1].size", &json!({"spec": {"a": [{}, {"size": "50 GB"}]}}) => Some("write 50Gi, or 50G for powers of 1000".to_owned()); "gigabytes")]
    #[test_case("spec.host", &json!({"spec": {"host": "https://Docker.io/library"}}) => Some("write docker.io".to_owned()); "a URL as host")]
    #[test_case("spec.remoteURL", &json!({"spec": {"remoteURL": "https://a.example/:5000"}}) => Some("the port follows the host: write https://a.example:5000".to_owned()); "a port in the path")]
    #[test_case("spec.remoteURL", &json!({"spec": {"remoteURL": "a.example:5000"}}) => Some("write https://a.example:5000".to_owned()); "no scheme")]
    #[test_case("spec.cache.ttl", &json!({"spec": {"cache": {"ttl": "soon"}}}) => None; "another mistake")]
    #[test_case("spec.replicas", &json!({"spec": {"replicas": 1}}) => None; "a number")]
    #[test_case("spec.cache.pinned", &pinned(&["quay.io/a:*", "a[", "b{"]) => Some("correct spec.cache.pinned[1]: \"a[\"".to_owned()); "a pattern")]
    #[test_case("spec.upstreams[0].include", &included(&["a/**", "A"]) => Some("correct spec.upstreams[0].include[1]: \"A\"".to_owned()); "an include pattern")]
    #[test_case("", &json!("x") => None; "no path")]
    fn suggestion_for_a_value(path: &str, document: &Value) -> Option<String> {
        suggest(document, path)
    }
}
