//! What tests of several crates need. No program depends on this.
//!
//! | module | content |
//! |---|---|
//! | [`certificates`] | an authority and certificates, made anew by each test; a listener between two ends |
//! | [`controller`] | a real controller process, and nodes that are played by the test |
//! | [`event_files`] | TensorBoard's files, read by other means than they are written |
//! | [`hostile`] | peers that do everything wrong on the wire |
//! | [`programs`] | where the programs under test are |
//! | [`s3`] | a real S3 server |
//! | [`small_disk`] | a disk that can be filled, freed and made read-only |
//! | [`specs`] | the one minimal job spec |
//! | [`tensorboard`] | a running TensorBoard |
//! | [`waiting`] | the one way to wait for something |

pub mod certificates;
pub mod controller;
pub mod event_files;
pub mod hostile;
pub mod programs;
pub mod s3;
pub mod small_disk;
pub mod specs;
pub mod tensorboard;
pub mod waiting;

pub use programs::binary;
pub use s3::S3Server;
pub use small_disk::SmallDisk;
pub use waiting::{LIMIT, eventually, until};
