//! The other replicas of this mirror (`peers`).

use std::path::PathBuf;

use super::http::{Tls, host_port};
use super::{Error, file};

/// The most entries of `peers.addresses`.
const MAX_ADDRESSES: usize = 64;

/// The settings of the peer port, and the places of the other replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// The address of the peer port, `[host]:port`.
    pub addr: String,
    /// The peer ports of all replicas, `host:port`; names are resolved to all their addresses.
    pub addresses: Vec<String>,
    /// The file of the shared secret.
    pub secret_file: PathBuf,
    /// Mutual TLS between the replicas; `None`: plain HTTP.
    pub tls: Option<Tls>,
}

impl PeerSettings {
    pub(super) fn new(peers: &file::Peers) -> Result<Option<Self>, Error> {
        let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let (addr, secret_file) = match (set(&peers.addr), set(&peers.secret_file)) {
            (None, None) if peers.addresses.is_empty() => return Ok(None),
            (Some(addr), Some(secret_file)) => (addr, secret_file),
            (None, _) => return Err(Error::invalid("peers.addr", "must be set to have peers")),
            (_, None) => return Err(Error::invalid("peers.secretfile", "must be set to have peers")),
        };
        if peers.addresses.len() > MAX_ADDRESSES {
            let reason =
                format!("must have at most {MAX_ADDRESSES} entries: use a name with several addresses");
            return Err(Error::invalid("peers.addresses", reason));
        }
        for (index, address) in peers.addresses.iter().enumerate() {
            let key = format!("peers.addresses[{index}]");
            let address = host_port(&key, address)?;
            if address.starts_with(':') || address.ends_with(":0") {
                return Err(Error::invalid(key, "must name a host and a port"));
            }
        }
        Ok(Some(Self {
            addr: host_port("peers.addr", &addr)?,
            addresses: peers.addresses.clone(),
            secret_file: secret_file.into(),
            tls: tls(&peers.tls)?,
        }))
    }

    /// Returns the hosts of the addresses.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &str> {
        let host = |address: &'_ String| address.rsplit_once(':').map_or(0, |(host, _)| host.len());
        let hosts = self
            .addresses
            .iter()
            .map(move |address| &address[..host(address)]);
        hosts.map(|host| host.trim_start_matches('[').trim_end_matches(']'))
    }

    /// Returns the files that are read again when they change.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let tls = self.tls.iter();
        let tls = tls.flat_map(|tls| [&tls.certificate, &tls.key].into_iter().chain(&tls.client_cas));
        [&self.secret_file].into_iter().chain(tls).cloned().collect()
    }
}

fn tls(tls: &file::PeerTls) -> Result<Option<Tls>, Error> {
    let set = |value: &Option<String>| value.as_deref().filter(|v| !v.is_empty()).map(PathBuf::from);
    let missing = |key: &str| {
        Error::invalid(
            format!("peers.tls.{key}"),
            "must be set to have TLS between peers",
        )
    };
    let (certificate, key) = match (set(&tls.certificate), set(&tls.key)) {
        (None, None) if tls.client_cas.is_empty() => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (None, _) => return Err(missing("certificate")),
        (_, None) => return Err(missing("key")),
    };
    if tls.client_cas.is_empty() {
        return Err(missing("clientcas"));
    }
    Ok(Some(Tls {
        section: "peers.tls",
        certificate,
        key,
        client_cas: tls.client_cas.iter().map(PathBuf::from).collect(),
        client_optional: false,
        only_tls13: true,
    }))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::config::file::File;

    fn peers(yaml: &str) -> Result<Option<PeerSettings>, Error> {
        PeerSettings::new(&File::parse(&format!("peers: {yaml}"))?.peers)
    }

    #[test]
    fn peers_are_read() {
        assert_eq!(peers("{}").unwrap(), None);
        let yaml = "{addr: ':5002', addresses: ['mirror-headless:5002', '[::1]:5002'], secretfile: /s}";
        let expected = PeerSettings {
            addr: ":5002".into(),
            addresses: vec!["mirror-headless:5002".into(), "[::1]:5002".into()],
            secret_file: "/s".into(),
            tls: None,
        };
        assert_eq!(expected.hosts().collect::<Vec<_>>(), ["mirror-headless", "::1"]);
        assert_eq!(peers(yaml).unwrap(), Some(expected));
    }

    /// The files of TLS between peers are read, and watched with the secret.
    #[test]
    fn peer_tls_is_read() {
        let tls = "tls: {certificate: /c, key: /k, clientcas: [/ca]}";
        let settings = peers(&format!("{{addr: ':1', secretfile: /s, {tls}}}"))
            .unwrap()
            .unwrap();
        assert_eq!(settings.files(), ["/s", "/c", "/k", "/ca"].map(PathBuf::from));
        let tls = settings.tls.unwrap();
        assert!(tls.only_tls13 && !tls.client_optional);
    }

    /// The error for an invalid value names its key.
    #[test_case("{addr: ':5002'}" => "peers.secretfile: must be set to have peers")]
    #[test_case("{secretfile: /s}" => "peers.addr: must be set to have peers")]
    #[test_case("{addresses: ['a:1']}" => "peers.addr: must be set to have peers")]
    #[test_case("{addr: a, secretfile: /s}" => "peers.addr: expected host:port or :port, got \"a\"")]
    #[test_case("{addr: ':1', secretfile: /s, tls: {key: /k}}" => "peers.tls.certificate: must be set to have TLS between peers")]
    #[test_case("{addr: ':1', secretfile: /s, tls: {certificate: /c}}" => "peers.tls.key: must be set to have TLS between peers")]
    #[test_case("{addr: ':1', secretfile: /s, tls: {certificate: /c, key: /k}}" => "peers.tls.clientcas: must be set to have TLS between peers")]
    #[test_case("{addr: ':1', secretfile: /s, tls: {clientcas: [/c]}}" => "peers.tls.certificate: must be set to have TLS between peers")]
    #[test_case("{addr: ':1', secretfile: /s, addresses: ['a:1', ':2']}" => "peers.addresses[1]: must name a host and a port")]
    fn invalid_peers_name_their_key(yaml: &str) -> String {
        peers(yaml).unwrap_err().to_string()
    }
}
