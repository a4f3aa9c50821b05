//! A real registry to pull from, Debian's docker-registry, behind a gate that counts requests, can demand tokens, and
//! can go down and come back.

mod counts;
mod gate;
mod tokens;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

pub use self::counts::Counts;

use self::gate::Gate;
use self::tokens::Tokens;
use crate::image::Layout;
use crate::pki::Leaf;
use crate::registry::{self, Kind, Registry};
use crate::skopeo;

/// The access control of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// All clients may pull.
    Anonymous,
    /// Clients send a user name and password with each request.
    Basic,
    /// Clients get a token from the gate's `/token` for a user name and password; it lasts this long.
    Bearer(Duration),
}

/// A user name with its password.
pub type User<'a> = (&'a str, &'a str);

/// The options of an upstream.
#[derive(Clone, Default)]
pub struct Options {
    /// `None` is [`Access::Anonymous`].
    pub access: Option<Access>,
    /// The known users, unless access is anonymous.
    pub users: Vec<(String, String)>,
    /// Serves TLS with this certificate.
    pub tls: Option<Leaf>,
}

impl Options {
    /// Returns options with one user, who must send the password in this way.
    pub fn protected(access: Access, (user, password): User<'_>) -> Self {
        Self {
            access: Some(access),
            users: vec![(user.to_owned(), password.to_owned())],
            tls: None,
        }
    }

    /// Serves TLS.
    #[must_use]
    pub fn tls(mut self, leaf: Leaf) -> Self {
        self.tls = Some(leaf);
        self
    }
}

/// The reason why there is no upstream.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("can't serve TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Skopeo(#[from] skopeo::Error),
}

/// A registry that runs until it is dropped. It may be shared by tests: nothing of it lives in their runtimes.
pub struct Upstream {
    // In this order: the gate ends before the registry.
    gate: Gate,
    registry: Registry,
    options: Options,
}

impl Upstream {
    /// Starts one on free ports.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let users = (options.access == Some(Access::Basic)).then_some(&options.users[..]);
        let registry = Registry::start_for(Kind::Distribution2, users).await?;
        let tokens = match options.access {
            Some(Access::Bearer(lifetime)) => Some(Tokens::new(lifetime, &options.users)),
            _ => None,
        };
        let gate = Gate::open(registry.url.clone(), tokens, options.tls.as_ref())?;
        Ok(Self {
            gate,
            registry,
            options,
        })
    }

    /// Returns the URL, `http://127.0.0.1:PORT` or with `https`.
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address())
    }

    /// Returns the address that the gate listens on.
    pub fn address(&self) -> SocketAddr {
        self.gate.address()
    }

    /// Returns the requests since the start or the last [`Upstream::reset_counts`], without the pushes of the test.
    pub fn counts(&self) -> Counts {
        self.gate.counts()
    }

    /// Counts from nothing again.
    pub fn reset_counts(&self) {
        self.gate.reset_counts();
    }

    /// Cuts every connection and refuses new ones.
    pub fn go_down(&mut self) {
        self.gate.close();
    }

    /// Answers every request with 429 and `Retry-After: 60`, until a call with `false`.
    pub fn limit_requests(&self, limit: bool) {
        self.gate.limit(limit);
    }

    /// Answers again, at the same address.
    pub fn come_back(&mut self) -> Result<(), Error> {
        Ok(self.gate.reopen()?)
    }

    /// Knows only these users from now on.
    pub fn set_users(&mut self, users: &[User<'_>]) -> Result<(), Error> {
        let owned = |(user, password): &User<'_>| ((*user).to_owned(), (*password).to_owned());
        self.options.users = users.iter().map(owned).collect();
        self.gate.set_users(&self.options.users);
        if self.options.access == Some(Access::Basic) {
            self.registry.set_users(&self.options.users)?;
        }
        Ok(())
    }

    /// Copies an image with all its platforms into the registry, past the gate.
    pub async fn push(&self, layout: &Layout, tag: &str, name: &str) -> Result<(), Error> {
        let to = skopeo::Registry {
            address: self.registry.address,
            user: self.registry_user(),
        };
        Ok(skopeo::push(layout.path(), tag, &to, name).await?)
    }

    /// Copies an image with all its platforms out of the registry, through the gate.
    pub async fn pull(&self, name: &str, directory: &Path) -> Result<(), Error> {
        let user = self
            .options
            .access
            .as_ref()
            .filter(|access| **access != Access::Anonymous);
        let from = skopeo::Registry {
            address: self.address(),
            user: user.and(self.options.users.first()).cloned(),
        };
        Ok(skopeo::pull(&from, name, directory).await?)
    }

    /// Returns the user of docker-registry, which asks for a password only if the gate does not ask for a token.
    fn registry_user(&self) -> Option<(String, String)> {
        let basic = self.options.access == Some(Access::Basic);
        self.options.users.first().filter(|_| basic).cloned()
    }
}
