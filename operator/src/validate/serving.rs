//! The certificate that the servers show to clients.

use crds::{RegistryMirror, conditions::Reason, tls::TlsMode};
use kube::ResourceExt;
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::parse_x509_certificate;

use super::{Rejection, bundle, credentials::Problem};
use crate::{
    dereference::{Contents, Reference, References},
    desired::names,
    observed::Life,
};

/// The chain in a Secret of an admin, as Kubernetes has it.
const CERTIFICATE: &str = "tls.crt";
/// Its key.
const KEY: &str = "tls.key";
/// What clients have to trust, where cert-manager puts it.
const AUTHORITY: &str = "ca.crt";
/// The same three in the servers' directory.
pub const OWN: [&str; 3] = ["serving.crt", "serving.key", "serving-ca.crt"];

/// A certificate to serve with. Has no `Debug`: it holds a private key.
pub struct Serving {
    /// The chain, in PEM.
    pub certificate: Vec<u8>,
    /// Its key, in PEM.
    pub key: Vec<u8>,
    /// What clients have to trust, in PEM, where the Secret says it.
    pub authority: Option<Vec<u8>>,
    /// From when to when it is good.
    pub life: Life,
    /// When there is something to do or to tell about it, in seconds since 1970.
    pub changes: i64,
    /// Why it is what servers had before, and not what the Secret holds.
    pub problem: Option<Problem>,
}

impl Serving {
    /// What clients have to trust, as text: PEM that was read is text.
    pub fn authority(&self) -> Option<String> {
        String::from_utf8(self.authority.clone()?).ok()
    }
}

/// The certificate that the spec asks for. Where its Secret has none, servers keep the one they have.
///
/// # Errors
/// `SecretNotFound` and `Malformed`, where there was none before: a server is not started without its certificate,
/// and never serves in clear text in its place.
pub fn of(mirror: &RegistryMirror, references: &References) -> Result<Option<Serving>, Rejection> {
    let name = match (mirror.spec.tls.mode, &mirror.spec.tls.secret_name) {
        // Its own certificates come later, from what it held before.
        (TlsMode::Disabled | TlsMode::SelfSigned, _) => return Ok(None),
        (TlsMode::Secret, Some(name)) => name,
        (TlsMode::Secret, None) => {
            return Err(Rejection::invalid("spec.tls.secretName is missing".to_owned()));
        }
    };
    super::not_our_own(mirror, name).map_err(|rejection| rejection.below("spec.tls"))?;
    let problem = match read(name, references.get(&Reference::secret(name))) {
        Ok(serving) => return Ok(Some(serving)),
        Err(problem) => problem,
    };
    let own = names::files(&mirror.name_any());
    let kept = references
        .files
        .as_ref()
        .and_then(|files| parse(&own, files, OWN).ok());
    match kept {
        Some(kept) => Ok(Some(Serving {
            problem: Some(problem),
            ..kept
        })),
        None => Err(Rejection {
            reason: problem.reason,
            message: format!("spec.tls.secretName: {}", problem.message),
        }),
    }
}

/// What a Secret of an admin holds.
///
/// # Errors
/// What is wrong with it.
pub fn of_secret(name: &str, contents: &Contents) -> Result<Serving, Problem> {
    parse(name, contents, [CERTIFICATE, KEY, AUTHORITY])
}

fn read(name: &str, contents: Option<&Contents>) -> Result<Serving, Problem> {
    let contents = contents.ok_or_else(|| Problem {
        reason: Reason::SecretNotFound,
        message: format!(
            "there is no Secret {name} in this namespace; create it with {CERTIFICATE} and {KEY}"
        ),
    })?;
    of_secret(name, contents)
}

/// The certificate that servers were handed, by their own Secret.
pub fn handed_out(files: &Contents) -> Option<Life> {
    parse("", files, OWN).ok().map(|serving| serving.life)
}

/// Never a value of the Secret in a message.
fn parse(name: &str, contents: &Contents, keys: [&str; 3]) -> Result<Serving, Problem> {
    let malformed = |what: String| Problem {
        reason: Reason::Malformed,
        message: format!("Secret {name}: {what}"),
    };
    let [certificate, key, authority] = keys;
    let get = |key: &str| {
        let value = contents.data.get(key).cloned();
        value.ok_or_else(|| malformed(format!("has no {key}; it has {}", bundle::keys(&contents.data))))
    };
    let (chain, private) = (get(certificate)?, get(key)?);
    let life = check(&chain, &private).map_err(malformed)?;
    let authority = contents
        .data
        .get(authority)
        .filter(|pem| !pem.is_empty())
        .cloned();
    // It is published: of a file that holds a private key, too, its certificates only.
    let authority = authority
        .map(|pem| bundle::certificates(&pem))
        .transpose()
        .map_err(|what| malformed(format!("{AUTHORITY}: {what}")))?;
    Ok(Serving {
        certificate: chain,
        key: private,
        authority,
        life,
        changes: life.ends,
        problem: None,
    })
}

/// How long the certificate is good, if a server could show it.
pub(crate) fn check(chain: &[u8], key: &[u8]) -> Result<Life, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the certificate is not PEM: {}", bundle::not_pem(&error)))?;
    let first = chain
        .first()
        .ok_or("the certificate's key holds no certificate")?;
    let (_, leaf) =
        parse_x509_certificate(first).map_err(|_| "the first certificate can't be read".to_owned())?;
    let validity = leaf.validity();
    let life = Life {
        starts: validity.not_before.timestamp(),
        ends: validity.not_after.timestamp(),
    };
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| format!("the private key is not PEM: {}", bundle::not_pem(&error)))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| format!("certificate and key can't be used together: {error}"))?;
    Ok(life)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["hub".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_with_its_key_is_taken_and_its_end_known() {
        let (certificate, key) = pair();
        assert!(check(certificate.as_bytes(), key.as_bytes()).unwrap().ends > 0);
    }

    #[test]
    fn what_does_not_belong_together_is_refused_without_a_byte_of_it() {
        let ((certificate, key), (_, other)) = (pair(), pair());
        let cut = &key[..key.len() / 2];
        for (certificate, key) in [
            (certificate.as_str(), other.as_str()),
            (certificate.as_str(), cut),
            ("hello", key.as_str()),
            (certificate.as_str(), ""),
        ] {
            let error = check(certificate.as_bytes(), key.as_bytes()).unwrap_err();
            assert!(!error.contains(&cut[30..50]), "{error}");
        }
    }
}
