//! `crescendo library`: subject libraries out of plain pictures, and what is wrong with one. No cluster is needed.

use std::io::{IsTerminal as _, stderr};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use crescendo_dataset::check::{Report, check};
use crescendo_dataset::make::{Background, DEFAULT_SIZE_PX, MakeOptions, make};
use crescendo_dataset::{FolderRules, Problem, Severity, Subfolders};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::common_args::{Common, Output};
use crate::failure::Failure;
use crate::show;
use crate::show::words::counted;

#[derive(Debug, Subcommand)]
pub enum LibraryCommand {
    /// Make a library of a folder of plain pictures (png, jpeg, webp).
    #[command(after_help = "\
What a picture shows is said by its name (red_fox-2.png: a second picture of \"red fox\"), by a .txt beside it, by the name of
the subfolder that it lies in, or by a CSV in the folder (file,name[,category,caption]). Pictures are turned upright, trimmed
to what is visible and shrunk; transparency is kept. What cannot be used is named and left out; the exit code is then 1.
docs/own-pictures.md has the whole way from pictures to a LoRA.

Examples:
  crescendo library make my-pictures --out my-library
  crescendo library make photos --out my-library --background remove    cut out what stands before an even background
  crescendo library check my-library")]
    Make(MakeArgs),
    /// Check a library, or a plain folder of pictures: every problem at once, and what is in it.
    #[command(after_help = "Exit code 1 if there are errors; warnings do not count.")]
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub struct MakeArgs {
    /// Folder of pictures.
    pub folder: PathBuf,
    /// Folder to make: a new one, or a library that was made before and is replaced.
    #[arg(long, value_name = "LIBRARY")]
    pub out: PathBuf,
    /// Longer side of its pictures at most, pixels. Twice the `panel` of a spec is enough.
    #[arg(long, value_name = "PIXELS", default_value_t = DEFAULT_SIZE_PX as u32, value_parser = clap::value_parser!(u32).range(64..=4096))]
    pub size: u32,
    /// What a subfolder is: one subject with several pictures, or a category of subjects.
    #[arg(long, value_name = "WHAT", default_value = "subjects")]
    pub subfolders: SubfoldersAre,
    /// What becomes of the background of pictures that have no transparency.
    #[arg(long, value_name = "WHAT", default_value = "keep")]
    pub background: BackgroundIs,
    /// CSV with a line a picture: file,name, and then category and caption if wanted [default: the one in the folder, if there is one].
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Replace a library that was made, added to or changed by hand.
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SubfoldersAre {
    /// Each is a subject, called as the folder is.
    Subjects,
    /// Each is a category; subjects are called as their pictures are.
    Categories,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackgroundIs {
    /// Kept: the picture is placed in scenes as a rectangle.
    Keep,
    /// Made transparent where it is of one colour, from the border inwards; kept where it is not, with a warning.
    Remove,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Library, or folder of pictures that a spec names as `subjects`.
    pub folder: PathBuf,
}

pub fn run(common: &Common, command: &LibraryCommand) -> Result<(), Failure> {
    match command {
        LibraryCommand::Make(args) => run_make(common, args),
        LibraryCommand::Check(args) => run_check(common, args),
    }
}

fn run_make(common: &Common, args: &MakeArgs) -> Result<(), Failure> {
    let subfolders = match args.subfolders {
        SubfoldersAre::Subjects => Subfolders::Subjects,
        SubfoldersAre::Categories => Subfolders::Categories,
    };
    let background = match args.background {
        BackgroundIs::Keep => Background::Keep,
        BackgroundIs::Remove => Background::Remove,
    };
    let options = MakeOptions {
        rules: FolderRules { subfolders, csv: args.csv.clone() },
        size_px: args.size as usize,
        background,
        force: args.force,
    };
    let bar = progress_bar();
    let made = make(&args.folder, &args.out, &options, &mut |done, of| tell(&bar, done, of));
    bar.finish_and_clear();
    let made = made.map_err(|error| Failure::other(error.to_string()))?;
    let pictures: usize = made.entries.iter().map(|entry| entry.files.len()).sum();
    let left_out = count(&made.problems, Severity::Error);
    match common.output {
        Output::Json => show::json::print(&json!({
            "library": args.out,
            "subjects": made.entries.len(),
            "pictures": pictures,
            "problems": problems_json(&made.problems),
        })),
        Output::Table => {
            show::err(problem_lines(&made.problems));
            show::outln(format_args!(
                "{}: {}, {}",
                args.out.display(),
                counted(made.entries.len(), "subject"),
                counted(pictures, "picture")
            ));
        }
    }
    match left_out {
        0 => Ok(()),
        n => Err(Failure::other(format!(
            "left out {}, as said above; the library has the others",
            counted(n, "file")
        ))),
    }
}

fn run_check(common: &Common, args: &CheckArgs) -> Result<(), Failure> {
    let bar = progress_bar();
    let report = check(&args.folder, &mut |done, of| tell(&bar, done, of));
    bar.finish_and_clear();
    let report = report.map_err(|error| Failure::other(error.to_string()))?;
    match common.output {
        Output::Json => show::json::print(&report_json(&args.folder, &report)),
        Output::Table => {
            show::err(problem_lines(&report.problems));
            show::out(summary(&args.folder, &report));
        }
    }
    match report.count(Severity::Error) {
        0 => Ok(()),
        n => Err(Failure::other(format!("{} in {}", counted(n, "error"), args.folder.display()))),
    }
}

/// Pictures done, on a terminal.
fn progress_bar() -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{pos}/{len} pictures {wide_bar}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn tell(bar: &ProgressBar, done: usize, of: usize) {
    bar.set_length(of as u64);
    bar.set_position(done as u64);
}

fn count(problems: &[Problem], severity: Severity) -> usize {
    problems.iter().filter(|problem| problem.severity == severity).count()
}

/// One a line, errors first.
fn problem_lines(problems: &[Problem]) -> String {
    let mut sorted: Vec<&Problem> = problems.iter().collect();
    sorted.sort_by_key(|problem| problem.severity);
    sorted.iter().map(|problem| format!("{}: {problem}\n", problem.severity.word())).collect()
}

fn problems_json(problems: &[Problem]) -> Vec<Value> {
    let one = |problem: &Problem| json!({"severity": problem.severity.word(), "place": problem.place, "reason": problem.reason});
    problems.iter().map(one).collect()
}

fn summary(folder: &Path, report: &Report) -> String {
    let kind = if report.is_plain { "plain folder, read by its file names" } else { "library" };
    let mut lines = vec![
        ("place", format!("{} ({kind})", folder.display())),
        ("subjects", report.subjects.to_string()),
        ("pictures", pictures_line(report)),
    ];
    if report.categories.keys().any(|category| !category.is_empty()) {
        let named = |(category, n): (&String, &usize)| {
            let category = if category.is_empty() { "none" } else { category };
            format!("{n} {category}")
        };
        lines.push(("categories", report.categories.iter().map(named).collect::<Vec<_>>().join(", ")));
    }
    if let Some([least, median, most]) = report.sides_px {
        lines.push(("longer side", format!("{least} to {most} pixels, median {median}")));
    }
    let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
    lines.push(("problems", format!("{}, {}", counted(errors, "error"), counted(warnings, "warning"))));
    lines.into_iter().map(|(what, text)| format!("{what:<11}  {text}\n")).collect()
}

fn pictures_line(report: &Report) -> String {
    let opaque = report.pictures - report.with_alpha;
    let mut line = format!("{}: {} with transparency, {opaque} without", report.pictures, report.with_alpha);
    if report.with_several_pictures > 0 {
        line += &format!("; {} with several", counted(report.with_several_pictures, "subject"));
    }
    line
}

fn report_json(folder: &Path, report: &Report) -> Value {
    let sides =
        report.sides_px.map(|[least, median, most]| json!({"min": least, "median": median, "max": most}));
    json!({
        "place": folder,
        "kind": if report.is_plain { "folder" } else { "library" },
        "subjects": report.subjects,
        "subjectsWithSeveralPictures": report.with_several_pictures,
        "pictures": report.pictures,
        "picturesWithTransparency": report.with_alpha,
        "categories": report.categories,
        "longerSidePixels": sides,
        "problems": problems_json(&report.problems),
    })
}
