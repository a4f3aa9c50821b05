//! Reads the htpasswd file.

use bcrypt::HashParts;
use crds::{RegistryMirror, access::AccessMode, conditions::Reason};
use mirror::http::MAX_BCRYPT_COST;

use super::Rejection;
use crate::dereference::{Reference, References};

/// The name of the file in the servers' directory.
pub const FILE: &str = "htpasswd";

/// Returns the htpasswd file, if clients need a password.
///
/// # Errors
/// `ReferenceNotFound` and `ReferenceMalformed`: a missing file never opens the mirror, and servers keep the present
/// one.
pub fn resolve(mirror: &RegistryMirror, references: &References) -> Result<Option<Vec<u8>>, Rejection> {
    if mirror.spec.access.mode == AccessMode::Anonymous {
        return Ok(None);
    }
    let at = |rejection: Rejection| rejection.below("spec.access.htpasswdSecretRef");
    let Some(reference) = &mirror.spec.access.htpasswd_secret_ref else {
        return Err(Rejection::invalid(
            "spec.access.htpasswdSecretRef is missing: name the Secret of the htpasswd file".to_owned(),
        ));
    };
    super::not_the_operators(mirror, &reference.name, references).map_err(at)?;
    let (name, key) = (&reference.name, &reference.key);
    let secret = Reference::secret(name);
    let contents = references.get(&secret).ok_or_else(|| Rejection {
        reason: Reason::ReferenceNotFound,
        message: references.not_found(
            &secret,
            &format!("the key {key}"),
            "spec.access.htpasswdSecretRef.name",
        ),
    })?;
    let malformed = |message: String| {
        at(Rejection {
            reason: Reason::ReferenceMalformed,
            message,
        })
    };
    let file = contents.get(key).ok_or_else(|| {
        malformed(format!(
            "Secret {name} has no key {key}: add it, or correct spec.access.htpasswdSecretRef.key"
        ))
    })?;
    check(file).map_err(|what| malformed(format!("Secret {name}, key {key}: {what}")))?;
    Ok(Some(file.to_vec()))
}

/// Checks each line. Messages contain line numbers only, because a line may be a password.
fn check(file: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(file).map_err(|_| "is not UTF-8".to_owned())?;
    let lines = text.lines().map(str::trim).enumerate();
    let mut users = lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .peekable();
    if users.peek().is_none() {
        return Err("lists no user; htpasswd -nB NAME prints a line for one".to_owned());
    }
    for (index, line) in users {
        let number = index + 1;
        let cost = line.split_once(':').filter(|(name, _)| !name.is_empty());
        let cost = cost.and_then(|(_, hash)| hash.parse::<HashParts>().ok());
        match cost.map(|parts| parts.get_cost()) {
            Some(..=MAX_BCRYPT_COST) => {}
            Some(cost) => {
                return Err(format!(
                    "line {number} has a bcrypt hash of cost {cost}, and the highest cost is {MAX_BCRYPT_COST}; \
                     htpasswd -nB -C 10 NAME prints a line for its user"
                ));
            }
            None => {
                return Err(format!(
                    "line {number} is not a user name, a colon and a bcrypt hash; htpasswd -nB NAME prints one"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const HASH: &str = "$2y$10$CwTycUXWue0Thq9StjUM0uJ8.Ln6PrmVYhSEV1gJOtMdCxJ.9p7Jm";

    /// Users with bcrypt hashes are accepted.
    #[test]
    fn bcrypt_users_are_accepted() {
        assert_eq!(
            check(format!("# people\n\nann:{HASH}\nbob:{HASH}\n").as_bytes()),
            Ok(())
        );
    }

    #[test]
    fn crlf_is_not_part_of_a_hash() {
        assert_eq!(
            check(format!("ann:{HASH}\r\n\r\nbob:{HASH}\r\n").as_bytes()),
            Ok(())
        );
    }

    #[test]
    fn bcrypt_cost_above_the_highest_is_refused() {
        let line = |cost| format!("ann:{HASH}\nbob:{}\n", HASH.replace("$10$", cost));
        assert_eq!(check(line("$14$").as_bytes()), Ok(()));
        for cost in ["$15$", "$31$"] {
            let error = check(line(cost).as_bytes()).unwrap_err();
            assert!(
                error.contains("line 2") && error.contains("highest cost is 14"),
                "{error}"
            );
            assert!(!error.contains("CwTy"), "{error}");
        }
    }

    /// Any other file is refused, and the error contains nothing of it.
    #[test_case("", "lists no user"; "an empty file")]
    #[test_case("# none\n", "lists no user"; "comments only")]
    #[test_case("ann:hunter2\n", "line 1"; "a password in clear text")]
    #[test_case("ann:{SHA}hunter2\n", "line 1"; "another hash")]
    #[test_case("\nhunter2\n", "line 2"; "no colon")]
    #[test_case("\u{0}hunter2", "line 1"; "a zero")]
    fn other_htpasswd_is_refused_without_content(file: &str, expected: &str) {
        let error = check(file.as_bytes()).unwrap_err();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    }
}
