//! The metrics of the process (`process_*`), as Prometheus' client libraries name them.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// A collector that reads `/proc/self` for each scrape; elsewhere than on Linux it has no metrics.
#[derive(Debug)]
pub struct ProcessCollector {
    /// The start of the process in seconds since 1970, as far as this collector was made at the start.
    started: f64,
}

/// The fields of `/proc/self/stat` (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// User and system time, in clock ticks.
    ticks: u64,
    /// The virtual memory in bytes.
    virtual_bytes: u64,
    /// The resident memory in pages.
    resident_pages: u64,
    threads: u64,
}

impl Default for ProcessCollector {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            started: since.as_secs_f64(),
        }
    }
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may contain spaces and parentheses; the state follows it as field 3.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            ticks: field(14)?.saturating_add(field(15)?),
            threads: field(20)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has floats only")]
impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge(
            "process_start_time_seconds",
            "Start time of the process, in seconds since 1970.",
            self.started,
        )?;
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            gauge(
                "process_max_fds",
                "Maximum number of open file descriptors.",
                limit as f64,
            )?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            gauge(
                "process_open_fds",
                "Number of open file descriptors.",
                open.count() as f64,
            )?;
        }
        let Some(stat) = fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|text| Stat::parse(&text))
        else {
            return Ok(());
        };
        let resident = stat.resident_pages.saturating_mul(page_size() as u64);
        gauge(
            "process_resident_memory_bytes",
            "Resident memory.",
            resident as f64,
        )?;
        gauge(
            "process_virtual_memory_bytes",
            "Virtual memory.",
            stat.virtual_bytes as f64,
        )?;
        gauge("process_threads", "Number of threads.", stat.threads as f64)?;
        let seconds = ConstCounter::new(stat.ticks as f64 / clock_ticks_per_second() as f64);
        let help = "User and system CPU time, in seconds.";
        seconds.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, seconds.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of a program may have spaces and parentheses.
    #[test]
    fn stat_is_parsed_behind_any_name() {
        let fields: Vec<_> = (4..=52).map(|number| number.to_string()).collect();
        let text = format!("1 (a) S (b 9) S {}", fields.join(" "));
        let stat = Stat {
            ticks: 29,
            virtual_bytes: 23,
            resident_pages: 24,
            threads: 20,
        };
        assert_eq!(Stat::parse(&text), Some(stat));
        assert_eq!(Stat::parse("1 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
