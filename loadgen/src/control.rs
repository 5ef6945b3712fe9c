//! The server's own counters: one scrape of `GET /metrics` on its control listener.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The text of one scrape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics(String);

impl Metrics {
    /// Asks the control listener.
    ///
    /// # Errors
    /// Not reachable in time, or an answer that is none.
    pub fn fetch(address: SocketAddr) -> Result<Self, String> {
        let told = |error: std::io::Error| format!("cannot read {address}/metrics (--control): {error}");
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(told)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(told)?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(told)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(told)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(Self(body.to_owned())),
            _ => Err(format!("{address}/metrics (--control) gives no metrics")),
        }
    }

    /// A counter's or gauge's value, summed over all labels.
    pub fn sum(&self, name: &str) -> u64 {
        self.values(name, "").sum()
    }

    /// The highest value of a metric among lines whose labels hold `label`, as `quantile="0.99"`.
    pub fn highest(&self, name: &str, label: &str) -> u64 {
        self.values(name, label).max().unwrap_or(0)
    }

    fn values<'a>(&'a self, name: &'a str, label: &'a str) -> impl Iterator<Item = u64> + 'a {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let is_it = labels.is_empty() || labels.starts_with('{');
            (is_it && labels.contains(label)).then(|| value.parse().ok())?
        })
    }

    /// How much a counter grew since `earlier`; `name` without `_total`.
    pub fn grown(&self, earlier: &Self, name: &str) -> u64 {
        let name = format!("antiphon_{name}_total");
        self.sum(&name).saturating_sub(earlier.sum(&name))
    }
}

/// The address in `http://host:port`, or just `host:port`.
///
/// # Errors
/// No such address.
pub fn address(url: &str) -> Result<SocketAddr, String> {
    let host = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let mut found = host.to_socket_addrs().map_err(|error| format!("--control {url}: {error}"))?;
    found.next().ok_or_else(|| format!("--control {url}: no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE antiphon_gaps counter\nantiphon_gaps_total{shard=\"0\"} 3\nantiphon_gaps_total{shard=\"1\"} 4\n\
        antiphon_gaps_total_other{shard=\"1\"} 9\nantiphon_ready 1\n\
        antiphon_wake_latency_us{shard=\"0\",quantile=\"0.99\"} 70\nantiphon_wake_latency_us{shard=\"1\",quantile=\"0.99\"} 90\n\
        antiphon_wake_latency_us{shard=\"1\",quantile=\"1\"} 900\n";

    #[test]
    fn metrics_are_summed_over_shards() {
        let metrics = Metrics(TEXT.to_owned());
        assert_eq!(metrics.sum("antiphon_gaps_total"), 7);
        assert_eq!(metrics.sum("antiphon_ready"), 1);
        assert_eq!(metrics.highest("antiphon_wake_latency_us", "quantile=\"0.99\""), 90);
        assert_eq!((metrics.grown(&Metrics::default(), "gaps"), metrics.grown(&metrics, "gaps")), (7, 0));
    }

    #[test]
    fn a_scrape_is_read_and_a_refusal_named() {
        let serve = |answer: &'static str| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 512]);
                stream.write_all(answer.as_bytes()).unwrap();
            });
            address
        };
        let metrics = Metrics::fetch(serve("HTTP/1.1 200 OK\r\n\r\nantiphon_x_total 5\n")).unwrap();
        assert_eq!(metrics.sum("antiphon_x_total"), 5);
        assert!(Metrics::fetch(serve("HTTP/1.1 404 Not Found\r\n\r\n")).unwrap_err().contains("--control"));
        assert!(address("http://127.0.0.1:9/").is_ok() && address("nowhere").is_err());
    }
}
