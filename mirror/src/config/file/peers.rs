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
        /// TLS between the replicas; without it they speak plain HTTP.
        "tls" => tls: PeerTls,
    }
}

section! {
    /// TLS between the replicas, in which each presents its certificate to the other.
    PeerTls {
        /// The PEM file of the certificate chain that this server presents, as a server and as a client; all three files are read again when they change.
        "certificate" => certificate: Option<String>,
        /// The PEM file of the certificate's key.
        "key" => key: Option<String>,
        /// The PEM files of the CAs that sign the certificates of replicas. A replica's certificate names a host of `addresses`, or has a name in common with this server's own.
        "clientcas" => client_cas: Vec<String>,
    }
}
