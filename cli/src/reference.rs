//! `docs/cli.md`: the command line as a page, made from what clap knows and held to it.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use crate::args::Cli;

const HEAD: &str = "\
# The command line

Every command of `crescendo`, as `crescendo COMMAND --help` shows it. This page is made from the program, by
`CRESCENDO_BLESS=1 cargo test -p crescendo-cli reference`; a test holds it to the program.

`generate`, `parity`, `eval`, `inspect`, `lora`, `bench` and `report` are handed to `crescendo-workbench`, which has its own `--help`.
";

fn page() -> String {
    let mut root = Cli::command();
    root.build();
    let mut out = HEAD.to_owned();
    let _ = write!(out, "\n## Options of every command\n\n");
    options(&mut out, root.get_arguments().filter(|arg| arg.is_global_set()));
    let _ = writeln!(
        out,
        "\n## crescendo\n\n```\n{}\n```",
        root.get_after_help().map(ToString::to_string).unwrap_or_default()
    );
    for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
        section(&mut out, command, "crescendo");
    }
    out
}

fn section(out: &mut String, command: &Command, parent: &str) {
    let name = format!("{parent} {}", command.get_name());
    let _ = writeln!(out, "\n## {name}\n");
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        let _ = writeln!(out, "{}\n", sentence(about.to_string()));
    }
    let arguments: Vec<String> = command
        .get_positionals()
        .map(|arg| {
            let value = value(arg);
            if arg.is_required_set() { format!(" <{value}>") } else { format!(" [{value}]") }
        })
        .collect();
    let own = command.get_arguments().filter(|arg| !arg.is_global_set() && !is_builtin(arg));
    let subcommands: Vec<&Command> =
        command.get_subcommands().filter(|command| command.get_name() != "help").collect();
    let tail = if subcommands.is_empty() { arguments.concat() } else { " COMMAND".to_owned() };
    let _ = writeln!(out, "`{name} [OPTIONS]{tail}`\n");
    options(out, own);
    if let Some(more) = command.get_after_help() {
        let _ = writeln!(out, "\n```\n{}\n```", more.to_string().trim_end());
    }
    for command in subcommands {
        section(out, command, &name);
    }
}

/// clap takes the full stop away, as help texts have none.
fn sentence(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('.') {
        text.push('.');
    }
    text
}

fn is_builtin(arg: &Arg) -> bool {
    matches!(arg.get_id().as_str(), "help" | "version")
}

fn value(arg: &Arg) -> String {
    arg.get_value_names()
        .and_then(|names| names.first())
        .map_or_else(|| arg.get_id().to_string(), ToString::to_string)
}

fn options<'a>(out: &mut String, args: impl Iterator<Item = &'a Arg>) {
    let mut args = args.filter(|arg| !arg.is_hide_set()).peekable();
    if args.peek().is_none() {
        return;
    }
    let _ = writeln!(out, "| option | variable | default | what |\n|---|---|---|---|");
    for arg in args {
        let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        let long = arg.get_long().map(|long| {
            let value = if takes { format!(" {}", value(arg)) } else { String::new() };
            let short = arg.get_short().map_or_else(String::new, |short| format!("-{short}, "));
            format!("{short}--{long}{value}")
        });
        let name = long.unwrap_or_else(|| value(arg).to_uppercase());
        let variable = arg.get_env().map_or_else(String::new, |name| format!("`{}`", name.to_string_lossy()));
        let defaults: Vec<String> =
            arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
        let default =
            if takes && !arg.is_hide_default_value_set() { defaults.join(", ") } else { String::new() };
        let mut help = sentence(arg.get_help().map(ToString::to_string).unwrap_or_default());
        let words: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|_| takes)
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        if !words.is_empty() {
            let _ = write!(help, " One of {}.", words.join(", "));
        }
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(out, "| `{}` | {variable} | {default} | {} |", cell(&name), cell(&help));
    }
}

#[test]
fn the_page_says_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let page = page();
    if std::env::var_os("CRESCENDO_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == page,
        "docs/cli.md is old; CRESCENDO_BLESS=1 cargo test -p crescendo-cli reference writes it anew"
    );
}

#[test]
fn everything_says_what_it_is() {
    fn walk(command: &Command) {
        assert!(command.get_about().is_some(), "{} says nothing", command.get_name());
        for arg in command.get_arguments().filter(|arg| !is_builtin(arg)) {
            assert!(arg.get_help().is_some(), "{} {} says nothing", command.get_name(), arg.get_id());
        }
        command.get_subcommands().for_each(walk);
    }
    let mut root = Cli::command();
    root.build();
    walk(&root);
}
