//! Compiles the C++ side of the Gloo backend against libtorch's headers, and bakes the folder of that libtorch
//! into this crate's own binaries and tests.

use std::path::{Path, PathBuf};
use std::process::exit;

/// The stub headers in `shim/stub` mirror the classes that exactly this release was built with.
const TORCH_VERSION: &str = "2.11.0";

fn main() {
    println!("cargo:rerun-if-changed=shim");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=CXX");

    let libtorch = match std::env::var_os("LIBTORCH") {
        Some(path) => PathBuf::from(path),
        None => fail(
            "LIBTORCH is not set: it names the folder of libtorch (include/ and lib/); `make setup` installs one",
        ),
    };
    match torch_version(&libtorch) {
        Some(found) if found == TORCH_VERSION => {}
        Some(found) => fail(&format!(
            "libtorch in {} is {found}, but the Gloo backend is written for {TORCH_VERSION} exactly",
            libtorch.display()
        )),
        None => fail(&format!(
            "no libtorch {TORCH_VERSION} in {}: include/torch/headeronly/version.h does not tell a version",
            libtorch.display()
        )),
    }

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .file("shim/gloo_shim.cpp")
        .include("shim/stub")
        .flag(format!("-isystem{}", libtorch.join("include").display()))
        .flag(format!("-isystem{}", libtorch.join("include/torch/csrc/api/include").display()))
        .define("USE_C10D_GLOO", None)
        .define("USE_DISTRIBUTED", None)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .define("NDEBUG", None)
        .flag_if_supported("-Wno-unused-parameter")
        .opt_level(2);
    if build.try_get_compiler().is_err() {
        fail("a C++17 compiler is needed (on Debian: `apt-get install g++`; or name one in CXX)");
    }
    if let Err(error) = build.try_compile("crescendo_gloo_shim") {
        fail(&format!(
            "the Gloo backend does not compile (a C++17 compiler is needed, g++ or clang++): {error}"
        ));
    }

    let lib = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}

/// The version that libtorch's own headers tell, such as `2.11.0`.
fn torch_version(libtorch: &Path) -> Option<String> {
    let header = libtorch.join("include/torch/headeronly/version.h");
    println!("cargo:rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(header).ok()?;
    let number = |name: &str| {
        text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("#define") && words.next() == Some(name))
                .then(|| words.next())?
                .map(str::to_owned)
        })
    };
    Some(format!(
        "{}.{}.{}",
        number("TORCH_VERSION_MAJOR")?,
        number("TORCH_VERSION_MINOR")?,
        number("TORCH_VERSION_PATCH")?
    ))
}

fn fail(message: &str) -> ! {
    println!("cargo:warning={message}");
    eprintln!("error: {message}");
    exit(1)
}
