//! How fast this process computes in each precision, and on what: found by timing one product of the nano network's shape.
//!
//! Flags of the processor do not tell. As a multiple of f32, bf16 is 0.1 with AVX2, 0.4 to 0.7 on some processors that have
//! its instructions, 2 on others and 3 to 7 with AMX.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use crescendo_core::precision::Arithmetic;
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest as _, Sha256};
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::fused::Kernels;
use crate::layers::attention;
use crate::randomness::NormalStream;

/// Tokens of the timed product, width of the nano network, and outputs of its single-stream block's first layer.
const SHAPE: [i64; 3] = [512, 192, 1344];
/// What [`last_bits`] computes on: 256 tokens of the nano network's width.
const BITS_BATCH: i64 = 2;
const BITS_TOKENS: i64 = 128;
const BITS_HEADS: i64 = 8;
const BITS_HEAD: i64 = 24;
/// Repetitions of each precision, after one that warms up.
const REPETITIONS: usize = 5;
/// How long to wait for other processes of this machine that measure at the same time.
const TURN: Duration = Duration::from_secs(1);
const TURN_POLL: Duration = Duration::from_millis(10);

/// What a node says of itself when it starts: times of a product with `threads` threads, on the CPU and from here on.
///
/// Some tens of milliseconds; a quarter of a second where bf16 crawls.
pub fn of_cpu(threads: u32) -> Result<Arithmetic> {
    let (f32_time, bf16_time) = measure(threads)?;
    let kind = kind_of(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let held = held_to(|name| std::env::var(name).ok());
    Ok(Arithmetic { f32_time, bf16_time, processor: format!("{kind}{held} {}", last_bits()?), threads })
}

/// The same of GPUs of this name: bf16 is native there, and nothing is timed.
pub fn of_gpu(name: &str, threads: u32) -> Arithmetic {
    Arithmetic { processor: name.to_owned(), threads, ..Arithmetic::default() }
}

/// What a node says of itself: of its first GPU, or else of the CPU. A CPU that cannot be timed, for which the error says why,
/// still computes: stages whose precision is `auto` take f32 for it.
///
/// One that is held to libtorch's operations is of another kind: their last bits are not those of the fused passes.
pub fn of_node(gpu: Option<&str>, threads: u32, kernels: Kernels) -> (Arithmetic, Option<ModelError>) {
    let (mut arithmetic, error) =
        match gpu.map(|name| of_gpu(name, threads)).map_or_else(|| of_cpu(threads), Ok) {
            Ok(arithmetic) => (arithmetic, None),
            Err(error) => (Arithmetic { threads, ..Arithmetic::default() }, Some(error)),
        };
    if kernels == Kernels::Eager {
        arithmetic.processor.push_str(" eager");
    }
    (arithmetic, error)
}

/// Median times of the product in f32 and in bf16. Processes of one machine that start together take
/// turns, or both would see half the machine; one that does not get its turn within a second measures all the same.
fn measure(threads: u32) -> Result<(Duration, Duration)> {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(1));
    let _turn = take_turn(&std::env::temp_dir().join("crescendo-measures.lock"), TURN);
    let [tokens, inputs, outputs] = SHAPE;
    let input = NormalStream::for_weight(0, "measured input").tensor(&[tokens, inputs])?;
    let weight = NormalStream::for_weight(0, "measured weight").tensor(&[outputs, inputs])?;
    // In turns, so that what else the machine does falls on both.
    let (mut f32_times, mut bf16_times) = (Vec::new(), Vec::new());
    let bf16 = (input.f_to_kind(Kind::BFloat16)?, weight.f_to_kind(Kind::BFloat16)?);
    for repetition in 0..=REPETITIONS {
        let (single, half) = (product(&input, &weight)?, product(&bf16.0, &bf16.1)?);
        if repetition > 0 {
            f32_times.push(single);
            bf16_times.push(half);
        }
    }
    Ok((median(f32_times), median(bf16_times)))
}

/// Time that the calling thread computes for a product. What it waits for the processor is not in it: between two others
/// that want the same core, the product that happens to be interrupted would look many times as slow as the other.
fn product(input: &Tensor, weight: &Tensor) -> Result<Duration> {
    let started = computed();
    drop(tch::no_grad(|| input.f_linear(weight, None::<&Tensor>))?);
    Ok(computed().saturating_sub(started))
}

/// How long this thread has had a processor.
fn computed() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The machine's turn, until the file is dropped; none if it cannot be had in time.
fn take_turn(path: &Path, patience: Duration) -> Option<File> {
    let file = File::options().create(true).append(true).open(path).ok()?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(TURN_POLL),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return None,
        }
    }
}

/// Eight hexadecimal digits of what the last bits of this process's results depend on: the kernels that a training step
/// runs through, forward and backward and in both precisions. They differ between processors, between what the environment
/// holds the libraries to, and between numbers of threads, each in other operations: an exponential and a product in f32 may
/// agree where a whole step does not.
fn last_bits() -> Result<String> {
    let mut digest = Sha256::new();
    let mut take = |values: &Tensor| -> Result<()> {
        let numbers = Vec::<f32>::try_from(&values.f_detach()?.f_to_kind(Kind::Float)?.f_reshape([-1])?)?;
        for number in numbers {
            digest.update(number.to_le_bytes());
        }
        Ok(())
    };
    for kind in [Kind::Float, Kind::BFloat16] {
        let leaf = |name: &str, shape: &[i64]| -> Result<Tensor> {
            let values = NormalStream::for_weight(0, name).tensor(shape)?.f_to_kind(kind)?;
            Ok(values.f_set_requires_grad(true)?)
        };
        let input = leaf("last bits: input", &[BITS_BATCH * BITS_TOKENS, BITS_HEADS * BITS_HEAD])?;
        let weight = leaf("last bits: weight", &[3 * BITS_HEADS * BITS_HEAD, BITS_HEADS * BITS_HEAD])?;
        let normed =
            input.f_layer_norm([BITS_HEADS * BITS_HEAD], None::<&Tensor>, None::<&Tensor>, 1e-6, false)?;
        let split = normed
            .f_linear(&weight, None::<&Tensor>)?
            .f_reshape([BITS_BATCH, BITS_TOKENS, 3, BITS_HEADS, BITS_HEAD])?
            .f_permute([2, 0, 3, 1, 4])?;
        let part = |n: i64| split.f_select(0, n);
        // The plain products that the networks attend with on a CPU.
        let scale = 1.0 / (BITS_HEAD as f64).sqrt();
        let attended = attention(&part(0)?, &part(1)?, &part(2)?, scale, None)?;
        let gated = attended.f_gelu("tanh")?.f_mul(&attended.f_silu()?)?;
        let loss = gated.f_to_kind(Kind::Float)?.f_square()?.f_mean(Kind::Float)?;
        loss.f_backward()?;
        let (input_grad, weight_grad) = (input.f_grad()?, weight.f_grad()?);
        for values in [&attended, &gated, &loss, &input_grad, &weight_grad] {
            take(values)?;
        }
        // As AdamW has it, and the time sinusoid.
        take(&weight_grad.f_div(&weight_grad.f_square()?.f_sqrt()?.f_add_scalar(1e-8)?)?)?;
        take(&normed.f_exp()?.f_cos()?)?;
    }
    Ok(digest.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect())
}

/// For people: the processor's maker, and the best instructions that it has for this.
fn kind_of(cpuinfo: &str) -> String {
    let field = |name: &str| {
        cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim())
    };
    let flags = field("flags").unwrap_or_default();
    let levels = ["amx_bf16", "avx512_bf16", "avx512f", "avx2"];
    let level = levels.into_iter().find(|level| flags.split(' ').any(|flag| flag == *level));
    format!("{} {}", field("vendor_id").unwrap_or("unknown"), level.unwrap_or(std::env::consts::ARCH))
}

/// Variables that hold the libraries to other kernels than the processor's best.
const HOLDING: [&str; 4] =
    ["ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"];

/// What the environment holds the libraries to, for people: ` held to avx2, AVX2`; empty where nothing is set.
fn held_to(variable: impl Fn(&str) -> Option<String>) -> String {
    let mut held: Vec<String> =
        HOLDING.into_iter().filter_map(variable).filter(|value| !value.is_empty()).collect();
    held.dedup_by(|a, b| a.eq_ignore_ascii_case(b));
    if held.is_empty() { String::new() } else { format!(" held to {}", held.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: &str = "kind: ";

    /// The kind that this process would be with a variable, as `both_precisions_are_timed` prints it.
    fn kind_with(name: &str, value: &str) -> String {
        let test = "speed::tests::both_precisions_are_timed";
        let ran = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            // What this process is held to would hide the difference.
            .env_remove("MKL_CBWR")
            .env_remove("MKL_ENABLE_INSTRUCTIONS")
            .env_remove("ATEN_CPU_CAPABILITY")
            .env_remove("ONEDNN_MAX_CPU_ISA")
            .env(name, value)
            .output()
            .unwrap();
        let printed = String::from_utf8(ran.stdout).unwrap();
        let found = printed.lines().find_map(|line| line.split_once(KIND));
        found.unwrap_or_else(|| panic!("{printed}")).1.to_owned()
    }

    /// The kernels that every processor has are not those that it has best, and the same flags of the processor do not tell.
    #[test]
    fn other_kernels_are_another_kind() {
        let usual = kind_with("CRESCENDO_NOTHING", "");
        assert_eq!(kind_with("CRESCENDO_NOTHING", ""), usual);
        assert_ne!(kind_with("MKL_CBWR", "COMPATIBLE"), usual, "of products");
        assert_ne!(kind_with("ATEN_CPU_CAPABILITY", "default"), usual, "of everything else");
    }

    #[test]
    fn both_precisions_are_timed() {
        let measured = of_cpu(1).unwrap();
        assert!(measured.bf16_factor().is_some_and(|factor| factor > 0.0), "{measured:?}");
        // The same machine, environment and threads: the same kind.
        println!("{KIND}{}", measured.processor);
        assert_eq!(of_cpu(1).unwrap().processor, measured.processor);
        let gpu = of_gpu("NVIDIA H100", 1);
        assert_eq!((gpu.bf16_factor(), gpu.processor.as_str()), (None, "NVIDIA H100"));
    }

    #[test]
    fn the_middle_of_several_times_counts() {
        let ms = Duration::from_millis;
        assert_eq!(median(vec![ms(90), ms(2), ms(3), ms(1), ms(40)]), ms(3));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }

    #[test]
    fn one_process_measures_at_a_time_and_none_waits_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("turn");
        let turn = take_turn(&path, Duration::ZERO).expect("nobody else has it");
        assert!(take_turn(&path, TURN_POLL).is_none());
        drop(turn);
        assert!(take_turn(&path, Duration::ZERO).is_some());
        assert!(take_turn(&folder.path().join("absent/turn"), Duration::ZERO).is_none());
    }

    #[test]
    fn a_kind_says_what_it_is_held_to() {
        assert_eq!(held_to(|_| None), "");
        let avx2 = |name: &str| {
            (name != "MKL_CBWR")
                .then(|| if name == "ATEN_CPU_CAPABILITY" { "avx2" } else { "AVX2" }.to_owned())
        };
        assert_eq!(held_to(avx2), " held to avx2");
        assert_eq!(held_to(|name| (name == "MKL_CBWR").then(|| "COMPATIBLE".into())), " held to COMPATIBLE");
    }

    #[test]
    fn a_kind_is_the_maker_and_the_level() {
        let info = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nprocessor\t: 1\n";
        assert_eq!(kind_of(info), "AuthenticAMD avx512_bf16");
        assert_eq!(kind_of(""), format!("unknown {}", std::env::consts::ARCH));
    }
}
