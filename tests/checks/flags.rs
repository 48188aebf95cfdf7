//! Checks that the documentation lists the flags of `run` and `login`.

use std::{collections::BTreeSet, fs};

use clap::CommandFactory as _;
use mail_token_broker::cli::Cli;
use mailtoken_testkit::process;

/// Returns the flags in the first column of the table that begins after `heading`.
fn listed(page: &str, heading: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(process::root().join(page)).unwrap();
    let table = text.split(heading).nth(1).unwrap_or_else(|| panic!("{page} has no table {heading}"));
    let rows = table.split("\n\n").next().unwrap().lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    let flags = cells.flat_map(|cell| cell.split("`--").skip(1));
    flags.map(|flag| flag.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect()).collect()
}

fn flags(command: &str) -> BTreeSet<String> {
    let cli = Cli::command();
    let command = cli.find_subcommand(command).unwrap();
    command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned).collect()
}

#[test]
fn the_documentation_lists_every_flag_of_run_and_login() {
    for (command, page, heading) in
        [("run", "README.md", "| flag | default | |\n"), ("login", "docs/login.md", "| flag | |\n")]
    {
        assert_eq!(listed(page, heading), flags(command), "the table of flags in {page}, and the flags of {command}");
    }
}
