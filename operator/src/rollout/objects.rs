//! The desired objects of a mirror in a rollout.

use crds::RegistryMirror;

use super::{Admission, Rollout, TemplateChange};
use crate::{
    desired::{Desired, Release},
    mirror_key::MirrorKey,
    observed::{Observed, Workload},
    status::Upgrade,
};

impl Rollout {
    /// Returns the objects of a mirror, made by `render` for a release: what its spec asks for and, once the mirror is
    /// admitted, the new version.
    ///
    /// # Errors
    /// Those of `render`.
    pub fn objects<E>(
        &self,
        mirror: &RegistryMirror,
        observed: &Observed,
        release: &Release,
        mut render: impl FnMut(&Release) -> Result<Desired, E>,
    ) -> Result<(Desired, Upgrade), E> {
        let mirror = MirrorKey::from_object(mirror);
        let mut desired = render(release)?;
        let Some(workload) = &observed.workload else {
            return Ok((desired, Upgrade::Fine));
        };
        let upgrade = match TemplateChange::between(Some(workload), &desired.template_source) {
            TemplateChange::None => self.state(&mirror, observed),
            TemplateChange::Spec => {
                // With the previous image: the new one may have failed on other mirrors.
                desired = render(&previous_release(workload, release))?;
                if self.remaining(&mirror, observed.at).is_some() {
                    desired.set_upgraded(workload.upgraded());
                }
                Upgrade::Fine
            }
            // A mirror without a ready server has nothing to lose.
            TemplateChange::Operator if workload.ready == 0 => {
                self.remove(&mirror, observed.at);
                Upgrade::Fine
            }
            TemplateChange::Operator => self.request(&mirror, workload, observed, &mut desired),
        };
        if desired.is_held {
            // Older servers may not know the configuration of the new version.
            desired = render(&Release {
                keeps_configuration: true,
                ..release.clone()
            })?;
            desired.is_held = true;
        }
        Ok((desired, upgrade))
    }

    fn state(&self, mirror: &MirrorKey, observed: &Observed) -> Upgrade {
        self.dequeue(mirror);
        match self.remaining(mirror, observed.at) {
            Some(left) if left.is_zero() => Upgrade::Failed(self.config.progress_deadline.as_secs()),
            _ => Upgrade::Fine,
        }
    }

    fn request(
        &self,
        mirror: &MirrorKey,
        workload: &Workload,
        observed: &Observed,
        desired: &mut Desired,
    ) -> Upgrade {
        match self.admit(mirror, workload.upgraded(), observed.at) {
            Admission::Admitted(since) => {
                desired.set_upgraded(Some(since));
                Upgrade::Fine
            }
            Admission::Queued(reason) => {
                desired.is_held = true;
                Upgrade::Waiting(reason)
            }
        }
    }
}

/// Returns the release with the server image that a mirror's Pods run.
fn previous_release(workload: &Workload, release: &Release) -> Release {
    let source = workload.template_source.as_ref();
    let image = source.map(|source| source.server_image.clone());
    Release {
        server_image: image.unwrap_or_else(|| release.server_image.clone()),
        ..release.clone()
    }
}
