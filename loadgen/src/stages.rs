//! Where the server says that time goes: `antiphon_stage_seconds{stage="…"}` of its metrics, if it has
//! them. A summary's quantiles are taken as they stand; a histogram's buckets are those between two
//! scrapes, so that only what was measured counts.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One stage of a message's way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stage {
    /// The server's name for it.
    pub name: String,
    /// Half are faster, ms.
    pub p50_ms: Option<f64>,
    /// 99 of 100, ms.
    pub p99_ms: Option<f64>,
}

const METRIC: &str = "antiphon_stage_seconds";

/// Fetches the metrics.
///
/// # Errors
/// Not an `http://` URL, nobody there, or not an answer of 200.
pub fn scrape(url: &str) -> Result<String, String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let failed = |error: std::io::Error| format!("--control {url}: {error}");
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("--control {url}: it begins with http://"))?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.len() < 2 { "/metrics" } else { path };
    let address = host.to_socket_addrs().map_err(failed)?.next().ok_or(format!("--control {url}: no such host"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(format!("--control {url}: {}", answer.lines().next().unwrap_or("no answer"))),
    }
}

/// One stage's figures of a scrape, all shards together.
#[derive(Debug, Default)]
struct Raw {
    /// By quantile as written: the slowest shard's.
    quantiles: BTreeMap<String, f64>,
    /// By upper bound (as bits, which sort like the positive numbers they are): cumulative counts.
    buckets: BTreeMap<u64, f64>,
}

/// The stages, in the order in which the server names them. Empty when it names none.
pub fn stages(before: &str, after: &str) -> Vec<Stage> {
    let (_, earlier) = read(before);
    let (order, later) = read(after);
    order
        .into_iter()
        .map(|name| {
            let raw = &later[&name];
            let old = earlier.get(&name);
            let ms = |quantile: f64| {
                let told = raw.quantiles.iter().find(|(text, _)| text.parse() == Ok(quantile)).map(|(_, s)| *s);
                told.or_else(|| of_buckets(raw, old, quantile)).map(|seconds| seconds * 1e3)
            };
            Stage { p50_ms: ms(0.5), p99_ms: ms(0.99), name }
        })
        .filter(|stage| stage.p50_ms.is_some() || stage.p99_ms.is_some())
        .collect()
}

fn of_buckets(raw: &Raw, old: Option<&Raw>, quantile: f64) -> Option<f64> {
    let since = |(bound, count): (&u64, &f64)| {
        let was = old.and_then(|old| old.buckets.get(bound)).copied().unwrap_or(0.0);
        (f64::from_bits(*bound), count - was)
    };
    let counts: Vec<(f64, f64)> = raw.buckets.iter().map(since).collect();
    let wanted = counts.last().filter(|(_, all)| *all > 0.0)?.1 * quantile;
    let mut from = (0.0, 0.0);
    for (bound, count) in counts {
        if count >= wanted && bound.is_finite() {
            return Some(from.0 + (bound - from.0) * (wanted - from.1) / (count - from.1).max(1e-9));
        }
        from = if bound.is_finite() { (bound, count) } else { from };
    }
    Some(from.0)
}

fn read(text: &str) -> (Vec<String>, BTreeMap<String, Raw>) {
    let mut order = Vec::new();
    let mut stages: BTreeMap<String, Raw> = BTreeMap::new();
    for line in text.lines() {
        let Some((kind, rest)) = line.strip_prefix(METRIC).and_then(|rest| rest.split_once('{')) else { continue };
        let Some((labels, value)) = rest.rsplit_once('}') else { continue };
        let Some(value) = value.split_ascii_whitespace().next().and_then(|n| n.parse::<f64>().ok()) else { continue };
        let Some(name) = label(labels, "stage") else { continue };
        if !stages.contains_key(name) {
            order.push(name.to_owned());
        }
        let raw = stages.entry(name.to_owned()).or_default();
        match (kind, label(labels, "quantile"), label(labels, "le")) {
            ("", Some(quantile), _) => {
                let slowest = raw.quantiles.entry(quantile.to_owned()).or_default();
                *slowest = slowest.max(value);
            }
            ("_bucket", _, Some(bound)) => {
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap_or(f64::INFINITY) };
                *raw.buckets.entry(bound.to_bits()).or_default() += value;
            }
            _ => {}
        }
    }
    (order, stages)
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_taken_from_the_slowest_shard() {
        let text = "# TYPE antiphon_stage_seconds summary\n\
            antiphon_stage_seconds{shard=\"0\",stage=\"parse\",quantile=\"0.5\"} 0.001\n\
            antiphon_stage_seconds{shard=\"1\",stage=\"parse\",quantile=\"0.5\"} 0.002\n\
            antiphon_stage_seconds{shard=\"1\",stage=\"parse\",quantile=\"0.99\"} 0.004\n\
            antiphon_stage_seconds_count{shard=\"1\",stage=\"parse\"} 9\n\
            antiphon_stage_seconds{stage=\"commit\",quantile=\"0.5\"} 0.5 123\n\
            antiphon_other{stage=\"x\",quantile=\"0.5\"} 1\n";
        let stage = |name: &str, p50_ms, p99_ms| Stage { name: name.to_owned(), p50_ms, p99_ms };
        assert_eq!(stages("", text), [stage("parse", Some(2.0), Some(4.0)), stage("commit", Some(500.0), None)]);
        assert!(stages("", "antiphon_sends_total 7\n").is_empty());
    }

    #[test]
    fn histograms_count_between_the_scrapes() {
        let scrape = |a: u32, b: u32, all: u32| {
            format!(
                "antiphon_stage_seconds_bucket{{stage=\"flush\",le=\"0.001\"}} {a}\n\
                 antiphon_stage_seconds_bucket{{stage=\"flush\",le=\"0.01\"}} {b}\n\
                 antiphon_stage_seconds_bucket{{stage=\"flush\",le=\"+Inf\"}} {all}\n"
            )
        };
        let found = stages(&scrape(100, 100, 100), &scrape(100, 200, 200));
        assert_eq!(found.len(), 1);
        assert!((found[0].p50_ms.unwrap() - 5.5).abs() < 0.01, "{found:?}");
        assert!(stages(&scrape(5, 5, 5), &scrape(5, 5, 5)).is_empty(), "nothing happened");
    }

    #[test]
    fn metrics_are_fetched_over_http() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            for status in ["200 OK", "503 No"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                assert!(request.starts_with(b"GET /metrics HTTP/1.0\r\n"));
                write!(stream, "HTTP/1.0 {status}\r\n\r\nx 1\n").unwrap();
            }
        });
        assert_eq!(scrape(&url).unwrap(), "x 1\n");
        assert!(scrape(&url).unwrap_err().contains("503"));
        server.join().unwrap();
        assert!(scrape("ftp://x").unwrap_err().contains("http://"));
    }
}
