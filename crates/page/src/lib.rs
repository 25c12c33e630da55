//! The files of the web page (`web/`), as the controller's binary carries them. Where the page was not built there are none.

/// One built file.
#[derive(Debug)]
pub struct File {
    /// Where it is asked for, e.g. `/assets/index-Bx3.js`.
    pub path: &'static str,
    pub content: &'static [u8],
    /// The same, compressed.
    pub gzipped: &'static [u8],
}

static FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// All of them, by path.
pub fn files() -> &'static [File] {
    FILES
}
