//! A Pod's volumes as directories of this machine.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, PersistentVolume, PersistentVolumeClaim, Pod, ProjectedVolumeSource, Volume,
    VolumeProjection,
};
use kube::{Api, Client, ResourceExt};

use super::atomic_directory::{self, Files};
use super::service_account;
use super::sources::{Problem, Sources, field, select};

/// Mode of files where a volume names none.
const MODE: i32 = 0o644;

/// The volumes of one Pod.
pub(super) struct Volumes {
    client: Client,
    sources: Sources,
    namespace: String,
    address: Ipv4Addr,
    directory: PathBuf,
}

impl Volumes {
    pub(super) fn new(client: &Client, pod: &Pod, address: Ipv4Addr, directory: PathBuf) -> Self {
        let namespace = pod.namespace().unwrap_or_default();
        Self {
            client: client.clone(),
            sources: Sources::new(client, &namespace),
            namespace,
            address,
            directory,
        }
    }

    /// Makes or updates all volumes, and returns the directory of each.
    pub(super) async fn sync(&self, pod: &Pod) -> Result<BTreeMap<String, PathBuf>, Problem> {
        let mut directories = BTreeMap::new();
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref());
        for volume in volumes.unwrap_or_default() {
            directories.insert(volume.name.clone(), self.sync_one(pod, volume).await?);
        }
        Ok(directories)
    }

    async fn sync_one(&self, pod: &Pod, volume: &Volume) -> Result<PathBuf, Problem> {
        let directory = self.directory.join(&volume.name);
        if let Some(claim) = &volume.persistent_volume_claim {
            return self.claimed(&claim.claim_name).await;
        }
        if let Some(host) = &volume.host_path {
            return Ok(host.path.clone().into());
        }
        if volume.empty_dir.is_some() {
            tokio::fs::create_dir_all(&directory).await?;
            return Ok(directory);
        }
        let (files, mode) = self.files(pod, volume, &directory).await?;
        let mode = u32::try_from(mode.unwrap_or(MODE)).unwrap_or_default();
        atomic_directory::write(&directory, &files, mode)?;
        Ok(directory)
    }

    async fn files(
        &self,
        pod: &Pod,
        volume: &Volume,
        directory: &Path,
    ) -> Result<(Files, Option<i32>), Problem> {
        if let Some(map) = &volume.config_map {
            let optional = map.optional.unwrap_or(false);
            let files = self.sources.config_map(&map.name, optional).await?;
            let files = select(
                files,
                map.items.as_ref(),
                optional,
                &format!("ConfigMap {}", map.name),
            )?;
            return Ok((files, map.default_mode));
        }
        if let Some(secret) = &volume.secret {
            let (name, optional) = (
                secret.secret_name.clone().unwrap_or_default(),
                secret.optional.unwrap_or(false),
            );
            let files = self.sources.secret(&name, optional).await?;
            let files = select(files, secret.items.as_ref(), optional, &format!("Secret {name}"))?;
            return Ok((files, secret.default_mode));
        }
        if let Some(downward) = &volume.downward_api {
            return Ok((
                self.downward(pod, downward.items.as_ref())?,
                downward.default_mode,
            ));
        }
        match &volume.projected {
            Some(projected) => Ok((
                self.projected(pod, projected, directory).await?,
                projected.default_mode,
            )),
            None => Err(Problem::Unsupported(format!(
                "the kind of the volume {}",
                volume.name
            ))),
        }
    }

    async fn projected(
        &self,
        pod: &Pod,
        volume: &ProjectedVolumeSource,
        directory: &Path,
    ) -> Result<Files, Problem> {
        let mut files = Files::new();
        for source in volume.sources.iter().flatten() {
            files.extend(self.projection(pod, source, directory).await?);
        }
        Ok(files)
    }

    async fn projection(
        &self,
        pod: &Pod,
        source: &VolumeProjection,
        directory: &Path,
    ) -> Result<Files, Problem> {
        if let Some(token) = &source.service_account_token {
            let known = tokio::fs::read(directory.join(&token.path)).await;
            let bytes = match known {
                Ok(bytes) => bytes,
                Err(_) => service_account::token(&self.client, pod, token).await?,
            };
            return Ok(Files::from([(token.path.clone(), bytes)]));
        }
        if let Some(map) = &source.config_map {
            let optional = map.optional.unwrap_or(false);
            let files = self.sources.config_map(&map.name, optional).await?;
            return select(
                files,
                map.items.as_ref(),
                optional,
                &format!("ConfigMap {}", map.name),
            );
        }
        if let Some(secret) = &source.secret {
            let optional = secret.optional.unwrap_or(false);
            let files = self.sources.secret(&secret.name, optional).await?;
            return select(
                files,
                secret.items.as_ref(),
                optional,
                &format!("Secret {}", secret.name),
            );
        }
        match &source.downward_api {
            Some(downward) => self.downward(pod, downward.items.as_ref()),
            None => Err(Problem::Unsupported("the kind of a projected source".to_owned())),
        }
    }

    fn downward(&self, pod: &Pod, items: Option<&Vec<DownwardAPIVolumeFile>>) -> Result<Files, Problem> {
        let file = |item: &DownwardAPIVolumeFile| {
            let path = item.field_ref.as_ref().map(|field| field.field_path.as_str());
            let path = path.ok_or_else(|| Problem::Unsupported("resourceFieldRef".to_owned()))?;
            Ok((item.path.clone(), field(pod, self.address, path)?.into_bytes()))
        };
        items.into_iter().flatten().map(file).collect()
    }

    /// Returns the directory of a bound PVC.
    async fn claimed(&self, name: &str) -> Result<PathBuf, Problem> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        let claim = claims.get_opt(name).await?;
        let claim = claim.ok_or_else(|| Problem::Missing(format!("PersistentVolumeClaim {name}")))?;
        let bound = claim
            .status
            .is_some_and(|status| status.phase.as_deref() == Some("Bound"));
        let volume = claim.spec.and_then(|spec| spec.volume_name).filter(|_| bound);
        let volume = volume.ok_or_else(|| Problem::Unbound(name.to_owned()))?;
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let spec = volumes.get(&volume).await?.spec.unwrap_or_default();
        let path = spec
            .host_path
            .map(|host| host.path)
            .or_else(|| spec.local.map(|local| local.path));
        let path = path.ok_or_else(|| Problem::Unsupported(format!("the kind of the volume {volume}")))?;
        tokio::fs::create_dir_all(&path).await?;
        Ok(path.into())
    }
}
