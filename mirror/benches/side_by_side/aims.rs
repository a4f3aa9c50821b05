//! What this server is to reach, measure by measure.

/// How a median is judged.
#[derive(Clone, Copy)]
pub(crate) enum Aim {
    /// So many times the ideal, or more.
    Times(f64),
    /// So many times the ideal, or less.
    AtMostTimes(f64),
    /// This value, or less.
    AtMost(f64),
}

const AIMS: [(&str, Aim); 34] = [
    ("M1 100 MiB blob, 1 connections, GiB/s", Aim::Times(1.0)),
    ("M1 100 MiB blob, 1 connections, CPU s/GiB", Aim::AtMostTimes(1.2)),
    ("M1 100 MiB blob, 8 connections, GiB/s", Aim::Times(1.0)),
    ("M1 100 MiB blob, 8 connections, CPU s/GiB", Aim::AtMostTimes(1.2)),
    ("M1 over TLS, 1 connections, GiB/s", Aim::Times(0.9)),
    ("M1 over TLS, 8 connections, GiB/s", Aim::Times(0.9)),
    ("M2 4 KiB blob, 64 connections, requests/s", Aim::Times(1.0)),
    ("M2 4 KiB blob, 64 connections, p99 ms", Aim::AtMostTimes(1.0)),
    (
        "M2 4 KiB blob, 64 connections, CPU µs/request",
        Aim::AtMostTimes(1.1),
    ),
    (
        "M3 manifest by digest, 64 connections, requests/s",
        Aim::Times(1.0),
    ),
    (
        "M3 manifest by digest, 64 connections, p99 ms",
        Aim::AtMostTimes(1.0),
    ),
    (
        "M3 manifest by digest, 64 connections, CPU µs/request",
        Aim::AtMostTimes(1.1),
    ),
    ("M3 manifest by tag, 64 connections, requests/s", Aim::Times(1.0)),
    (
        "M3 manifest by tag, 64 connections, p99 ms",
        Aim::AtMostTimes(1.0),
    ),
    (
        "M3 manifest by tag, 64 connections, CPU µs/request",
        Aim::AtMostTimes(1.1),
    ),
    ("M4 cold layer, first byte ms", Aim::AtMost(55.0)),
    ("M4 cold 100 MiB, whole ms", Aim::AtMostTimes(1.02)),
    ("M5 herd of 32, wall ms", Aim::AtMostTimes(1.1)),
    ("M5 herd of 32, first byte p50 ms", Aim::AtMost(100.0)),
    ("M5 herd of 32, upstream GETs", Aim::AtMost(1.0)),
    ("M5 herd of 32, anonymous MiB at most", Aim::AtMost(40.0)),
    ("M5 herd of 256, wall ms", Aim::AtMostTimes(1.1)),
    ("M5 herd of 256, upstream GETs", Aim::AtMost(1.0)),
    ("M6 skopeo, 8 layers behind an index, ms", Aim::AtMostTimes(1.03)),
    ("M6 skopeo, upstream MiB", Aim::AtMostTimes(1.0)),
    ("M7 start to first answer, ms", Aim::AtMost(50.0)),
    ("M7 idle anonymous memory, MiB", Aim::AtMost(20.0)),
    ("M7 anonymous memory after the load, MiB", Aim::AtMost(48.0)),
    (
        "M7 1,000 downloads of a cached layer under way, anonymous MiB at most",
        Aim::AtMost(64.0),
    ),
    (
        "M7 1,000 downloads of a cold layer under way, anonymous MiB at most",
        Aim::AtMost(64.0),
    ),
    ("million: start to a first hit, ms", Aim::AtMost(500.0)),
    ("million: CPU when left alone, % of a core", Aim::AtMost(1.0)),
    ("day: requests that failed", Aim::AtMost(0.0)),
    (
        "day: layers that were hits, points below an ideal LRU",
        Aim::AtMost(1.0),
    ),
];

impl Aim {
    /// That of a measure, if it has one.
    pub(crate) fn of(measure: &str) -> Option<Self> {
        AIMS.iter()
            .find(|(name, _)| *name == measure)
            .map(|(_, aim)| *aim)
    }

    /// Whether a median reaches it; `None` where there is no ideal to hold it against.
    pub(crate) fn is_reached(self, median: f64, ideal: Option<f64>) -> Option<bool> {
        Some(match self {
            Self::Times(ratio) => median >= ratio * ideal?,
            Self::AtMostTimes(ratio) => median <= ratio * ideal?,
            Self::AtMost(most) => median <= most,
        })
    }
}

impl std::fmt::Display for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Times(ratio) => write!(f, "≥ {ratio}×"),
            Self::AtMostTimes(ratio) => write!(f, "≤ {ratio}×"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

/// Whether more of it is better.
pub(crate) fn is_gain(measure: &str) -> bool {
    ["/s", "saved", "served", "hits, %", "day: requests"]
        .iter()
        .any(|end| measure.ends_with(end))
}
