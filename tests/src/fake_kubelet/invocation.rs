//! The process that a container is: program, arguments and environment, in the terms of this machine.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, EnvVarSource, Pod};
use kube::ResourceExt;

use super::atomic_directory::Files;
use super::image::Image;
use super::rewrite::{Mounts, for_host};
use super::sources::{Problem, Sources, field};

/// A program with its arguments, environment and directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
}

/// The Pod as a container sees it.
pub(super) struct Surroundings<'a> {
    pub(super) pod: &'a Pod,
    pub(super) address: Ipv4Addr,
    pub(super) volumes: &'a BTreeMap<String, PathBuf>,
    pub(super) sources: &'a Sources,
}

impl Surroundings<'_> {
    /// Puts a container's process together.
    pub(super) async fn invocation(
        &self,
        container: &Container,
        image: &Image,
    ) -> Result<Invocation, Problem> {
        let mounts = self.mounts(container)?;
        let environment = self.environment(container).await?;
        let for_host = |text: &String| for_host(text, &mounts, self.address);
        let words = command_line(container, image.entrypoint(), &environment);
        let (first, rest) = words
            .split_first()
            .ok_or_else(|| Problem::Failed("no command".to_owned()))?;
        let program = image.program(first);
        Ok(Invocation {
            program: program
                .ok_or_else(|| Problem::Missing(format!("executable {first:?} in the image")))?
                .to_owned(),
            arguments: rest.iter().map(for_host).collect(),
            environment: environment
                .iter()
                .map(|(name, value)| (name.clone(), for_host(value)))
                .collect(),
        })
    }

    fn mounts(&self, container: &Container) -> Result<Mounts, Problem> {
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            if mount.sub_path.is_some() || mount.sub_path_expr.is_some() {
                return Err(Problem::Unsupported(format!(
                    "subPath, as of {}",
                    mount.mount_path
                )));
            }
            let directory = self.volumes.get(&mount.name);
            let directory = directory.ok_or_else(|| Problem::Missing(format!("volume {}", mount.name)))?;
            mounts.push((
                mount.mount_path.trim_end_matches('/').to_owned(),
                directory.clone(),
            ));
        }
        Ok(Mounts::new(mounts))
    }

    /// Returns the container's variables, with those that every container has.
    async fn environment(&self, container: &Container) -> Result<BTreeMap<String, String>, Problem> {
        let mut variables = BTreeMap::from([
            ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("HOSTNAME".to_owned(), self.pod.name_any()),
        ]);
        for from in container.env_from.iter().flatten() {
            self.all_keys(from, &mut variables).await?;
        }
        for variable in container.env.iter().flatten() {
            if let Some(value) = self.value(variable, &variables).await? {
                variables.insert(variable.name.clone(), value);
            }
        }
        Ok(variables)
    }

    async fn all_keys(
        &self,
        from: &EnvFromSource,
        variables: &mut BTreeMap<String, String>,
    ) -> Result<(), Problem> {
        let mut files = Files::new();
        if let Some(map) = &from.config_map_ref {
            files.extend(
                self.sources
                    .config_map(&map.name, map.optional.unwrap_or(false))
                    .await?,
            );
        }
        if let Some(secret) = &from.secret_ref {
            files.extend(
                self.sources
                    .secret(&secret.name, secret.optional.unwrap_or(false))
                    .await?,
            );
        }
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let named = |(key, value): (String, Vec<u8>)| (format!("{prefix}{key}"), text(&value));
        variables.extend(files.into_iter().map(named));
        Ok(())
    }

    async fn value(
        &self,
        variable: &EnvVar,
        earlier: &BTreeMap<String, String>,
    ) -> Result<Option<String>, Problem> {
        match &variable.value_from {
            Some(source) => self.read_source(source).await,
            None => Ok(Some(expand(
                variable.value.as_deref().unwrap_or_default(),
                earlier,
            ))),
        }
    }

    async fn read_source(&self, source: &EnvVarSource) -> Result<Option<String>, Problem> {
        if let Some(reference) = &source.field_ref {
            return field(self.pod, self.address, &reference.field_path).map(Some);
        }
        let (files, key, optional, object) = if let Some(map) = &source.config_map_key_ref {
            let optional = map.optional.unwrap_or(false);
            let files = self.sources.config_map(&map.name, optional).await?;
            (files, &map.key, optional, format!("ConfigMap {}", map.name))
        } else if let Some(secret) = &source.secret_key_ref {
            let optional = secret.optional.unwrap_or(false);
            let files = self.sources.secret(&secret.name, optional).await?;
            (files, &secret.key, optional, format!("Secret {}", secret.name))
        } else {
            return Err(Problem::Unsupported("resourceFieldRef".to_owned()));
        };
        match files.get(key) {
            Some(value) => Ok(Some(text(value))),
            None if optional => Ok(None),
            None => Err(Problem::Incomplete {
                object,
                part: key.clone(),
            }),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn command_line(
    container: &Container,
    entrypoint: &str,
    variables: &BTreeMap<String, String>,
) -> Vec<String> {
    let command = container.command.clone().filter(|command| !command.is_empty());
    let command = command.unwrap_or_else(|| vec![entrypoint.to_owned()]);
    let arguments = container.args.iter().flatten();
    command
        .iter()
        .chain(arguments)
        .map(|word| expand(word, variables))
        .collect()
}

/// Replaces `$(NAME)` by the variable's value; `$$` stands for `$`, and unknown names stay as they are.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = after;
        if let Some(escaped) = rest.strip_prefix('$') {
            out.push('$');
            rest = escaped;
            continue;
        }
        let reference = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        match reference.and_then(|(name, after)| Some((variables.get(name)?, after))) {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// References to variables are expanded as Kubernetes expands them.
    #[test]
    fn variable_references_are_expanded() {
        let variables = BTreeMap::from([
            ("A".to_owned(), "1".to_owned()),
            ("B".to_owned(), "$(A)".to_owned()),
        ]);
        for (text, wanted) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(A)"),
            ("$$(A)", "$(A)"),
            ("$(NONE)", "$(NONE)"),
            ("$A $(A", "$A $(A"),
            ("$", "$"),
        ] {
            assert_eq!(expand(text, &variables), wanted, "{text}");
        }
    }

    /// A command replaces the entry point, and arguments follow either.
    #[test]
    fn command_replaces_the_entrypoint() {
        let mut container = Container {
            args: Some(vec!["$(A)".to_owned()]),
            ..Container::default()
        };
        let variables = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        assert_eq!(command_line(&container, "/entry", &variables), ["/entry", "1"]);
        container.command = Some(vec!["/other".to_owned(), "serve".to_owned()]);
        assert_eq!(
            command_line(&container, "/entry", &variables),
            ["/other", "serve", "1"]
        );
    }
}
