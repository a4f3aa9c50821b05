//! Password checks: which ones are remembered, and what each costs.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use super::queue::LoginQueue;
use super::users::{HtpasswdEntry, HtpasswdUsers};
use crate::client_address::ClientAddress;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::pull::SingleFlight;
use crate::tls;

/// The lifetime of a remembered login that was right: bcrypt costs tens of milliseconds of CPU on purpose.
const ACCEPTED: Duration = Duration::from_mins(1);
/// The lifetime of a remembered login that was wrong.
const REFUSED: Duration = Duration::from_secs(10);
/// Remembered logins of each kind; wrong ones never displace right ones.
const MAX_REMEMBERED: u64 = 10_000;
/// Salt and hash of a bcrypt line that no user has.
const DUMMY: &str = "CwTycUXWue0Thq9StjUM0uJ8.Ln6PrmVYhSEV1gJOtMdCxJ.9p7Jm";

/// The result of a password check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoginVerdict {
    /// User name and password are those of a listed user.
    Right,
    /// They are not.
    Wrong,
    /// Too many logins wait for their check.
    Busy,
}

/// A user name and a password as a client sent them.
pub(super) struct Login {
    pub(super) name: String,
    pub(super) password: String,
}

/// The password checks of a server.
pub(super) struct PasswordChecks {
    /// A hash that has absorbed a random key: what it makes of a login is of no use outside of this process.
    keyed: Hasher,
    accepted: Cache<Digest, ()>,
    refused: Cache<Digest, ()>,
    queue: LoginQueue,
    /// By client as well: a login that waits behind the guesses of one address delays the same login of no other.
    running: SingleFlight<(Digest, ClientAddress), LoginVerdict>,
}

impl PasswordChecks {
    /// Returns checks that remember nothing yet.
    pub(super) fn new() -> Self {
        let mut key = [0; 64];
        let keyed = tls::provider().secure_random.fill(&mut key).is_ok();
        // Without a secret key nothing is remembered.
        let remembered = if keyed { MAX_REMEMBERED } else { 0 };
        let cache = |lifetime| {
            let builder = Cache::builder().max_capacity(remembered);
            builder.time_to_live(lifetime).build()
        };
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&key);
        Self {
            keyed: hasher,
            accepted: cache(ACCEPTED),
            refused: cache(REFUSED),
            queue: LoginQueue::new(),
            running: SingleFlight::default(),
        }
    }

    /// Checks a login of `client` (`address:port`). Concurrent checks of one login of one address are one, and a check
    /// continues without its client: a client that closes its connection gains no further check by that.
    pub(super) async fn check(
        self: &Arc<Self>,
        login: Login,
        users: &HtpasswdUsers,
        client: &Arc<str>,
    ) -> LoginVerdict {
        let task = PasswordCheck::new(login, users);
        let key = self.key(&task);
        if self.accepted.contains_key(&key) {
            return LoginVerdict::Right;
        }
        if self.refused.contains_key(&key) {
            return LoginVerdict::Wrong;
        }
        let by_client = (key.clone(), ClientAddress::from_peer(client));
        let (checks, client) = (Arc::clone(self), Arc::clone(client));
        let (waiting, _) = self.running.join(&by_client, || checks.run(key, task, client));
        waiting.await.unwrap_or(LoginVerdict::Busy)
    }

    async fn run(self: Arc<Self>, key: Digest, task: PasswordCheck, client: Arc<str>) -> LoginVerdict {
        let Some(permit) = self.queue.admit(&client).await else {
            return LoginVerdict::Busy;
        };
        // Another address may have logged in meanwhile.
        if self.accepted.contains_key(&key) {
            return LoginVerdict::Right;
        }
        let checked = tokio::task::spawn_blocking(move || {
            // Held until the hash ends, whatever becomes of the request.
            let _permit = permit;
            if task.is_right() {
                self.accepted.insert(key, ());
                LoginVerdict::Right
            } else {
                self.refused.insert(key, ());
                LoginVerdict::Wrong
            }
        });
        checked.await.unwrap_or(LoginVerdict::Busy)
    }

    /// Returns the name that a login is remembered by: a digest with a random key. The hash in the users' file is part
    /// of it, so an edited line is another login.
    fn key(&self, task: &PasswordCheck) -> Digest {
        let mut hasher = self.keyed.clone();
        for part in [&task.hash, ":", &task.login.name, ":", &task.login.password] {
            hasher.update(part.as_bytes());
        }
        hasher.finish()
    }
}

/// One password check.
struct PasswordCheck {
    login: Login,
    /// The user's line, or a dummy where the user is unknown.
    hash: Box<str>,
    is_known: bool,
    cost: u32,
    highest_cost: u32,
}

impl PasswordCheck {
    fn new(login: Login, users: &HtpasswdUsers) -> Self {
        let (entry, highest_cost) = (users.get(&login.name), users.highest_cost());
        let (hash, cost) = match entry {
            Some(HtpasswdEntry { hash, cost }) => (hash.clone(), *cost),
            None => (dummy(highest_cost), highest_cost),
        };
        Self {
            login,
            hash,
            is_known: entry.is_some(),
            cost,
            highest_cost,
        }
    }

    /// Compares the password.
    fn is_right(&self) -> bool {
        self.is_right_by(|hash| bcrypt::verify(&self.login.password, hash).unwrap_or(false))
    }

    /// Compares the password by `verify`, which is given the lines to compare with. A wrong login takes as long as the
    /// costliest line of the file, whether its user is unknown, or known with a line of lower cost: costs are powers of
    /// two, and 2^c + 2^c + 2^(c+1) + ... + 2^(h-1) is 2^h.
    fn is_right_by(&self, mut verify: impl FnMut(&str) -> bool) -> bool {
        let is_right = verify(&self.hash) && self.is_known;
        if !is_right {
            for cost in self.cost..self.highest_cost {
                // No user has this hash: only its time counts.
                let _ = verify(&dummy(cost));
            }
        }
        is_right
    }
}

fn dummy(cost: u32) -> Box<str> {
    format!("$2y${cost:02}${DUMMY}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(lines: &[(&str, u32)]) -> HtpasswdUsers {
        let line = |(name, cost): &(&str, u32)| format!("{name}:{}\n", bcrypt::hash("right", *cost).unwrap());
        HtpasswdUsers::parse(&lines.iter().map(line).collect::<String>())
    }

    fn login(name: &str, password: &str) -> Login {
        Login {
            name: name.to_owned(),
            password: password.to_owned(),
        }
    }

    /// Returns the rounds of bcrypt that a wrong login of a user takes.
    fn rounds_of_refusal(users: &HtpasswdUsers, name: &str) -> u64 {
        let mut rounds = 0;
        let task = PasswordCheck::new(login(name, "wrong"), users);
        assert!(!task.is_right_by(|line| {
            let cost: u32 = line.split('$').nth(2).unwrap().parse().unwrap();
            rounds += 1_u64 << cost;
            bcrypt::verify("wrong", line).unwrap()
        }));
        rounds
    }

    /// Response times do not name users: wrong logins of an unknown user, and of users of any cost, take as many rounds.
    #[test]
    fn wrong_logins_take_as_long_for_every_user() {
        let users = listed(&[("low", 4), ("middle", 6), ("high", 8)]);
        let rounds = ["low", "middle", "high", "unknown"].map(|name| rounds_of_refusal(&users, name));
        assert_eq!(rounds, [1 << 8; 4]);
    }

    /// The dummy is a line that can be compared with: otherwise the comparison would end at once.
    #[test]
    fn dummy_is_a_bcrypt_line_of_each_cost() {
        for cost in 4..6 {
            assert_eq!(bcrypt::verify("anything", &dummy(cost)).ok(), Some(false));
        }
    }

    #[tokio::test]
    async fn refused_login_is_remembered_and_named_by_no_password() {
        let (checks, users) = (Arc::new(PasswordChecks::new()), listed(&[("ann", 4)]));
        let client = Arc::from("192.0.2.1:1");
        for _ in 0..2 {
            let verdict = checks.check(login("ann", "wrong"), &users, &client).await;
            assert_eq!(verdict, LoginVerdict::Wrong);
        }
        checks.refused.run_pending_tasks();
        assert_eq!(checks.refused.entry_count(), 1);
        // The same login has another name in another process.
        let task = PasswordCheck::new(login("ann", "wrong"), &users);
        assert_ne!(checks.key(&task), PasswordChecks::new().key(&task));
        let right = checks.check(login("ann", "right"), &users, &client).await;
        assert_eq!(right, LoginVerdict::Right);
    }

    /// Connections that close at once run no more checks than one that stays.
    #[tokio::test]
    async fn checks_of_clients_that_left_are_bounded() {
        let (checks, users) = (Arc::new(PasswordChecks::new()), listed(&[("ann", 4)]));
        let client = Arc::from("192.0.2.1:1");
        for number in 0..200 {
            let password = number.to_string();
            let check = checks.check(login("ann", &password), &users, &client);
            // Polled once, and dropped.
            drop(futures::future::select(Box::pin(check), std::future::ready(())).await);
        }
        let busy = checks.check(login("ann", "last"), &users, &client).await;
        assert_eq!(busy, LoginVerdict::Busy);
    }

    /// A login that waits behind the guesses of one address is refused there only: the same login of another address has
    /// a check of its own.
    #[tokio::test]
    async fn login_joins_no_check_of_another_address() {
        let (checks, users) = (Arc::new(PasswordChecks::new()), listed(&[("ann", 4)]));
        let (crowded, other): (Arc<str>, Arc<str>) = ("192.0.2.1:1".into(), "192.0.2.2:1".into());
        for number in 0..200 {
            let password = number.to_string();
            let check = checks.check(login("ann", &password), &users, &crowded);
            // Polled once, and dropped.
            drop(futures::future::select(Box::pin(check), std::future::ready(())).await);
        }
        let same = || login("ann", "right");
        let verdicts = tokio::join!(
            checks.check(same(), &users, &crowded),
            checks.check(same(), &users, &other)
        );
        assert_eq!(verdicts, (LoginVerdict::Busy, LoginVerdict::Right));
    }
}
