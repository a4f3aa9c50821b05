//! The entry of a `kubernetes.io/dockerconfigjson` Secret that is for one upstream, and for no other: a password goes
//! nowhere but where the entry's key says.

use mirror::{
    config::{
        Config,
        file::{File, Proxy, Upstream},
    },
    credential::Credential,
    credentials::{CredentialEntry, Entries},
};
use url::Url;

/// Finds the entry of the remote's host; where several have it, the one with the longest path that the remote has too.
///
/// The server's own reading of such files decides, but by the remote's host alone: the name that clients use says
/// nothing of where a password goes.
///
/// # Errors
/// What is wrong, without any value.
pub(super) fn entry(json: &str, remote: &Url, repository_prefix: Option<&str>) -> Result<Credential, String> {
    let entries = Entries::parse(json.as_bytes())?;
    let host = authority(remote);
    let upstream = Upstream {
        host: host.clone(),
        remote_url: Some(remote.to_string()),
        repository_prefix: repository_prefix.map(str::to_owned),
        ..Upstream::default()
    };
    let file = File {
        proxy: Proxy {
            upstreams: vec![upstream],
            ..Proxy::default()
        },
        ..File::default()
    };
    let config = Config::new(&file).map_err(|error| error.to_string())?;
    let entry = config
        .proxy
        .upstreams
        .first()
        .map_or(CredentialEntry::Absent, |upstream| entries.find(upstream));
    match entry {
        CredentialEntry::Given(credential) => Ok(credential),
        CredentialEntry::Malformed(what) => Err(format!("the entry for {host}: {what}")),
        CredentialEntry::Empty => Err(format!(
            "the entry for {host} has neither auth, nor username and password; docker login with a credsStore keeps them \
             elsewhere"
        )),
        CredentialEntry::Absent => Err(format!(
            "has no entry for {host}, the host of remoteURL: add one, because entries for other hosts are not used"
        )),
    }
}

fn authority(remote: &Url) -> String {
    let port = remote.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}", remote.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use mirror::secret::Secret;
    use test_case::test_case;

    use super::*;

    fn user(json: &str, remote: &str) -> Result<String, String> {
        entry(json, &Url::parse(remote).unwrap(), None).map(|credential| match credential {
            Credential::Basic { username, .. } => username,
            other => format!("{other:?}"),
        })
    }

    fn config(keys: &[&str]) -> String {
        let entries = keys
            .iter()
            .map(|key| format!(r#""{key}": {{"username": "{key}", "password": "pw"}}"#));
        format!(r#"{{"auths": {{{}}}}}"#, entries.collect::<Vec<_>>().join(","))
    }

    /// A key of the Docker configuration matches its host in every spelling.
    #[test_case("https://index.docker.io/v1/", "https://registry-1.docker.io")]
    #[test_case("docker.io", "https://registry-1.docker.io")]
    #[test_case("registry-1.docker.io", "https://registry-1.docker.io/")]
    #[test_case("https://Quay.io", "https://quay.io")]
    #[test_case("quay.io:443", "https://quay.io")]
    #[test_case("http://quay.io:80/v2/", "http://quay.io")]
    #[test_case("registry.example.com:5000", "https://registry.example.com:5000/path")]
    fn docker_config_key_matches_host(key: &str, remote: &str) {
        assert_eq!(user(&config(&[key]), remote).unwrap(), key);
    }

    /// A password is used for no different host.
    #[test_case("quay.io", "https://ghcr.io")]
    #[test_case("quay.io", "https://evil.quay.io")]
    #[test_case("quay.io:5000", "https://quay.io")]
    #[test_case("quay.io/org", "https://quay.io")]
    #[test_case("quay.io/org", "https://quay.io/organisation")]
    fn docker_config_password_is_for_its_host_only(key: &str, remote: &str) {
        assert!(
            user(&config(&[key]), remote)
                .unwrap_err()
                .contains("has no entry for")
        );
    }

    #[test]
    fn the_most_specific_path_wins() {
        let config = config(&["quay.io", "quay.io/org/team", "quay.io/org"]);
        assert_eq!(
            user(&config, "https://quay.io/org/team/x").unwrap(),
            "quay.io/org/team"
        );
        assert_eq!(user(&config, "https://quay.io/org").unwrap(), "quay.io/org");
        assert_eq!(user(&config, "https://quay.io/other").unwrap(), "quay.io");
    }

    /// The field `auth` is the base64 of user and password.
    #[test]
    fn auth_is_base64_of_user_and_password() {
        let json = r#"{"auths":{"quay.io":{"auth":"YW5uOmE6Yg=="}}}"#;
        let credential = entry(json, &Url::parse("https://quay.io").unwrap(), None).unwrap();
        let expected = Credential::Basic {
            username: "ann".to_owned(),
            password: Secret::new("a:b"),
        };
        assert_eq!(credential, expected);
    }

    /// An identity token overrides a password.
    #[test]
    fn identity_token_overrides_password() {
        let json = r#"{"auths":{"quay.io":{"auth":"PHRva2VuPjo=","identitytoken":"t"}}}"#;
        let credential = entry(json, &Url::parse("https://quay.io").unwrap(), None).unwrap();
        assert!(matches!(credential, Credential::IdentityToken { token, .. } if token.expose() == "t"));
    }

    #[test_case(r#"{"auths":{"quay.io":{}}}"#, "the entry for quay.io has neither")]
    #[test_case(
        r#"{"auths":{"quay.io":{"auth":"?"}}}"#,
        "the entry for quay.io: its auth is not base64"
    )]
    #[test_case(r#"{"auths":{}}"#, "has no entry for quay.io")]
    #[test_case("hunter2", "not a docker configuration")]
    fn fault_is_reported_without_values(json: &str, expected: &str) {
        let error = user(json, "https://quay.io").unwrap_err();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn entry_for_the_client_host_is_not_used() {
        let json = config(&["docker.io"]);
        assert!(user(&json, "https://mirror.example.com").is_err());
    }
}
