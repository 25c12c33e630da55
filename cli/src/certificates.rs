//! Certificates of a release that has no other issuer: which are made, how, and where they are kept.

mod issue;
mod kubernetes;
mod plan;

pub use issue::{Issued, issue_authority, issue_leaf};
pub use kubernetes::{Api, Secret};
pub use plan::{Due, Plan, due, fingerprint};
