//! The other replicas of this mirror (`peers`).

use std::path::PathBuf;

use super::http::host_port;
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
        }))
    }
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
        };
        assert_eq!(peers(yaml).unwrap(), Some(expected));
    }

    /// The error for an invalid value names its key.
    #[test_case("{addr: ':5002'}" => "peers.secretfile: must be set to have peers")]
    #[test_case("{secretfile: /s}" => "peers.addr: must be set to have peers")]
    #[test_case("{addresses: ['a:1']}" => "peers.addr: must be set to have peers")]
    #[test_case("{addr: a, secretfile: /s}" => "peers.addr: expected host:port or :port, got \"a\"")]
    #[test_case("{addr: ':1', secretfile: /s, addresses: ['a:1', ':2']}" => "peers.addresses[1]: must name a host and a port")]
    fn invalid_peers_name_their_key(yaml: &str) -> String {
        peers(yaml).unwrap_err().to_string()
    }
}
