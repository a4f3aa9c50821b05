//! What is desired of a mirror at its stage of an upgrade.

use crds::RegistryMirror;

use super::{Change, Key, Stages, Turn, change, key};
use crate::{
    desired::{Desired, Release},
    observed::{Observed, Workload},
    status::Upgrade,
};

impl Stages {
    /// The objects of a mirror, as `render` works them out for a release: all that its spec asks for and, once its turn
    /// has come, what the release brings.
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
        let mirror = key(mirror);
        let mut wanted = render(release)?;
        let Some(workload) = &observed.workload else {
            return Ok((wanted, Upgrade::Fine));
        };
        let upgrade = match change(Some(workload), &wanted.rendered) {
            Change::None => self.arrived(&mirror, observed),
            Change::OfTheSpec => {
                // Not what may have failed elsewhere.
                wanted = render(&before(workload, release))?;
                if self.left(&mirror, observed.at).is_some() {
                    wanted.upgrades(workload.upgraded());
                }
                Upgrade::Fine
            }
            // There is nothing to lose.
            Change::OfTheOperator if workload.ready == 0 => {
                self.leave(&mirror, observed.at);
                Upgrade::Fine
            }
            Change::OfTheOperator => self.ask(&mirror, workload, observed, &mut wanted),
        };
        if wanted.is_held {
            // Nor a configuration that the servers of before may not know.
            wanted = render(&Release {
                keeps_configuration: true,
                ..release.clone()
            })?;
            wanted.is_held = true;
        }
        Ok((wanted, upgrade))
    }

    fn arrived(&self, mirror: &Key, observed: &Observed) -> Upgrade {
        self.is_up_to_date(mirror);
        match self.left(mirror, observed.at) {
            Some(left) if left.is_zero() => Upgrade::Failed(self.limits.patience.as_secs()),
            _ => Upgrade::Fine,
        }
    }

    fn ask(&self, mirror: &Key, workload: &Workload, observed: &Observed, wanted: &mut Desired) -> Upgrade {
        match self.turn(mirror, workload.upgraded(), observed.at) {
            Turn::Come(since) => {
                wanted.upgrades(Some(since));
                Upgrade::Fine
            }
            Turn::Waits(obstacle) => {
                wanted.is_held = true;
                Upgrade::Waiting(obstacle)
            }
        }
    }
}

/// The release that a mirror was rendered with last.
fn before(workload: &Workload, release: &Release) -> Release {
    let rendered = workload.rendered.as_ref();
    let image = rendered.map(|rendered| rendered.server_image.clone());
    Release {
        server_image: image.unwrap_or_else(|| release.server_image.clone()),
        ..release.clone()
    }
}
