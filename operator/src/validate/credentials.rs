//! Reads the credentials in a Secret.

use crds::conditions::Reason;
use mirror::{credential::Credential, secret::Secret};
use url::Url;

use super::docker_config;
use crate::dereference::{Contents, Reference, References};

const DOCKER_CONFIG_TYPE: &str = "kubernetes.io/dockerconfigjson";
const DOCKER_CONFIG_KEY: &str = ".dockerconfigjson";
const BASIC_AUTH_TYPE: &str = "kubernetes.io/basic-auth";

/// The maximum length of a credential: above the tokens of registries and the header limit of servers.
const LONGEST: usize = 16 * 1024;

/// The credentials of an upstream, or the fault of their Secret.
pub struct Credentials<'a> {
    /// The name of the Secret.
    pub secret: &'a str,
    /// The Secret and the destination: issued credentials of another origin are dropped when the Secret can't be read
    /// any more.
    pub origin: String,
    /// The content of the Secret.
    pub found: Result<Credential, Problem>,
}

/// The fault of a Secret. Names keys, never a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `SecretNotFound` or `SecretMalformed`.
    pub reason: Reason,
    /// The object, the cause and the action.
    pub message: String,
}

impl<'a> Credentials<'a> {
    /// Reads the credentials for one upstream from a Secret, which `field` names in the spec.
    pub(super) fn read(
        secret: &'a str,
        field: &str,
        references: &References,
        remote: &Url,
        repository_prefix: Option<&str>,
    ) -> Self {
        let reference = Reference::secret(secret);
        let found = match references.get(&reference) {
            None => Err(Problem {
                reason: Reason::SecretNotFound,
                message: references.not_found(&reference, "", &format!("{field}.name")),
            }),
            Some(contents) => parse(contents, remote, repository_prefix)
                .and_then(fitting)
                .map_err(|what| Problem {
                    reason: Reason::SecretMalformed,
                    message: format!("Secret {secret}: {what}"),
                }),
        };
        Self {
            secret,
            origin: format!("{secret} {remote}"),
            found,
        }
    }
}

fn parse(contents: &Contents, remote: &Url, repository_prefix: Option<&str>) -> Result<Credential, String> {
    match contents.r#type.as_deref().unwrap_or("Opaque") {
        DOCKER_CONFIG_TYPE => {
            docker_config::entry(text(contents, DOCKER_CONFIG_KEY)?, remote, repository_prefix)
        }
        BASIC_AUTH_TYPE => user_and_password(contents),
        "Opaque" if contents.data.contains_key("token") => Ok(Credential::IdentityToken {
            username: if contents.data.contains_key("username") {
                line(contents, "username")?
            } else {
                String::new()
            },
            token: Secret::new(line(contents, "token")?),
        }),
        "Opaque" => user_and_password(contents),
        // A user without permission for the Secret learns no more of its type.
        _ => Err(format!(
            "type not supported: use {DOCKER_CONFIG_TYPE}, {BASIC_AUTH_TYPE}, or Opaque with username and password, or \
             token"
        )),
    }
}

/// Rejects a credential that is too long: with those of all upstreams, twice, it would not fit into one Secret.
fn fitting(credential: Credential) -> Result<Credential, String> {
    let length = match &credential {
        Credential::Anonymous => 0,
        Credential::Basic { username, password } => username.len() + password.expose().len(),
        Credential::IdentityToken { username, token } => username.len() + token.expose().len(),
    };
    if length > LONGEST {
        return Err(format!(
            "credential for this upstream is longer than {LONGEST} bytes: use a shorter one"
        ));
    }
    Ok(credential)
}

fn user_and_password(contents: &Contents) -> Result<Credential, String> {
    Ok(Credential::Basic {
        username: line(contents, "username")?,
        // A key file, which some registries use as a password, has several lines.
        password: Secret::new(value(contents, "password")?),
    })
}

/// Returns a value of one line.
fn line(contents: &Contents, key: &str) -> Result<String, String> {
    let value = value(contents, key)?;
    if value.contains(char::is_control) {
        return Err(format!(
            "key {key} contains a line break or another control character: remove it"
        ));
    }
    Ok(value.to_owned())
}

/// Returns a value without the line break that editors and shells append.
fn value<'a>(contents: &'a Contents, key: &str) -> Result<&'a str, String> {
    let value = text(contents, key)?.trim_end_matches(['\r', '\n']);
    if value.is_empty() {
        return Err(format!("key {key} is empty"));
    }
    Ok(value)
}

fn text<'a>(contents: &'a Contents, key: &str) -> Result<&'a str, String> {
    let value = contents
        .get(key)
        .ok_or_else(|| format!("has no key {key}: add it"))?;
    std::str::from_utf8(value)
        .map_err(|_| format!("key {key} is not UTF-8 text: encode it again (some shells write UTF-16)"))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn contents(r#type: &str, data: &[(&str, &str)]) -> Contents {
        let data = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
            .collect();
        Contents {
            r#type: Some(r#type.to_owned()),
            data,
            ..Contents::default()
        }
    }

    fn found(contents: Option<&Contents>) -> Result<Credential, Problem> {
        let mut references = References::default();
        if let Some(contents) = contents {
            references.insert(Reference::secret("hub"), contents.clone());
        }
        let remote = Url::parse("https://registry-1.docker.io").unwrap();
        Credentials::read(
            "hub",
            "spec.upstreams[0].credentialsSecretRef",
            &references,
            &remote,
            None,
        )
        .found
    }

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic {
            username: username.to_owned(),
            password: Secret::new(password),
        }
    }

    /// A user and a password are read from the Secret.
    #[test_case(BASIC_AUTH_TYPE)]
    #[test_case("Opaque")]
    fn basic_auth_secret_is_read(r#type: &str) {
        let secret = contents(r#type, &[("username", "ann"), ("password", "p:w d")]);
        assert_eq!(found(Some(&secret)), Ok(basic("ann", "p:w d")));
    }

    #[test]
    fn a_token_needs_no_user() {
        let token = Credential::IdentityToken {
            username: String::new(),
            token: Secret::new("t"),
        };
        assert_eq!(found(Some(&contents("Opaque", &[("token", "t")]))), Ok(token));
    }

    #[test]
    fn trailing_line_break_is_removed() {
        let secret = contents("Opaque", &[("username", "ann\n"), ("password", "pw\r\n")]);
        assert_eq!(found(Some(&secret)), Ok(basic("ann", "pw")));
    }

    /// A key file is a password of several lines.
    #[test]
    fn key_file_is_a_multiline_password() {
        let secret = contents(
            "Opaque",
            &[("username", "_json_key"), ("password", "{\n  \"type\": 1\n}\n")],
        );
        assert_eq!(
            found(Some(&secret)),
            Ok(basic("_json_key", "{\n  \"type\": 1\n}"))
        );
    }

    #[test]
    fn byte_order_mark_is_removed() {
        let secret = contents(
            "Opaque",
            &[("username", "\u{feff}ann"), ("password", "\u{feff}pw\n")],
        );
        assert_eq!(found(Some(&secret)), Ok(basic("ann", "pw")));
    }

    #[test]
    fn docker_config_entry_matches_the_remote() {
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"username":"ann","password":"pw"}}}"#;
        let secret = contents(DOCKER_CONFIG_TYPE, &[(DOCKER_CONFIG_KEY, config)]);
        assert_eq!(found(Some(&secret)), Ok(basic("ann", "pw")));
    }

    /// A value of a megabyte is no credential.
    #[test_case("Opaque", "token")]
    #[test_case("Opaque", "password")]
    fn megabyte_value_is_no_credential(r#type: &str, key: &str) {
        let of = |length: usize| {
            let value = "x".repeat(length);
            found(Some(&contents(r#type, &[("username", "ann"), (key, &value)])))
        };
        assert!(of(LONGEST - 3).is_ok());
        let problem = of(1024 * 1024).unwrap_err();
        assert_eq!(
            problem.message,
            "Secret hub: credential for this upstream is longer than 16384 bytes: use a shorter one"
        );
    }

    #[test]
    fn binary_value_is_reported_by_key() {
        let mut secret = contents("Opaque", &[("username", "ann")]);
        secret.data.insert("password".to_owned(), vec![0xff, 0xfe, b'p']);
        let problem = found(Some(&secret)).unwrap_err();
        assert_eq!(
            problem.message,
            "Secret hub: key password is not UTF-8 text: encode it again (some shells write UTF-16)"
        );
    }

    /// A token overrides a password.
    #[test]
    fn token_overrides_password() {
        let secret = contents(
            "Opaque",
            &[("username", "ann"), ("password", "pw"), ("token", "t\n")],
        );
        let token = Credential::IdentityToken {
            username: "ann".to_owned(),
            token: Secret::new("t"),
        };
        assert_eq!(found(Some(&secret)), Ok(token));
    }

    #[test]
    fn a_missing_secret_is_named() {
        let problem = found(None).unwrap_err();
        assert_eq!(problem.reason, Reason::SecretNotFound);
        let expected = "Secret \"hub\" not found: create it or correct \
                        spec.upstreams[0].credentialsSecretRef.name";
        assert_eq!(problem.message, expected);
    }

    #[test_case("Opaque", &[("user", "ann")] => "Secret hub: has no key username: add it")]
    #[test_case("Opaque", &[] => "Secret hub: has no key username: add it")]
    #[test_case("Opaque", &[("username", "a"), ("password", "")] => "Secret hub: key password is empty")]
    #[test_case("Opaque", &[("username", "a\nb"), ("password", "x")]
        => "Secret hub: key username contains a line break or another control character: remove it")]
    #[test_case(BASIC_AUTH_TYPE, &[("username", "ann")] => "Secret hub: has no key password: add it")]
    #[test_case("Opaque", &[("username", "a"), ("password", "x"), ("token", "\n")] => "Secret hub: key token is empty")]
    #[test_case("kubernetes.io/dockercfg", &[(".dockercfg", "{}")] => "Secret hub: type not supported: use \
        kubernetes.io/dockerconfigjson, kubernetes.io/basic-auth, or Opaque with username and password, or token")]
    #[test_case(DOCKER_CONFIG_TYPE, &[(DOCKER_CONFIG_KEY, r#"{"auths":{"docker.io":{}},"credsStore":"hunter2"}"#)]
        => "Secret hub: the entry for registry-1.docker.io has neither auth, nor username and password; docker login \
            with a credsStore keeps them elsewhere")]
    #[test_case(DOCKER_CONFIG_TYPE, &[(DOCKER_CONFIG_KEY, r#"{"credHelpers":{"docker.io":"hunter2"}}"#)]
        => "Secret hub: not a docker configuration with \"auths\" (line 1 column 39)")]
    #[test_case(DOCKER_CONFIG_TYPE, &[("config", "{}")] => "Secret hub: has no key .dockerconfigjson: add it")]
    fn malformed_secret_is_described_by_what_it_lacks(r#type: &str, data: &[(&str, &str)]) -> String {
        let problem = found(Some(&contents(r#type, data))).unwrap_err();
        assert_eq!(problem.reason, Reason::SecretMalformed);
        problem.message
    }

    #[test]
    fn no_message_shows_a_value() {
        for data in [
            r#"{"auths":{"x":"hunter2"}}"#,
            "hunter2",
            r#"{"auths":{"docker.io":{"auth":"hunter2"}}}"#,
        ] {
            let problem =
                found(Some(&contents(DOCKER_CONFIG_TYPE, &[(DOCKER_CONFIG_KEY, data)]))).unwrap_err();
            assert!(!problem.message.contains("hunter2"), "{}", problem.message);
        }
    }
}
