//! Which mirrors point to what, whether it is there or not.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{PoisonError, RwLock},
};

use crate::dereference::Reference;

/// Finds the mirrors that a change of a Secret or `ConfigMap` concerns.
#[derive(Default)]
pub struct Index(RwLock<Maps>);

#[derive(Default)]
struct Maps {
    referring: HashMap<Target, BTreeSet<String>>,
    references: HashMap<Mirror, BTreeSet<Reference>>,
}

/// Namespace and reference.
type Target = (String, Reference);
/// Namespace and name.
type Mirror = (String, String);

impl Index {
    /// Notes what a mirror points to now.
    pub fn set(&self, namespace: &str, mirror: &str, references: BTreeSet<Reference>) {
        let mut maps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = maps
            .references
            .insert((namespace.to_owned(), mirror.to_owned()), references.clone());
        let before = before.unwrap_or_default();
        for gone in before.difference(&references) {
            maps.drop_reference(namespace, mirror, gone);
        }
        for reference in references {
            maps.referring
                .entry((namespace.to_owned(), reference))
                .or_default()
                .insert(mirror.to_owned());
        }
    }

    /// Forgets a mirror.
    pub fn remove(&self, namespace: &str, mirror: &str) {
        let mut maps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let references = maps.references.remove(&(namespace.to_owned(), mirror.to_owned()));
        for reference in references.unwrap_or_default() {
            maps.drop_reference(namespace, mirror, &reference);
        }
    }

    /// The names of the mirrors, in the same namespace, that point to an object.
    pub fn referring_to(&self, namespace: &str, reference: &Reference) -> BTreeSet<String> {
        let maps = self.0.read().unwrap_or_else(PoisonError::into_inner);
        maps.referring
            .get(&(namespace.to_owned(), reference.clone()))
            .cloned()
            .unwrap_or_default()
    }
}

impl Maps {
    fn drop_reference(&mut self, namespace: &str, mirror: &str, reference: &Reference) {
        let target = (namespace.to_owned(), reference.clone());
        if let Some(mirrors) = self.referring.get_mut(&target) {
            mirrors.remove(mirror);
            if mirrors.is_empty() {
                self.referring.remove(&target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(index: &Index, namespace: &str, secret: &str) -> Vec<String> {
        index
            .referring_to(namespace, &Reference::secret(secret))
            .into_iter()
            .collect()
    }

    #[test]
    fn all_mirrors_that_share_a_secret_are_found() {
        let index = Index::default();
        index.set("ns", "a", [Reference::secret("s")].into());
        index.set(
            "ns",
            "b",
            [Reference::secret("s"), Reference::config_map("c")].into(),
        );
        assert_eq!(names(&index, "ns", "s"), ["a", "b"]);
    }

    #[test]
    fn other_namespaces_and_kinds_are_none_of_ours() {
        let index = Index::default();
        index.set("ns", "a", [Reference::config_map("s")].into());
        assert!(names(&index, "ns", "s").is_empty());
        assert!(
            index
                .referring_to("other", &Reference::config_map("s"))
                .is_empty()
        );
    }

    #[test]
    fn what_a_spec_no_longer_points_to_is_forgotten() {
        let index = Index::default();
        index.set("ns", "a", [Reference::secret("s"), Reference::secret("t")].into());
        index.set("ns", "a", [Reference::secret("t")].into());
        assert!(names(&index, "ns", "s").is_empty());
        assert_eq!(names(&index, "ns", "t"), ["a"]);
    }

    #[test]
    fn a_deleted_mirror_leaves_nothing_behind() {
        let index = Index::default();
        index.set("ns", "a", [Reference::secret("s")].into());
        index.remove("ns", "a");
        let maps = index.0.read().unwrap();
        assert!(maps.referring.is_empty() && maps.references.is_empty());
    }
}
