//! `peers`: our extension for several replicas of one mirror.

use crate::config::overlay::section;

section! {
    /// The other replicas of this mirror.
    Peers {
        /// The address of the peer port, `[host]:port`; without it the server acts alone.
        "addr" => addr: Option<String>,
        /// The peer ports of all replicas, `host:port`; a name means all its addresses, and an address of the server itself does no harm.
        "addresses" => addresses: Vec<String>,
        /// The file of the secret that all replicas share: one or two lines of at least 16 characters, of which the first signs; read again when the file changes.
        "secretfile" => secret_file: Option<String>,
    }
}
