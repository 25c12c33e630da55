//! `crescendo validate`: no cluster is needed. One that `up` runs on this machine is asked all the same, since it knows what
//! this machine makes of the spec.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crescendo_core::estimate::Estimate;
use crescendo_core::spec::{self, Problem};
use crescendo_proto::v1::SubmitJobRequest;

use super::held_out::{self, HeldOut, Look};
use super::spec_file::SpecFile;
use super::{on_this_machine, submit};
use crate::args::{Common, FileArgs, Output};
use crate::connect::{self, Controller};
use crate::failure::Failure;
use crate::settings::{self, Origin};
use crate::show::{self, json, problems, width};

/// The cluster of this machine answers within this or is not there.
const OWN_CLUSTER: Duration = Duration::from_secs(1);

pub async fn run(common: &Common, args: &FileArgs) -> Result<(), Failure> {
    let file = SpecFile::read(common, &args.file, &args.set)?;
    let yaml = file.yaml();
    let root = root_of_this_machine(common);
    let (parsed, look) = match spec::read(&yaml, None) {
        Ok(parsed) => {
            let look = held_out::look(&parsed, root.as_deref().unwrap_or(Path::new("")));
            (parsed, look)
        }
        Err(found) => return Err(file.refuse(common, found)),
    };
    let Look { held_out, problems, warnings } = look;
    if !problems.is_empty() {
        return Err(file.refuse(common, problems));
    }
    let mut all = root.map_or_else(Vec::new, |root| on_this_machine::missing(&parsed, &root));
    all.extend(parsed.warnings);
    all.extend(warnings);
    let mut warnings: Vec<Problem> = all.into_iter().map(Problem::from).collect();
    warnings.extend(of_own_cluster(common, &yaml).await);
    warnings.sort();
    // The cluster repeats what was found here.
    warnings.dedup();
    let warnings = file.in_file(warnings);
    let estimate = Estimate::of(&parsed.spec);
    match common.output {
        Output::Table => {
            show::out(spec::to_yaml(&parsed.spec));
            for found in held_out.iter().filter(|found| !found.held_out.is_empty()) {
                show::errln(width::wrapped(&found.text(), width::of_stderr(), 4));
            }
            show::errln(width::wrapped(&format!("it comes to {estimate}"), width::of_stderr(), 4));
            show::err(problems::warnings(&warnings));
        }
        Output::Json => {
            let resolved =
                serde_json::to_value(&parsed.spec).map_err(Failure::from_error("write the spec as JSON"))?;
            json::print(&serde_json::json!({
                "valid": true,
                "problems": [],
                "warnings": json::problems(&warnings),
                "heldOut": held_out.iter().map(HeldOut::json).collect::<Vec<_>>(),
                "estimate": json::estimate(&estimate),
                "resolved": resolved,
            }));
        }
    }
    Ok(())
}

/// What relative paths start from where the nodes are on this machine: that of the cluster that `up` runs, or the current folder
/// where no cluster is known. `None` where they are elsewhere.
fn root_of_this_machine(common: &Common) -> Option<PathBuf> {
    match settings::find(common) {
        Ok(target) if matches!(target.origin, Origin::Up(_)) => target.library_root,
        Ok(_) => None,
        Err(_) => Some(PathBuf::new()),
    }
}

/// What the cluster warns of that `up` runs on this machine, about its processors for one; nothing without it.
async fn of_own_cluster(common: &Common, yaml: &[u8]) -> Vec<Problem> {
    let Ok(target) = settings::find(common) else { return Vec::new() };
    if !matches!(target.origin, Origin::Up(_)) {
        return Vec::new();
    }
    let Ok(controller) = Controller::local(target) else { return Vec::new() };
    let request =
        SubmitJobRequest { request_id: String::new(), spec_yaml: yaml.to_vec(), validate_only: true };
    let answer = controller
        .call(OWN_CLUSTER, |channel| {
            let request = request.clone();
            async move { connect::jobs(channel).submit_job(request).await }
        })
        .await;
    answer.map_or_else(|_| Vec::new(), |answer| submit::as_problems(answer.warnings))
}
