//! Certificates of a release that has no other issuer: which are made, how, and where they are kept.

mod issue;
mod kubernetes;
mod plan;

pub use issue::{IssueError, Issued, issue_authority, issue_leaf};
pub use kubernetes::{Api, ApiError, Secret};
pub use plan::{Due, Held, Leaf, Plan, PlanError, Usage, due, fingerprint};
