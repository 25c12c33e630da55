//! What the checks have found.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::show::words::one_line;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// Works, but not as it should.
    Warning,
    Failed,
    /// Not looked at, and why.
    Skipped,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Failed => "failed",
            Status::Skipped => "skipped",
        }
    }
}

/// One thing that was looked at. The workbench prints the same as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    pub name: String,
    pub status: Status,
    /// What was found, one line.
    pub found: String,
    /// What to do about it; empty if nothing.
    #[serde(default)]
    pub remedy: String,
}

impl Check {
    fn new(name: &str, status: Status, found: String, remedy: &str) -> Check {
        Check { name: name.to_owned(), status, found, remedy: remedy.to_owned() }
    }

    pub fn ok(name: &str, found: impl Into<String>) -> Check {
        Check::new(name, Status::Ok, found.into(), "")
    }

    pub fn warning(name: &str, found: impl Into<String>, remedy: &str) -> Check {
        Check::new(name, Status::Warning, found.into(), remedy)
    }

    pub fn failed(name: &str, found: impl Into<String>, remedy: &str) -> Check {
        Check::new(name, Status::Failed, found.into(), remedy)
    }

    pub fn skipped(name: &str, why: impl Into<String>) -> Check {
        Check::new(name, Status::Skipped, why.into(), "")
    }
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    checks: Vec<Check>,
}

impl Report {
    pub fn add(&mut self, check: Check) {
        self.checks.push(check);
    }

    pub fn extend(&mut self, checks: Vec<Check>) {
        self.checks.extend(checks);
    }

    fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|check| check.status == status).count()
    }

    pub fn failures(&self) -> usize {
        self.count(Status::Failed)
    }

    pub fn as_json(&self) -> Value {
        json!({ "healthy": self.failures() == 0, "checks": self.checks })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
        for check in &self.checks {
            let (status, name) = (check.status.word(), one_line(&check.name));
            writeln!(f, "{status:<7}  {name:<width$}  {}", one_line(&check.found))?;
            if !check.remedy.is_empty() {
                writeln!(f, "{:>9}{:width$}  → {}", "", "", one_line(&check.remedy))?;
            }
        }
        writeln!(
            f,
            "{} ok, {} warnings, {} failed, {} skipped",
            self.count(Status::Ok),
            self.count(Status::Warning),
            self.failures(),
            self.count(Status::Skipped)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_a_verdict_and_what_to_do() {
        let mut report = Report::default();
        report.add(Check::ok("disk", "/ has 9 GiB"));
        report.add(Check::failed("certificate", "expired\u{1b}[2J", "renew it"));
        report.add(Check::skipped("store", "not named"));
        assert_eq!(
            report.to_string(),
            "\
ok       disk         / has 9 GiB
failed   certificate  expired [2J
                      → renew it
skipped  store        not named
1 ok, 0 warnings, 1 failed, 1 skipped
"
        );
        assert_eq!(report.failures(), 1);
        let value = report.as_json();
        assert_eq!((&value["healthy"], &value["checks"][1]["status"]), (&false.into(), &"failed".into()));
    }
}
