//! The files that the processes of a control plane read: keys, tokens, the audit policy.

use std::path::PathBuf;

use rand::RngExt;
use rcgen::KeyPair;

use super::Error;
use crate::audit;
use crate::pki::Authority;
use crate::scratch::Scratch;

/// The files, and the two tokens of the token file.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) ca: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) service_account_key: PathBuf,
    pub(super) service_account_public_key: PathBuf,
    pub(super) tokens: PathBuf,
    pub(super) admin_token: String,
    pub(super) controller_manager_token: String,
    pub(super) audit_policy: PathBuf,
}

impl Files {
    pub(super) fn create(scratch: &Scratch) -> Result<Self, Error> {
        let authority = Authority::new("test control plane")?;
        let server = authority.serving(&["127.0.0.1", "localhost", "kubernetes.default.svc"])?;
        let service_accounts = KeyPair::generate()?;
        let (admin_token, controller_manager_token) = (token(), token());
        let tokens = format!(
            "{admin_token},admin,admin,system:masters\n\
             {controller_manager_token},system:kube-controller-manager,system:kube-controller-manager\n"
        );
        let write = |name: &str, text: &str| {
            scratch
                .write(name, text)
                .map_err(Error::io(format!("can't write {name}")))
        };
        Ok(Self {
            ca: write("ca.crt", &authority.certificate())?,
            certificate: write("server.crt", &server.certificate)?,
            key: write("server.key", &server.key)?,
            service_account_key: write("service-accounts.key", &service_accounts.serialize_pem())?,
            service_account_public_key: write("service-accounts.pub", &service_accounts.public_key_pem())?,
            tokens: write("tokens.csv", &tokens)?,
            admin_token,
            controller_manager_token,
            audit_policy: write("audit-policy.yaml", audit::POLICY)?,
        })
    }
}

fn token() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}
