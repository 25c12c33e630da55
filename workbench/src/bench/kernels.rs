//! `bench kernels`: each fused pass beside libtorch's operations.

use anyhow::{Result, ensure};
use clap::Args;
use crescendo_model::Preset;
use crescendo_model::fused::compare::{Comparison, PassSizes, compare};
use crescendo_model::tch::{self, Device, Kind};
use serde_json::json;

use super::{Precision, parse_preset};
use crate::parity::Output;

/// Flags of `bench kernels`.
#[derive(Debug, Args)]
pub struct KernelsArgs {
    /// Sizes of the network: flux-dev, flux-schnell, nano
    #[arg(long, default_value = "nano", value_parser = parse_preset)]
    preset: Preset,
    /// cpu, cuda, or cuda:INDEX
    #[arg(long, default_value = "cpu", value_parser = crescendo_device::parse)]
    device: Device,
    /// Dtype of activations [default: f32 on the CPU, bf16 on a GPU]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Samples
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=256))]
    batch: i64,
    /// Tokens along each side of a picture
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(i64).range(1..=256))]
    side: i64,
    /// CPU threads
    #[arg(long, default_value_t = 1)]
    threads: i32,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Runs `bench kernels`; an error if a pass is further off than rounding explains.
pub fn run(args: &KernelsArgs) -> Result<()> {
    tch::set_num_threads(args.threads);
    let device_name = crescendo_device::open(args.device)?;
    let kind = Precision::kind(args.precision, args.device);
    let sizes = PassSizes { batch: args.batch, side: args.side };
    let found = compare(&args.preset.config(), sizes, kind, args.device)?;
    let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    match args.output {
        Output::Json => {
            let row = |c: &Comparison| json!({ "name": c.name, "error": c.error, "fused_ms": milliseconds(c.fused), "eager_ms": milliseconds(c.eager) });
            let rows: Vec<_> = found.iter().map(row).collect();
            println!("{}", json!({ "device": device_name, "dtype": format!("{kind:?}"), "passes": rows }));
        }
        Output::Table => {
            println!(
                "{device_name}, {kind:?}\n{:<32} {:>9} {:>9} {:>7} {:>9}",
                "pass", "fused ms", "eager ms", "times", "error"
            );
            for Comparison { name, error, fused, eager } in &found {
                let times = eager.as_secs_f64() / fused.as_secs_f64().max(1e-9);
                println!(
                    "{name:<32} {:>9.3} {:>9.3} {times:>7.1} {error:>9.1e}",
                    milliseconds(*fused),
                    milliseconds(*eager)
                );
            }
        }
    }
    // float32 differs in the order of sums; bfloat16 has 8 bits, and eager operations round to it several times.
    let limit = if kind == Kind::Float { 1e-4 } else { 5e-2 };
    let off: Vec<&str> =
        found.iter().filter(|c| c.error.is_nan() || c.error > limit).map(|c| c.name).collect();
    ensure!(off.is_empty(), "further off than {limit:e}: {}", off.join(", "));
    Ok(())
}
