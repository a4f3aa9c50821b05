//! The reference of the configuration's keys: `mirror check --explain`, and the table in docs/mirror.md.
//!
//! Meaning and values come from the file format's own declaration, defaults from the configuration that a file with
//! nothing else means, so neither can differ from what the server does.
//!
//! ```
//! use mirror::config::reference;
//!
//! let found = reference::find("REGISTRY_PROXY_TTL").unwrap();
//! assert_eq!((found[0].key.as_str(), found[0].default.as_deref()), ("proxy.ttl", Some("168h")));
//! ```

use std::fmt;

use serde_json::Value;

use super::Config;
use super::file::File;
use super::keys::Relation;
use super::overlay::{FileKey, Overlay as _};

/// The likeness of a name to a key from which the key is suggested; 1 is equality.
const LIKENESS: f64 = 0.6;

/// A file with one element of each list, and of other keys only those that bring a section to life.
const TEMPLATE: &str = "
http: {tls: {certificate: certificate, key: key}, debug: {addr: ':5001'}}
storage: {s3: {bucket: bucket, region: region, accesskey: key, secretkey: secret}}
health:
  file: [{file: 'example:1'}]
  http: [{uri: 'http://example/'}]
  tcp: [{addr: 'example:1'}]
  storagedriver: {enabled: true}
proxy: {upstreams: [{host: example, remoteurl: 'https://example'}]}
";

/// A key of the configuration.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its path, `[]` after a list and NAME for what the user names: `proxy.upstreams[].host`, `log.fields.NAME`.
    pub key: String,
    /// Its environment variable, with 0 for an index.
    pub variable: String,
    /// Its purpose.
    pub meaning: &'static str,
    /// The values that it takes; empty where anything goes, as it has no effect or is refused.
    pub values: &'static str,
    /// The value that counts where it is not set, if any does.
    pub default: Option<String>,
    /// Its relation to Distribution's key of that name.
    pub relation: Relation,
}

/// A name that belongs to no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is not a configuration key{}: mirror check --explain lists all", suggest(.similar.as_deref()))]
pub struct KeyError {
    /// The name.
    pub name: String,
    /// The key that it resembles most.
    pub similar: Option<String>,
}

/// Returns all keys, in the order of the file format.
pub fn all() -> Vec<Entry> {
    let mut keys = Vec::new();
    File::keys(&FileKey::root(), &mut keys);
    let defaults = Defaults::new();
    let entry = |key: FileKey| Entry {
        default: defaults.find(&key),
        relation: Relation::for_key(&key.path),
        key: key.path,
        variable: key.variable,
        meaning: key.meaning,
        values: key.values,
    };
    keys.into_iter().map(entry).collect()
}

/// Returns the keys that a name stands for: a key, all keys of a section, or those of a `REGISTRY_*` variable. The
/// case does not matter, nor does the index of a list; what lies below a key without effect is that key.
///
/// # Errors
/// There is none.
pub fn find(name: &str) -> Result<Vec<Entry>, KeyError> {
    let all = all();
    let wanted = Name::parse(name);
    let found: Vec<_> = all.iter().filter(|entry| wanted.is_of(entry)).cloned().collect();
    if found.is_empty() {
        let similar = similar(name, &all);
        let name = name.to_owned();
        return Err(KeyError { name, similar });
    }
    Ok(found)
}

fn suggest(similar: Option<&str>) -> String {
    similar.map_or_else(String::new, |key| format!(" (did you mean {key}?)"))
}

/// Returns the key that is most like a name, be it by its last part alone.
fn similar(name: &str, all: &[Entry]) -> Option<String> {
    let name = name.to_lowercase();
    let likeness = |entry: &Entry| {
        let (key, variable) = (plain(&entry.key), entry.variable.to_lowercase());
        let last = key.rsplit('.').next().unwrap_or_default();
        [&key, last, &variable]
            .map(|other| strsim::normalized_damerau_levenshtein(&name, other))
            .into_iter()
            .fold(0.0, f64::max)
    };
    all.iter()
        .map(|entry| (likeness(entry), plain(&entry.key)))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|(a, key), (b, other)| a.total_cmp(b).then(other.len().cmp(&key.len())))
        .map(|(_, key)| key)
}

/// Returns a key as people write it, without the marks of lists.
pub fn plain(key: &str) -> String {
    key.replace("[]", "")
}

/// A name that a user gives, in parts.
enum Name {
    Key(Vec<String>),
    Variable(Vec<String>),
}

impl Name {
    fn parse(name: &str) -> Self {
        let name = name.trim().to_lowercase();
        if let Some(path) = name.strip_prefix("registry_") {
            return Self::Variable(path.split('_').map(str::to_owned).collect());
        }
        let part = |part: &str| part.split('[').next().unwrap_or_default().to_owned();
        Self::Key(name.split('.').map(part).collect())
    }

    /// Returns whether the name is the key's, that of a section around it, or that of something below a key whose
    /// value is not read.
    fn is_of(&self, entry: &Entry) -> bool {
        let (name, key) = match self {
            Self::Key(name) => (name, plain(&entry.key).split('.').map(str::to_owned).collect()),
            Self::Variable(name) => {
                let parts = entry.variable.split('_').skip(1);
                (name, parts.map(str::to_owned).collect::<Vec<_>>())
            }
        };
        let same = |(given, part): (&String, &String)| match part.as_str() {
            "NAME" => true,
            "0" => given.bytes().all(|byte| byte.is_ascii_digit()),
            part => given.eq_ignore_ascii_case(part),
        };
        (name.len() <= key.len() || entry.values.is_empty()) && name.iter().zip(&key).all(same)
    }
}

/// The values that count where keys are not set.
struct Defaults {
    /// The keys without which a section means nothing: these have no default.
    required: Vec<String>,
    effective: Value,
}

impl Defaults {
    fn new() -> Self {
        // The tests of the defaults read it.
        let template = File::parse(TEMPLATE).unwrap_or_default();
        let mut required = Vec::new();
        template.set_keys("", &mut required);
        let effective = Config::new(&template).map(|config| File::from(&config)).ok();
        Self {
            required,
            effective: serde_json::to_value(effective).unwrap_or_default(),
        }
    }

    fn find(&self, key: &FileKey) -> Option<String> {
        let is_required = self.required.contains(&key.path);
        let found = (!is_required).then(|| self.look_up(&key.path)).flatten();
        match found {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Bool(_) | Value::Number(_)) => found.map(Value::to_string),
            // The file omits keys that are false.
            _ => (key.values == bool::VALUES).then(|| false.to_string()),
        }
    }

    fn look_up(&self, path: &str) -> Option<&Value> {
        path.split('.')
            .try_fold(&self.effective, |value, part| match part.strip_suffix("[]") {
                Some(list) => value.get(list)?.get(0),
                None => value.get(part),
            })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n  {}", self.key, self.meaning)?;
        if !self.values.is_empty() {
            writeln!(f, "  Values:       {}", self.values)?;
        }
        if let Some(default) = &self.default {
            writeln!(f, "  Default:      {default}")?;
        }
        writeln!(f, "  Variable:     {}", self.variable)?;
        writeln!(f, "  Distribution: {}", self.relation)
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same("") => f.write_str("the same"),
            Self::Same(remark) => write!(f, "the same; {remark}"),
            Self::Differs(how) => write!(f, "differs: {how}"),
            Self::Ignored(why) => write!(f, "known, without effect here: {why}"),
            Self::Refused(what) => write!(f, "known, refused here: {what}"),
            Self::Extension => f.write_str("unknown key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn keys(name: &str) -> Vec<String> {
        let found = find(name).unwrap();
        found.into_iter().map(|entry| entry.key).collect()
    }

    /// A name in any letter case, or of a variable, maps to its keys.
    #[test_case("http.addr" => vec!["http.addr"])]
    #[test_case("HTTP.Addr" => vec!["http.addr"]; "in another case")]
    #[test_case("REGISTRY_HTTP_ADDR" => vec!["http.addr"]; "a variable")]
    #[test_case("registry_http_addr" => vec!["http.addr"]; "a variable in lower case")]
    #[test_case("REGISTRY_PROXY_UPSTREAMS_3_HOST" => vec!["proxy.upstreams[].host"])]
    #[test_case("proxy.upstreams.host" => vec!["proxy.upstreams[].host"])]
    #[test_case("proxy.upstreams[1].host" => vec!["proxy.upstreams[].host"]; "with an index")]
    #[test_case("REGISTRY_HEALTH_FILECHECKERS_0_FILE" => vec!["health.file[].file"]; "a name of its own")]
    #[test_case("http.headers.X-Frame-Options" => vec!["http.headers.NAME[]"]; "a name of the user's")]
    #[test_case("log.fields" => vec!["log.fields.NAME"])]
    #[test_case("http.http2" => vec!["http.http2.disabled"]; "a section")]
    #[test_case("health.tcp" => vec!["health.tcp[].addr", "health.tcp[].timeout", "health.tcp[].interval", "health.tcp[].threshold"])]
    #[test_case("redis.pool.maxidle" => vec!["redis"]; "below a key without effect")]
    #[test_case("storage.oss.bucket" => vec!["storage.oss"]; "below a key that is refused")]
    #[test_case("REGISTRY_STORAGE_RADOS_POOLNAME" => vec!["storage.rados"]; "a variable of one that is refused")]
    fn names_map_to_their_keys(name: &str) -> Vec<String> {
        keys(name)
    }

    #[test_case("proxy.tll", Some("proxy.ttl"))]
    #[test_case("remoteurl", Some("proxy.remoteurl"); "the last part alone")]
    #[test_case("REGISTRY_PROXY_REMOTEURI", Some("proxy.remoteurl"))]
    #[test_case("proxy.upstreams.hots", Some("proxy.upstreams.host"))]
    #[test_case("http.addr.port", Some("http.addr"); "below a key that has nothing below")]
    #[test_case("qqqqqqqq", None)]
    #[test_case("", None; "nothing")]
    fn unknown_names_get_a_suggestion(name: &str, similar: Option<&str>) {
        let error = find(name).unwrap_err();
        assert_eq!(error.similar.as_deref(), similar, "{error}");
        assert!(
            similar.is_none_or(|key| error.to_string().contains(key)),
            "{error}"
        );
    }

    #[test_case("log.level" => Some("info".into()))]
    #[test_case("log.accesslog.disabled" => Some("false".into()))]
    #[test_case("storage.maintenance.uploadpurging.enabled" => Some("true".into()))]
    #[test_case("storage.maintenance.uploadpurging.age" => Some("168h".into()))]
    #[test_case("storage.maintenance.uploadpurging.interval" => Some("24h".into()))]
    #[test_case("storage.maintenance.uploadpurging.dryrun" => Some("false".into()))]
    #[test_case("storage.filesystem.rootdirectory" => Some("/var/lib/registry".into()))]
    #[test_case("http.addr" => Some(":5000".into()))]
    #[test_case("http.draintimeout" => Some("25s".into()))]
    #[test_case("http.tls.minimumtls" => Some("tls1.2".into()))]
    #[test_case("http.debug.prometheus.enabled" => Some("true".into()))]
    #[test_case("http.debug.addr" => None)]
    #[test_case("health.storagedriver.enabled" => Some("false".into()))]
    #[test_case("health.http.timeout" => Some("5s".into()))]
    #[test_case("health.tcp.threshold" => Some("1".into()))]
    #[test_case("proxy.remoteurl" => None)]
    #[test_case("proxy.upstreams.host" => None)]
    #[test_case("proxy.cache.ttlfrom" => Some("FirstFetch".into()))]
    #[test_case("proxy.cache.scrubperiod" => Some("720h".into()))]
    #[test_case("proxy.cache.maxsize" => None)]
    #[test_case("redis" => None)]
    fn defaults_are_those_of_the_server(name: &str) -> Option<String> {
        find(name).unwrap().remove(0).default
    }

    /// Every key has a meaning, and its name and its variable map to it.
    #[test]
    fn keys_have_a_meaning_and_map_to_themselves() {
        for entry in all() {
            assert!(
                entry.meaning.len() > 10 && entry.meaning.ends_with('.'),
                "{entry}"
            );
            assert_eq!(keys(&entry.key), [entry.key.as_str()]);
            assert_eq!(keys(&entry.variable), [entry.key.as_str()]);
        }
    }

    proptest! {
        /// No name and no path makes the lookup panic.
        #[test]
        fn any_name_does_not_panic(name: String, path in "(REGISTRY_)?[a-z.\\[\\]0-9_]{0,40}") {
            let _ = (find(&name), find(&path));
        }
    }
}
