//! What any process says of itself, under the names that Prometheus' client libraries share, and which build it is. Read from
//! `/proc` when Prometheus asks.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, IntGauge, Registry};

use crate::telemetry::metrics_registry::{Metric, Registrar, bounded, counter, gauge};

/// Every metric of a process as such.
pub const CATALOGUE: &[Metric] = &[
    counter(
        "process_cpu_seconds_total",
        "seconds",
        &[],
        "Time on processors, of the user's and the system's code.",
    ),
    gauge("process_resident_memory_bytes", "bytes", &[], "Memory that is in use."),
    gauge("process_virtual_memory_bytes", "bytes", &[], "Memory that is mapped."),
    gauge("process_threads", "", &[], "Threads."),
    gauge("process_open_fds", "", &[], "Open files and sockets."),
    gauge("process_max_fds", "", &[], "Files and sockets that may be open."),
    gauge("process_start_time_seconds", "seconds", &[], "When the process began, Unix time."),
    gauge(
        "crescendo_build_info",
        "",
        &[bounded("version", "of this build"), bounded("arch", "processor that it is for")],
        "1; which build this is.",
    ),
];

/// Shows them by `registry`.
pub fn register(registry: &Registry) -> prometheus::Result<()> {
    // Read together, at each scrape: registered as one collector, so made by a registry of their own.
    let own = Registry::new();
    let mut registrar = Registrar::new(&own, CATALOGUE);
    let process = Process {
        cpu_seconds: registrar.counter_f64("process_cpu_seconds_total")?,
        resident_bytes: registrar.gauge("process_resident_memory_bytes")?,
        virtual_bytes: registrar.gauge("process_virtual_memory_bytes")?,
        threads: registrar.gauge("process_threads")?,
        open_fds: registrar.gauge("process_open_fds")?,
        max_fds: registrar.gauge("process_max_fds")?,
        start_seconds: registrar.gauge("process_start_time_seconds")?,
    };
    let build = registrar.gauges("crescendo_build_info")?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION"), std::env::consts::ARCH]).set(1);
    registrar.finish()?;
    registry.register(Box::new(process))?;
    registry.register(Box::new(build))
}

struct Process {
    cpu_seconds: Counter,
    resident_bytes: IntGauge,
    virtual_bytes: IntGauge,
    threads: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
    start_seconds: IntGauge,
}

impl Process {
    fn all(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu_seconds,
            &self.resident_bytes,
            &self.virtual_bytes,
            &self.threads,
            &self.open_fds,
            &self.max_fds,
            &self.start_seconds,
        ]
    }

    /// What cannot be read stays as it was.
    fn read(&self) {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
        if let Some(stat) = Stat::parse(&text("/proc/self/stat")) {
            self.cpu_seconds.inc_by((stat.cpu_ticks as f64 / ticks - self.cpu_seconds.get()).max(0.0));
            let page = i64::try_from(rustix::param::page_size()).unwrap_or(i64::MAX);
            self.resident_bytes.set(stat.resident_pages.saturating_mul(page));
            self.virtual_bytes.set(stat.virtual_bytes);
            self.threads.set(stat.threads);
            if let Some(boot) = boot_seconds(&text("/proc/stat")) {
                self.start_seconds.set(boot + (stat.start_ticks as f64 / ticks) as i64);
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them is the list itself.
            self.open_fds.set(i64::try_from(open.count().saturating_sub(1)).unwrap_or(i64::MAX));
        }
        if let Some(most) = max_open_files(&text("/proc/self/limits")) {
            self.max_fds.set(most);
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}

/// Some fields of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// User's and system's.
    cpu_ticks: u64,
    threads: i64,
    /// Since the machine began.
    start_ticks: u64,
    virtual_bytes: i64,
    resident_pages: i64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The second field is the program's name in brackets, with whatever characters it has.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // By their numbers in proc(5); the first here is field 3.
        let field = |number: usize| fields.get(number - 3);
        Some(Stat {
            cpu_ticks: field(14)?.parse::<u64>().ok()?.saturating_add(field(15)?.parse().ok()?),
            threads: field(20)?.parse().ok()?,
            start_ticks: field(22)?.parse().ok()?,
            virtual_bytes: field(23)?.parse().ok()?,
            resident_pages: field(24)?.parse().ok()?,
        })
    }
}

/// When the machine began, Unix time, out of `/proc/stat`.
fn boot_seconds(text: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The soft limit of open files, out of `/proc/PID/limits`; none where there is none.
fn max_open_files(text: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics_registry::check_gathered;

    #[test]
    fn fields_are_found_whatever_the_program_is_called() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 11 0 4242 1048576 300 18446744073709551615";
        let stat = Stat {
            cpu_ticks: 300,
            threads: 11,
            start_ticks: 4242,
            virtual_bytes: 1 << 20,
            resident_pages: 300,
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(boot_seconds("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000));
        assert_eq!(max_open_files("Limit  Soft  Hard\nMax open files   1024   4096   files\n"), Some(1024));
        assert_eq!(max_open_files("Max open files   unlimited   unlimited   files\n"), None);
    }

    #[test]
    fn a_process_says_what_it_uses() {
        let registry = Registry::new();
        register(&registry).unwrap();
        assert_eq!(check_gathered(&registry, CATALOGUE), Vec::<String>::new());
        let value = |name: &str| {
            let family = registry.gather().into_iter().find(|family| family.name() == name).unwrap();
            let metric = family.get_metric()[0].clone();
            metric.get_gauge().get_value() + metric.get_counter().get_value()
        };
        let before = value("process_open_fds");
        let _held = fs::File::open("/proc/self/stat").unwrap();
        assert!(value("process_open_fds") > before - 1.0 && before >= 3.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_start_time_seconds") > 1.5e9);
        assert!(value("process_cpu_seconds_total") >= 0.0 && value("process_threads") >= 1.0);
        assert_eq!(value("crescendo_build_info"), 1.0);
    }
}
