//! The labels of the counters: closed sets, so that no client can make new series.

use std::borrow::Cow;
use std::fmt::Write;

use http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::name::Host;

macro_rules! label {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $type {
            /// Returns the value of the label.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl EncodeLabelValue for $type {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
                encoder.write_str(self.as_str())
            }
        }
    };
}

label! {
    /// The endpoint of a request.
    Kind {
        /// A manifest, by tag or digest.
        Manifest = "manifest",
        /// A blob.
        Blob = "blob",
        /// A repository's tags.
        Tags = "tags",
        /// The referrers of a manifest.
        Referrers = "referrers",
        /// The catalog.
        Catalog = "catalog",
        /// `/` and `/v2/`.
        Base = "base",
        /// Anything else.
        Other = "other",
    }
}

label! {
    /// The source of a response.
    Outcome {
        /// The cache, as fresh as it must be.
        Hit = "hit",
        /// Upstream.
        Miss = "miss",
        /// The cache, as upstream fails.
        Stale = "stale",
        /// A download that another client had started.
        Coalesced = "coalesced",
        /// Upstream, past the cache.
        PassThrough = "passthrough",
        /// Nowhere: an error, or nothing to look up.
        None = "none",
    }
}

label! {
    /// The source of the bytes of a body.
    Source {
        /// The cache.
        Cache = "cache",
        /// Upstream.
        Upstream = "upstream",
        /// Another replica of this mirror.
        Peer = "peer",
    }
}

label! {
    /// The result of a fill.
    FillResult {
        /// Verified and kept.
        Stored = "stored",
        /// Upstream failed for good.
        Failed = "failed",
        /// The bytes were not what the digest says.
        Mismatch = "mismatch",
        /// The cache had no room, or the disk failed.
        NoRoom = "noroom",
        /// The cache is read-only.
        ReadOnly = "readonly",
        /// No client waited any more, and the content was not worth its space.
        Cancelled = "cancelled",
    }
}

label! {
    /// Why a blob left the cache.
    EvictionReason {
        /// Its time was up.
        Expired = "expired",
        /// Others needed its room.
        Room = "room",
        /// It was damaged.
        Damaged = "damaged",
        /// An administrator purged it.
        Purged = "purged",
    }
}

label! {
    /// The result of a token request.
    TokenResult {
        /// There is a new one.
        Fetched = "fetched",
        /// The token server refused the credential.
        Refused = "refused",
        /// The token server failed.
        Failed = "failed",
    }
}

impl Outcome {
    /// Returns the value of `X-Cache`; `None` without content.
    pub fn cache_status(self) -> Option<&'static str> {
        match self {
            Self::Hit => Some("HIT"),
            Self::Stale => Some("STALE"),
            Self::Coalesced => Some("COALESCED"),
            Self::Miss | Self::PassThrough => Some("MISS"),
            Self::None => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    method: &'static str,
    kind: Kind,
    code: u16,
    outcome: Outcome,
}

impl RequestLabels {
    pub(super) fn new(method: &Method, kind: Kind, code: StatusCode, outcome: Outcome) -> Self {
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        Self {
            method,
            kind,
            code: code.as_u16(),
            outcome,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SecondsLabels {
    pub(super) kind: Kind,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SourceLabels {
    pub(super) source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FillLabels {
    pub(super) result: FillResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EvictionLabels {
    pub(super) reason: EvictionReason,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HostLabels {
    host: String,
}

impl HostLabels {
    pub(super) fn new(host: &Host) -> Self {
        Self {
            host: host.to_string(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UpstreamLabels {
    host: String,
    code: Cow<'static, str>,
}

impl UpstreamLabels {
    pub(super) fn answer(host: &Host, code: StatusCode) -> Self {
        Self {
            host: host.to_string(),
            code: code.as_str().to_owned().into(),
        }
    }

    pub(super) fn failure(host: &Host, what: &'static str) -> Self {
        Self {
            host: host.to_string(),
            code: what.into(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TokenLabels {
    host: String,
    result: TokenResult,
}

impl TokenLabels {
    pub(super) fn new(host: &Host, result: TokenResult) -> Self {
        Self {
            host: host.to_string(),
            result,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReloadLabels {
    result: &'static str,
}

impl ReloadLabels {
    pub(super) fn new(accepted: bool) -> Self {
        Self {
            result: if accepted { "accepted" } else { "refused" },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CredentialLabels {
    host: String,
    state: &'static str,
}

impl CredentialLabels {
    pub(super) fn new(host: &Host, state: &'static str) -> Self {
        Self {
            host: host.to_string(),
            state,
        }
    }
}
