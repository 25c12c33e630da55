//! `crescendo submit --matrix`: a job for each combination of values. All are checked before the first is submitted, and each
//! has the same request id whenever the command is repeated for its group.

use std::collections::BTreeSet;

use crescendo_core::ids::{JobId, RequestId};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::Value;

use super::spec_file::SpecFile;
use super::submit;
use crate::args::{Common, Output, SubmitArgs};
use crate::connect::Controller;
use crate::failure::Failure;
use crate::show::{self, json, problems};
use crate::spec_edit::assignment::{Assignment, FieldPath, check_once, combinations};

/// Checks that are under way at once.
const CHECKS: usize = 8;
/// What sets names and the label.
const OPTION: &str = "--matrix";

/// The jobs to be.
struct Matrix {
    /// With what all have in common.
    file: SpecFile,
    name: String,
    group: String,
    name_path: FieldPath,
    group_path: FieldPath,
    combinations: Vec<Vec<Assignment>>,
}

impl Matrix {
    fn plan(common: &Common, args: &SubmitArgs) -> Result<Matrix, Failure> {
        let path = |path: &str| path.parse::<FieldPath>().map_err(Failure::other);
        let (name_path, group_path) = (path("metadata.name")?, path("metadata.labels.group")?);
        let axes = args.matrix.iter().map(|axis| &axis.path);
        let set = args.how.set.iter().map(Assignment::path);
        check_once(set.clone().chain(axes.clone())).map_err(Failure::Usage)?;
        if axes.clone().any(|path| *path == name_path) {
            return Err(Failure::Usage(
                "--matrix numbers the names of its jobs; --set metadata.name sets what they begin with"
                    .into(),
            ));
        }
        if set.chain(axes).any(|path| *path == group_path) {
            return Err(Failure::Usage(
                "the label group of the jobs of a --matrix is set with --group".into(),
            ));
        }
        let combinations = combinations(&args.matrix).map_err(Failure::Usage)?;
        let file = SpecFile::read(common, &args.file, &args.how.set)?.with(common, &[])?;
        let name = file.name().ok_or_else(|| {
            Failure::Usage(format!(
                "{} has no metadata.name, with which the names of the jobs begin",
                args.file.display()
            ))
        })?;
        let group = match &args.group {
            Some(group) => group.clone(),
            None => new_group(&name)?,
        };
        Ok(Matrix { file, name, group, name_path, group_path, combinations })
    }

    /// The spec of a job, counted from 0. Made when it is needed: all together they may be large.
    fn spec(&self, common: &Common, index: usize) -> Result<SpecFile, Failure> {
        let mut set = self.combinations.get(index).cloned().unwrap_or_default();
        let name = format!("{}-{}", self.name, index + 1);
        set.push(Assignment::text(OPTION, self.name_path.clone(), &name));
        set.push(Assignment::text(OPTION, self.group_path.clone(), &self.group));
        self.file.with(common, &set)
    }

    fn request_id(&self, index: usize) -> String {
        format!("{}.{}", self.group, index + 1)
    }

    fn shown(&self, index: usize) -> String {
        let combination = self.combinations.get(index).map_or(&[][..], Vec::as_slice);
        combination.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

/// As the id of a job of that name is made.
fn new_group(name: &str) -> Result<String, Failure> {
    let random =
        RequestId::parse(&submit::new_request_id()).map_err(Failure::from_error("name the group"))?;
    let group = JobId::derive(name, "group", &random, 0);
    group.map(|group| group.to_string()).map_err(|_| {
        Failure::Usage(format!("metadata.name: `{name}` is not a name: 1 to 40 of a-z, 0-9 and -"))
    })
}

pub async fn run(common: &Common, args: &SubmitArgs) -> Result<(), Failure> {
    let matrix = Matrix::plan(common, args)?;
    let controller = Controller::find(common).await?;
    check(&controller, common, &matrix).await?;
    // Said before the first: whoever is cut off can go on with it.
    let (group, count) = (&matrix.group, matrix.combinations.len());
    show::errln(format_args!("group {group}: {count} job{}", if count == 1 { "" } else { "s" }));
    let (mut submitted, mut before) = (Vec::new(), 0);
    for index in 0..count {
        let answer = async {
            let file = matrix.spec(common, index)?;
            submit::submit(&controller, common, &file, matrix.request_id(index)).await
        };
        let answer = answer.await.map_err(|failure| cut_short(failure, &matrix, &submitted))?;
        let job = answer.job.unwrap_or_default();
        before += usize::from(answer.already_submitted);
        match common.output {
            Output::Table => show::outln(&job.job_id),
            Output::Json => {
                let mut shown = json::job(&job);
                shown["alreadySubmitted"] = answer.already_submitted.into();
                let combination = matrix.combinations.get(index).into_iter().flatten();
                shown["combination"] =
                    combination.map(|one| (one.path().to_string(), Value::from(one.given()))).collect();
                show::outln(shown);
            }
        }
        submitted.push(job.job_id);
    }
    if before > 0 {
        show::errln(format_args!("{before} of them had been submitted before"));
    }
    if common.output == Output::Table {
        show::errln(format_args!("what comes of them: crescendo compare --group {group}"));
    }
    Ok(())
}

/// Has the controller look at every spec. Fails with what is wrong with the first that is refused.
async fn check(controller: &Controller, common: &Common, matrix: &Matrix) -> Result<(), Failure> {
    let count = matrix.combinations.len();
    let checks = futures::stream::iter(0..count).map(|index| async move {
        let file = matrix.spec(common, index)?;
        let found = submit::validate(controller, common, &file).await?;
        Ok::<_, Failure>(found.map(|warnings| file.in_file(warnings)).map_err(|found| (index, found)))
    });
    let (mut warnings, mut refused) = (BTreeSet::new(), Vec::new());
    let mut checks = checks.buffered(CHECKS);
    while let Some(found) = checks.try_next().await? {
        match found {
            Ok(warned) => warnings.extend(warned),
            Err(found) => refused.push(found),
        }
    }
    let refusals = refused.len();
    let Some((index, found)) = refused.into_iter().next() else {
        show::err(problems::warnings(&warnings.into_iter().collect::<Vec<_>>()));
        return Ok(());
    };
    show::errln(format_args!(
        "nothing is submitted: {refusals} of {count} combinations are refused, the first being {}",
        matrix.shown(index)
    ));
    Err(matrix.spec(common, index)?.refuse(common, found))
}

/// A failure in the middle: what is there already, and how to go on.
fn cut_short(failure: Failure, matrix: &Matrix, submitted: &[String]) -> Failure {
    let (group, count) = (&matrix.group, matrix.combinations.len());
    let ids = if submitted.is_empty() { String::new() } else { format!(" ({})", submitted.join(", ")) };
    failure.and(&format!(
        "submitted so far: {} of {count} jobs{ids}. The same command with --group {group} goes on with the rest and submits \
         none twice; another spec needs another --group",
        submitted.len()
    ))
}
