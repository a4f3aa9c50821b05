//! Reads the serving certificate.

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
/// The key of the CA certificates that clients trust, as cert-manager writes it.
const AUTHORITY: &str = "ca.crt";
/// The files of certificate, key and CA certificates in the directory of servers.
pub const FILES: [&str; 3] = ["serving.crt", "serving.key", "serving-ca.crt"];

/// A serving certificate. Has no `Debug`: it holds a private key.
pub struct Serving {
    /// The chain, in PEM.
    pub certificate: Vec<u8>,
    /// Its key, in PEM.
    pub key: Vec<u8>,
    /// The CA certificates that clients trust, in PEM, if the Secret has them.
    pub ca: Option<Vec<u8>>,
    /// The validity.
    pub validity: Validity,
    /// The time of the next action or report, in seconds since 1970.
    pub changes: i64,
    /// The fault of the Secret, if servers keep the previous certificate.
    pub problem: Option<Problem>,
}

impl Serving {
    /// Returns the CA certificates that clients trust, as text.
    pub fn ca_text(&self) -> Option<String> {
        String::from_utf8(self.ca.clone()?).ok()
    }
}

/// Returns the certificate of the Secret that the spec names. If it has none, servers keep the present one.
///
/// # Errors
/// `SecretNotFound` and `Malformed`, if there is no present one: a server never starts without its certificate and never
/// serves clear text in its place.
pub fn resolve(mirror: &RegistryMirror, references: &References) -> Result<Option<Serving>, Rejection> {
    let name = match (mirror.spec.tls.mode, &mirror.spec.tls.secret_name) {
        // The operator issues its own certificates in a later step.
        (TlsMode::Disabled | TlsMode::SelfSigned, _) => return Ok(None),
        (TlsMode::Secret, Some(name)) => name,
        (TlsMode::Secret, None) => {
            return Err(Rejection::invalid(
                "spec.tls.secretName is missing: name the Secret of the certificate".to_owned(),
            ));
        }
    };
    super::not_the_operators(mirror, name, references).map_err(|rejection| rejection.below("spec.tls"))?;
    let problem = match read(name, references) {
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
        None if problem.reason == Reason::SecretNotFound => Err(Rejection {
            reason: problem.reason,
            message: problem.message,
        }),
        None => Err(Rejection {
            reason: problem.reason,
            message: format!("spec.tls.secretName: {}", problem.message),
        }),
    }
}

/// Reads the certificate in an admin's Secret.
///
/// # Errors
/// The fault of the Secret.
pub fn from_secret(name: &str, contents: &Contents) -> Result<Serving, Problem> {
    parse(name, contents, [CERTIFICATE, KEY, AUTHORITY])
}

fn read(name: &str, references: &References) -> Result<Serving, Problem> {
    let reference = Reference::secret(name);
    let contents = references.get(&reference).ok_or_else(|| {
        let keys = format!("the keys {CERTIFICATE} and {KEY}");
        Problem {
            reason: Reason::SecretNotFound,
            message: references.not_found(&reference, &keys, "spec.tls.secretName"),
        }
    })?;
    from_secret(name, contents)
}

/// Returns the validity of the certificate that servers have.
pub fn served_validity(files: &Contents) -> Option<Validity> {
    parse("", files, FILES).ok().map(|serving| serving.validity)
}

/// Parses a certificate. Messages never contain a value of the Secret.
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
        parse_x509_certificate(first).map_err(|_| "the first certificate is malformed".to_owned())?;
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
    fn pair_is_accepted_with_its_validity() {
        let (certificate, key) = pair();
        assert!(check(certificate.as_bytes(), key.as_bytes()).unwrap().not_after > 0);
    }

    /// Every usual kind of key is accepted.
    #[test_case(&rcgen::PKCS_ECDSA_P256_SHA256)]
    #[test_case(&rcgen::PKCS_ECDSA_P384_SHA384)]
    #[test_case(&rcgen::PKCS_ECDSA_P521_SHA512)]
    #[test_case(&rcgen::PKCS_ED25519)]
    #[test_case(&rcgen::PKCS_RSA_SHA512)]
    fn usual_kinds_of_keys_are_accepted(algorithm: &'static rcgen::SignatureAlgorithm) {
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
    fn mismatched_pair_is_refused_without_its_content() {
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
    fn chain_with_a_wrong_start_is_refused() {
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
    fn unusable_key_is_reported_without_its_content(key: &str, expected: &str) {
        let error = check(pair().0.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    }

    /// The line ends of Windows and text around PEM are ignored.
    #[test]
    fn crlf_and_text_around_pem_are_ignored() {
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
