//! The certificate authorities that the system trusts.

use std::sync::LazyLock;

use reqwest::Certificate;
use rustls::RootCertStore;

/// All that can be parsed, read once: hundreds of files for each upstream would be most of a start.
/// `SSL_CERT_FILE` is honoured.
pub(crate) fn of_the_system() -> Vec<Certificate> {
    static READ: LazyLock<Vec<Certificate>> = LazyLock::new(read);
    READ.clone()
}

fn read() -> Vec<Certificate> {
    let mut store = RootCertStore::empty();
    // One authority that can't be parsed must not cost all others, and an image may have none.
    let system = rustls_native_certs::load_native_certs().certs;
    system
        .into_iter()
        .filter(|root| store.add(root.clone()).is_ok())
        .filter_map(|root| Certificate::from_der(&root).ok())
        .collect()
}
