//! The table of the kills at the end of the soak test.

use std::fmt::Write as _;

use crate::kills::{STEPS, Step, Tally};

/// Returns the table, with one column for each server.
pub fn of(tallies: &[Tally]) -> String {
    let mut table = String::new();
    let mut row = |what: &str, cells: Vec<String>| {
        write!(table, "{what:<44}").unwrap();
        for cell in cells {
            write!(table, "{cell:>20}").unwrap();
        }
        table.push('\n');
    };
    let each = |cell: &dyn Fn(&Tally) -> String| tallies.iter().map(cell).collect::<Vec<_>>();
    row("", each(&|tally| tally.server.clone()));
    row("kills", each(&|tally| tally.kills.to_string()));
    row("  with nothing under way", each(&|tally| tally.quiet.to_string()));
    row("refreshes hit / sign-ins lost by it", each(&|_| String::new()));
    let count = |map: &std::collections::BTreeMap<Step, usize>, step| map.get(&step).copied().unwrap_or_default();
    for (step, what) in STEPS {
        row(
            &format!("  {what}"),
            each(&|tally| format!("{} / {}", count(&tally.hits, *step), count(&tally.losses, *step))),
        );
    }
    row("token requests", each(&|tally| tally.requests.to_string()));
    row("refresh tokens sent again", each(&|tally| tally.again.to_string()));
    row("  for which a kill at K2 or K3 was the cause", each(&|tally| format!("at most {}", tally.forced())));
    row("without kills: handled → stored, ms", each(&Tally::window));
    row("  (median / 99 % / longest)", each(&|_| String::new()));
    table
}
