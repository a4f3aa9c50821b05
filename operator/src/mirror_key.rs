//! The keys by which the operator finds mirrors and their objects.

use std::fmt;

use kube::{Resource, ResourceExt, runtime::reflector::ObjectRef};

use crate::kind::Kind;

/// The namespace and the name of a mirror.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MirrorKey {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl MirrorKey {
    /// Returns the key of a mirror, or of an object that has the name of its mirror.
    pub fn from_object(object: &impl ResourceExt) -> Self {
        Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
        }
    }

    /// Returns the reference that a controller takes.
    pub fn object_ref<K: Resource<DynamicType = ()>>(&self) -> ObjectRef<K> {
        ObjectRef::new(&self.name).within(&self.namespace)
    }
}

impl fmt::Display for MirrorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The kind, the namespace and the name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}
