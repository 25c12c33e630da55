//! Subject libraries: pictures with the words that are said of them.
//!
//! ```text
//!  index.json ────▶ index ──┐
//!                           ├─▶ entries ─▶ Library: pictures, decoded when needed ─▶ composer, generator, report
//!  plain folder ──▶ folder ─┘      │
//!  (names, .txt, CSV)              ├─▶ make:  a folder with index.json and upright, small pictures
//!                                  └─▶ check: every problem at once, and what is there
//! ```
//!
//! | part | what it does |
//! |---|---|
//! | `index` | reads and writes `index.json` |
//! | `naming` | words out of file names, ids out of words |
//! | `folder` | what a plain folder of pictures amounts to |
//! | `picture` | decodes within bounds, upright, and cuts down to what is needed |
//! | `background` | takes an even background away |
//! | `raster` | pictures with alpha, resampled |
//! | `library` | an opened library, with a bounded cache |
//! | `make`, `check` | the two commands |
//!
//! A plain folder opened as it is gives the same entries and the same pixels as the library that [`make::make`] writes of it.

mod background;
pub mod check;
mod folder;
mod index;
mod library;
pub mod make;
mod naming;
mod picture;
mod problem;
mod raster;
mod split;

pub use folder::{FolderRules, Found, Subfolders, scan};
pub use index::Entry;
pub use library::{Library, LibraryError};
pub use problem::{Problem, Severity};
pub use raster::{Edge, Raster, Region};
pub use split::{HoldOut, UnknownName, is_held_out, stable_hash};

/// The file that makes a folder a library.
pub const INDEX: &str = "index.json";
