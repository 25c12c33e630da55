//! Compiles the fused passes (`kernels/`) for the processors that they are chosen among at run time, and bakes libtorch's folder
//! into this crate's own tests.

#[path = "../../build-support/rpath.rs"]
mod rpath;

use std::process::exit;

/// A build's name, and what the compiler may use beyond the target's own instructions.
const VARIANTS: [(&str, &[&str]); 3] = [
    ("plain", &[]),
    ("avx2", &["-mavx2", "-mfma"]),
    (
        "avx512",
        &["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
    ),
];

fn main() {
    rpath::main();
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=CXX");
    let x86_64 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    for (variant, flags) in VARIANTS.into_iter().take(if x86_64 { VARIANTS.len() } else { 1 }) {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .file("kernels/cpu.cpp")
            .define("VARIANT", format!("_{variant}").as_str())
            // Slow kernels make slow tests, whatever the profile.
            .opt_level(3)
            .flag("-fopenmp-simd")
            .flag("-fno-math-errno")
            .flag("-fno-trapping-math");
        for flag in flags {
            build.flag(flag);
        }
        if let Err(error) = build.try_compile(&format!("crescendo_kernels_{variant}")) {
            println!(
                "cargo:warning=the fused kernels do not compile (a C++17 compiler is needed, g++ or clang++): {error}"
            );
            exit(1);
        }
    }
}
