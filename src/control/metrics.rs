//! `GET /metrics`: every number of every shard and of the store, in the OpenMetrics text format.
//!
//! The metrics are not kept here: each scrape takes a snapshot and writes it down, so that a number
//! cannot be out of date and a shard pays only for a clone.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Context;
use super::reply::Failure;
use super::snapshot::Snapshot;
use crate::engine::stages::BUCKETS_US;
use crate::engine::stats::{Kind, LatencySummary, Reading, Stats};
use crate::protocol::error::{ErrorCode, Refusal};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The scrape.
pub(super) async fn metrics(State(context): State<Context>) -> Result<Response, Failure> {
    let snapshot = Snapshot::take(&context).await;
    let text = render(snapshot)
        .map_err(|_| Failure::from(Refusal::new(ErrorCode::Internal, "the metrics could not be written")))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

fn render(snapshot: Snapshot) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut text = String::with_capacity(16 * 1024);
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// One metric with a value for each label.
struct Family<'a> {
    name: String,
    help: &'a str,
    kind: Kind,
}

type Labels = Vec<(&'static str, String)>;

impl Family<'_> {
    fn write(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        // The writer puts a full stop behind the help text by itself.
        let mut family = encoder.encode_descriptor(&self.name, self.help.trim_end_matches('.'), None, kind)?;
        for (labels, value) in values {
            let metric = if labels.is_empty() { None } else { Some(family.encode_family(&labels)?) };
            match (self.kind, metric) {
                (Kind::Counter, Some(metric)) => ConstCounter::new(value).encode(metric)?,
                (Kind::Gauge, Some(metric)) => ConstGauge::new(signed(value)).encode(metric)?,
                (Kind::Counter, None) => family.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                (Kind::Gauge, None) => family.encode_gauge(&signed(value))?,
            }
        }
        Ok(())
    }
}

/// Gauges are signed in the format.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn shard_label(shard: usize) -> (&'static str, String) {
    ("shard", shard.to_string())
}

impl Snapshot {
    fn answered(&self) -> impl Iterator<Item = (usize, &Stats)> {
        self.shards.iter().enumerate().filter_map(|(shard, stats)| stats.as_ref().map(|stats| (shard, stats)))
    }

    fn write_shards(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let up = self.shards.iter().enumerate().map(|(shard, s)| (vec![shard_label(shard)], u64::from(s.is_some())));
        Family { name: "antiphon_shard_up".to_owned(), help: "1 when the shard answered in time.", kind: Kind::Gauge }
            .write(encoder, up)?;
        let table: Vec<(usize, Vec<Reading>)> =
            self.answered().map(|(n, stats)| (n, stats.readings().collect())).collect();
        for (at, reading) in Stats::default().readings().enumerate() {
            let values = table.iter().map(|(shard, readings)| (vec![shard_label(*shard)], readings[at].value));
            Family { name: format!("antiphon_{}", reading.name), help: reading.help, kind: reading.kind }
                .write(encoder, values)?;
        }
        Ok(())
    }

    fn write_tables(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let rows = |pick: fn(&Stats) -> Vec<(&'static str, u64)>, label: &'static str| {
            let row = move |(shard, stats): (usize, &Stats)| {
                let labelled =
                    move |(name, count): (&str, u64)| (vec![shard_label(shard), (label, name.to_owned())], count);
                pick(stats).into_iter().map(labelled).collect::<Vec<_>>()
            };
            self.answered().flat_map(row).collect::<Vec<_>>()
        };
        let counter = |name: &str, help| Family { name: name.to_owned(), help, kind: Kind::Counter };
        counter("antiphon_errors", "Error replies by code.")
            .write(encoder, rows(|s| s.errors.iter().collect(), "code"))?;
        counter("antiphon_closes", "Closes by the server, by code.")
            .write(encoder, rows(|s| s.closes.iter().collect(), "code"))?;
        counter("antiphon_commands", "Commands by type.").write(encoder, rows(|s| s.commands.iter().collect(), "type"))
    }

    fn write_latencies(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let shards = |pick: fn(&Stats) -> LatencySummary| {
            let row = move |(shard, stats): (usize, &Stats)| quantiles(pick(stats), Some(shard));
            self.answered().flat_map(row).collect::<Vec<_>>()
        };
        let gauge = |name: &str, help| Family { name: name.to_owned(), help, kind: Kind::Gauge };
        gauge(
            "antiphon_wake_latency_us",
            "Microseconds from a wake-up call to the shard's next turn, in the last 30 to 60 s.",
        )
        .write(encoder, shards(|s| s.wake_latency))?;
        gauge("antiphon_turn_time_us", "Microseconds of a turn, in the last 30 to 60 s.")
            .write(encoder, shards(|s| s.turn_time))?;
        gauge("antiphon_store_commit_time_us", "Microseconds of a commit, fsync included, since start.")
            .write(encoder, quantiles(self.store.commit_time, None))?;
        gauge("antiphon_store_read_time_us", "Microseconds of a question to the store, without its wait, since start.")
            .write(encoder, quantiles(self.store.read_time, None))
    }

    fn write_stages(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let of_shard = |shard: usize, stage: &'static str| vec![("stage", stage.to_owned()), shard_label(shard)];
        let rows = self.answered().flat_map(|(shard, stats)| {
            stats.stages.iter().flat_map(move |(stage, time)| {
                quantiles(time.recent, None).into_iter().map(move |(quantile, us)| {
                    let labels: Labels = of_shard(shard, stage).into_iter().chain(quantile).collect();
                    (labels, us)
                })
            })
        });
        let help = "Microseconds of a stage on the way of messages, in the last 30 to 60 s.";
        Family { name: "antiphon_stage_us".to_owned(), help, kind: Kind::Gauge }.write(encoder, rows)?;
        let help = "Seconds of a stage on the way of messages, since start";
        let mut family = encoder.encode_descriptor("antiphon_stage_seconds", help, None, MetricType::Histogram)?;
        for (shard, stats) in self.answered() {
            for (stage, time) in stats.stages.iter() {
                let within: u64 = time.buckets.iter().sum();
                let buckets: Vec<(f64, u64)> = BUCKETS_US
                    .iter()
                    .zip(time.buckets)
                    .map(|(bound, count)| (seconds(*bound), count))
                    // The format's word for "longer than all bounds".
                    .chain([(f64::INFINITY, time.total_count.saturating_sub(within))])
                    .collect();
                family.encode_family(&of_shard(shard, stage))?.encode_histogram::<NoLabelSet>(
                    seconds(time.sum_us),
                    time.total_count,
                    &buckets,
                    None,
                )?;
            }
        }
        Ok(())
    }

    fn write_process(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        for reading in self.store.readings() {
            Family { name: format!("antiphon_store_{}", reading.name), help: reading.help, kind: reading.kind }
                .write(encoder, [(Labels::new(), reading.value)])?;
        }
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        let ready = u64::from(self.ready.is_ready());
        let rows: [(&str, &str, Labels, u64); 6] = [
            ("antiphon_build", "Always 1; the label is the version.", version, 1),
            ("antiphon_ready", "1 when clients should be sent here.", Labels::new(), ready),
            ("antiphon_uptime_seconds", "Seconds since start.", Labels::new(), self.uptime.as_secs()),
            ("process_resident_memory_bytes", "Resident memory.", Labels::new(), self.process.resident_bytes),
            ("process_open_fds", "Open descriptors.", Labels::new(), self.process.open_fds),
            ("process_threads", "Threads.", Labels::new(), self.process.threads),
        ];
        for (name, help, labels, value) in rows {
            Family { name: name.to_owned(), help, kind: Kind::Gauge }.write(encoder, [(labels, value)])?;
        }
        Ok(())
    }
}

fn quantiles(latency: LatencySummary, shard: Option<usize>) -> Vec<(Labels, u64)> {
    [("0.5", latency.p50_us), ("0.99", latency.p99_us), ("1", latency.max_us)]
        .into_iter()
        .map(|(quantile, us)| {
            let mut labels: Labels = shard.map(shard_label).into_iter().collect();
            labels.push(("quantile", quantile.to_owned()));
            (labels, us)
        })
        .collect()
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.write_shards(&mut encoder)?;
        self.write_tables(&mut encoder)?;
        self.write_latencies(&mut encoder)?;
        self.write_stages(&mut encoder)?;
        self.write_process(&mut encoder)
    }
}
