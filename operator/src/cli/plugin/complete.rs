//! Completion of words on the command line: names of the cluster, and the protocol of `kubectl`.

use std::{ffi::OsString, io::Write, time::Duration};

use clap::CommandFactory;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate, complete};
use crds::RegistryMirror;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config, ResourceExt,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{runtime::Builder, time::timeout};

use super::Plugin;
use crate::cli::Failure;

/// The time limit for names: a user waits for them.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum number of names.
const MAX_NAMES: u32 = 500;
/// The directive of kubectl by which the shell adds no names of files.
const NO_FILES: &str = ":4";

/// Returns the completion of names of mirrors.
pub(in crate::cli) fn mirrors() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        names(async |client: Client, namespace: String| {
            let api: Api<RegistryMirror> = Api::namespaced(client, &namespace);
            let found = api.list_metadata(&ListParams::default().limit(MAX_NAMES)).await?;
            Ok(found.items.iter().map(ResourceExt::name_any).collect())
        })
    })
}

/// Returns the completion of names of namespaces.
pub(in crate::cli) fn namespaces() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        names(async |client: Client, _: String| {
            let api: Api<Namespace> = Api::all(client);
            let found = api.list_metadata(&ListParams::default().limit(MAX_NAMES)).await?;
            Ok(found.items.iter().map(ResourceExt::name_any).collect())
        })
    })
}

/// Returns the completion of names of contexts.
pub(in crate::cli) fn contexts() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let kubeconfig = Kubeconfig::read().unwrap_or_default();
        let contexts = kubeconfig.contexts.into_iter();
        contexts
            .map(|context| CompletionCandidate::new(context.name))
            .collect()
    })
}

/// Returns the value of an option in the words of the command line, such as `-n mirrors` or `--namespace=mirrors`.
fn option(words: &[String], names: &[&str]) -> Option<String> {
    words.iter().enumerate().rev().find_map(|(index, word)| {
        names.iter().find_map(|name| {
            if word == name {
                return words.get(index + 1).cloned();
            }
            word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
        })
    })
}

/// Asks the cluster that the words select. No answer means no candidates: completion never prints an error.
fn names(ask: impl AsyncFnOnce(Client, String) -> kube::Result<Vec<String>>) -> Vec<CompletionCandidate> {
    let words: Vec<_> = std::env::args().collect();
    let asked = async {
        let options = KubeConfigOptions {
            context: option(&words, &["--context"]),
            ..KubeConfigOptions::default()
        };
        let config = match option(&words, &["--kubeconfig"]) {
            Some(file) => {
                let kubeconfig = Kubeconfig::read_from(file).ok()?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.ok()?
            }
            None => Config::from_kubeconfig(&options).await.ok()?,
        };
        let namespace = option(&words, &["-n", "--namespace"]);
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        ask(Client::try_from(config).ok()?, namespace).await.ok()
    };
    let Ok(runtime) = Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let found = runtime.block_on(async { timeout(TIMEOUT, asked).await.ok().flatten() });
    found
        .unwrap_or_default()
        .into_iter()
        .map(CompletionCandidate::new)
        .collect()
}

/// Prints candidates for the last word in the protocol of kubectl: `VALUE<tab>HELP` in each line, then a directive.
pub(super) fn print_for_kubectl(words: Vec<OsString>) -> Result<(), Failure> {
    let mut args = vec![OsString::from("kubectl-rmir")];
    args.extend(words);
    let index = args.len() - 1;
    let candidates = complete(&mut Plugin::command(), args, index, None)?;
    let mut stdout = std::io::stdout().lock();
    for candidate in candidates.iter().filter(|candidate| !candidate.is_hide_set()) {
        let value = candidate.get_value().to_string_lossy();
        match candidate.get_help() {
            Some(help) => writeln!(
                stdout,
                "{value}\t{}",
                help.to_string().lines().next().unwrap_or_default()
            )?,
            None => writeln!(stdout, "{value}")?,
        }
    }
    Ok(writeln!(stdout, "{NO_FILES}")?)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case(&["status", "-n", "mirrors"] => Some("mirrors".to_owned()); "a short option")]
    #[test_case(&["--namespace=mirrors", "status"] => Some("mirrors".to_owned()); "an equals sign")]
    #[test_case(&["status", "-n"] => None; "no value yet")]
    #[test_case(&["status"] => None; "no option")]
    fn namespace_of_words(words: &[&str]) -> Option<String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        option(&words, &["-n", "--namespace"])
    }
}
