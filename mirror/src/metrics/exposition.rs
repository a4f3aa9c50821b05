//! The formats in which Prometheus reads metrics: `OpenMetrics` 1.0 and the text format 0.0.4.

use http::{HeaderMap, header};

/// A format of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// The text format 0.0.4, which every scraper reads.
    Text,
    /// The text format of `OpenMetrics` 1.0.
    OpenMetrics,
}

impl Exposition {
    /// Returns the format that the `Accept` headers of a request prefer (RFC 9110, 12.5.1): the text format, unless they
    /// name `OpenMetrics` with a weight that is not lower.
    pub fn negotiate(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT).iter();
        let ranges = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        let (mut open, mut text) = (0.0, 0.0_f32);
        for range in ranges {
            let (media_type, weight) = parse_range(range);
            match media_type.as_str() {
                "application/openmetrics-text" => open = weight.max(open),
                "text/plain" => text = weight.max(text),
                _ => {}
            }
        }
        if open > 0.0 && open >= text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// Returns the `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Converts metrics in the text format of `OpenMetrics` into this format.
    pub fn convert(self, metrics: String) -> String {
        match self {
            Self::Text => to_text(&metrics),
            Self::OpenMetrics => metrics,
        }
    }
}

/// Returns the media type in lower case, and the weight; a weight that is malformed counts as 0. A range of another
/// version than 1.0.0 and 0.0.1 of `OpenMetrics` is not understood.
fn parse_range(range: &str) -> (String, f32) {
    let mut parts = range.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let mut weight = 1.0;
    for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
        if name.trim().eq_ignore_ascii_case("q") {
            let parsed: f32 = value.trim().parse().unwrap_or(0.0);
            weight = if (0.0..=1.0).contains(&parsed) {
                parsed
            } else {
                0.0
            };
        }
    }
    (media_type, weight)
}

/// Converts: counters and infos are named with their suffix, infos are gauges; exemplars, units and the end are left out.
fn to_text(metrics: &str) -> String {
    let mut text = String::with_capacity(metrics.len());
    let mut help = None;
    for line in metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ').map(|(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            if let Some(help) = help.take() {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([without_exemplar(line), "\n"]);
        }
    }
    text
}

/// Returns a line of the text format of `OpenMetrics` without its exemplar.
pub(crate) fn without_exemplar(line: &str) -> &str {
    // No value of a label holds this text.
    line.split_once(" # {").map_or(line, |(line, _)| line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(&[] => Exposition::Text; "no header")]
    #[test_case(&["*/*"] => Exposition::Text; "anything")]
    #[test_case(&["application/openmetrics-text"] => Exposition::OpenMetrics; "only OpenMetrics")]
    #[test_case(&["Application/OpenMetrics-Text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"] => Exposition::OpenMetrics; "as Prometheus sends it")]
    #[test_case(&["text/plain;q=0.9", "application/openmetrics-text;q=0.5"] => Exposition::Text; "text is preferred")]
    #[test_case(&["application/openmetrics-text;q=0"] => Exposition::Text; "refused")]
    #[test_case(&["application/openmetrics-text;q=x, ;;q,"] => Exposition::Text; "malformed")]
    fn format_follows_accept(accept: &[&str]) -> Exposition {
        let values = accept
            .iter()
            .map(|value| (header::ACCEPT, value.parse().unwrap()));
        Exposition::negotiate(&values.collect())
    }

    /// The text format has the suffixes of counters in their types, and neither units nor an end.
    #[test]
    fn text_format_names_counters_with_suffix() {
        let open = "# HELP a_pulls Pulls.\n# TYPE a_pulls counter\na_pulls_total{x=\"# EOF\"} 1\n\
                    # HELP b_seconds Time.\n# TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds 2\n\
                    # HELP c C.\n# TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let text = "# HELP a_pulls_total Pulls.\n# TYPE a_pulls_total counter\na_pulls_total{x=\"# EOF\"} 1\n\
                    # HELP b_seconds Time.\n# TYPE b_seconds gauge\nb_seconds 2\n\
                    # HELP c_info C.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n";
        assert_eq!(Exposition::Text.convert(open.to_owned()), text);
        assert_eq!(Exposition::OpenMetrics.convert(open.to_owned()), open);
    }

    /// Exemplars are a part of `OpenMetrics` only.
    #[test]
    fn text_format_has_no_exemplars() {
        let open =
            "# TYPE a_seconds histogram\na_seconds_bucket{le=\"1.0\"} 2 # {trace_id=\"4bf9\"} 0.5\n# EOF\n";
        let text = "# TYPE a_seconds histogram\na_seconds_bucket{le=\"1.0\"} 2\n";
        assert_eq!(Exposition::Text.convert(open.to_owned()), text);
    }
}
