//! Numbers as the pages show them.

use jiff::Timestamp;

/// Returns the part of hits, from 0 to 1; `None` without requests.
#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
pub fn hit_ratio(hits: u64, misses: u64) -> Option<f64> {
    let requests = hits.saturating_add(misses);
    (requests > 0).then(|| hits as f64 / requests as f64)
}

/// Returns the bytes that clients received less those that upstreams sent.
pub fn saved_bytes(served: u64, received: u64) -> i64 {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    signed(served).saturating_sub(signed(received))
}

/// Returns a ratio in percent.
pub fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

/// Returns a number of bytes in the unit in which it has at most four digits.
#[expect(clippy::cast_precision_loss, reason = "rounded for people")]
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1_024 {
        return format!("{number} B");
    }
    let (mut value, mut unit) = (number as f64 / 1_024.0, 0);
    while value >= 1_023.95 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1_024.0, unit + 1);
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Returns a number of bytes like [`bytes()`], with a sign if it is negative.
pub fn signed_bytes(number: i64) -> String {
    let sign = if number < 0 { "−" } else { "" };
    format!("{sign}{}", bytes(number.unsigned_abs()))
}

/// Returns a duration in its largest unit.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Returns the distance of a time (RFC 3339) from now.
pub(super) fn from_now(time: &str) -> String {
    let Ok(time) = time.parse::<Timestamp>() else {
        return "unknown".to_owned();
    };
    let seconds = Timestamp::now().as_second() - time.as_second();
    let distance = duration(seconds.unsigned_abs());
    if seconds < 0 {
        format!("in {distance}")
    } else {
        format!("{distance} ago")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(0 => "0 B")]
    #[test_case(1_023 => "1023 B")]
    #[test_case(1_024 => "1.0 KiB")]
    #[test_case((1 << 20) - 1 => "1.0 MiB")]
    #[test_case(u64::MAX => "16.0 EiB")]
    fn bytes_have_units(number: u64) -> String {
        bytes(number)
    }

    #[test_case(59 => "59 s")]
    #[test_case(3_599 => "59 min")]
    #[test_case(86_400 => "24 h")]
    #[test_case(864_000 => "10 days")]
    fn durations_have_units(seconds: u64) -> String {
        duration(seconds)
    }
}
