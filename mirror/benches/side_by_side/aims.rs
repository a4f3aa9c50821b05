//! The aims of this server, measure by measure.

/// The aim for a median.
#[derive(Clone, Copy)]
pub(crate) enum Aim {
    /// So many times the ideal, or more.
    Times(f64),
    /// This value, or more.
    AtLeast(f64),
    /// So many times the ideal, or less.
    AtMostTimes(f64),
    /// This value, or less.
    AtMost(f64),
}

const AIMS: [(&str, Aim); 75] = [
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
    (
        "fleet: bucket requests per hit of the local tier",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: bucket GETs per hit of the bucket tier, 3 replicas together",
        Aim::AtMost(1.0),
    ),
    (
        "fleet: bucket HEADs per hit of the bucket tier, 3 replicas together",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: bucket LISTs per hit of the bucket tier, 3 replicas together",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: bucket writes per hit of the bucket tier, 3 replicas together",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: upstream requests per hit of the bucket tier",
        Aim::AtMost(0.0),
    ),
    // One GET, as another server may have uploaded it, and two PUTs.
    ("fleet: cold blob of 8 MiB, bucket requests", Aim::AtMost(3.0)),
    (
        "fleet: cold blob of 8 MiB, copies in the bucket",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: upstream checks of a tag that expired, 3 replicas",
        Aim::AtMost(1.0),
    ),
    (
        "fleet: herd of 96 over 3 replicas, cold, wall ms",
        Aim::AtMostTimes(1.3),
    ),
    (
        "fleet: herd of 96 over 3 replicas, cold, upstream GETs",
        Aim::AtMost(1.0),
    ),
    (
        "fleet: herd of 96 over 3 replicas, cold, upstream HEADs",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: herd of 96 over 3 replicas, cold, bucket requests",
        Aim::AtMost(3.0),
    ),
    (
        "fleet: herd of 96 over 3 replicas, in the bucket, bucket GETs",
        Aim::AtMost(1.0),
    ),
    (
        "fleet: herd of 96 over 3 replicas, in the bucket, bucket HEADs and LISTs",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: herd of 96 over 3 replicas, in the bucket, upstream requests",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: filling replica killed, 96 pulls on the others, failed",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: filling replica killed, 96 pulls on the others, upstream bytes per byte",
        Aim::AtMost(2.0),
    ),
    ("fleet: bucket gone, cold pulls that failed, %", Aim::AtMost(0.0)),
    ("fleet: bucket gone, hits that failed, %", Aim::AtMost(0.0)),
    (
        "fleet: bucket gone, first cold pull, ms more",
        Aim::AtMost(1000.0),
    ),
    ("fleet: bucket gone, next cold pulls, ms more", Aim::AtMost(5.0)),
    (
        "fleet: bucket slow by 2 s, cold pulls that failed, %",
        Aim::AtMost(0.0),
    ),
    ("fleet: bucket slow by 2 s, hits that failed, %", Aim::AtMost(0.0)),
    (
        "fleet: bucket slow by 2 s, first cold pull, ms more",
        Aim::AtMost(1000.0),
    ),
    (
        "fleet: bucket slow by 2 s, next cold pulls, ms more",
        Aim::AtMost(5.0),
    ),
    (
        "fleet: bucket answers 503, cold pulls that failed, %",
        Aim::AtMost(0.0),
    ),
    ("fleet: bucket answers 503, hits that failed, %", Aim::AtMost(0.0)),
    (
        "fleet: bucket answers 503, first cold pull, ms more",
        Aim::AtMost(1000.0),
    ),
    (
        "fleet: bucket answers 503, next cold pulls, ms more",
        Aim::AtMost(5.0),
    ),
    (
        "fleet: bucket with wrong bytes, pulls that failed or got them, %",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: roll of 3 replicas under load, failed pulls",
        Aim::AtMost(0.0),
    ),
    (
        "fleet: roll of 3 replicas under load, upstream GETs per blob",
        Aim::AtMost(1.02),
    ),
    ("fleet: warm 100 MiB blob, 1 connections, GiB/s", Aim::Times(0.98)),
    ("fleet: warm 100 MiB blob, 8 connections, GiB/s", Aim::Times(0.98)),
    ("fleet: 100 MiB blob of the bucket, GiB/s", Aim::Times(0.8)),
    (
        "fleet: 100 MiB blob of the bucket, times Distribution",
        Aim::AtLeast(2.0),
    ),
    (
        "fleet: 100 MiB blob of the bucket, times a verified copy",
        Aim::AtLeast(0.8),
    ),
    ("fleet: 100 MiB blob of a peer, GiB/s", Aim::Times(0.8)),
    (
        "fleet: 100 MiB blob of a peer, times a verified copy",
        Aim::AtLeast(0.8),
    ),
    (
        "fleet: 100 MiB blob of a peer, first byte ms later",
        Aim::AtMost(5.0),
    ),
];

impl Aim {
    /// That of a measure, if it has one.
    pub(crate) fn for_measure(measure: &str) -> Option<Self> {
        AIMS.iter()
            .find(|(name, _)| *name == measure)
            .map(|(_, aim)| *aim)
    }

    /// Returns the measures with this prefix that have an aim.
    pub(crate) fn measures(prefix: &str) -> impl Iterator<Item = &'static str> {
        AIMS.iter()
            .map(|(measure, _)| *measure)
            .filter(move |measure| measure.starts_with(prefix))
    }

    /// Returns true if a median reaches the aim; `None` without an ideal to compare it with.
    pub(crate) fn is_reached(self, median: f64, ideal: Option<f64>) -> Option<bool> {
        Some(match self {
            Self::Times(ratio) => median >= ratio * ideal?,
            Self::AtMostTimes(ratio) => median <= ratio * ideal?,
            Self::AtLeast(least) => median >= least,
            Self::AtMost(most) => median <= most,
        })
    }
}

impl std::fmt::Display for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Times(ratio) => write!(f, "≥ {ratio}×"),
            Self::AtMostTimes(ratio) => write!(f, "≤ {ratio}×"),
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

/// Returns true for measures of which more is better.
pub(crate) fn is_gain(measure: &str) -> bool {
    ["/s", "saved", "served", "hits, %", "day: requests"]
        .iter()
        .any(|end| measure.ends_with(end))
}
