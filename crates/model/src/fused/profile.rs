//! Where the time of a step goes, by part: for benchmarks. Each part waits for the device before and after, so that a profiled step
//! takes longer than one that is not; costs nothing while no profile is taken.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tch::Device;

thread_local! {
    static TIMES: RefCell<Option<Times>> = const { RefCell::new(None) };
}

/// Time by part.
pub type Times = BTreeMap<&'static str, Duration>;

/// Parts of a step in the blocks that are run by hand.
pub(crate) const NORMS: &str = "norms and modulation";
pub(crate) const GATES: &str = "gates";
pub(crate) const HEADS: &str = "heads: norm and rotation";
pub(crate) const GELU: &str = "GELU";
pub(crate) const ATTENTION: &str = "attention";
pub(crate) const PRODUCTS: &str = "products";

/// Times the parts of what this thread does from now on.
pub fn start() {
    TIMES.set(Some(Times::new()));
}

/// The times since [`start`]; empty without it.
pub fn take() -> Times {
    TIMES.take().unwrap_or_default()
}

/// Notes the time until it is dropped.
pub(crate) struct Part {
    began: Option<Instant>,
    name: &'static str,
    device: Device,
}

/// Parts do not hold each other.
pub(crate) fn part(name: &'static str, device: Device) -> Part {
    let on = TIMES.with_borrow(Option::is_some);
    if on {
        crescendo_device::choice::wait(device);
    }
    Part { began: on.then(Instant::now), name, device }
}

impl Drop for Part {
    fn drop(&mut self) {
        let Some(began) = self.began else { return };
        crescendo_device::choice::wait(self.device);
        TIMES.with_borrow_mut(|times| {
            if let Some(times) = times {
                *times.entry(self.name).or_default() += began.elapsed();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_timed_only_between_start_and_take() {
        drop(part(GATES, Device::Cpu));
        assert!(take().is_empty());
        start();
        drop(part(GATES, Device::Cpu));
        drop(part(GELU, Device::Cpu));
        assert_eq!(take().keys().copied().collect::<Vec<_>>(), [GELU, GATES]);
        assert!(take().is_empty());
    }
}
