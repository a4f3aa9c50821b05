//! A day of a cluster, compressed into minutes: 100,000 requests from a seeded generator, shaped like published traces of
//! registries. Pulls only; two thirds of the layers below 1 MiB with a tail to 2 GiB; few images have most of the pulls;
//! new ones come every hour. All sizes, and the room that the cache has, are divided by [`SCALE`]: 2 GiB are 32 MiB.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::content::{Content, Item, Named};
use crate::measures::ms;
use crate::report::Report;
use crate::servers::{DISTRIBUTION_3, OURS, Server, Site};
use crate::upstream::Upstream;

const REQUESTS: usize = 100_000;
const HOURS: usize = 24;
const FIRST_IMAGES: usize = 300;
const IMAGES_AN_HOUR: usize = 12;
const CLIENTS: usize = 16;
const SCALE: f64 = 64.0;
const KIB: f64 = 1024.0;
/// The size of a small blob, before it is divided by `SCALE`.
const SMALL: f64 = 1024.0 * KIB;
/// The time after which a server is stopped, and judged by the requests that it answered.
const LIMIT: Duration = Duration::from_secs(165);
/// The cache has room for this part of all layers.
const ROOM: f64 = 0.4;

/// Numbers that look random, the same ones at each run (xorshift64).
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small and positive"
    )]
    fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    /// As likely in each doubling.
    fn between(&mut self, least: f64, most: f64) -> f64 {
        least * (most / least).powf(self.unit())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below 2^53"
    )]
    fn layer(&mut self) -> usize {
        let mib = 1024.0 * KIB;
        let size = match self.unit() {
            part if part < 0.667 => self.between(4.0 * KIB, SMALL),
            part if part < 0.97 => self.between(SMALL, 64.0 * mib),
            _ => self.between(64.0 * mib, 2048.0 * mib),
        };
        (size / SCALE) as usize
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Manifest,
    SmallLayer,
    Layer,
}

#[derive(Clone)]
struct Asked {
    kind: Kind,
    name: String,
    size: usize,
}

/// The requests of a day in order, and the content that they ask for.
struct Day {
    requests: Vec<Asked>,
    items: Vec<Named>,
    bytes: usize,
}

impl Day {
    fn new(content: &Content) -> Self {
        let mut random = Random(20_260_101);
        let mut day = Self {
            requests: Vec::new(),
            items: Vec::new(),
            bytes: 0,
        };
        // By rank: the first has twice the pulls of the second.
        let mut images = Vec::new();
        for hour in 0..HOURS {
            let new = if hour == 0 { FIRST_IMAGES } else { IMAGES_AN_HOUR };
            for _ in 0..new {
                let image = day.image(content, &mut random, &images);
                images.insert(random.below(images.len() + 1), image);
            }
            while day.requests.len() < REQUESTS * (hour + 1) / HOURS {
                let rank = random.between(1.0, images.len() as f64 + 1.0).floor() - 1.0;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
                day.requests.extend_from_slice(&images[rank as usize]);
            }
        }
        day.requests.truncate(REQUESTS);
        day
    }

    /// An image's manifest and its layers, of which half are another image's.
    fn image(&mut self, content: &Content, random: &mut Random, others: &[Vec<Asked>]) -> Vec<Asked> {
        let mut layers = Vec::new();
        for _ in 0..3 + random.below(8) {
            if !others.is_empty() && random.unit() < 0.5 {
                let other = &others[random.below(others.len())];
                layers.push(other[1 + random.below(other.len() - 1)].clone());
                continue;
            }
            let size = random.layer();
            let (digest, item) = content.fresh_layer(size);
            self.items.push((digest.to_string(), item));
            self.bytes += size;
            let small = (size as f64) < SMALL / SCALE;
            let kind = if small { Kind::SmallLayer } else { Kind::Layer };
            layers.push(Asked {
                kind,
                name: digest.to_string(),
                size,
            });
        }
        let (tag, text) = content.tagged(self.items.len());
        self.items.push((tag.clone(), text.clone()));
        let Item::Document(bytes, _) = &text else {
            return layers;
        };
        let digest = mirror::digest::Digest::compute(mirror::digest::Algorithm::Sha256, bytes);
        let size = bytes.len();
        self.items.push((digest.to_string(), text));
        let manifest = Asked {
            kind: Kind::Manifest,
            name: tag,
            size,
        };
        std::iter::once(manifest).chain(layers).collect()
    }

    fn layers(&self) -> impl Iterator<Item = &Asked> {
        self.requests.iter().filter(|asked| asked.kind != Kind::Manifest)
    }

    /// The part of the layers that a cache of this size would have, which gives up what was used longest ago.
    fn ideal(&self, room: usize) -> f64 {
        let (mut used, mut hits, mut total) = (0, 0, 0);
        let mut last: HashMap<&str, usize> = HashMap::new();
        let mut order: VecDeque<(usize, &Asked)> = VecDeque::new();
        for (at, asked) in self.layers().enumerate() {
            total += 1;
            if last.insert(&asked.name, at).is_some() {
                hits += 1;
            } else {
                used += asked.size;
            }
            order.push_back((at, asked));
            while used > room {
                // Content that was used again is at a later place, too.
                let Some((at, oldest)) = order.pop_front() else {
                    break;
                };
                if last.get(oldest.name.as_str()) == Some(&at) {
                    last.remove(oldest.name.as_str());
                    used -= oldest.size;
                }
            }
        }
        f64::from(hits) / f64::from(total)
    }
}

/// A request of the day and what came of it; no time where it failed.
struct Answered<'a> {
    asked: &'a Asked,
    took: Option<Duration>,
}

/// Replays the day through this server with room for a part of it, and through Distribution 3, which keeps all.
pub(crate) fn replay(site: &Site<'_>, content: &Content, upstream: &Upstream, mut report: Report) -> Report {
    report.say("making up a day");
    let day = Day::new(content);
    upstream.add(day.items.iter().cloned());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below 2^53"
    )]
    let room = (day.bytes as f64 * ROOM) as usize;
    let ideal = day.ideal(room) * 100.0;
    report.add("day: layers that were hits, %", "ideal LRU", ideal);
    let servers = report.started(site.registries(&format!("cache: {{tagttl: 1h, maxsize: {room}}}")));
    for server in servers
        .iter()
        .filter(|server| [OURS, DISTRIBUTION_3].contains(&server.name))
    {
        report.say(&format!(
            "{}: {REQUESTS} requests, for {} s at most",
            server.name,
            LIMIT.as_secs()
        ));
        upstream.take_counts();
        let (cpu, started) = (server.cpu(), Instant::now());
        let answered = asked(server, &day, &report);
        let (wall, cpu) = (started.elapsed().as_secs_f64(), server.cpu() - cpu);
        let done = answered.len() as f64;
        let mut add = |what: &str, value| report.add(&format!("day: {what}"), server.name, value);
        add("requests", done);
        add(
            "requests that failed",
            answered.iter().filter(|answered| answered.took.is_none()).count() as f64,
        );
        add("requests/s", done / wall);
        add("CPU µs/request", cpu * 1e6 / done);
        add("anonymous MiB after", server.anonymous_mib());
        let counts = upstream.take_counts();
        add("upstream requests", counts.requests as f64);
        let layers = || {
            answered
                .iter()
                .filter(|answered| answered.asked.kind != Kind::Manifest)
        };
        let hits = 100.0 - 100.0 * counts.blob_gets as f64 / layers().count() as f64;
        add("layers that were hits, %", hits);
        if server.name == OURS {
            add("layers that were hits, points below an ideal LRU", ideal - hits);
        }
        let served: usize = layers().map(|answered| answered.asked.size).sum();
        add("MiB served", served as f64 / (KIB * KIB));
        add(
            "MiB saved",
            (served as f64 - counts.blob_bytes as f64) / (KIB * KIB),
        );
        times(&answered, server.name, &mut report);
    }
    report
}

/// Reports the durations of each kind of request.
fn times(answered: &[Answered<'_>], server: &'static str, report: &mut Report) {
    for (what, kind) in [
        ("manifest", Kind::Manifest),
        ("layer below 1 MiB / 64", Kind::SmallLayer),
        ("larger layer", Kind::Layer),
    ] {
        let of_this = answered.iter().filter(|answered| answered.asked.kind == kind);
        let mut took: Vec<_> = of_this.filter_map(|answered| answered.took).collect();
        took.sort();
        if !took.is_empty() {
            report.add(&format!("day: {what}, p50 ms"), server, ms(took[took.len() / 2]));
            report.add(
                &format!("day: {what}, p99 ms"),
                server,
                ms(took[took.len() * 99 / 100]),
            );
        }
    }
}

/// All requests in order, each by the next client that is free.
fn asked<'a>(server: &Server, day: &'a Day, report: &Report) -> Vec<Answered<'a>> {
    let (next, until) = (AtomicUsize::new(0), Instant::now() + LIMIT);
    let (all, reasons) = (
        Mutex::new(Vec::new()),
        Mutex::new(HashMap::<String, usize>::new()),
    );
    let client = || {
        let (mut connection, mut answered) = (server.target.connect(), Vec::new());
        while let Some(asked) = day.requests.get(next.fetch_add(1, Ordering::Relaxed))
            && Instant::now() < until
        {
            let kind = if asked.kind == Kind::Manifest {
                "manifests"
            } else {
                "blobs"
            };
            let path = format!("/v2/library/app/{kind}/{}", asked.name);
            let got = connection.and_then(|mut open| Ok((open.get(&path)?, open)));
            let took = got.as_ref().ok().map(|(took, _)| took.whole);
            answered.push(Answered { asked, took });
            connection = got.map(|(_, open)| open).or_else(|error| {
                *reasons.lock().entry(format!("{kind}: {error}")).or_default() += 1;
                server.target.connect()
            });
        }
        all.lock().extend(answered);
    };
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(client);
        }
    });
    for (reason, times) in reasons.into_inner() {
        report.say(&format!("{}: {times} × {reason}", server.name));
    }
    all.into_inner()
}
