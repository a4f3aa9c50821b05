//! The certificate that the servers show to clients.

use crds::{RegistryMirror, conditions::Reason, tls::TlsMode};
use kube::ResourceExt;
use mirror::tls;
use x509_parser::parse_x509_certificate;

use super::{Rejection, bundle, credentials::Problem};
use crate::{
    dereference::{Contents, Reference, References},
    names,
    observed::Validity,
};

/// The key of the certificate chain in a Secret of type `kubernetes.io/tls`.
pub(crate) const CERTIFICATE: &str = "tls.crt";
/// The key of the private key in such a Secret.
pub(crate) const KEY: &str = "tls.key";
/// What clients have to trust, where cert-manager puts it.
const AUTHORITY: &str = "ca.crt";
/// The same three in the servers' directory.
pub const FILES: [&str; 3] = ["serving.crt", "serving.key", "serving-ca.crt"];

/// A certificate to serve with. Has no `Debug`: it holds a private key.
pub struct Serving {
    /// The chain, in PEM.
    pub certificate: Vec<u8>,
    /// Its key, in PEM.
    pub key: Vec<u8>,
    /// What clients have to trust, in PEM, where the Secret says it.
    pub ca: Option<Vec<u8>>,
    /// From when to when it is good.
    pub validity: Validity,
    /// When there is something to do or to tell about it, in seconds since 1970.
    pub changes: i64,
    /// Why it is what servers had before, and not what the Secret holds.
    pub problem: Option<Problem>,
}

impl Serving {
    /// What clients have to trust, as text: PEM that was read is text.
    pub fn ca_text(&self) -> Option<String> {
        String::from_utf8(self.ca.clone()?).ok()
    }
}

/// The certificate that the spec asks for. Where its Secret has none, servers keep the one they have.
///
/// # Errors
/// `SecretNotFound` and `Malformed`, where there was none before: a server is not started without its certificate,
/// and never serves in clear text in its place.
pub fn resolve(mirror: &RegistryMirror, references: &References) -> Result<Option<Serving>, Rejection> {
    let name = match (mirror.spec.tls.mode, &mirror.spec.tls.secret_name) {
        // Its own certificates come later, from what it held before.
        (TlsMode::Disabled | TlsMode::SelfSigned, _) => return Ok(None),
        (TlsMode::Secret, Some(name)) => name,
        (TlsMode::Secret, None) => {
            return Err(Rejection::invalid("spec.tls.secretName is missing".to_owned()));
        }
    };
    super::not_the_operators(mirror, name, references).map_err(|rejection| rejection.below("spec.tls"))?;
    let problem = match read(name, references.get(&Reference::secret(name))) {
        Ok(serving) => return Ok(Some(serving)),
        Err(problem) => problem,
    };
    let own = names::files(&mirror.name_any());
    let kept = references
        .files
        .as_ref()
        .and_then(|files| parse(&own, files, FILES).ok());
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
pub fn from_secret(name: &str, contents: &Contents) -> Result<Serving, Problem> {
    parse(name, contents, [CERTIFICATE, KEY, AUTHORITY])
}

fn read(name: &str, contents: Option<&Contents>) -> Result<Serving, Problem> {
    let contents = contents.ok_or_else(|| Problem {
        reason: Reason::SecretNotFound,
        message: format!(
            "there is no Secret {name} in this namespace; create it with {CERTIFICATE} and {KEY}"
        ),
    })?;
    from_secret(name, contents)
}

/// The certificate that servers were handed, by their own Secret.
pub fn served_validity(files: &Contents) -> Option<Validity> {
    parse("", files, FILES).ok().map(|serving| serving.validity)
}

/// Never a value of the Secret in a message.
fn parse(name: &str, contents: &Contents, keys: [&str; 3]) -> Result<Serving, Problem> {
    let malformed = |what: String| Problem {
        reason: Reason::Malformed,
        message: format!("Secret {name}: {what}"),
    };
    let [certificate, key, authority] = keys;
    let get = |key: &str| {
        let value = contents.get(key).map(<[u8]>::to_vec);
        value.ok_or_else(|| malformed(format!("has no key {key}: add it")))
    };
    let (chain, private) = (get(certificate)?, get(key)?);
    let validity = check(&chain, &private).map_err(malformed)?;
    let authority = contents.get(authority).filter(|pem| !pem.is_empty());
    // It is published: of a file that holds a private key, too, its certificates only.
    let authority = authority
        .map(bundle::certificates)
        .transpose()
        .map_err(|what| malformed(format!("{AUTHORITY}: {what}")))?;
    Ok(Serving {
        certificate: chain,
        key: private,
        ca: authority,
        validity,
        changes: validity.not_after,
        problem: None,
    })
}

/// Returns the validity of a server's certificate, if the server can load it with its key.
pub(crate) fn check(chain: &[u8], key: &[u8]) -> Result<Validity, String> {
    let chain = tls::pem::certificates(chain).map_err(|reason| format!("the certificate chain: {reason}"))?;
    let first = chain.first().ok_or("the certificate chain is empty")?;
    let (_, leaf) =
        parse_x509_certificate(first).map_err(|_| "the first certificate can't be read".to_owned())?;
    let validity = leaf.validity();
    let validity = Validity {
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    };
    tls::pem::pair(chain, tls::pem::private_key(key)?)?;
    Ok(validity)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use test_case::test_case;

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
        assert!(check(certificate.as_bytes(), key.as_bytes()).unwrap().not_after > 0);
    }

    #[test_case(&rcgen::PKCS_ECDSA_P256_SHA256)]
    #[test_case(&rcgen::PKCS_ECDSA_P384_SHA384)]
    #[test_case(&rcgen::PKCS_ECDSA_P521_SHA512)]
    #[test_case(&rcgen::PKCS_ED25519)]
    #[test_case(&rcgen::PKCS_RSA_SHA512)]
    fn every_usual_kind_of_key_is_accepted(algorithm: &'static rcgen::SignatureAlgorithm) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["hub".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        assert!(check(certificate.as_bytes(), key.serialize_pem().as_bytes()).is_ok());
    }

    #[test]
    fn unsupported_kind_of_key_is_named() {
        let error = check(OTHER_CURVE.0.as_bytes(), OTHER_CURVE.1.as_bytes()).unwrap_err();
        assert!(error.contains("ECDSA on secp256k1"), "{error}");
        assert!(error.contains("P-384 or P-521"), "{error}");
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

    #[test]
    fn a_chain_that_begins_with_another_certificate_is_told_as_that() {
        let ((certificate, key), (above, _)) = (pair(), pair());
        let chain = |parts: [&str; 2]| check(parts.concat().as_bytes(), key.as_bytes());
        assert!(chain([&certificate, &above]).is_ok());
        let error = chain([&above, &certificate]).unwrap_err();
        assert!(error.contains("a chain begins with the server's own"), "{error}");
    }

    #[test_case("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "the private key is encrypted"; "as PKCS 8 has it")]
    #[test_case("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA \
        PRIVATE KEY-----\n", "the private key is encrypted"; "as OpenSSL had it")]
    #[test_case("hunter2", "holds no private key in PEM"; "no PEM")]
    fn what_is_wrong_with_a_key_is_said_without_a_byte_of_it(key: &str, expected: &str) {
        let error = check(pair().0.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn line_ends_of_windows_and_text_around_are_no_part_of_a_pair() {
        let (certificate, key) = pair();
        let crlf = |pem: &str| format!("Bag Attributes\r\n{}\r\n", pem.replace('\n', "\r\n"));
        assert!(check(crlf(&certificate).as_bytes(), crlf(&key).as_bytes()).is_ok());
    }

    /// A certificate with its key on a curve that TLS does not use.
    const OTHER_CURVE: (&str, &str) = (
        "-----BEGIN CERTIFICATE-----
MIIBgDCCASagAwIBAgIUWesO5is+fw3HZgCCO+LimY+wHSEwCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDaHViMCAXDTI2MTEyOTE5MzQzN1oYDzIxMjYxMTA1MTkzNDM3
WjAOMQwwCgYDVQQDDANodWIwVjAQBgcqhkjOPQIBBgUrgQQACgNCAARA51K2mdAV
/kLBEOq0dov2kNPyD/qyL/BnLw7Ggr96In50MESAsniwS9R+VMniR5UofV+5kw4/
VNTTQMPWy6C9o2MwYTAdBgNVHQ4EFgQUBcSZ8CvZqPcxX6HaOm8haLhMEMAwHwYD
VR0jBBgwFoAUBcSZ8CvZqPcxX6HaOm8haLhMEMAwDwYDVR0TAQH/BAUwAwEB/zAO
BgNVHREEBzAFggNodWIwCgYIKoZIzj0EAwIDSAAwRQIhAKh1x0ab1c8QeHFSQaBb
7lry1qlg8NjbA1qzivmWrVBMAiBN5Xofse6m8kvvnYYbdU37VViRUSMVeZBMWkwS
zBk3QA==
-----END CERTIFICATE-----
",
        "-----BEGIN EC PRIVATE KEY-----
MHQCAQEEICJsibBkEQhSLR8q1YC+GGGJejlPg13UeoeusVOZgX7goAcGBSuBBAAK
oUQDQgAEQOdStpnQFf5CwRDqtHaL9pDT8g/6si/wZy8OxoK/eiJ+dDBEgLJ4sEvU
flTJ4keVKH1fuZMOP1TU00DD1sugvQ==
-----END EC PRIVATE KEY-----
",
    );
}
