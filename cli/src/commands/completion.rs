//! `crescendo completion`: clap's script, and ids of jobs where a command wants one.

use clap::CommandFactory as _;
use clap_complete::generate;

use crate::args::{Cli, Shell};
use crate::failure::Failure;
use crate::show;

const NAME: &str = "crescendo";
/// Commands whose first argument is a job.
const OF_JOBS: [&str; 16] = [
    "get",
    "compare",
    "explain",
    "watch",
    "logs",
    "cancel",
    "pause",
    "resume",
    "retry",
    "note",
    "continue",
    "delete",
    "lineage",
    "checkpoints",
    "pairs",
    "samples",
];

pub fn run(shell: Shell) -> Result<(), Failure> {
    show::out(script(shell));
    Ok(())
}

fn script(shell: Shell) -> String {
    let kind = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut bytes = Vec::new();
    generate(kind, &mut Cli::command(), NAME, &mut bytes);
    let mut script = String::from_utf8_lossy(&bytes).into_owned();
    match shell {
        Shell::Bash => script.push_str(&bash()),
        Shell::Zsh => script = zsh(&script),
        Shell::Fish => script.push_str(&fish()),
    }
    script
}

/// Prints the ids of the newest jobs; nothing where there is no controller.
const IDS: &str =
    "crescendo jobs --limit 200 --timeout 2s --output table 2>/dev/null | awk 'NR > 1 { print $1 }'";

fn bash() -> String {
    let commands = OF_JOBS.join("|");
    format!(
        r#"
_crescendo_with_jobs() {{
    _crescendo "$@"
    local word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in
            {commands})
                local before=${{COMP_WORDS[COMP_CWORD-1]}}
                if [[ ${{COMP_WORDS[COMP_CWORD]}} != -* &&
                    ( $before == "$word" || ( $word == compare && $before != -* ) ) ]]; then
                    COMPREPLY=($(compgen -W "$({IDS})" -- "${{COMP_WORDS[COMP_CWORD]}}"))
                fi
                return 0
                ;;
        esac
    done
}}

complete -F _crescendo_with_jobs -o nosort -o bashdefault -o default crescendo 2>/dev/null ||
    complete -F _crescendo_with_jobs -o bashdefault -o default crescendo
"#
    )
}

/// The arguments named `job`, and the several of `compare`, get their ids from a function.
fn zsh(script: &str) -> String {
    let lines: Vec<String> = script
        .lines()
        .map(|line| {
            let line_start = line.trim_start();
            let of_job = ["':job -- ", "'*::jobs -- "].iter().any(|start| line_start.starts_with(start));
            if of_job { line.replace(":_default'", ":_crescendo_jobs'") } else { line.to_owned() }
        })
        .collect();
    let function = format!(
        "_crescendo_jobs() {{\n    local -a jobs\n    jobs=(${{(f)\"$({IDS})\"}})\n    compadd -a jobs\n}}\n"
    );
    let (head, rest) = lines.split_at(1.min(lines.len()));
    format!("{}\n\n{function}\n{}\n", head.join("\n"), rest.join("\n"))
}

fn fish() -> String {
    let commands = OF_JOBS.join(" ");
    format!(
        "complete -c crescendo -n '__fish_seen_subcommand_from {commands}' -f -a \"({})\"\n",
        IDS.replace('$', "\\$")
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Whether a shell takes the script; `None` where that shell is not installed.
    fn parses(shell: &str, script: &str) -> Option<bool> {
        let mut child = Command::new(shell).arg("-n").stdin(Stdio::piped()).spawn().ok()?;
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        Some(child.wait().unwrap().success())
    }

    #[test]
    fn every_shell_that_is_there_takes_its_script() {
        assert_eq!(parses("bash", &script(Shell::Bash)), Some(true));
        for (name, shell) in [("zsh", Shell::Zsh), ("fish", Shell::Fish)] {
            assert_ne!(parses(name, &script(shell)), Some(false), "{name}");
        }
    }

    #[test]
    fn commands_that_want_a_job_are_those_that_have_one() {
        let command = Cli::command();
        let wants = |name: &str| {
            let first =
                command.find_subcommand(name).and_then(|found| found.get_positionals().next().cloned());
            first.is_some_and(|first| first.get_id() == "job" || first.get_id() == "jobs")
        };
        let found: Vec<&str> =
            command.get_subcommands().map(clap::Command::get_name).filter(|name| wants(name)).collect();
        assert_eq!(found, OF_JOBS.to_vec(), "as in the order of the help");
        let zsh = script(Shell::Zsh);
        // And those of `checkpoints keep` and `release`.
        assert_eq!(zsh.matches(":_crescendo_jobs'").count(), OF_JOBS.len() + 2);
        assert!(zsh.starts_with("#compdef crescendo\n"), "zsh wants that in the first line");
    }

    #[test]
    fn ids_are_completed_where_a_job_is_wanted_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("crescendo");
        std::fs::write(&program, "#!/bin/sh\necho 'JOB STATE'; echo 'uno-1 running'; echo 'duo-2 queued'\n")
            .unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
        let complete = |words: &str, at: usize| {
            let ask = format!(
                "{}\nCOMP_WORDS=({words}); COMP_CWORD={at}; _crescendo_with_jobs crescendo \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[{at}-1]}}\"; echo \"${{COMPREPLY[*]}}\"",
                script(Shell::Bash)
            );
            // As a file: what a shell is given as an argument may not be this long.
            let file = dir.path().join("ask.sh");
            std::fs::write(&file, ask).unwrap();
            let output = Command::new("bash").arg(file).env("PATH", &path).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(complete("crescendo watch u", 2), "uno-1");
        assert_eq!(complete("crescendo explain ''", 2), "uno-1 duo-2");
        assert_eq!(complete("crescendo expl", 1), "explain");
        assert_eq!(complete("crescendo compare uno-1 d", 3), "duo-2", "every one of several");
        assert!(!complete("crescendo compare --group ''", 3).contains("uno-1"));
        assert!(complete("crescendo logs uno-1 --fo", 3).contains("--follow"));
        assert!(!complete("crescendo submit ''", 2).contains("uno-1"));
    }
}
