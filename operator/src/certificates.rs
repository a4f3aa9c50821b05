//! The certificates that the operator issues for mirrors with `tls.mode: SelfSigned`.
//!
//! A mirror has a CA, valid for three years, and a serving certificate of it, valid for 90 days. In the first third of its
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
mod rotation;
mod state;
mod x509;

use authority::CertificateAuthority;
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

/// The certificates of a mirror.
pub struct IssuedCertificates {
    /// The certificate that servers present.
    pub serving: Serving,
    /// The content of the Secret with the CA, for the operator alone.
    pub ca: SecretFiles,
}

/// Returns whether the operator issues a mirror's certificates.
pub fn is_self_signed(mirror: &RegistryMirror) -> bool {
    mirror.spec.tls.mode == TlsMode::SelfSigned
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

/// Sets the certificates of an accepted mirror if the operator issues them. Certificates that are valid at that time and
/// name exactly `names` stay.
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
    if is_self_signed(accepted.mirror) {
        let state = CaState::load(accepted.mirror, references, at.as_second());
        let issued = issue(state, names, at, lifetimes)?;
        (accepted.serving, accepted.ca) = (Some(issued.serving), Some(issued.ca));
    }
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
    let state = CaState::load(mirror, references, at.as_second());
    if !state.is_serving() {
        return Ok(None);
    }
    let issued = issue(state, names, at, lifetimes)?;
    let [certificate, key, ca] = serving::FILES;
    let serving = &issued.serving;
    let wanted = [
        (certificate, Some(&serving.certificate)),
        (key, Some(&serving.key)),
        (ca, serving.ca.as_ref()),
    ];
    let (files, stored) = (references.files.as_ref(), references.ca.as_ref());
    let is_served = files.is_some_and(|files| {
        let mut wanted = wanted.into_iter();
        wanted.all(|(file, content)| files.data.get(file) == content)
    });
    let is_stored = stored.is_some_and(|stored| stored.data == issued.ca);
    Ok((!is_served || !is_stored).then_some(issued))
}

fn issue(
    mut state: CaState,
    names: &BTreeSet<String>,
    at: Timestamp,
    lifetimes: &CertificateLifetimes,
) -> Result<IssuedCertificates, CertificateError> {
    let now = at.as_second();
    let ca = rotate(&mut state, now, lifetimes)?;
    let stored = state.leaf.take();
    let is_trusted = |issuer: &[u8]| state.is_trusted(issuer, &ca);
    let leaf = match stored.filter(|leaf| !rotation::is_due(leaf.state(names, is_trusted), now)) {
        Some(leaf) => leaf,
        None => ca.issue(names, now, lifetimes)?,
    };
    let changes = rotation::next_change(
        ca.validity(),
        state.next_validity(),
        leaf.validity(),
        state.retired_ends(),
        lifetimes,
    );
    let bundle = state.bundle(&ca);
    let serving = Serving {
        certificate: leaf.to_pem().into_bytes(),
        key: leaf.key.clone(),
        ca: Some(bundle.clone().into_bytes()),
        validity: leaf.validity(),
        changes,
        problem: None,
    };
    Ok(IssuedCertificates {
        serving,
        ca: state.to_secret(&ca, bundle),
    })
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
