//! The signer of URLs, by which clients get content from the store itself.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use object_store::path::Path as Key;
use object_store::signer::Signer;
use url::Url;

/// A signer of URLs that clients send GET to.
pub(in crate::bucket) struct RedirectSigner {
    signer: Arc<dyn Signer>,
    /// The address that takes the place of the signed one, where the signature does not cover it.
    address: Option<Url>,
}

impl RedirectSigner {
    /// Creates a signer of URLs with the address that the signer itself has.
    pub(super) fn new(signer: Arc<dyn Signer>) -> Self {
        Self {
            signer,
            address: None,
        }
    }

    /// Creates a signer of URLs whose signature covers neither host nor port: these, and the beginning of the path, become
    /// those of an address.
    pub(super) fn at(signer: Arc<dyn Signer>, address: Url) -> Self {
        Self {
            signer,
            address: Some(address),
        }
    }

    /// Returns a URL by which a client may GET an object for a time.
    pub(in crate::bucket) async fn sign(&self, key: &Key, valid: Duration) -> object_store::Result<Url> {
        let signed = self.signer.signed_url(Method::GET, key, valid).await?;
        Ok(match &self.address {
            None => signed,
            Some(address) => moved(&signed, address),
        })
    }
}

/// Returns a URL at another address, below its path.
fn moved(signed: &Url, address: &Url) -> Url {
    let mut url = address.clone();
    let path = format!("{}{}", address.path().trim_end_matches('/'), signed.path());
    url.set_path(&path);
    url.set_query(signed.query());
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("https://blobs.example" => "https://blobs.example/c/a%3Ab?sig=x%2By"; "a host")]
    #[test_case("http://127.0.0.1:1/account/" => "http://127.0.0.1:1/account/c/a%3Ab?sig=x%2By"; "a port and a path")]
    fn moved_url_keeps_path_and_query(address: &str) -> String {
        let signed = "https://account.blob.core.windows.net/c/a%3Ab?sig=x%2By";
        moved(&signed.parse().unwrap(), &address.parse().unwrap()).into()
    }
}
