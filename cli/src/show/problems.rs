//! Spec problems as compilers print theirs: the place, what is wrong, the line, a caret below it.

use std::fmt::Write as _;
use std::path::Path;

use crescendo_core::spec::Problem;

/// Characters of a line that are shown; around the column, if the line is longer.
const WIDTH: usize = 100;

/// All problems, in the order of the file, and how many there are.
pub fn render(file: &Path, yaml: &[u8], problems: &[Problem]) -> String {
    let text = String::from_utf8_lossy(yaml);
    let lines: Vec<&str> = text.strip_prefix('\u{feff}').unwrap_or(&text).lines().collect();
    let mut out = String::new();
    for problem in problems {
        let place = match problem.line {
            0 => file.display().to_string(),
            line => format!("{}:{line}:{}", file.display(), problem.column),
        };
        let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
        let _ = writeln!(out, "{place}: {path}{}", problem.message);
        let line =
            usize::try_from(problem.line).unwrap_or(0).checked_sub(1).and_then(|index| lines.get(index));
        if let Some(line) = line {
            out.push_str(&excerpt(problem, line));
        }
    }
    let count = problems.len();
    let _ = writeln!(out, "{count} problem{} in {}", if count == 1 { "" } else { "s" }, file.display());
    out
}

fn excerpt(problem: &Problem, line: &str) -> String {
    let column = usize::try_from(problem.column).unwrap_or(1).saturating_sub(1);
    let skip = if column >= WIDTH { column - WIDTH / 2 } else { 0 };
    // A tab counts as one column.
    let shown: String =
        line.chars().skip(skip).take(WIDTH).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let number = problem.line.to_string();
    let margin = " ".repeat(number.len());
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
    fn a_place_outside_the_file_is_not_shown() {
        let problem = |line, column| Problem { line, column, path: String::new(), message: "m".into() };
        let text = render(Path::new("f"), b"a\n\xff\n", &[problem(0, 0), problem(9, 1), problem(2, 7)]);
        assert_eq!(text, "f: m\nf:9:1: m\nf:2:7: m\n 2 | \u{fffd}\n   |       ^\n3 problems in f\n");
    }

    #[test]
    fn long_lines_are_cut_around_the_column() {
        let yaml = format!("{}x{}", " ".repeat(300), "y".repeat(300));
        let problem = Problem { line: 1, column: 301, path: String::new(), message: "m".into() };
        let text = render(Path::new("f"), yaml.as_bytes(), &[problem]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1].find('x'), lines[2].find('^'));
        assert!(lines[1].len() < 120, "{}", lines[1].len());
    }
}
