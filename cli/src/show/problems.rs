//! Spec problems as compilers print theirs: the place, what is wrong, the line, a caret below it.

use std::fmt::Write as _;
use std::path::Path;

use crescendo_core::spec::Problem;

use super::width;

/// Columns for a line of the file, with its number, at most; a longer line is shown around the column.
const WIDTH: usize = 108;

/// All problems, in the order of the file, and how many there are.
pub fn render(file: &Path, yaml: &[u8], problems: &[Problem]) -> String {
    render_within(file, yaml, problems, width::of_stderr())
}

fn render_within(file: &Path, yaml: &[u8], problems: &[Problem], width: Option<usize>) -> String {
    let text = String::from_utf8_lossy(yaml);
    let lines: Vec<&str> = text.strip_prefix('\u{feff}').unwrap_or(&text).lines().collect();
    let mut out = String::new();
    for problem in problems {
        let place = match problem.line {
            0 => file.display().to_string(),
            line => format!("{}:{line}:{}", file.display(), problem.column),
        };
        let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
        let said = format!("{place}: {path}{}", problem.message);
        let _ = writeln!(out, "{}", width::wrapped(&said, width, 4));
        let line =
            usize::try_from(problem.line).unwrap_or(0).checked_sub(1).and_then(|index| lines.get(index));
        if let Some(line) = line {
            out.push_str(&excerpt(problem, line, width.map_or(WIDTH, |width| width.min(WIDTH))));
        }
    }
    let count = problems.len();
    let _ = writeln!(out, "{count} problem{} in {}", if count == 1 { "" } else { "s" }, file.display());
    out
}

/// What is hardly meant, one a line, or wrapped to the terminal; nothing if there is none.
pub fn warnings(warnings: &[Problem]) -> String {
    warnings_within(warnings, width::of_stderr())
}

fn warnings_within(warnings: &[Problem], width: Option<usize>) -> String {
    let mut out = String::new();
    for Problem { line, path, message, .. } in warnings {
        let place = if *line == 0 { String::new() } else { format!("line {line}: ") };
        let path = if path.is_empty() { String::new() } else { format!("{path}: ") };
        let _ = writeln!(out, "{}", width::wrapped(&format!("warning: {place}{path}{message}"), width, 4));
    }
    out
}

fn excerpt(problem: &Problem, line: &str, width: usize) -> String {
    let number = problem.line.to_string();
    let margin = " ".repeat(number.len());
    let width = width.saturating_sub(margin.len() + 4).max(16);
    let column = usize::try_from(problem.column).unwrap_or(1).saturating_sub(1);
    let skip = if column >= width { column - width / 2 } else { 0 };
    // A tab counts as one column.
    let shown: String =
        line.chars().skip(skip).take(width).map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!(" {number} | {}\n {margin} | {:caret$}^\n", shown.trim_end(), "", caret = column - skip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_below_the_value() {
        let yaml = b"apiVersion: crescendo/v2\nkind: TrainingJob\nmetadata: {nmae: uno}\nspec: {}\n";
        let problems = crescendo_core::spec::parse(yaml).unwrap_err();
        assert_eq!(
            render(Path::new("job.yaml"), yaml, &problems[..3]),
            "\
job.yaml:1:13: apiVersion: expected `crescendo/v1`, found the text `crescendo/v2`
 1 | apiVersion: crescendo/v2
   |             ^
job.yaml:3:11: metadata.name: missing field `name`: 1 to 40 of a-z, 0-9 and -, beginning and ending with a letter or digit
 3 | metadata: {nmae: uno}
   |           ^
job.yaml:3:12: metadata.nmae: unknown field `nmae`; did you mean `name`?
 3 | metadata: {nmae: uno}
   |            ^
3 problems in job.yaml
"
        );
    }

    #[test]
    fn warnings_fit_the_terminal() {
        let warning = |line, path: &str| Problem {
            line,
            column: 3,
            path: path.into(),
            message: "the warm-up of 120 steps is longer than the stage of 30".into(),
        };
        let found = [warning(0, ""), warning(12, "spec.stages[0].train.warmupSteps")];
        assert_eq!(
            warnings_within(&found, None),
            "\
warning: the warm-up of 120 steps is longer than the stage of 30
warning: line 12: spec.stages[0].train.warmupSteps: the warm-up of 120 steps is longer than the stage of 30
"
        );
        let text = warnings_within(&found, Some(40));
        assert!(text.lines().all(|line| line.len() <= 40), "{text}");
        assert_eq!(text.matches("warning: ").count(), 2);
        assert_eq!(warnings_within(&[], Some(40)), "");
    }

    #[test]
    fn a_place_outside_the_file_is_not_shown() {
        let problem = |line, column| Problem { line, column, path: String::new(), message: "m".into() };
        let text = render(Path::new("f"), b"a\n\xff\n", &[problem(0, 0), problem(9, 1), problem(2, 7)]);
        assert_eq!(text, "f: m\nf:9:1: m\nf:2:7: m\n 2 | \u{fffd}\n   |       ^\n3 problems in f\n");
    }

    #[test]
    fn long_lines_are_cut_around_the_column() {
        let yaml = format!("{}x{}", " ".repeat(300), "y".repeat(300));
        let problem = Problem { line: 1, column: 301, path: String::new(), message: "m".into() };
        for (width, most) in [(None, 108), (Some(80), 80), (Some(40), 40)] {
            let text = render_within(Path::new("f"), yaml.as_bytes(), std::slice::from_ref(&problem), width);
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines[1].find('x'), lines[2].find('^'));
            assert!(lines[1].len() <= most, "{}", lines[1].len());
        }
    }
}
