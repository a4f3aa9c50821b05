//! The labels of the counters: closed sets, so that no client can make new series.

use std::fmt::Write;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

macro_rules! label {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $type {
            /// All values, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

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
        /// The bucket, which the client was redirected to.
        Redirect = "redirect",
        /// Nowhere: an error, or nothing to look up.
        None = "none",
    }
}

label! {
    /// The source of the bytes of a body.
    Source {
        /// The cache.
        Cache = "cache",
        /// A download that another client had started.
        Coalesced = "coalesced",
        /// The upstream.
        Upstream = "upstream",
        /// Another replica of the mirror.
        Peer = "peer",
        /// An object storage.
        Bucket = "bucket",
    }
}

label! {
    /// The result of a fill.
    FillResult {
        /// Verified and kept.
        Stored = "stored",
        /// The upstream failed for good.
        Failed = "upstream",
        /// The bytes were not what the digest says.
        Mismatch = "mismatch",
        /// The cache had no room, or the disk failed.
        NoRoom = "noroom",
        /// The cache is read-only.
        ReadOnly = "readonly",
    }
}

label! {
    /// The reason for which a blob left the cache.
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
            Self::Hit | Self::Redirect => Some("HIT"),
            Self::Stale => Some("STALE"),
            Self::Coalesced => Some("COALESCED"),
            Self::Miss | Self::PassThrough => Some("MISS"),
            Self::None => None,
        }
    }
}

macro_rules! label_set {
    ($(#[$doc:meta])* $type:ident { $($field:ident: $kind:ty),+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(super) struct $type {
            $(pub(super) $field: $kind,)+
        }
    };
}

label_set! { RequestLabels { upstream: String, kind: Kind, code: u16, outcome: Outcome } }
label_set! { DurationLabels { upstream: String, kind: Kind, outcome: Outcome } }
label_set! { TraceLabels { trace_id: String } }
label_set! { SourceLabels { upstream: String, source: Source } }
label_set! { KindLabels { upstream: String, kind: Kind } }
label_set! { UpstreamLabels { upstream: String } }
label_set! { CodeLabels { upstream: String, code: u16 } }
label_set! { ErrorLabels { upstream: String, error: &'static str } }
label_set! { TokenLabels { upstream: String, result: TokenResult } }
label_set! { RateLimitLabels { upstream: String, value: &'static str } }
label_set! { CredentialLabels { upstream: String, state: &'static str } }
label_set! { FillLabels { state: &'static str } }
label_set! { FillFailureLabels { reason: FillResult } }
label_set! { EvictionLabels { reason: EvictionReason } }
label_set! { ReloadLabels { result: &'static str } }
label_set! { BuildLabels { version: &'static str } }
