//! A real registry to pull from, Debian's docker-registry, behind a gate that counts requests, can demand tokens, and
//! can go down and come back.

mod counts;
mod gate;
mod registry;
mod tokens;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

pub use self::counts::Counts;

use self::gate::Gate;
use self::registry::Registry;
use self::tokens::Tokens;
use crate::image::Layout;
use crate::pki::Leaf;
use crate::process::free_ports;
use crate::scratch::Scratch;
use crate::skopeo;
use crate::wait::{self, TimedOut};

/// The longest wait for the registry's first answer; it takes well below a second.
const READY: Duration = Duration::from_secs(30);
/// The number of tries with another port after another process has taken the port.
const ATTEMPTS: usize = 5;

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

/// Why there is no upstream.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("docker-registry is missing: run tests/cluster/packages")]
    NotInstalled,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{source}; the end of its log:\n{log}")]
    NotReady { source: TimedOut, log: String },
    #[error("docker-registry ended while it was starting; the end of its log:\n{0}")]
    Died(String),
    #[error("can't make a password file: {0}")]
    Password(#[from] bcrypt::BcryptError),
    #[error("can't serve TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Skopeo(#[from] skopeo::Error),
}

/// A registry that runs until it is dropped. It may be shared by tests: nothing of it lives in their runtimes.
pub struct Upstream {
    // In this order: the gate ends before what it leads to, and the files go last.
    gate: Gate,
    registry: Registry,
    options: Options,
    _scratch: Scratch,
}

impl Upstream {
    /// Starts one on free ports.
    pub async fn start(options: Options) -> Result<Self, Error> {
        crate::install_crypto_provider();
        let scratch = Scratch::new("upstream")?;
        let registry = started_registry(&scratch, &options).await?;
        let tokens = match options.access {
            Some(Access::Bearer(lifetime)) => Some(Tokens::new(lifetime, &options.users)),
            _ => None,
        };
        let gate = Gate::open(registry.url(), tokens, options.tls.as_ref())?;
        Ok(Self {
            gate,
            registry,
            options,
            _scratch: scratch,
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
        self.registry.set_users(&self.options.users)
    }

    /// Copies an image with all its platforms into the registry, past the gate.
    pub async fn push(&self, layout: &Layout, tag: &str, name: &str) -> Result<(), Error> {
        let to = skopeo::Registry {
            address: self.registry.address(),
            user: self.registry_user(),
            tls: false,
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
            tls: self.options.tls.is_some(),
        };
        Ok(skopeo::pull(&from, name, directory).await?)
    }

    /// Returns the user of docker-registry, which asks for a password only if the gate does not ask for a token.
    fn registry_user(&self) -> Option<(String, String)> {
        let basic = self.options.access == Some(Access::Basic);
        self.options.users.first().filter(|_| basic).cloned()
    }
}

async fn started_registry(scratch: &Scratch, options: &Options) -> Result<Registry, Error> {
    let users = (options.access == Some(Access::Basic)).then_some(&options.users[..]);
    let mut attempt = 1;
    loop {
        let [port] = free_ports()?;
        let mut registry = Registry::spawn(scratch, port, users)?;
        let answers = async || {
            let listens = tokio::net::TcpStream::connect(registry.address()).await.is_ok();
            listens.then_some(())
        };
        let ready = wait::until("answer from docker-registry", READY, answers).await;
        match (ready, registry.died()) {
            (Ok(()), None) => return Ok(registry),
            (_, Some(log)) if log.contains("address already in use") && attempt < ATTEMPTS => attempt += 1,
            (_, Some(log)) => return Err(Error::Died(log)),
            (Err(source), None) => {
                return Err(Error::NotReady {
                    source,
                    log: registry.log_tail(),
                });
            }
        }
    }
}
