//! Suggestions for likely mistakes in a `RegistryMirror`.

use mirror::config::remote_url;
use serde_json::Value;

/// Words that users write for a duration without an end, or for none.
const WORDS_FOR_ZERO: [&str; 8] = [
    "never",
    "always",
    "forever",
    "none",
    "off",
    "unlimited",
    "infinite",
    "disabled",
];
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
    let field = path.rsplit('.').next()?;
    if let Some(correction) = duration(field, value) {
        return Some(correction);
    }
    let value = value.as_str()?;
    match field {
        "name" if path == "metadata.name" => name(value),
        "host" => host(value),
        "remoteURL" => remote_url::correction(value),
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

/// Returns the correction of a duration that is a number, negative, or a word in place of zero.
fn duration(field: &str, value: &Value) -> Option<String> {
    let zero = match field {
        "ttl" => "with 0s, content never expires",
        "tagTTL" => "with 0s, each request revalidates the tag at the upstream",
        "staleIfError" => "with 0s, no tag is served while the upstream fails",
        "dialTimeout" => "write 2s",
        _ => return None,
    };
    match value {
        Value::Number(number) if number.as_f64().is_some_and(|number| number > 0.0) => {
            Some(format!("a number has no unit: write {number}h or {number}s"))
        }
        Value::Number(_) => Some(zero.to_owned()),
        Value::String(text)
            if text.starts_with('-') || WORDS_FOR_ZERO.contains(&text.to_ascii_lowercase().as_str()) =>
        {
            Some(zero.to_owned())
        }
        _ => None,
    }
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
    #[test_case("spec.remoteURL", &json!({"spec": {"remoteURL": "docker.io/library"}}) => Some("the path names a repository: write https://registry-1.docker.io; include limits a mirror to some repositories".to_owned()); "a repository as URL")]
    #[test_case("spec.cache.ttl", &json!({"spec": {"cache": {"ttl": 0}}}) => Some("with 0s, content never expires".to_owned()); "zero")]
    #[test_case("spec.cache.ttl", &json!({"spec": {"cache": {"ttl": 168}}}) => Some("a number has no unit: write 168h or 168s".to_owned()); "hours without a unit")]
    #[test_case("spec.cache.ttl", &json!({"spec": {"cache": {"ttl": "never"}}}) => Some("with 0s, content never expires".to_owned()); "never")]
    #[test_case("spec.cache.tagTTL", &json!({"spec": {"cache": {"tagTTL": "always"}}}) => Some("with 0s, each request revalidates the tag at the upstream".to_owned()); "always")]
    #[test_case("spec.cache.ttl", &json!({"spec": {"cache": {"ttl": "soon"}}}) => None; "another mistake")]
    #[test_case("spec.replicas", &json!({"spec": {"replicas": 1}}) => None; "a number")]
    #[test_case("spec.cache.pinned", &pinned(&["quay.io/a:*", "a[", "b{"]) => Some("correct spec.cache.pinned[1]: \"a[\"".to_owned()); "a pattern")]
    #[test_case("spec.upstreams[0].include", &included(&["a/**", "A"]) => Some("correct spec.upstreams[0].include[1]: \"A\"".to_owned()); "an include pattern")]
    #[test_case("", &json!("x") => None; "no path")]
    fn suggestion_for_a_value(path: &str, document: &Value) -> Option<String> {
        suggest(document, path)
    }
}
