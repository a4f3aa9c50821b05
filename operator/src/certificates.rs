//! The certificates that the operator issues: with `tls.mode: SelfSigned` the one that servers present to clients, and with
//! any TLS the one that the servers of a mirror present to each other.
//!
//! A mirror has a CA, valid for three years, and certificates of it, valid for 90 days. In the first third of its
//! lifetime clients learn to trust the CA, in the second it signs, and in the last clients still trust it. So the next CA is
//! created a year before it signs, and a client with a bundle of the last year verifies every certificate.
//!
//! Validities and the time alone decide on each step. The operator generates keys only for what it creates and keeps valid
//! files byte by byte, so that a reconcile without a due step writes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use crds::{RegistryMirror, tls::TlsMode};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::{
    dereference::References,
    names,
    observed::Observed,
    validate::{Accepted, Serving, serving},
};

mod authority;
mod leaf;
pub mod peers;
mod rotation;
mod state;
mod x509;

use authority::CertificateAuthority;
use leaf::{Leaf, LeafUse};
use rotation::CaRotation;
use state::CaState;

/// The lifetimes of certificates.
#[derive(Clone, Copy, Debug)]
pub struct CertificateLifetimes {
    /// The lifetime of a CA.
    pub ca: Duration,
    /// The lifetime of a serving certificate; at most a quarter of the CA's, so that it never outlives its CA.
    pub serving: Duration,
}

impl Default for CertificateLifetimes {
    fn default() -> Self {
        Self {
            ca: Duration::from_hours(3 * 365 * 24),
            serving: Duration::from_hours(90 * 24),
        }
    }
}

/// A failure to create a certificate: a defect, or a system without random numbers.
#[derive(Debug, thiserror::Error)]
#[error("certificate not created: {0}")]
pub struct CertificateError(#[from] rcgen::Error);

/// The content of a Secret, by key.
pub type SecretFiles = BTreeMap<String, Vec<u8>>;

/// The certificates of a mirror, as far as they are renewed.
#[derive(Default)]
pub struct IssuedCertificates {
    /// The certificate that servers present to clients.
    pub serving: Option<Serving>,
    /// The content of the Secret that the servers share, if it has a certificate.
    pub peers: Option<SecretFiles>,
    /// The content of the Secret with the CA, for the operator alone.
    pub ca: Option<SecretFiles>,
}

/// Returns whether the operator issues a mirror's certificates.
pub fn is_self_signed(mirror: &RegistryMirror) -> bool {
    mirror.spec.tls.mode == TlsMode::SelfSigned
}

/// Returns whether a mirror has a CA of its own.
pub fn has_ca(mirror: &RegistryMirror) -> bool {
    is_self_signed(mirror) || peers::has_certificate(mirror)
}

/// Returns the names of a mirror in its certificate: those of its Services, and the addresses that the cluster gave them.
pub fn subject_names(mirror: &RegistryMirror, observed: &Observed) -> BTreeSet<String> {
    let (name, namespace) = (mirror.name_any(), mirror.namespace().unwrap_or_default());
    let headless = names::headless(&name);
    let services = [name.clone(), headless.clone(), format!("*.{headless}")];
    let qualified = services.iter().flat_map(|service| {
        ["svc", "svc.cluster.local"].map(|domain| format!("{service}.{namespace}.{domain}"))
    });
    let short = [name.clone(), format!("{name}.{namespace}")];
    let addresses = observed.service_names.iter().map(|name| canonical(name));
    qualified.chain(short).chain(addresses).collect()
}

/// Returns a name in the form of a parsed certificate: an IPv6 address has several spellings.
fn canonical(name: &str) -> String {
    name.parse::<IpAddr>()
        .map_or_else(|_| name.to_lowercase(), |address| address.to_string())
}

/// Sets the certificates of an accepted mirror that the operator issues: for clients by its spec, and for the servers among
/// them if they have a secret. Certificates that are valid at that time and name exactly `names` stay.
///
/// # Errors
/// A certificate could not be created.
pub fn ensure(
    accepted: &mut Accepted<'_>,
    references: &References,
    names: &BTreeSet<String>,
    at: Timestamp,
    lifetimes: &CertificateLifetimes,
) -> Result<(), CertificateError> {
    let mirror = accepted.mirror;
    let is_shared = accepted.peers.is_some() && peers::has_certificate(mirror);
    if !(is_self_signed(mirror) || is_shared) {
        return Ok(());
    }
    let mut state = CaState::load(mirror, references, at.as_second());
    let mut issuer = CaIssuer::new(&mut state, at, lifetimes)?;
    if is_self_signed(mirror) {
        accepted.serving = Some(issuer.serving(names)?);
    }
    if let Some(files) = accepted.peers.as_mut().filter(|_| is_shared) {
        let stored = references.peers.as_ref();
        files.extend(issuer.peers(mirror, stored.map(|stored| &stored.data))?);
    }
    if let Some(serving) = &mut accepted.serving {
        serving.changes = serving.changes.min(issuer.changes);
    }
    accepted.ca = Some(issuer.to_secret());
    Ok(())
}

/// Returns the certificates of a mirror whose spec was rejected and whose servers present a certificate of the operator;
/// `None` if they have them already, or have none of the operator.
///
/// # Errors
/// A certificate could not be created.
pub fn renewal(
    mirror: &RegistryMirror,
    references: &References,
    names: &BTreeSet<String>,
    at: Timestamp,
    lifetimes: &CertificateLifetimes,
) -> Result<Option<IssuedCertificates>, CertificateError> {
    let mut state = CaState::load(mirror, references, at.as_second());
    let shared = references
        .peers
        .as_ref()
        .filter(|shared| peers::is_held(&shared.data));
    let serves = state.is_serving();
    if !serves && (shared.is_none() || state.current.is_none()) {
        return Ok(None);
    }
    let mut issuer = CaIssuer::new(&mut state, at, lifetimes)?;
    let serving = serves.then(|| issuer.serving(names)).transpose()?;
    let peers = match shared {
        Some(shared) => {
            let renewed = issuer.peers(mirror, Some(&shared.data))?;
            let files = shared.data.clone().into_iter().chain(renewed);
            Some(files.collect::<SecretFiles>())
        }
        None => None,
    };
    let ca = issuer.to_secret();
    let files = references.files.as_ref();
    let is_served = serving
        .as_ref()
        .is_none_or(|serving| files.is_some_and(|files| is_served(serving, &files.data)));
    let is_shared = peers.as_ref() == shared.map(|shared| &shared.data);
    let is_stored = references.ca.as_ref().is_some_and(|stored| stored.data == ca);
    let is_current = is_served && is_shared && is_stored;
    let ca = Some(ca);
    Ok((!is_current).then_some(IssuedCertificates { serving, peers, ca }))
}

/// Returns whether servers have exactly this certificate.
fn is_served(serving: &Serving, files: &SecretFiles) -> bool {
    let [certificate, key, ca] = serving::FILES;
    let mut wanted = [
        (certificate, Some(&serving.certificate)),
        (key, Some(&serving.key)),
        (ca, serving.ca.as_ref()),
    ]
    .into_iter();
    wanted.all(|(file, content)| files.get(file) == content)
}

/// The CA that signs now, and what it issued.
struct CaIssuer<'a> {
    state: &'a mut CaState,
    ca: CertificateAuthority,
    now: i64,
    lifetimes: &'a CertificateLifetimes,
    /// The time of the next change of any certificate, in seconds since 1970.
    changes: i64,
}

impl<'a> CaIssuer<'a> {
    /// Performs the rotation steps that are due.
    fn new(
        state: &'a mut CaState,
        at: Timestamp,
        lifetimes: &'a CertificateLifetimes,
    ) -> Result<Self, CertificateError> {
        let now = at.as_second();
        let ca = rotate(state, now, lifetimes)?;
        Ok(Self {
            state,
            ca,
            now,
            lifetimes,
            changes: i64::MAX,
        })
    }

    /// Returns the stored certificate if it can stay, else another one.
    fn leaf(
        &mut self,
        stored: Option<Leaf>,
        names: &BTreeSet<String>,
        usage: LeafUse,
    ) -> Result<Leaf, CertificateError> {
        let is_trusted = |issuer: &[u8]| self.state.is_trusted(issuer, &self.ca);
        let stays = |leaf: &Leaf| !rotation::is_due(leaf.state(names, is_trusted), self.now);
        let leaf = match stored.filter(stays) {
            Some(leaf) => leaf,
            None => self.ca.issue(names, usage, self.now, self.lifetimes)?,
        };
        self.changes = self.changes.min(rotation::next_change(
            self.ca.validity(),
            self.state.next_validity(),
            leaf.validity(),
            self.state.retired_ends(),
            self.lifetimes,
        ));
        Ok(leaf)
    }

    /// Returns the certificate that servers present to clients.
    fn serving(&mut self, names: &BTreeSet<String>) -> Result<Serving, CertificateError> {
        let stored = self.state.leaf.take();
        let leaf = self.leaf(stored, names, LeafUse::Serving)?;
        Ok(Serving {
            certificate: leaf.to_pem().into_bytes(),
            key: leaf.key.clone(),
            ca: Some(self.state.bundle(&self.ca).into_bytes()),
            validity: leaf.validity(),
            changes: self.changes,
            problem: None,
        })
    }

    /// Returns the files of the certificate that servers present to each other.
    fn peers(
        &mut self,
        mirror: &RegistryMirror,
        stored: Option<&SecretFiles>,
    ) -> Result<SecretFiles, CertificateError> {
        let stored = stored.and_then(|files| Leaf::load(files, peers::FILES));
        let leaf = self.leaf(stored, &peers::names(mirror), LeafUse::Peers)?;
        Ok(peers::files(&leaf, self.state.bundle(&self.ca)))
    }

    /// Returns the content of the Secret with the CA.
    fn to_secret(&self) -> SecretFiles {
        self.state.to_secret(&self.ca, self.state.bundle(&self.ca))
    }
}

/// Performs the rotation steps that are due, and returns the CA that signs.
fn rotate(
    state: &mut CaState,
    now: i64,
    lifetimes: &CertificateLifetimes,
) -> Result<CertificateAuthority, CertificateError> {
    let mut current = state.current.take();
    loop {
        let validity = current.as_ref().map(CertificateAuthority::validity);
        let step = rotation::due_step(validity, state.next_validity(), now, lifetimes);
        current = match (step, current) {
            (CaRotation::Keep, Some(current)) => return Ok(current),
            (CaRotation::Stage, Some(current)) => {
                state.next = Some(CertificateAuthority::create(&state.owner, now, lifetimes)?);
                Some(current)
            }
            (CaRotation::Promote, current) => {
                state.retired.extend(current.map(CertificateAuthority::retire));
                state.next.take()
            }
            (CaRotation::Create | CaRotation::Keep | CaRotation::Stage, _) => {
                return CertificateAuthority::create(&state.owner, now, lifetimes);
            }
        };
    }
}
