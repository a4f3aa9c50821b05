//! Selects the API server of a cluster.

use std::{error::Error, io::ErrorKind, path::PathBuf, time::Duration};

use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::{Failure, plugin::complete};

/// A cluster that takes longer is not well.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// The action for a kubeconfig that is not usable.
const ADVICE: &str =
    "set --kubeconfig or KUBECONFIG, choose a --context that is in it, or run in a Pod with a ServiceAccount";

/// The arguments that select a cluster.
#[derive(Debug, clap::Args)]
pub(super) struct Connection {
    /// The kubeconfig. Absent: KUBECONFIG, ~/.kube/config, or the ServiceAccount of the Pod that this runs in
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    kubeconfig: Option<PathBuf>,
    /// Its context. Absent: the current one
    #[arg(long, value_name = "NAME", add = complete::contexts())]
    context: Option<String>,
    /// Ask in the name of this user, such as system:serviceaccount:NAMESPACE:NAME
    #[arg(long = "as", value_name = "USER")]
    pub(super) user: Option<String>,
    /// And of this group; may be repeated
    #[arg(long = "as-group", value_name = "GROUP", requires = "user")]
    groups: Vec<String>,
}

/// The reason why no cluster is selected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {advice}")]
pub(super) struct NoCluster {
    /// The object and the cause.
    pub(super) message: String,
    /// The action.
    pub(super) advice: String,
}

impl From<NoCluster> for Failure {
    fn from(error: NoCluster) -> Self {
        Self::Environment(error.to_string())
    }
}

impl NoCluster {
    fn new(message: impl Into<String>, advice: impl Into<String>) -> Self {
        let (message, advice) = (message.into(), advice.into());
        Self { message, advice }
    }

    /// Explains an error of the configuration.
    pub(super) fn from_error(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<KubeconfigError>() {
                return Self::from_kubeconfig(error);
            }
            cause = error.source();
        }
        Self::new(error.to_string(), ADVICE)
    }

    fn from_kubeconfig(error: &KubeconfigError) -> Self {
        match error {
            KubeconfigError::ReadConfig(error, path) if error.kind() == ErrorKind::NotFound => Self::new(
                format!("kubeconfig {} not found", path.display()),
                "create it, or name another with --kubeconfig or KUBECONFIG",
            ),
            KubeconfigError::ReadConfig(error, path) => Self::new(
                format!("kubeconfig {} not readable: {error}", path.display()),
                "correct its owner or mode, or name another with --kubeconfig or KUBECONFIG",
            ),
            KubeconfigError::Parse(error) => Self::new(
                format!("kubeconfig is not valid YAML: {}", error.without_snippet()),
                "correct it, or name another with --kubeconfig or KUBECONFIG",
            ),
            KubeconfigError::LoadContext(name) => Self::new(
                format!("context {name:?} not found in the kubeconfig"),
                "choose one with --context (kubectl config get-contexts lists all)",
            ),
            KubeconfigError::CurrentContextNotSet => Self::new(
                "the kubeconfig has no current context",
                "choose one with --context, or with kubectl config use-context",
            ),
            KubeconfigError::LoadClusterOfContext(name) => Self::new(
                format!("cluster {name:?} of the context not found in the kubeconfig"),
                "choose another context with --context (kubectl config get-contexts lists all)",
            ),
            error => Self::new(format!("kubeconfig not usable: {error}"), ADVICE),
        }
    }
}

impl Connection {
    /// Returns the configuration of the selected cluster.
    ///
    /// # Errors
    /// There is no such cluster.
    pub(super) async fn config(&self) -> Result<Config, NoCluster> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let unusable = |error: KubeconfigError| NoCluster::from_error(&error);
        let mut config = match (&self.kubeconfig, &self.context) {
            (Some(file), _) => {
                let kubeconfig = Kubeconfig::read_from(file).map_err(unusable)?;
                let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
                config.map_err(unusable)?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(unusable)?,
            (None, None) => Config::infer()
                .await
                .map_err(|error| NoCluster::from_error(&error))?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(ANSWER_TIMEOUT);
        // A user waits for the result: no retries.
        config.default_retry = false;
        if let Some(user) = &self.user {
            config = in_the_name_of(config, user, &self.groups);
        }
        Ok(config)
    }
}

/// Returns the configuration with another user.
pub(super) fn in_the_name_of(mut config: Config, user: &str, groups: &[String]) -> Config {
    config.auth_info.impersonate = Some(user.to_owned());
    config.auth_info.impersonate_groups = (!groups.is_empty()).then(|| groups.to_vec());
    config
}
