//! With a recorded sample instead of a driver.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::*;
use crate::telemetry::metrics_registry::check_gathered;

/// An H100 at work, as the driver of such a machine answers.
fn at_work() -> Reading {
    Reading {
        utilization_percent: Some(97),
        memory_used_bytes: Some(61_847_764_992),
        memory_total_bytes: Some(85_520_809_984),
        temperature_celsius: Some(58),
        sm_clock_mhz: Some(1_980),
        memory_clock_mhz: Some(2_619),
        power_milliwatts: Some(612_345),
        ecc_corrected: Some(2),
        ecc_uncorrected: Some(0),
        throttles: Some(Throttles { power_cap: true, ..Throttles::default() }),
        nvlinks_active: Some(18),
    }
}

fn gpu() -> GpuId {
    GpuId { index: 3, uuid: "GPU-1b2c".into() }
}

#[derive(Debug)]
struct Recorded {
    looks: VecDeque<Vec<Result<(GpuId, Reading), String>>>,
    xids: VecDeque<Xid>,
    stop: CancellationToken,
}

impl Gpus for Recorded {
    fn read(&mut self) -> Vec<Result<(GpuId, Reading), String>> {
        self.looks.pop_front().unwrap_or_default()
    }

    fn next_xid(&mut self, _limit: Duration) -> Option<Xid> {
        let xid = self.xids.pop_front();
        if xid.is_none() {
            self.stop.cancel();
        }
        xid
    }
}

fn text(registry: &Registry) -> String {
    prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("metrics are text")
}

#[test]
fn a_sample_becomes_series_in_base_units() {
    let registry = Registry::new();
    let metrics = GpuMetrics::register(&registry).unwrap();
    metrics.set(&gpu(), &at_work());
    assert_eq!(check_gathered(&registry, CATALOGUE), Vec::<String>::new());
    let text = text(&registry);
    for line in [
        "crescendo_gpu_utilization_ratio{gpu=\"3\",uuid=\"GPU-1b2c\"} 0.97",
        "crescendo_gpu_memory_used_bytes{gpu=\"3\",uuid=\"GPU-1b2c\"} 61847764992",
        "crescendo_gpu_temperature_celsius{gpu=\"3\",uuid=\"GPU-1b2c\"} 58",
        "crescendo_gpu_clock_hertz{domain=\"sm\",gpu=\"3\",uuid=\"GPU-1b2c\"} 1980000000",
        "crescendo_gpu_clock_hertz{domain=\"memory\",gpu=\"3\",uuid=\"GPU-1b2c\"} 2619000000",
        "crescendo_gpu_power_watts{gpu=\"3\",uuid=\"GPU-1b2c\"} 612.345",
        "crescendo_gpu_throttled{gpu=\"3\",reason=\"power_cap\",uuid=\"GPU-1b2c\"} 1",
        "crescendo_gpu_throttled{gpu=\"3\",reason=\"hardware_thermal\",uuid=\"GPU-1b2c\"} 0",
        "crescendo_gpu_ecc_errors_total{gpu=\"3\",kind=\"corrected\",uuid=\"GPU-1b2c\"} 2",
        "crescendo_gpu_xid_errors_total{gpu=\"3\",uuid=\"GPU-1b2c\",xid=\"79\"} 0",
        "crescendo_gpu_nvlink_links_active{gpu=\"3\",uuid=\"GPU-1b2c\"} 18",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
}

#[test]
fn what_a_gpu_does_not_know_is_absent() {
    let registry = Registry::new();
    let metrics = GpuMetrics::register(&registry).unwrap();
    metrics.set(&gpu(), &at_work());
    metrics.set(&gpu(), &Reading { utilization_percent: Some(1), ..Reading::default() });
    let text = text(&registry);
    assert!(text.contains("crescendo_gpu_utilization_ratio{"), "{text}");
    for gone in
        ["crescendo_gpu_power_watts{", "crescendo_gpu_memory_used_bytes{", "crescendo_gpu_clock_hertz{"]
    {
        assert!(!text.contains(gone), "{gone} in:\n{text}");
    }
}

#[test]
fn error_counts_follow_the_driver_through_its_restart() {
    let registry = Registry::new();
    let metrics = GpuMetrics::register(&registry).unwrap();
    let counted = || metrics.ecc.with_label_values(&["3", "GPU-1b2c", "corrected"]).get();
    for (total, expected) in [(2, 2), (2, 2), (7, 7), (1, 1)] {
        metrics.set(&gpu(), &Reading { ecc_corrected: Some(total), ..Reading::default() });
        assert_eq!(counted(), expected);
    }
}

#[test]
fn xid_errors_are_counted_under_bounded_numbers() {
    let registry = Registry::new();
    let metrics = GpuMetrics::register(&registry).unwrap();
    for number in [Some(79), Some(79), Some(154), None] {
        metrics.count_xid(&Xid { gpu: gpu(), number });
    }
    let counted = |xid| metrics.xid.with_label_values(&["3", "GPU-1b2c", xid]).get();
    assert_eq!((counted("79"), counted("other")), (2, 2));
    assert_eq!(check_gathered(&registry, CATALOGUE), Vec::<String>::new());
}

#[test]
fn a_gpu_that_cannot_be_read_is_counted_and_the_others_go_on() {
    let registry = Registry::new();
    let metrics = GpuMetrics::register(&registry).unwrap();
    let stop = CancellationToken::new();
    let recorded = Recorded {
        looks: VecDeque::from([vec![Err("the GPU has fallen off the bus".into()), Ok((gpu(), at_work()))]]),
        xids: VecDeque::from([Xid { gpu: gpu(), number: Some(48) }]),
        stop: stop.clone(),
    };
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = told.clone();
    let tells = Box::new(move |fault: &str| heard.lock().unwrap().push(fault.to_owned()));
    spawn_watch(Box::new(recorded), metrics.clone(), tells, stop).unwrap().join().unwrap();
    assert_eq!(*told.lock().unwrap(), ["GPU 3 (GPU-1b2c): XID 48"]);
    assert_eq!(metrics.failures.get(), 1);
    assert_eq!(metrics.xid.with_label_values(&["3", "GPU-1b2c", "48"]).get(), 1);
    assert!(text(&registry).contains("crescendo_gpu_power_watts{"));
}

#[test]
fn what_a_gpu_has_come_to_since_the_process_began_is_told() {
    let mut faults = Faults::default();
    let errors = |count| Reading { ecc_uncorrected: Some(count), ..at_work() };
    // What was there before is known; a GPU that does not count them has none.
    for reading in [errors(2), errors(2), Reading { ecc_uncorrected: None, ..at_work() }] {
        faults.look(&gpu(), &reading);
        assert_eq!(faults.told(), "");
    }
    // Those of a program, and those without a number.
    for number in [Some(13), Some(31), Some(43), Some(45), None] {
        faults.xid(&Xid { gpu: gpu(), number });
    }
    assert_eq!(faults.told(), "");
    faults.look(&gpu(), &errors(5));
    faults.xid(&Xid { gpu: gpu(), number: Some(94) });
    // One that has fallen off its bus does not say who it is.
    faults.xid(&Xid { gpu: GpuId { index: u32::MAX, uuid: String::new() }, number: Some(79) });
    let told = "GPU 3 (GPU-1b2c): 3 uncorrected memory errors; GPU 3 (GPU-1b2c): XID 94; a GPU: XID 79";
    assert_eq!(faults.told(), told);
    // The driver was loaded again.
    faults.look(&gpu(), &errors(0));
    assert!(!faults.told().contains("memory"), "{}", faults.told());
    faults.look(&gpu(), &errors(1));
    assert!(faults.told().starts_with("GPU 3 (GPU-1b2c): 1 uncorrected"), "{}", faults.told());
}

#[test]
fn the_document_has_every_metric() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    crate::telemetry::metrics_registry::check_document(&docs, "GPUs", CATALOGUE).unwrap();
}
