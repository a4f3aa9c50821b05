//! `config.json` as `docker login` writes it, and the lookup of the entry for an upstream.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::config::{Upstream, host};
use crate::credential::Credential;
use crate::secret::Secret;

/// Base64 with optional padding, which some tools omit.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The entry of a credentials file for an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialEntry {
    /// The file has no entry.
    Absent,
    /// The entry has no credential: an administrator has to supply one.
    Empty,
    /// The entry is malformed; the reason contains no part of it.
    Malformed(String),
    /// A credential.
    Given(Credential),
}

/// The entries of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entries {
    /// By registry, as `docker login` writes them: each upstream at that registry may use the entry.
    Registries(BTreeMap<Key, CredentialEntry>),
    /// By upstream: only the upstream of that name may use the entry, at any address.
    Upstreams(BTreeMap<String, CredentialEntry>),
}

impl Default for Entries {
    fn default() -> Self {
        Self::Registries(BTreeMap::new())
    }
}

/// A registry, and the path below it that an entry is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    host: String,
    path: Vec<String>,
}

#[derive(Deserialize)]
struct Raw {
    auths: BTreeMap<String, RawEntry>,
    #[serde(default, rename = "keyedBy")]
    keyed_by: KeyedBy,
}

/// The meaning of the keys of a file.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum KeyedBy {
    /// The registry that may receive the credential.
    #[default]
    Registry,
    /// The upstream that may use the credential.
    UpstreamHost,
}

#[derive(Deserialize)]
struct RawEntry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

impl Entries {
    /// Parses a file.
    ///
    /// # Errors
    /// The problem of the file, without any of its values.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(json).map_err(|e| describe(&e))?;
        let entries = raw.auths.into_iter().map(|(key, entry)| (key, entry.read()));
        Ok(match raw.keyed_by {
            KeyedBy::Registry => {
                Self::Registries(entries.map(|(key, entry)| (Key::parse(&key), entry)).collect())
            }
            KeyedBy::UpstreamHost => Self::Upstreams(
                entries
                    .filter_map(|(key, entry)| Some((host::canonical(&key).ok()?.to_string(), entry)))
                    .collect(),
            ),
        })
    }

    /// Returns the entry for an upstream.
    pub fn find(&self, upstream: &Upstream) -> CredentialEntry {
        let entry = match self {
            Self::Registries(entries) => by_registry(entries, upstream),
            Self::Upstreams(entries) => entries.get(upstream.host.as_str()).cloned(),
        };
        entry.unwrap_or(CredentialEntry::Absent)
    }
}

/// Returns the entry for the name of the upstream or for its host, the most specific path first.
fn by_registry(entries: &BTreeMap<Key, CredentialEntry>, upstream: &Upstream) -> Option<CredentialEntry> {
    let prefix = upstream
        .repository_prefix
        .iter()
        .flat_map(|p| p.as_str().split('/'));
    let remote: Vec<_> = upstream.remote.path_segments().into_iter().flatten().collect();
    let paths = [
        prefix.clone().collect::<Vec<_>>(),
        remote
            .into_iter()
            .filter(|part| !part.is_empty())
            .chain(prefix)
            .collect(),
    ];
    let hosts = [
        Key::parse(upstream.host.as_str()),
        Key::parse(upstream.remote.as_str()),
    ];
    let matching = |host: &Key| {
        let entries = entries.iter().filter(|(key, _)| key.host == host.host);
        entries
            .filter(|(key, _)| paths.iter().any(|path| is_prefix(&key.path, path)))
            .max_by_key(|(key, _)| key.path.len())
            .map(|(_, entry)| entry.clone())
    };
    hosts.iter().find_map(matching)
}

fn is_prefix(key: &[String], path: &[&str]) -> bool {
    key.len() <= path.len() && key.iter().zip(path).all(|(a, b)| a == b)
}

/// Describes a parse error by its position: the message of `serde_json` may contain a value.
fn describe(error: &serde_json::Error) -> String {
    format!(
        "not a docker configuration with \"auths\" (line {} column {})",
        error.line(),
        error.column()
    )
}

impl Key {
    /// Parses a key: removes the scheme, the default port, and the `/v1/` or `/v2/` that older tools write; Docker Hub
    /// has one name.
    fn parse(text: &str) -> Self {
        let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
        let mut parts = bare.split('/');
        let name = parts.next().unwrap_or_default();
        let name = name
            .strip_suffix(":443")
            .or(name.strip_suffix(":80"))
            .unwrap_or(name);
        let mut path: Vec<_> = parts.filter(|part| !part.is_empty()).map(str::to_owned).collect();
        path.pop_if(|last| matches!(last.as_str(), "v1" | "v2"));
        let host = host::canonical(name).map_or_else(|_| name.to_ascii_lowercase(), |host| host.to_string());
        Self { host, path }
    }
}

impl RawEntry {
    fn read(self) -> CredentialEntry {
        let set = |secret: Option<Secret>| {
            let line = secret.map(|secret| Secret::new(line(secret.expose())));
            line.filter(|line| !line.expose().is_empty())
        };
        let from_auth = match set(self.auth).map(|auth| decode(&auth)) {
            Some(Err(reason)) => return CredentialEntry::Malformed(reason.to_owned()),
            Some(Ok(pair)) => Some(pair),
            None => None,
        };
        let (username, password) = match from_auth {
            Some((username, password)) => (username, set(Some(password))),
            None => (self.username.unwrap_or_default(), set(self.password)),
        };
        let (username, token) = (line(&username).to_owned(), set(self.identitytoken));
        match (token, username.is_empty(), password) {
            (Some(token), _, _) => CredentialEntry::Given(Credential::IdentityToken { username, token }),
            (None, false, Some(password)) => CredentialEntry::Given(Credential::Basic { username, password }),
            (None, true, None) => CredentialEntry::Empty,
            (None, true, Some(_)) => {
                CredentialEntry::Malformed("there is a password without a username".to_owned())
            }
            (None, false, None) => {
                CredentialEntry::Malformed("there is a username without a password".to_owned())
            }
        }
    }
}

/// Removes the line break that editors and shells append, and the zeros with which some tools pad.
fn line(text: &str) -> &str {
    text.trim_end_matches(['\0', '\r', '\n'])
}

/// Decodes `user:password` in base64, which some tools break into lines; passwords may contain colons.
fn decode(auth: &Secret) -> Result<(String, Secret), &'static str> {
    let lines: String = auth.expose().split_whitespace().collect();
    let bytes = BASE64.decode(lines).map_err(|_| "its auth is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "its auth is not text in base64")?;
    let (username, password) = text
        .split_once(':')
        .ok_or("its auth is not user:password in base64")?;
    Ok((username.to_owned(), Secret::new(password)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::file::File;
    use proptest::prelude::*;
    use test_case::test_case;

    fn upstream(yaml: &str) -> Upstream {
        let file = File::parse(&format!("proxy: {{upstreams: [{yaml}]}}")).unwrap();
        Config::new(&file).unwrap().proxy.upstreams.remove(0)
    }

    fn basic(username: &str, password: &str) -> CredentialEntry {
        CredentialEntry::Given(Credential::Basic {
            username: username.into(),
            password: Secret::new(password),
        })
    }

    /// The user whose entry an upstream gets of entries with these keys and users.
    fn user(keys: &[&str], yaml: &str) -> String {
        let credential = |user: &&str| Credential::Basic {
            username: (*user).to_owned(),
            password: Secret::new("p"),
        };
        let entries = keys
            .iter()
            .map(|key| (Key::parse(key), CredentialEntry::Given(credential(key))));
        let entries = Entries::Registries(entries.collect());
        match entries.find(&upstream(yaml)) {
            CredentialEntry::Given(Credential::Basic { username, .. }) => username,
            CredentialEntry::Absent => "none".to_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test_case(r#"{"auth":"dXNlcjpwYXNz"}"# => basic("user", "pass"))]
    #[test_case(r#"{"auth":"dTpwOnE"}"# => basic("u", "p:q"); "a colon in the password and no padding")]
    #[test_case(r#"{"username":"u","password":"p"}"# => basic("u", "p"))]
    #[test_case(r#"{"auth":"dTpw","username":"x","password":"y","email":"e"}"# => basic("u", "p"); "auth wins")]
    #[test_case(r#"{"auth":"dTo=","identitytoken":"t"}"# => CredentialEntry::Given(Credential::IdentityToken {
        username: "u".into(), token: Secret::new("t") }))]
    #[test_case(r#"{"auth":"dTpwCg=="}"# => basic("u", "p"); "a line break that echo left at its end")]
    #[test_case(r#"{"auth":"dXNl\ncjpwYXNz\n"}"# => basic("user", "pass"); "lines of base64")]
    #[test_case(r#"{"username":"u\n","password":"p\r\n"}"# => basic("u", "p"); "line breaks at the ends")]
    #[test_case(r#"{"auth":"X2pzb25fa2V5OnsKfQo="}"# => basic("_json_key", "{\n}"); "a key file as a password")]
    #[test_case("{}" => CredentialEntry::Empty)]
    #[test_case(r#"{"auth":"","username":"","password":""}"# => CredentialEntry::Empty)]
    #[test_case(r#"{"auth":"%%"}"# => CredentialEntry::Malformed("its auth is not base64".into()))]
    #[test_case(r#"{"auth":"dXNlcg=="}"# => CredentialEntry::Malformed("its auth is not user:password in base64".into()))]
    #[test_case(r#"{"password":"p"}"# => CredentialEntry::Malformed("there is a password without a username".into()))]
    #[test_case(r#"{"username":"u"}"# => CredentialEntry::Malformed("there is a username without a password".into()))]
    fn entries_are_read(entry: &str) -> CredentialEntry {
        let entries = Entries::parse(format!(r#"{{"auths":{{"quay.io":{entry}}}}}"#).as_bytes()).unwrap();
        entries.find(&upstream("{host: quay.io}"))
    }

    /// A key of the file matches its upstream in every spelling.
    #[test_case("https://index.docker.io/v1/", "{host: docker.io}")]
    #[test_case("docker.io", "{host: docker.io}")]
    #[test_case("registry-1.docker.io", "{host: docker.io}")]
    #[test_case("https://quay.io/v2/", "{host: quay.io}")]
    #[test_case("Quay.IO:443", "{host: quay.io}")]
    #[test_case(
        "r.example:5000",
        "{host: 'r.example:5000', remoteurl: 'http://10.0.0.1:5000'}"
    )]
    #[test_case("10.0.0.1:5000", "{host: r.example, remoteurl: 'http://10.0.0.1:5000'}"; "the host it is asked at")]
    #[test_case("r.example/team", "{host: r.example, repositoryprefix: team/sub}")]
    #[test_case(
        "r.example/api/team",
        "{host: r.example, remoteurl: 'https://r.example/api', repositoryprefix: team}"
    )]
    fn key_matches_its_upstream(key: &str, yaml: &str) {
        assert_eq!(user(&[key], yaml), key);
    }

    /// A key of a different registry gives no credential.
    #[test_case("quay.io.evil.example", "{host: quay.io}")]
    #[test_case("quay.io:8443", "{host: quay.io}")]
    #[test_case("r.example/team", "{host: r.example}"; "a path of only some repositories")]
    #[test_case("r.example/tea", "{host: r.example, repositoryprefix: team}"; "half a component")]
    fn key_of_other_registry_is_not_used(key: &str, yaml: &str) {
        assert_eq!(user(&[key], yaml), "none");
    }

    /// The key with the most specific path wins, and a key by name wins over one by address.
    #[test]
    fn most_specific_key_wins() {
        let keys = [
            "r.example",
            "r.example/team",
            "r.example/team/sub",
            "r.example/other",
        ];
        assert_eq!(
            user(&keys, "{host: r.example, repositoryprefix: team/sub}"),
            "r.example/team/sub"
        );
        assert_eq!(
            user(&keys, "{host: r.example, repositoryprefix: team/x}"),
            "r.example/team"
        );
        let keys = ["10.0.0.1:5000", "r.example"];
        let yaml = "{host: r.example, remoteurl: 'http://10.0.0.1:5000'}";
        assert_eq!(user(&keys, yaml), "r.example");
    }

    #[test]
    fn entry_keyed_by_upstream_is_for_no_other() {
        let file = r#"{"keyedBy":"upstreamHost","auths":{
            "quay.io":{"username":"ann","password":"p"},
            "index.docker.io":{"username":"bob","password":"q"}}}"#;
        let entries = Entries::parse(file.as_bytes()).unwrap();
        let of = |yaml| entries.find(&upstream(yaml));
        assert_eq!(
            of("{host: quay.io, remoteurl: 'https://proxy.corp'}"),
            basic("ann", "p")
        );
        assert_eq!(of("{host: docker.io}"), basic("bob", "q"));
        assert_eq!(
            of("{host: quay-direct.example, remoteurl: 'https://quay.io'}"),
            CredentialEntry::Absent
        );
        assert_eq!(
            of("{host: 'quay.io:80'}"),
            CredentialEntry::Absent,
            "another name of a port is another upstream"
        );
    }

    /// The error for a file that is no Docker configuration contains nothing of it.
    #[test_case("")]
    #[test_case(r#"{"keyedBy": "hunter2", "auths": {}}"#; "keys of another kind")]
    #[test_case("{}")]
    #[test_case(r#"{"auths": []}"#)]
    #[test_case(r#"{"auths": {"quay.io": "hunter2"}}"#)]
    #[test_case(r#"{"auths": {"quay.io": {"auth": ["hunter2"]}}}"#)]
    #[test_case(r#"{"auths": {"quay.io": {"auth": "hunter2"}"#; "cut short")]
    fn invalid_file_error_hides_content(json: &str) {
        let error = Entries::parse(json.as_bytes()).unwrap_err();
        assert!(
            error.starts_with("not a docker configuration") && !error.contains("hunter2"),
            "{error}"
        );
    }

    proptest! {
        /// No content of the file makes the parser panic.
        #[test]
        fn any_credentials_file_does_not_panic(json: Vec<u8>, key: String, auth: String) {
            let _ = Entries::parse(&json);
            let entry = serde_json::json!({"auths": {key: {"auth": auth}}});
            let entries = Entries::parse(entry.to_string().as_bytes()).unwrap();
            let _ = entries.find(&upstream("{host: quay.io}"));
        }
    }
}
