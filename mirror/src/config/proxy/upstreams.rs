//! The upstreams that `proxy` names: Distribution's one, then those of our extension.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use url::Url;

use super::{Trust, Upstream, UpstreamTls};
use crate::config::{Error, Globs, file, host, remote_url};
use crate::credential::Credential;
use crate::name::Host;

/// Returns all upstreams, the default one first.
pub(super) fn all(proxy: &file::Proxy) -> Result<Vec<Upstream>, Error> {
    let mut upstreams: Vec<_> = plain(proxy)?.into_iter().collect();
    for (index, upstream) in proxy.upstreams.iter().enumerate() {
        let mut upstream = extended(&format!("proxy.upstreams[{index}]"), upstream)?;
        upstream.tls.ca_file = upstream.tls.ca_file.map(|file| in_directory(proxy, file));
        upstreams.push(upstream);
    }
    if upstreams.is_empty() {
        let what = "must be set to the registry to mirror, https://registry-1.docker.io for one";
        return Err(Error::invalid("proxy.remoteurl", what));
    }
    let mut seen = HashSet::new();
    match upstreams.iter().find(|upstream| !seen.insert(&upstream.host)) {
        Some(twice) => Err(Error::invalid(
            "proxy.upstreams",
            format!("{} is there twice", twice.host),
        )),
        None => Ok(upstreams),
    }
}

/// Returns the path of a file that the configuration names; absolute paths stay unchanged.
fn in_directory(proxy: &file::Proxy, file: PathBuf) -> PathBuf {
    match proxy.files_directory.as_deref() {
        None | Some("") => file,
        Some(directory) => Path::new(directory).join(file),
    }
}

/// Returns the upstream of `proxy.remoteurl`, the only one that Distribution has.
fn plain(proxy: &file::Proxy) -> Result<Option<Upstream>, Error> {
    let credential = credential(proxy)?;
    let Some(url) = proxy.remote_url.as_deref().filter(|url| !url.is_empty()) else {
        let orphan = if credential != Credential::Anonymous {
            "proxy.username"
        } else if proxy.trust != file::Trust::default() {
            "proxy.trust"
        } else {
            return Ok(None);
        };
        return Err(Error::invalid(
            orphan,
            "belongs to proxy.remoteurl, which is not set",
        ));
    };
    let remote = remote("proxy.remoteurl", url)?;
    let named = file::Upstream {
        host: host_of(&remote),
        repository_prefix: proxy.remote_namespace.clone(),
        trust: proxy.trust.clone(),
        ..file::Upstream::default()
    };
    let mut upstream = extended("proxy", &named)?;
    upstream.remote = remote;
    upstream.trust.key = Trust::PLAIN;
    // Distribution sends it whatever the scheme is; a notice tells.
    upstream.insecure_allow_http_credentials = credential != Credential::Anonymous;
    upstream.credential = credential;
    Ok(Some(upstream))
}

fn credential(proxy: &file::Proxy) -> Result<Credential, Error> {
    let username = proxy.username.as_deref().unwrap_or_default();
    let password = proxy.password.as_ref().map(|file::Masked(secret)| secret);
    match (username, password) {
        ("", None) => Ok(Credential::Anonymous),
        ("", Some(password)) if password.expose().is_empty() => Ok(Credential::Anonymous),
        ("", Some(_)) => Err(Error::invalid(
            "proxy.username",
            "must be set as proxy.password is",
        )),
        (_, None) => Err(Error::invalid(
            "proxy.password",
            "must be set as proxy.username is",
        )),
        (username, Some(password)) => Ok(Credential::Basic {
            username: username.to_owned(),
            password: password.clone(),
        }),
    }
}

fn extended(key: &str, upstream: &file::Upstream) -> Result<Upstream, Error> {
    let at = |name: &str| format!("{key}.{name}");
    let host: Host = host::canonical(&upstream.host).map_err(|e| Error::invalid(at("host"), e))?;
    let url = upstream.remote_url.clone().filter(|url| !url.is_empty());
    let prefix = upstream
        .repository_prefix
        .as_deref()
        .filter(|prefix| !prefix.is_empty());
    let globs = |name: &str, globs| Globs::new(globs).map_err(|e| Error::invalid(at(name), e));
    Ok(Upstream {
        remote: remote(
            &at("remoteurl"),
            &url.unwrap_or_else(|| host::default_remote(&host)),
        )?,
        host,
        repository_prefix: prefix
            .map(|prefix| prefix.trim_matches('/').parse())
            .transpose()
            .map_err(|e| Error::invalid(at("repositoryprefix"), e))?,
        tls: UpstreamTls {
            ca_file: upstream.tls.ca_file.as_ref().map(Into::into),
            insecure_skip_verify: upstream.tls.insecure_skip_verify,
        },
        proxy_url: upstream
            .proxy_url
            .as_deref()
            .map(|url| web_url(&at("proxyurl"), url))
            .transpose()?,
        trust: Trust {
            realms: upstream.trust.realms.clone(),
            redirects: upstream.trust.redirects.clone(),
            ..Trust::default()
        },
        insecure_allow_http_credentials: upstream.insecure_allow_http_credentials,
        credential: Credential::Anonymous,
        include: globs("include", &upstream.include)?,
        exclude: globs("exclude", &upstream.exclude)?,
    })
}

fn host_of(remote: &Url) -> String {
    let host = remote.host_str().unwrap_or_default();
    match remote.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn remote(key: &str, text: &str) -> Result<Url, Error> {
    let url = web_url(key, text).map_err(|error| match (error, remote_url::correction(text)) {
        (Error::Invalid { key, reason }, Some(correction)) => {
            Error::invalid(key, format!("{reason}; {correction}"))
        }
        (error, _) => error,
    })?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::invalid(key, "must have neither query nor fragment"));
    }
    Ok(url)
}

fn web_url(key: &str, text: &str) -> Result<Url, Error> {
    let expected = "expected http(s)://host[:port]";
    let url = Url::parse(text).map_err(|e| Error::invalid(key, format!("{expected}: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(Error::invalid(key, expected));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let reason = "must not hold a user or a password: set them as a credential of the upstream";
        return Err(Error::invalid(key, reason));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;
    use crate::secret::Secret;
    use proptest::prelude::*;
    use test_case::test_case;

    fn upstreams(yaml: &str) -> Result<Vec<Upstream>, Error> {
        all(&File::parse(&format!("proxy: {yaml}"))?.proxy)
    }

    /// A plain `remoteurl` defines the host of its upstream.
    #[test_case("https://registry-1.docker.io" => "docker.io at https://registry-1.docker.io/")]
    #[test_case("https://registry.example:5000/path" => "registry.example:5000 at https://registry.example:5000/path")]
    #[test_case("http://127.0.0.1:5000" => "127.0.0.1:5000 at http://127.0.0.1:5000/")]
    #[test_case("https://Quay.io:443/" => "quay.io at https://quay.io/")]
    #[test_case("http://[::1]:5000" => "[::1]:5000 at http://[::1]:5000/")]
    fn plain_remoteurl_names_its_host(url: &str) -> String {
        let upstream = upstreams(&format!("{{remoteurl: '{url}'}}")).unwrap().remove(0);
        format!("{} at {}", upstream.host, upstream.remote)
    }

    /// An upstream is requested at its name unless `remoteurl` is set.
    #[test]
    fn upstream_remote_defaults_to_its_name() {
        let all =
            upstreams("{upstreams: [{host: docker.io}, {host: quay.io, remoteurl: 'http://q/p'}]}").unwrap();
        assert_eq!(all[0].remote.as_str(), "https://registry-1.docker.io/");
        assert_eq!(all[1].remote.as_str(), "http://q/p");
    }

    /// The plain upstream is the default, and has the configured user and password.
    #[test]
    fn plain_upstream_is_default_with_password() {
        let yaml = "{remoteurl: 'http://a', username: u, password: 0123, remotenamespace: team, \
                    upstreams: [{host: quay.io}]}";
        let all = upstreams(yaml).unwrap();
        assert_eq!(
            all[0].credential,
            Credential::Basic {
                username: "u".into(),
                password: Secret::new("0123"),
            }
        );
        assert!(all[0].insecure_allow_http_credentials);
        assert_eq!(all[0].repository_prefix.as_ref().unwrap().as_str(), "team");
        assert_eq!(all[1].host.as_str(), "quay.io");
        assert!(!all[1].insecure_allow_http_credentials);
    }

    /// An empty user and password, as environments set them, mean anonymous access.
    #[test]
    fn empty_user_means_anonymous() {
        let all = upstreams("{remoteurl: 'https://a', username: '', password: ''}").unwrap();
        assert_eq!(all[0].credential, Credential::Anonymous);
    }

    #[test]
    fn trust_works_with_remoteurl_alone() {
        let yaml = "{remoteurl: 'https://a', trust: {realms: [sso.corp], redirects: [10.0.0.0/8]}, \
                    upstreams: [{host: quay.io, trust: {realms: [auth.corp]}}]}";
        let all = upstreams(yaml).unwrap();
        let plain = Trust {
            realms: vec!["sso.corp".into()],
            redirects: vec!["10.0.0.0/8".into()],
            key: Trust::PLAIN,
        };
        assert_eq!(all[0].trust, plain);
        let listed = Trust {
            realms: vec!["auth.corp".into()],
            ..Trust::default()
        };
        assert_eq!(all[1].trust, listed);
    }

    /// The path of a CA file is relative to the directory of files.
    #[test_case("", "a.pem" => "a.pem"; "nowhere in particular")]
    #[test_case("filesdirectory: /files,", "a.pem" => "/files/a.pem"; "in the directory of files")]
    #[test_case("filesdirectory: /files,", "/b/a.pem" => "/b/a.pem"; "where it says itself")]
    fn ca_file_path(directory: &str, file: &str) -> String {
        let yaml = format!("{{{directory} upstreams: [{{host: a.example, tls: {{cafile: {file}}}}}]}}");
        let upstream = upstreams(&yaml).unwrap().remove(0);
        upstream.tls.ca_file.unwrap().display().to_string()
    }

    /// The error for an invalid upstream names its key and contains no secret.
    #[test_case("{}", "proxy.remoteurl: must be set")]
    #[test_case("{remoteurl: docker.io}", "proxy.remoteurl: expected http(s)://host[:port]")]
    #[test_case(
        "{remoteurl: docker.io/library}",
        "; the path names a repository: write https://registry-1.docker.io;"
    )]
    #[test_case("{remoteurl: 'u:hunter2@a.example'}", "write https://a.example")]
    #[test_case("{remoteurl: 'ftp://a'}", "proxy.remoteurl: expected http(s)://host[:port]")]
    #[test_case("{remoteurl: 'https://u:hunter2@a'}", "must not hold a user or a password")]
    #[test_case("{remoteurl: 'https://a?b=c'}", "neither query nor fragment")]
    #[test_case("{remoteurl: 'https://a', username: u}", "proxy.password: must be set")]
    #[test_case("{remoteurl: 'https://a', password: hunter2}", "proxy.username: must be set")]
    #[test_case("{username: u, password: hunter2}", "belongs to proxy.remoteurl")]
    #[test_case(
        "{trust: {realms: [a]}, upstreams: [{host: a}]}",
        "proxy.trust: belongs to proxy.remoteurl"
    )]
    #[test_case("{upstreams: [{}]}", "proxy.upstreams[0].host: not a registry host")]
    #[test_case("{upstreams: [{host: 'https://a'}]}", "proxy.upstreams[0].host")]
    #[test_case("{upstreams: [{host: a}, {host: A}]}", "a is there twice")]
    #[test_case(
        "{upstreams: [{host: quay.io}, {host: 'quay.io:443'}]}",
        "quay.io is there twice"
    )]
    #[test_case(
        "{remoteurl: 'https://docker.io', upstreams: [{host: index.docker.io}]}",
        "docker.io is there twice"
    )]
    #[test_case(
        "{upstreams: [{host: a, repositoryprefix: A}]}",
        "proxy.upstreams[0].repositoryprefix: not a repository"
    )]
    #[test_case("{upstreams: [{host: a, include: ['x[']}]}", "proxy.upstreams[0].include")]
    #[test_case(
        "{upstreams: [{host: a, proxyurl: 'http://u:hunter2@p'}]}",
        "proxy.upstreams[0].proxyurl"
    )]
    fn invalid_upstream_is_named_without_secrets(yaml: &str, part: &str) {
        let message = upstreams(yaml).unwrap_err().to_string();
        assert!(
            message.contains(part) && !message.contains("hunter2"),
            "{message}"
        );
    }

    proptest! {
        /// No URL makes the parser panic.
        #[test]
        fn any_url_does_not_panic(url: String) {
            let _ = remote("key", &url).map(|url| host_of(&url));
        }
    }
}
