//! For tests: a real S3 server, and peers that do everything wrong.

pub mod hostile;
mod s3;

pub use s3::S3Server;
