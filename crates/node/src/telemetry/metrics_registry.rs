//! What a process measures, said once: a table of metrics that is registered, documented and tested from.
//!
//! A metric that is not in its crate's table cannot be registered, one of the table that is not registered is an error at
//! the start, and `docs/metrics.md` holds each table as text: a test of each crate compares them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The values that a label takes. There are few of them, whatever the cluster does.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// These and no others.
    Words(&'static [&'static str]),
    /// A set that the machine or the build sets: said in words.
    Bounded(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub struct Label {
    pub name: &'static str,
    pub values: Values,
}

/// One of these words.
pub const fn words(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values: Values::Words(values) }
}

/// Bounded by what `values` says.
pub const fn bounded(name: &'static str, values: &'static str) -> Label {
    Label { name, values: Values::Bounded(values) }
}

/// One row of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// Of its value; empty for a plain number.
    pub unit: &'static str,
    pub labels: &'static [Label],
    /// Shown by Prometheus as help.
    pub about: &'static str,
}

pub const fn counter(
    name: &'static str,
    unit: &'static str,
    labels: &'static [Label],
    about: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, unit, labels, about }
}

pub const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [Label],
    about: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, labels, about }
}

pub const fn histogram(
    name: &'static str,
    unit: &'static str,
    labels: &'static [Label],
    about: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Histogram, unit, labels, about }
}

/// Registers the metrics of one table, each by its name.
#[derive(Debug)]
pub struct Registrar<'a> {
    registry: &'a Registry,
    catalogue: &'static [Metric],
    left: BTreeSet<&'static str>,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::Msg(what.into())
}

impl<'a> Registrar<'a> {
    pub fn new(registry: &'a Registry, catalogue: &'static [Metric]) -> Self {
        Self { registry, catalogue, left: catalogue.iter().map(|metric| metric.name).collect() }
    }

    /// Fails if a metric of the table was not registered.
    pub fn finish(self) -> prometheus::Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some(name) => Err(wrong(format!("{name} is in the catalogue and is not registered"))),
        }
    }

    fn take(&mut self, name: &str, kind: Kind, labelled: bool) -> prometheus::Result<&'static Metric> {
        let metric = self.catalogue.iter().find(|metric| metric.name == name);
        let metric = metric.ok_or_else(|| wrong(format!("{name} is not in the catalogue")))?;
        if metric.kind != kind || metric.labels.is_empty() == labelled {
            return Err(wrong(format!("{name} is not registered as the catalogue has it")));
        }
        self.left.remove(name);
        Ok(metric)
    }

    fn put<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    pub fn counter(&mut self, name: &str) -> prometheus::Result<IntCounter> {
        let metric = self.take(name, Kind::Counter, false)?;
        self.put(IntCounter::with_opts(opts(metric))?)
    }

    /// A counter of something that comes in parts, such as seconds.
    pub fn counter_f64(&mut self, name: &str) -> prometheus::Result<Counter> {
        let metric = self.take(name, Kind::Counter, false)?;
        self.put(Counter::with_opts(opts(metric))?)
    }

    /// With every combination of its words at 0, if all its labels have words.
    pub fn counters(&mut self, name: &str) -> prometheus::Result<IntCounterVec> {
        let metric = self.take(name, Kind::Counter, true)?;
        let counters = self.put(IntCounterVec::new(opts(metric), &label_names(metric))?)?;
        for values in combinations(metric) {
            counters.with_label_values(&values);
        }
        Ok(counters)
    }

    pub fn counters_f64(&mut self, name: &str) -> prometheus::Result<CounterVec> {
        let metric = self.take(name, Kind::Counter, true)?;
        self.put(CounterVec::new(opts(metric), &label_names(metric))?)
    }

    pub fn gauge(&mut self, name: &str) -> prometheus::Result<IntGauge> {
        let metric = self.take(name, Kind::Gauge, false)?;
        self.put(IntGauge::with_opts(opts(metric))?)
    }

    pub fn gauge_f64(&mut self, name: &str) -> prometheus::Result<Gauge> {
        let metric = self.take(name, Kind::Gauge, false)?;
        self.put(Gauge::with_opts(opts(metric))?)
    }

    pub fn gauges(&mut self, name: &str) -> prometheus::Result<IntGaugeVec> {
        let metric = self.take(name, Kind::Gauge, true)?;
        self.put(IntGaugeVec::new(opts(metric), &label_names(metric))?)
    }

    pub fn gauges_f64(&mut self, name: &str) -> prometheus::Result<GaugeVec> {
        let metric = self.take(name, Kind::Gauge, true)?;
        self.put(GaugeVec::new(opts(metric), &label_names(metric))?)
    }

    /// A gauge without labels that can be taken away: it is absent until it is set, and after a reset.
    pub fn passing_gauge(&mut self, name: &str) -> prometheus::Result<IntGaugeVec> {
        let metric = self.take(name, Kind::Gauge, false)?;
        self.put(IntGaugeVec::new(opts(metric), &[])?)
    }

    pub fn histogram(&mut self, name: &str, buckets: Vec<f64>) -> prometheus::Result<Histogram> {
        let metric = self.take(name, Kind::Histogram, false)?;
        self.put(Histogram::with_opts(HistogramOpts::from(opts(metric)).buckets(buckets))?)
    }

    pub fn histograms(&mut self, name: &str, buckets: Vec<f64>) -> prometheus::Result<HistogramVec> {
        let metric = self.take(name, Kind::Histogram, true)?;
        let options = HistogramOpts::from(opts(metric)).buckets(buckets);
        self.put(HistogramVec::new(options, &label_names(metric))?)
    }
}

fn opts(metric: &Metric) -> Opts {
    Opts::new(metric.name, metric.about)
}

fn label_names(metric: &Metric) -> Vec<&'static str> {
    metric.labels.iter().map(|label| label.name).collect()
}

/// Every combination of the words of a metric's labels; none if a label has no words.
fn combinations(metric: &Metric) -> Vec<Vec<&'static str>> {
    let mut all = vec![Vec::new()];
    for label in metric.labels {
        let Values::Words(words) = label.values else { return Vec::new() };
        all = all
            .into_iter()
            .flat_map(|begun| {
                words.iter().map(move |word| begun.iter().copied().chain([*word]).collect::<Vec<_>>())
            })
            .collect();
    }
    all
}

/// The table as it stands in `docs/metrics.md`.
pub fn markdown(catalogue: &[Metric]) -> String {
    let mut text = String::from("| metric | type | unit | labels | what |\n|---|---|---|---|---|\n");
    for metric in catalogue {
        let labels: Vec<String> = metric.labels.iter().map(label_text).collect();
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            metric.name,
            metric.kind.name(),
            metric.unit,
            labels.join("; "),
            metric.about
        );
    }
    text
}

fn label_text(label: &Label) -> String {
    match label.values {
        Values::Words(words) => {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            format!("`{}`: {}", label.name, words.join(", "))
        }
        Values::Bounded(what) => format!("`{}`: {what}", label.name),
    }
}

/// Compares a section of `docs/metrics.md` with the catalogue, or writes it with `CRESCENDO_BLESS=1`. For tests.
///
/// `docs` is the folder of the documents.
pub fn check_document(docs: &Path, section: &str, catalogue: &[Metric]) -> Result<(), String> {
    let path = docs.join("metrics.md");
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let (begin, end) = (format!("<!-- metrics of {section} -->\n"), format!("<!-- end of {section} -->"));
    let (before, rest) = text.split_once(&begin).ok_or_else(|| format!("no mark {begin}"))?;
    let (written, after) = rest.split_once(&end).ok_or_else(|| format!("no mark {end}"))?;
    let expected = format!("\n{}\n", markdown(catalogue));
    if written == expected {
        return Ok(());
    }
    if std::env::var_os("CRESCENDO_BLESS").is_some() {
        return std::fs::write(&path, format!("{before}{begin}{expected}{end}{after}")).map_err(failed);
    }
    Err(format!(
        "docs/metrics.md is not what {section} registers; run this test once with CRESCENDO_BLESS=1. Expected:\n{expected}"
    ))
}

/// What is wrong with the metrics that a registry has now: names, types, labels and their values that the catalogue does
/// not have, and rules of naming that are broken. For tests.
pub fn check_gathered(registry: &Registry, catalogue: &[Metric]) -> Vec<String> {
    let mut problems = Vec::new();
    for family in registry.gather() {
        let name = family.name();
        let Some(metric) = catalogue.iter().find(|metric| metric.name == name) else {
            problems.push(format!("{name} is not in the catalogue"));
            continue;
        };
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        if kind != metric.kind.name() {
            problems.push(format!("{name} is a {kind}"));
        }
        for one in family.get_metric() {
            for pair in one.get_label() {
                let known =
                    metric.labels.iter().find(|label| label.name == pair.name()).map(|label| label.values);
                match known {
                    None => problems.push(format!("{name} has a label {}", pair.name())),
                    Some(Values::Words(words)) if !words.contains(&pair.value()) => {
                        problems.push(format!("{name} has {}={}", pair.name(), pair.value()));
                    }
                    Some(Values::Words(_) | Values::Bounded(_)) => {}
                }
            }
            if one.get_label().len() != metric.labels.len() {
                problems.push(format!("{name} has not all its labels"));
            }
        }
    }
    problems.extend(check_names(catalogue));
    problems
}

/// Prometheus' rules of naming.
fn check_names(catalogue: &[Metric]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for metric in catalogue {
        let name = metric.name;
        if !seen.insert(name) {
            problems.push(format!("{name} is there twice"));
        }
        if (metric.kind == Kind::Counter) != name.ends_with("_total") {
            problems.push(format!("{name}: counters end with _total, and nothing else does"));
        }
        let stem = name.trim_end_matches("_total");
        let word = match metric.unit {
            "" => continue,
            "1/s" => "_per_second",
            unit => &format!("_{unit}"),
        };
        if !stem.ends_with(word) {
            problems.push(format!("{name} does not say its unit, {}", metric.unit));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Metric] = &[
        counter("a_total", "", &[words("kind", &["x", "y"]), words("end", &["ok"])], "As."),
        gauge("b_seconds", "seconds", &[bounded("slot", "a number")], "Bs."),
        histogram("c_seconds", "seconds", &[], "Cs."),
    ];

    fn all(registry: &Registry) -> prometheus::Result<(IntCounterVec, GaugeVec)> {
        let mut registrar = Registrar::new(registry, TABLE);
        let counters = registrar.counters("a_total")?;
        let gauges = registrar.gauges_f64("b_seconds")?;
        registrar.histogram("c_seconds", vec![1.0])?;
        registrar.finish()?;
        Ok((counters, gauges))
    }

    #[test]
    fn the_table_and_the_registry_are_the_same() {
        let registry = Registry::new();
        let (counters, gauges) = all(&registry).unwrap();
        assert_eq!(check_gathered(&registry, TABLE), Vec::<String>::new());
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("a_total{end=\"ok\",kind=\"y\"} 0"), "{text}");
        gauges.with_label_values(&["0"]).set(1.0);
        assert_eq!(check_gathered(&registry, TABLE), Vec::<String>::new());
        counters.with_label_values(&["z", "ok"]).inc();
        assert_eq!(check_gathered(&registry, TABLE), ["a_total has kind=z"]);
        assert_eq!(check_gathered(&registry, &TABLE[1..]), ["a_total is not in the catalogue"]);
    }

    #[test]
    fn what_is_not_in_the_table_is_refused() {
        let registry = Registry::new();
        let mut registrar = Registrar::new(&registry, TABLE);
        assert!(registrar.counters("d_total").is_err());
        assert!(registrar.gauges("a_total").is_err(), "another type");
        assert!(registrar.counter("a_total").is_err(), "no labels");
        let left = registrar.finish().unwrap_err().to_string();
        assert!(left.contains("a_total is in the catalogue"), "{left}");
    }

    #[test]
    fn names_say_their_units() {
        let bad = [
            gauge("a_total", "", &[], ""),
            counter("b", "", &[], ""),
            gauge("c_millis", "seconds", &[], ""),
            gauge("d_per_second", "1/s", &[], ""),
            gauge("d_per_second", "1/s", &[], ""),
        ];
        assert_eq!(check_names(&bad).len(), 4);
    }

    #[test]
    fn rows_are_markdown() {
        let expected = "| `a_total` | counter |  | `kind`: `x`, `y`; `end`: `ok` | As. |\n";
        assert!(markdown(TABLE).contains(expected), "{}", markdown(TABLE));
        assert!(markdown(TABLE).contains("| `b_seconds` | gauge | seconds | `slot`: a number | Bs. |\n"));
    }
}
