//! What the GPUs of a machine say of themselves, for Prometheus.
//!
//! ```text
//!   Gpus (NVML, or a recorded sample) ─▶ Reading, Xid ─▶ GpuMetrics
//! ```
//!
//! Nothing here is needed for training: on a machine without the driver no series is there, and a value that a GPU does
//! not know is absent.

mod nvml;
mod peak;

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Registry};
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics_registry::{Label, Metric, Registrar, bounded, counter, gauge, words};

pub use nvml::Nvml;
pub use peak::known_peak_flops_per_sec;

/// Pace of readings.
const EVERY: Duration = Duration::from_secs(5);
/// Limit of one wait for an XID error, so that the thread notices the end of the process.
const XID_WAIT: Duration = Duration::from_millis(500);

const GPU: Label = bounded("gpu", "index of the GPU on its machine");
const UUID: Label = bounded("uuid", "the GPU's own id");
const ECC: [&str; 2] = ["corrected", "uncorrected"];
const CLOCKS: [&str; 2] = ["sm", "memory"];
/// Reasons for lower clocks; idling and clocks that a person has set are none.
const THROTTLES: [&str; 6] =
    ["power_cap", "hardware_slowdown", "software_thermal", "hardware_thermal", "power_brake", "sync_boost"];
/// XID errors that are counted by their number; NVIDIA's documentation explains each.
const XIDS: [&str; 24] = [
    "13", "31", "32", "38", "43", "45", "46", "48", "61", "62", "63", "64", "68", "69", "74", "79", "92",
    "94", "95", "109", "119", "120", "140", "other",
];

/// What is measured of GPUs.
pub const CATALOGUE: &[Metric] = &[
    gauge(
        "crescendo_gpu_utilization_ratio",
        "ratio",
        &[GPU, UUID],
        "Share of the time in which a kernel ran.",
    ),
    gauge("crescendo_gpu_memory_used_bytes", "bytes", &[GPU, UUID], "Memory in use."),
    gauge("crescendo_gpu_memory_total_bytes", "bytes", &[GPU, UUID], "Memory that there is."),
    gauge("crescendo_gpu_temperature_celsius", "celsius", &[GPU, UUID], "Temperature of the chip."),
    gauge(
        "crescendo_gpu_clock_hertz",
        "hertz",
        &[GPU, UUID, words("domain", &CLOCKS)],
        "Clock of the multiprocessors and of the memory.",
    ),
    gauge("crescendo_gpu_power_watts", "watts", &[GPU, UUID], "Power that the board draws."),
    gauge(
        "crescendo_gpu_throttled",
        "",
        &[GPU, UUID, words("reason", &THROTTLES)],
        "1 while clocks are held down for this reason.",
    ),
    counter(
        "crescendo_gpu_ecc_errors_total",
        "",
        &[GPU, UUID, words("kind", &ECC)],
        "Memory errors since the driver was loaded.",
    ),
    counter(
        "crescendo_gpu_xid_errors_total",
        "",
        &[GPU, UUID, words("xid", &XIDS)],
        "Critical errors that the driver has reported since this process began, by number.",
    ),
    gauge("crescendo_gpu_nvlink_links_active", "", &[GPU, UUID], "NVLinks that are up."),
    counter("crescendo_gpu_reading_failures_total", "", &[], "Times that a GPU could not be read at all."),
];

/// Which GPU.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GpuId {
    /// As the driver counts them on this machine, from 0.
    pub index: u32,
    pub uuid: String,
}

/// Errors of the driver that speak of the hardware: memory that could not be corrected, a GPU that has fallen off its bus, NVLink, its
/// own processor or firmware.
const OF_HARDWARE: [u64; 14] = [48, 61, 62, 63, 64, 68, 74, 79, 92, 94, 95, 119, 120, 140];

/// What GPUs have come to since this was made, in a line. What was there before is known, or was mended.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Uncorrected memory errors: of the first look, and of the newest.
    ecc: BTreeMap<GpuId, (u64, u64)>,
    /// The newest error of the hardware.
    xids: BTreeMap<GpuId, u64>,
}

impl Faults {
    /// Takes a look at a GPU.
    pub fn look(&mut self, gpu: &GpuId, reading: &Reading) {
        let Some(count) = reading.ecc_uncorrected else { return };
        let known = self.ecc.entry(gpu.clone()).or_insert((count, count));
        // Lower than before: the driver was loaded again, and counts from 0.
        *known = if count < known.1 { (0, count) } else { (known.0, count) };
    }

    /// Takes an error of the driver; most are a program's own.
    pub fn xid(&mut self, xid: &Xid) {
        if let Some(number) = xid.number.filter(|number| OF_HARDWARE.contains(number)) {
            self.xids.insert(xid.gpu.clone(), number);
        }
    }

    /// All of it, one line; empty if there is nothing.
    pub fn told(&self) -> String {
        let name = |gpu: &GpuId| match gpu.index {
            u32::MAX => "a GPU".to_owned(),
            index => format!("GPU {index} ({})", gpu.uuid),
        };
        let of_memory =
            self.ecc.iter().filter(|(_, (before, now))| now > before).map(|(gpu, (before, now))| {
                format!("{}: {} uncorrected memory errors", name(gpu), now - before)
            });
        let of_driver = self.xids.iter().map(|(gpu, number)| format!("{}: XID {number}", name(gpu)));
        of_memory.chain(of_driver).collect::<Vec<_>>().join("; ")
    }
}

/// Hears what GPUs have come to, when that changes.
pub type ToldFaults = Box<dyn FnMut(&str) + Send>;

/// One look at one GPU. What it does not know is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// 0 to 100.
    pub utilization_percent: Option<u32>,
    pub memory_used_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
    pub temperature_celsius: Option<u32>,
    pub sm_clock_mhz: Option<u32>,
    pub memory_clock_mhz: Option<u32>,
    pub power_milliwatts: Option<u32>,
    /// Since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    pub ecc_uncorrected: Option<u64>,
    pub throttles: Option<Throttles>,
    pub nvlinks_active: Option<u32>,
}

/// Why clocks are held down, in the order of the label's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttles {
    pub power_cap: bool,
    pub hardware_slowdown: bool,
    pub software_thermal: bool,
    pub hardware_thermal: bool,
    pub power_brake: bool,
    pub sync_boost: bool,
}

impl Throttles {
    fn each(self) -> [(&'static str, bool); THROTTLES.len()] {
        let Self {
            power_cap,
            hardware_slowdown,
            software_thermal,
            hardware_thermal,
            power_brake,
            sync_boost,
        } = self;
        let values =
            [power_cap, hardware_slowdown, software_thermal, hardware_thermal, power_brake, sync_boost];
        std::array::from_fn(|index| (THROTTLES[index], values[index]))
    }
}

/// A critical error of a GPU, by the driver's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xid {
    pub gpu: GpuId,
    /// None if the driver does not say.
    pub number: Option<u64>,
}

/// Reads GPUs.
pub trait Gpus: Send {
    /// Each GPU with what it says now; an error for one that cannot be read.
    fn read(&mut self) -> Vec<Result<(GpuId, Reading), String>>;

    /// Waits at most `limit` for a critical error.
    fn next_xid(&mut self, limit: Duration) -> Option<Xid>;
}

/// See the module.
#[derive(Clone, Debug)]
pub struct GpuMetrics {
    utilization: GaugeVec,
    memory_used: IntGaugeVec,
    memory_total: IntGaugeVec,
    temperature: IntGaugeVec,
    clock: GaugeVec,
    power: GaugeVec,
    throttled: IntGaugeVec,
    ecc: IntCounterVec,
    xid: IntCounterVec,
    nvlinks: IntGaugeVec,
    failures: IntCounter,
}

impl GpuMetrics {
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let mut registrar = Registrar::new(registry, CATALOGUE);
        let metrics = Self {
            utilization: registrar.gauges_f64("crescendo_gpu_utilization_ratio")?,
            memory_used: registrar.gauges("crescendo_gpu_memory_used_bytes")?,
            memory_total: registrar.gauges("crescendo_gpu_memory_total_bytes")?,
            temperature: registrar.gauges("crescendo_gpu_temperature_celsius")?,
            clock: registrar.gauges_f64("crescendo_gpu_clock_hertz")?,
            power: registrar.gauges_f64("crescendo_gpu_power_watts")?,
            throttled: registrar.gauges("crescendo_gpu_throttled")?,
            ecc: registrar.counters("crescendo_gpu_ecc_errors_total")?,
            xid: registrar.counters("crescendo_gpu_xid_errors_total")?,
            nvlinks: registrar.gauges("crescendo_gpu_nvlink_links_active")?,
            failures: registrar.counter("crescendo_gpu_reading_failures_total")?,
        };
        registrar.finish()?;
        Ok(metrics)
    }

    /// Takes over one look at one GPU. A value that has become unknown is taken away.
    pub fn set(&self, gpu: &GpuId, reading: &Reading) {
        let index = gpu.index.to_string();
        let id = [index.as_str(), gpu.uuid.as_str()];
        let whole = |gauges: &IntGaugeVec, value: Option<u64>| match value {
            Some(value) => gauges.with_label_values(&id).set(i64::try_from(value).unwrap_or(i64::MAX)),
            None => drop(gauges.remove_label_values(&id)),
        };
        let scaled = |gauges: &GaugeVec, labels: &[&str], value: Option<u32>, scale: f64| match value {
            Some(value) => gauges.with_label_values(labels).set(f64::from(value) * scale),
            None => drop(gauges.remove_label_values(labels)),
        };
        scaled(&self.utilization, &id, reading.utilization_percent, 0.01);
        scaled(&self.power, &id, reading.power_milliwatts, 1e-3);
        scaled(&self.clock, &[id[0], id[1], "sm"], reading.sm_clock_mhz, 1e6);
        scaled(&self.clock, &[id[0], id[1], "memory"], reading.memory_clock_mhz, 1e6);
        whole(&self.memory_used, reading.memory_used_bytes);
        whole(&self.memory_total, reading.memory_total_bytes);
        whole(&self.temperature, reading.temperature_celsius.map(u64::from));
        whole(&self.nvlinks, reading.nvlinks_active.map(u64::from));
        for (kind, total) in [("corrected", reading.ecc_corrected), ("uncorrected", reading.ecc_uncorrected)]
        {
            if let Some(total) = total {
                let counter = self.ecc.with_label_values(&[id[0], id[1], kind]);
                // Lower than before: the driver was loaded again, and counts from 0.
                if total < counter.get() {
                    counter.reset();
                }
                counter.inc_by(total - counter.get());
            }
        }
        if let Some(throttles) = reading.throttles {
            for (reason, now) in throttles.each() {
                self.throttled.with_label_values(&[id[0], id[1], reason]).set(i64::from(now));
            }
        }
        // There from the start, so that the first error is an increase.
        for number in XIDS {
            self.xid.with_label_values(&[id[0], id[1], number]);
        }
    }

    pub fn count_xid(&self, xid: &Xid) {
        let (index, number) = (xid.gpu.index.to_string(), xid.number.map(|number| number.to_string()));
        let number = number.as_deref().filter(|number| XIDS.contains(number)).unwrap_or("other");
        self.xid.with_label_values(&[index.as_str(), xid.gpu.uuid.as_str(), number]).inc();
    }

    /// One look at all GPUs.
    fn read(&self, gpus: &mut dyn Gpus, broken: &mut BTreeMap<usize, String>, faults: &mut Faults) {
        for (place, outcome) in gpus.read().into_iter().enumerate() {
            match outcome {
                Ok((gpu, reading)) => {
                    broken.remove(&place);
                    self.set(&gpu, &reading);
                    faults.look(&gpu, &reading);
                }
                Err(reason) => {
                    self.failures.inc();
                    if broken.get(&place) != Some(&reason) {
                        tracing::error!(gpu = place, reason, "cannot read a GPU");
                        broken.insert(place, reason);
                    }
                }
            }
        }
    }
}

/// Watches the GPUs on a thread of its own until `stop`: the driver's calls block.
pub fn spawn_watch(
    mut gpus: Box<dyn Gpus>,
    metrics: GpuMetrics,
    mut told: ToldFaults,
    stop: CancellationToken,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("gpus".into()).spawn(move || {
        let (mut broken, mut faults, mut last_told) = (BTreeMap::new(), Faults::default(), String::new());
        let mut read_at: Option<std::time::Instant> = None;
        while !stop.is_cancelled() {
            if read_at.is_none_or(|at| at.elapsed() >= EVERY) {
                metrics.read(gpus.as_mut(), &mut broken, &mut faults);
                read_at = Some(std::time::Instant::now());
            }
            if let Some(xid) = gpus.next_xid(XID_WAIT) {
                tracing::error!(gpu = xid.gpu.index, uuid = xid.gpu.uuid, xid = ?xid.number, "a GPU has failed");
                metrics.count_xid(&xid);
                faults.xid(&xid);
            }
            let now = faults.told();
            if now != last_told {
                told(&now);
                last_told = now;
            }
        }
    })
}

/// Registers what GPUs say and watches them, if this machine has the driver; returns their names, by index. Without the
/// driver nothing is registered.
pub fn watch_if_there(
    registry: &Registry,
    told: ToldFaults,
    stop: CancellationToken,
) -> Result<Vec<String>, WatchError> {
    let gpus = match Nvml::open() {
        Ok(gpus) => gpus,
        Err(reason) => {
            tracing::info!(reason, "no management library of NVIDIA's driver: GPUs are not measured");
            return Ok(Vec::new());
        }
    };
    let names = gpus.names();
    let metrics = GpuMetrics::register(registry)?;
    spawn_watch(Box::new(gpus), metrics, told, stop)?;
    Ok(names)
}

/// Why GPUs that are there cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("cannot register the metrics of GPUs")]
    Register(#[from] prometheus::Error),
    #[error("cannot start the thread that watches GPUs")]
    Thread(#[from] std::io::Error),
}

#[cfg(test)]
mod tests;
