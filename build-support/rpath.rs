//! Build script shared by every crate whose binaries or tests link libtorch: bakes the folder of the
//! libtorch that they were built against into them, so that they start without `LD_LIBRARY_PATH`.

pub fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(libtorch) = std::env::var_os("LIBTORCH") {
        let lib = std::path::Path::new(&libtorch).join("lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}
