//! GPUs through NVIDIA's management library, which comes with the driver and is loaded at run time.

use std::time::Duration;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet};

use super::{GpuId, Gpus, Reading, Throttles, Xid};

/// NVLinks that a GPU has at most.
const MAX_NVLINKS: u32 = 18;
/// The driver's library, under the name that every driver installs.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// The library, open. It stays open until the process ends: events borrow it.
#[derive(Debug)]
pub struct Nvml {
    nvml: &'static nvml_wrapper::Nvml,
    events: Option<Events>,
}

/// The driver's queue of critical errors. Its wrapper has no `Debug`.
struct Events(EventSet<'static>);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Nvml {
    /// Fails where there is no driver.
    pub fn open() -> Result<Self, String> {
        let nvml = nvml_wrapper::Nvml::builder()
            .lib_path(LIBRARY.as_ref())
            .init()
            .map_err(|error| error.to_string())?;
        let nvml: &'static nvml_wrapper::Nvml = Box::leak(Box::new(nvml));
        let events = match subscribe(nvml) {
            Ok(events) => Some(Events(events)),
            Err(error) => {
                tracing::info!(%error, "the driver does not tell of XID errors");
                None
            }
        };
        Ok(Self { nvml, events })
    }

    /// Names of the GPUs by index; empty for one that does not say.
    pub fn names(&self) -> Vec<String> {
        let count = self.nvml.device_count().unwrap_or(0);
        let name = |index| self.nvml.device_by_index(index).and_then(|device| device.name());
        (0..count).map(|index| name(index).unwrap_or_default()).collect()
    }
}

fn subscribe(nvml: &'static nvml_wrapper::Nvml) -> Result<EventSet<'static>, NvmlError> {
    let mut events = nvml.create_event_set()?;
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        events =
            device.register_events(EventTypes::CRITICAL_XID_ERROR, events).map_err(|error| error.error)?;
    }
    Ok(events)
}

fn id_of(device: &Device<'_>) -> Result<GpuId, NvmlError> {
    Ok(GpuId { index: device.index()?, uuid: device.uuid()? })
}

/// A GPU that is lost answers nothing; one that lacks a value answers the rest.
fn read(device: &Device<'_>) -> Result<(GpuId, Reading), NvmlError> {
    let id = id_of(device)?;
    if let Err(error @ NvmlError::GpuLost) = device.temperature(TemperatureSensor::Gpu) {
        return Err(error);
    }
    let memory = device.memory_info().ok();
    let ecc = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
    Ok((
        id,
        Reading {
            utilization_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
            memory_used_bytes: memory.as_ref().map(|memory| memory.used),
            memory_total_bytes: memory.as_ref().map(|memory| memory.total),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            sm_clock_mhz: device.clock_info(Clock::SM).ok(),
            memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
            power_milliwatts: device.power_usage().ok(),
            ecc_corrected: ecc(MemoryError::Corrected),
            ecc_uncorrected: ecc(MemoryError::Uncorrected),
            throttles: device.current_throttle_reasons().ok().map(throttles),
            nvlinks_active: active_links(device),
        },
    ))
}

fn active_links(device: &Device<'_>) -> Option<u32> {
    let states: Vec<bool> =
        (0..MAX_NVLINKS).map_while(|link| device.link_wrapper_for(link).is_active().ok()).collect();
    let active = states.iter().filter(|active| **active).count();
    (!states.is_empty()).then(|| u32::try_from(active).unwrap_or(MAX_NVLINKS))
}

fn throttles(reasons: ThrottleReasons) -> Throttles {
    Throttles {
        power_cap: reasons.contains(ThrottleReasons::SW_POWER_CAP),
        hardware_slowdown: reasons.contains(ThrottleReasons::HW_SLOWDOWN),
        software_thermal: reasons.contains(ThrottleReasons::SW_THERMAL_SLOWDOWN),
        hardware_thermal: reasons.contains(ThrottleReasons::HW_THERMAL_SLOWDOWN),
        power_brake: reasons.contains(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN),
        sync_boost: reasons.contains(ThrottleReasons::SYNC_BOOST),
    }
}

impl Gpus for Nvml {
    fn read(&mut self) -> Vec<Result<(GpuId, Reading), String>> {
        let count = match self.nvml.device_count() {
            Ok(count) => count,
            Err(error) => return vec![Err(error.to_string())],
        };
        let look = |index| self.nvml.device_by_index(index).and_then(|device| read(&device));
        (0..count).map(|index| look(index).map_err(|error| error.to_string())).collect()
    }

    fn next_xid(&mut self, limit: Duration) -> Option<Xid> {
        let Some(Events(events)) = &self.events else {
            std::thread::sleep(limit);
            return None;
        };
        match events.wait(u32::try_from(limit.as_millis()).unwrap_or(u32::MAX)) {
            Ok(event) => {
                let number = match event.event_data? {
                    XidError::Value(number) => Some(number),
                    XidError::Unknown => None,
                };
                // A GPU that has fallen off its bus may not say who it is.
                let gpu = id_of(&event.device).unwrap_or(GpuId { index: u32::MAX, uuid: String::new() });
                Some(Xid { gpu, number })
            }
            Err(NvmlError::Timeout) => None,
            Err(error) => {
                tracing::warn!(%error, "the driver tells of no more XID errors");
                self.events = None;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_says_so_and_goes_on() {
        // With a driver there is something to read, without one a reason; neither panics.
        match Nvml::open() {
            Ok(mut nvml) => assert_eq!(nvml.read().len(), nvml.names().len()),
            Err(reason) => assert!(!reason.is_empty()),
        }
    }

    #[test]
    fn only_reasons_that_cost_speed_count() {
        assert_eq!(
            throttles(ThrottleReasons::GPU_IDLE | ThrottleReasons::APPLICATIONS_CLOCKS_SETTING),
            Throttles::default()
        );
        let hot = throttles(ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN);
        assert_eq!(
            hot,
            Throttles { hardware_slowdown: true, hardware_thermal: true, ..Throttles::default() }
        );
    }
}
