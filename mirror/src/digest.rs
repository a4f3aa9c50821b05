//! Content digests (image-spec, "Digests"): `sha256:<64 hex>` and `sha512:<128 hex>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256, Sha512};

/// The hash functions that a registry may name its content by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, what practically all content is named by.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Returns the name before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A valid digest; cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    text: Arc<str>,
}

/// The text is no digest of an algorithm that we know.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a digest: expected sha256:<64 lower-case hex> or sha512:<128 lower-case hex>")]
pub struct InvalidDigest;

impl Digest {
    /// Hashes these bytes.
    pub fn compute(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Returns the hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the part after the colon.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.as_str().len() + 1..]
    }

    /// Returns the whole digest, as in `Docker-Content-Digest`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Bytes with their digest, so that later steps need not hash them again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    digest: Digest,
    bytes: Bytes,
}

impl Hashed {
    /// Hashes these bytes.
    pub fn compute(algorithm: Algorithm, bytes: Bytes) -> Self {
        let digest = Digest::compute(algorithm, &bytes);
        Self { digest, bytes }
    }

    /// Hashes bytes and compares their digest with the expected one.
    ///
    /// # Errors
    /// The actual digest, if it differs.
    pub fn checked(digest: &Digest, bytes: Bytes) -> Result<Self, Digest> {
        let hashed = Self::compute(digest.algorithm(), bytes);
        if hashed.digest == *digest {
            Ok(hashed)
        } else {
            Err(hashed.digest)
        }
    }

    /// Returns the digest of the bytes.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (name, hex) = text.split_once(':').ok_or(InvalidDigest)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(InvalidDigest),
        };
        let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(lower_hex) {
            return Err(InvalidDigest);
        }
        Ok(Self {
            algorithm,
            text: text.into(),
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A hasher for content that passes by in parts. A clone continues from the bytes hashed so far.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Creates a hasher.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(h) => h.update(bytes),
            State::Sha512(h) => h.update(bytes),
        }
    }

    /// Returns the digest of all bytes.
    pub fn finish(self) -> Digest {
        let (algorithm, hex) = match self.0 {
            State::Sha256(h) => (Algorithm::Sha256, hex::encode(h.finalize())),
            State::Sha512(h) => (Algorithm::Sha512, hex::encode(h.finalize())),
        };
        Digest {
            algorithm,
            text: format!("{}:{hex}", algorithm.as_str()).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" => true)]
    #[test_case("sha256:E3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" => false; "upper case")]
    #[test_case("sha256:e3b0" => false; "too short")]
    #[test_case("sha256" => false; "no colon")]
    #[test_case("md5:d41d8cd98f00b204e9800998ecf8427e" => false; "unknown algorithm")]
    #[test_case("" => false; "empty")]
    fn parses(text: &str) -> bool {
        text.parse::<Digest>().is_ok()
    }

    proptest! {
        /// A digest that is computed parses back to the same digest.
        #[test]
        fn computed_digest_parses_back(bytes: Vec<u8>, long: bool) {
            let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let digest = Digest::compute(algorithm, &bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest.clone());
            prop_assert_eq!(format!("{}:{}", algorithm.as_str(), digest.hex()), digest.as_str());
        }

        /// Bytes are accepted under their own digest only, and the error gives the digest found.
        #[test]
        fn bytes_are_accepted_by_own_digest_only(bytes: Vec<u8>, other: Vec<u8>) {
            let digest = Digest::compute(Algorithm::Sha512, &bytes);
            let taken = Hashed::checked(&digest, bytes.clone().into()).unwrap();
            prop_assert_eq!((taken.digest(), &taken.bytes()[..]), (&digest, &bytes[..]));
            let found = Digest::compute(Algorithm::Sha512, &other);
            prop_assert_eq!(Hashed::checked(&digest, other.clone().into()).is_ok(), other == bytes);
            if other != bytes {
                prop_assert_eq!(Hashed::checked(&digest, other.into()), Err(found));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<Digest>();
        }
    }
}
