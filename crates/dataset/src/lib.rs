//! What training is fed with and what it leaves: pairs and their shards, subject libraries, pictures, and the files of a checkpoint.
//! Whoever writes one of these and whoever reads it call this crate. It needs neither libtorch nor an async runtime.
//!
//! | part | what it is |
//! |---|---|
//! | [`pair`] | a pair, decoded, and what is said of it |
//! | [`shard`], [`shard_index`] | pairs as a WebDataset tar: written, read whole or one by one |
//! | [`tar_pairs`] | pairs of a WebDataset tar that somebody else packed |
//! | [`checkpoint`] | names and manifest of a checkpoint's files, and how it is told that nothing of it is missing or changed |
//! | [`pictures`] | files of pictures to pixels, bit for bit as the published code has them; training sizes |
//! | [`digest`] | SHA-256 as the registry has it |
//! | [`whole_file`] | files that appear whole or not at all |
//! | [`Library`] and below | subject libraries: pictures with the words that are said of them |
//!
//! ```text
//!  index.json ────▶ index ──┐
//!                           ├─▶ entries ─▶ Library: pictures, decoded when needed ─▶ composer, generator, report
//!  plain folder ──▶ folder ─┘      │
//!  (names, .txt, CSV)              ├─▶ make:  a folder with index.json and upright, small pictures
//!                                  └─▶ check: every problem at once, and what is there
//! ```
//!
//! | part of it | what it does |
//! |---|---|
//! | `index` | reads and writes `index.json` |
//! | `naming` | words out of file names, ids out of words |
//! | `folder` | what a plain folder of pictures amounts to |
//! | `upright` | decodes within bounds, upright, and cuts down to what is needed |
//! | `background` | takes an even background away |
//! | `raster` | pictures with alpha, resampled |
//! | `library` | an opened library, with a bounded cache |
//! | `make`, `check` | the two commands |
//!
//! A plain folder opened as it is gives the same entries and the same pixels as the library that [`make::make`] writes of it.

mod background;
pub mod check;
pub mod checkpoint;
pub mod digest;
mod folder;
mod index;
mod library;
mod library_error;
pub mod make;
mod naming;
pub mod pair;
pub mod pictures;
mod problem;
mod raster;
pub mod shard;
pub mod shard_index;
mod split;
pub mod tar_pairs;
mod upright;
pub mod whole_file;

pub use folder::{FolderRules, Found, Subfolders, scan};
pub use index::Entry;
pub use library::Library;
pub use library_error::LibraryError;
pub use problem::{Problem, Severity};
pub use raster::{Edge, Raster, Region};
pub use split::{HoldOut, UnknownName, is_held_out, stable_hash};

/// The file that makes a folder a library.
pub const INDEX: &str = "index.json";
