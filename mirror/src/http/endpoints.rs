//! The endpoints that serve content and lists, each a function from a request to a response.

pub(super) mod base;
pub(super) mod blobs;
mod body;
mod document;
mod fill_blob;
pub(super) mod manifests;
pub(super) mod referrers;
mod stored_blob;
pub(super) mod tags;

pub(super) use stored_blob::StoredBlob;
