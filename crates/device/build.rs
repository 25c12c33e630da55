//! Compiles the shim over libtorch's streams against its headers.

use std::path::PathBuf;
use std::process::exit;

#[path = "../../build-support/rpath.rs"]
mod rpath;

fn main() {
    rpath::main();
    println!("cargo:rerun-if-changed=shim");
    println!("cargo:rerun-if-env-changed=CXX");
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        fail(
            "LIBTORCH is not set: it names the folder of libtorch (include/ and lib/); `make setup` installs one",
        );
    };
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .file("shim/stream_shim.cpp")
        .flag(format!("-isystem{}", libtorch.join("include").display()))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .define("NDEBUG", None)
        .opt_level(2);
    if let Err(error) = build.try_compile("crescendo_stream_shim") {
        fail(&format!(
            "the shim over libtorch's streams does not compile (it needs g++ or clang++): {error}"
        ));
    }
    println!("cargo:rustc-link-search=native={}", libtorch.join("lib").display());
    println!("cargo:rustc-link-lib=dylib=c10");
}

fn fail(message: &str) -> ! {
    println!("cargo:warning={message}");
    eprintln!("error: {message}");
    exit(1)
}
