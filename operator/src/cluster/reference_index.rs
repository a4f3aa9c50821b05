//! The index from Secrets and `ConfigMap`s, existing or not, to the mirrors whose specs name them.

use std::collections::{BTreeSet, HashMap};

use parking_lot::RwLock;

use crate::{dereference::Reference, mirror_key::MirrorKey};

/// An index of the mirrors that a change of a Secret or `ConfigMap` concerns.
#[derive(Default)]
pub struct ReferenceIndex(RwLock<Maps>);

#[derive(Default)]
struct Maps {
    /// The mirrors, by namespace and reference.
    mirrors: HashMap<(String, Reference), BTreeSet<MirrorKey>>,
    references: HashMap<MirrorKey, BTreeSet<Reference>>,
}

impl ReferenceIndex {
    /// Sets the references of a mirror.
    pub fn set(&self, mirror: &MirrorKey, references: BTreeSet<Reference>) {
        let mut maps = self.0.write();
        let before = maps.references.insert(mirror.clone(), references.clone());
        for gone in before.unwrap_or_default().difference(&references) {
            maps.remove_reference(mirror, gone);
        }
        for reference in references {
            let target = (mirror.namespace.clone(), reference);
            maps.mirrors.entry(target).or_default().insert(mirror.clone());
        }
    }

    /// Removes a mirror.
    pub fn remove(&self, mirror: &MirrorKey) {
        let mut maps = self.0.write();
        let references = maps.references.remove(mirror);
        for reference in references.unwrap_or_default() {
            maps.remove_reference(mirror, &reference);
        }
    }

    /// Returns the mirrors whose specs name an object of their namespace.
    pub fn mirrors_with(&self, namespace: &str, reference: &Reference) -> BTreeSet<MirrorKey> {
        let target = (namespace.to_owned(), reference.clone());
        self.0.read().mirrors.get(&target).cloned().unwrap_or_default()
    }
}

impl Maps {
    fn remove_reference(&mut self, mirror: &MirrorKey, reference: &Reference) {
        let target = (mirror.namespace.clone(), reference.clone());
        if let Some(mirrors) = self.mirrors.get_mut(&target) {
            mirrors.remove(mirror);
            if mirrors.is_empty() {
                self.mirrors.remove(&target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> MirrorKey {
        MirrorKey {
            namespace: "ns".to_owned(),
            name: name.to_owned(),
        }
    }

    fn names(index: &ReferenceIndex, namespace: &str, secret: &str) -> Vec<String> {
        let mirrors = index.mirrors_with(namespace, &Reference::secret(secret));
        mirrors.into_iter().map(|mirror| mirror.name).collect()
    }

    #[test]
    fn mirrors_that_share_a_secret_are_found() {
        let index = ReferenceIndex::default();
        index.set(&key("a"), [Reference::secret("s")].into());
        index.set(
            &key("b"),
            [Reference::secret("s"), Reference::config_map("c")].into(),
        );
        assert_eq!(names(&index, "ns", "s"), ["a", "b"]);
    }

    #[test]
    fn other_namespace_or_kind_is_not_found() {
        let index = ReferenceIndex::default();
        index.set(&key("a"), [Reference::config_map("s")].into());
        assert!(names(&index, "ns", "s").is_empty());
        assert!(
            index
                .mirrors_with("other", &Reference::config_map("s"))
                .is_empty()
        );
    }

    #[test]
    fn removed_reference_is_forgotten() {
        let index = ReferenceIndex::default();
        index.set(&key("a"), [Reference::secret("s"), Reference::secret("t")].into());
        index.set(&key("a"), [Reference::secret("t")].into());
        assert!(names(&index, "ns", "s").is_empty());
        assert_eq!(names(&index, "ns", "t"), ["a"]);
    }

    #[test]
    fn removed_mirror_leaves_no_entry() {
        let index = ReferenceIndex::default();
        index.set(&key("a"), [Reference::secret("s")].into());
        index.remove(&key("a"));
        let maps = index.0.read();
        assert!(maps.mirrors.is_empty() && maps.references.is_empty());
    }
}
