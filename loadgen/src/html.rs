//! `--html`: a report as one page with plots, that needs no other file. The verdict comes first: were
//! promises kept, how fast, at what cost, and was the tool the limit.

use std::fmt::{self, Write};

use crate::measure::Latency;
use crate::report::{Report, tenths, thousands};
use plot::{Frame, Line};

mod plot;

/// The page.
pub fn page(report: &Report) -> String {
    let mut out = String::new();
    write_page(&mut out, report).expect("writing to memory");
    out
}

fn write_page(out: &mut String, report: &Report) -> fmt::Result {
    let s = &report.settings;
    let style = include_str!("html/page.css");
    let (scenario, run) = (escape(&report.scenario), escape(&report.run));
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>antiphon-load {scenario} {run}</title>\n<style>\n{style}</style></head><body>\n<main>\n\
         <h1>{scenario}: {} clients in {} rooms of {}, {}</h1>",
        thousands(u64::from(s.clients)),
        thousands(u64::from(s.rooms)),
        s.rooms_of,
        escape(&s.traffic),
    )?;
    write_verdict(out, report)?;
    write_cards(out, report)?;
    write_latency(out, report)?;
    write_time(out, report)?;
    write_stages(out, report)?;
    write_figures(out, report)?;
    if !report.notes.is_empty() {
        writeln!(out, "<h2>Notes</h2><ul>")?;
        report.notes.iter().try_for_each(|note| writeln!(out, "<li>{}</li>", escape(note)))?;
        writeln!(out, "</ul>")?;
    }
    writeln!(
        out,
        "</main><footer><p>Run {run}, dialect {}: {}{} s warm-up, {} s measured, {} driver thread(s).</p>\
         </footer></body></html>",
        escape(&s.dialect),
        s.bodies(),
        tenths(s.warmup_s),
        tenths(s.duration_s),
        s.threads
    )
}

fn write_verdict(out: &mut String, report: &Report) -> fmt::Result {
    let c = &report.checked;
    let (class, word) = if report.passed { ("", "Passed") } else { (" bad", "Failed") };
    writeln!(
        out,
        "<section class=\"verdict{class}\"><strong>{word}.</strong> {} deliveries checked: {} lost, {} doubled, {} out of \
         order, {} not the same for everybody{}.",
        thousands(c.delivered),
        c.lost,
        c.doubled,
        c.out_of_order,
        c.differing,
        c.reservation()
    )?;
    if !report.failures.is_empty() {
        writeln!(out, "<ul>")?;
        report.failures.iter().try_for_each(|failure| writeln!(out, "<li>{}</li>", escape(failure)))?;
        writeln!(out, "</ul>")?;
    }
    match &report.tool.limit {
        Some(limit) => writeln!(out, "<p class=\"warn\">{}: {}.</p>", report.limit_words(), escape(limit))?,
        None => writeln!(out, "<p class=\"soft\">The tool was not the limit: {}.</p>", report.tool.driver_words())?,
    }
    writeln!(out, "</section>")
}

fn write_cards(out: &mut String, report: &Report) -> fmt::Result {
    let mut cards = Vec::new();
    if let Some(t) = &report.traffic {
        cards.push(("messages a second", thousands(t.acked_per_second as u64)));
        cards.push(("deliveries a second", thousands(t.delivered_per_second as u64)));
        let worst = t.windows.iter().filter(|w| w.delivery.count > 0).map(|w| w.delivery.p99_ms).reduce(f64::max);
        cards.push(("delivery p99", worst.map_or("–".to_owned(), |worst| format!("{worst:.1} ms"))));
    }
    if let Some(server) = &report.server {
        if let Some(cost) = server.cpu_s_per_million_deliveries {
            cards.push(("CPU s a million deliveries", format!("{cost:.2}")));
        }
        if let Some(bytes) = server.rss_per_connection {
            cards.push(("memory a connection", format!("{:.1} KB", bytes / 1_024.0)));
        }
    }
    cards.push(("connections a second", thousands(report.connect.per_second as u64)));
    writeln!(out, "<dl>")?;
    cards.iter().try_for_each(|(what, value)| writeln!(out, "<div><dt>{what}</dt><dd>{value}</dd></div>"))?;
    writeln!(out, "</dl>")
}

fn write_latency(out: &mut String, report: &Report) -> fmt::Result {
    let Some(traffic) = &report.traffic else { return Ok(()) };
    writeln!(out, "<h2>Latency, {}</h2>", report.latency_from())?;
    let busiest = traffic.windows.iter().max_by_key(|w| w.delivery.count);
    if let Some(window) = busiest {
        // By the number of nines, as HdrHistogram's plotters do: the tail is what matters.
        let nines = |curve: &[(f64, f64)]| {
            let below = curve.iter().filter(|(quantile, _)| *quantile < 1.0);
            below.map(|(quantile, ms)| (-(1.0 - quantile).log10(), *ms)).collect()
        };
        let lines = [
            Line { name: "delivery", points: nines(&window.delivery_curve) },
            Line { name: "ack", points: nines(&window.ack_curve) },
        ];
        let title = format!("Latency by percentile, {}", escape(&window.name));
        let frame = Frame { title: &title, x: "percentile", y: "ms", is_percentile: true };
        writeln!(out, "{}", plot::lines(&frame, &lines))?;
        if traffic.windows.len() > 1 {
            let name = escape(&window.name);
            writeln!(out, "<p class=\"soft\">The plot shows {name}, the part with most deliveries.</p>")?;
        }
    }
    writeln!(
        out,
        "<div class=\"scroll\"><table><tr><th>part</th><th>asked/s</th><th>acked/s</th><th>cores</th><th>ack p50</th>\
         <th>ack p99</th><th>delivery p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max ms</th></tr>"
    )?;
    for w in &traffic.windows {
        let asked = w.asked_per_second.map_or("–".to_owned(), |rate| thousands(rate as u64));
        let cores = w.server_cores.map_or("–".to_owned(), |cores| format!("{cores:.2}"));
        let d = &w.delivery;
        writeln!(
            out,
            "<tr><td>{}</td><td>{asked}</td><td>{}</td><td>{cores}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&w.name),
            thousands(w.acked_per_second as u64),
            cell(&w.ack, w.ack.p50_ms),
            cell(&w.ack, w.ack.p99_ms),
            cell(d, d.p50_ms),
            cell(d, d.p90_ms),
            cell(d, d.p99_ms),
            cell(d, d.p999_ms),
            cell(d, d.max_ms)
        )?;
    }
    writeln!(out, "</table></div>")
}

/// A number of a latency; a dash where nothing was measured, which is not fast.
fn cell(latency: &Latency, ms: f64) -> String {
    if latency.count > 0 { format!("{ms:.2}") } else { "–".to_owned() }
}

fn write_time(out: &mut String, report: &Report) -> fmt::Result {
    let timeline = &report.timeline;
    let mut plot = |heading: &str, y: &str, lines: &[Line<'_>]| {
        let title = format!("{heading} over time");
        let frame = Frame { title: &title, x: "seconds of measuring (before 0: warm-up)", y, is_percentile: false };
        match plot::lines(&frame, lines) {
            svg if svg.is_empty() => Ok(()),
            svg => writeln!(out, "<h2>{title}</h2>\n{svg}"),
        }
    };
    let deliveries = timeline.rates(|point| Some(point.delivered as f64));
    plot("Deliveries a second", "a second", &[Line { name: "deliveries", points: deliveries }])?;
    let server = Line { name: "server", points: timeline.rates(|point| point.server_cpu_s) };
    let tool = Line { name: "this tool", points: timeline.rates(|point| Some(point.tool_cpu_s)) };
    plot("Cores in use", "cores", &[server, tool])?;
    let mib = |p: &crate::sampler::Point| p.server_rss.map(|rss| (p.t_s, rss as f64 / 1_048_576.0));
    let memory = timeline.points.iter().filter_map(mib).collect();
    plot("Memory of the server", "MiB", &[Line { name: "RSS", points: memory }])
}

/// The ladder: a bar for each stage's p99, its p50 within.
fn write_stages(out: &mut String, report: &Report) -> fmt::Result {
    let slowest = report.stages.iter().filter_map(|stage| stage.p99_ms.or(stage.p50_ms)).fold(0.0, f64::max);
    if slowest <= 0.0 {
        return Ok(());
    }
    writeln!(
        out,
        "<h2>Where the server's time goes</h2>\n<p class=\"soft\">Bars: <span style=\"color:var(--a)\">■</span> p50, \
         <span style=\"color:var(--b)\">■</span> p99</p>\n<table><tr><th>stage</th><th>p50 ms</th><th>p99 ms</th>\
         <th style=\"width:50%\"></th></tr>"
    )?;
    for stage in &report.stages {
        let (p50, p99) = (stage.p50_ms.unwrap_or(0.0), stage.p99_ms.unwrap_or(0.0));
        let bar = |ms: f64, colour: &str, height: u32| {
            format!("<rect width=\"{:.1}\" height=\"{height}\" fill=\"var(--{colour})\"/>", ms / slowest * 100.0)
        };
        writeln!(
            out,
            "<tr><td>{}</td><td>{p50:.3}</td><td>{p99:.3}</td><td><svg viewBox=\"0 0 100 4\" \
             preserveAspectRatio=\"none\" style=\"height:1rem\" aria-hidden=\"true\">{}{}</svg></td></tr>",
            escape(&stage.name),
            bar(p99, "b", 4),
            bar(p50, "a", 4)
        )?;
    }
    writeln!(out, "</table>")
}

/// What only this scenario has.
fn write_figures(out: &mut String, report: &Report) -> fmt::Result {
    if report.figures.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>Figures of this scenario</h2>\n<div class=\"scroll\"><table>")?;
    for figure in &report.figures {
        let name = escape(&figure.name.replace('_', " "));
        writeln!(out, "<tr><td>{name}</td><td>{}</td><td>{}</td></tr>", figure.number(), escape(&figure.unit))?;
    }
    writeln!(out, "</table></div>")
}

/// Text for HTML, within attributes too.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Figure;
    use crate::report::tests::sample;
    use crate::sampler::Point;
    use crate::stages::Stage;

    #[test]
    fn the_verdict_comes_first_and_nothing_is_fetched() {
        let mut report = sample();
        report.failures = vec!["1 deliveries <lost>".to_owned()];
        report.passed = false;
        report.tool.limit = Some("busy".to_owned());
        let point = |t_s| Point { t_s, delivered: 5, server_cpu_s: Some(t_s), server_rss: Some(1), ..Point::default() };
        report.timeline.points = vec![point(0.0), point(1.0), point(2.0)];
        report.figures = vec![Figure { name: "all_back".into(), value: 0.75, unit: "s <in all>".into() }];
        report.stages = vec![Stage { name: "commit".to_owned(), p50_ms: Some(1.0), p99_ms: Some(2.0) }];
        let page = page(&report);
        let at = |words: &str| page.find(words).unwrap_or_else(|| panic!("no {words}"));
        assert!(at("Failed.") < at("1 deliveries &lt;lost&gt;") && at("can do more: busy") < at("<dl>"));
        assert!(page.contains("Latency, from the time of sending"), "a closed loop");
        assert!(at("<dl>") < at("aria-label=\"Latency by percentile") && at("Memory of the server") < at("commit"));
        assert!(at("commit") < at("<td>all back</td><td>0.75</td><td>s &lt;in all&gt;</td>"));
        assert_eq!(page.matches("<svg role=\"img\"").count(), 4);
        for outside in ["http://", "https://", "<script", "src=", "url("] {
            let found = page.replace("http://www.w3.org/2000/svg", "").contains(outside);
            assert!(!found, "{outside}");
        }
    }

    #[test]
    fn nothing_delivered_is_not_fast() {
        let mut report = sample();
        report.traffic.as_mut().unwrap().windows[0].delivery = Latency::default();
        let page = page(&report);
        assert!(
            page.contains("<dt>delivery p99</dt><dd>–</dd>") && page.contains("<td>12.50</td><td>–</td><td>–</td>")
        );
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let mut report = sample();
        (report.traffic, report.server) = (None, None);
        let page = page(&report);
        assert!(page.contains("Passed.") && !page.contains("<h2>"), "{page}");
    }
}
