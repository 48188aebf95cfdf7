//! The tables of the results.

use std::fs;

use crate::{
    Lab,
    programs::Program,
    report::{Figure, Report, Target, median, number},
    rounds::{Measure, Plan, Results, STREAMS},
};

/// A target of the relay, and the program that is the floor of the target.
type Goal = (Option<Program>, Target);

/// Returns the rows: the measured value, its name, its unit and its target.
fn rows(plan: &Plan) -> Vec<(Measure, String, &'static str, Goal)> {
    use Program::{Dovecot, Stunnel};
    let none = (None, Target::None);
    let over = |program, target| (Some(program), target);
    let at_most = |limit| (None, Target::AtMost(limit));
    let (held, many) = (plan.held, plan.many);
    vec![
        (Measure::Logins, "logins, 16 at once".into(), "a second", over(Dovecot, Target::AtLeastRatio(1.5))),
        (Measure::Login, "login, one at a time, median".into(), "ms", over(Stunnel, Target::Above(1.0))),
        (Measure::SmtpLogin, "SMTP login, one at a time, median".into(), "ms", over(Stunnel, Target::None)),
        (Measure::Cpu, "CPU of a login".into(), "ms", over(Stunnel, Target::Ratio(1.2))),
        (Measure::Resumed, "TLS sessions resumed".into(), "%", none),
        (Measure::Idle, format!("memory of an idle session, {held} held"), "KiB", at_most(14.0)),
        (Measure::Down, "25 MB messages from the server".into(), "MB/s", over(Stunnel, Target::AtLeastRatio(0.9))),
        (Measure::Up, "25 MB messages to the server".into(), "MB/s", over(Stunnel, Target::AtLeastRatio(0.9))),
        (Measure::CopyCpu, "CPU of 100 MB, both ways".into(), "ms", over(Stunnel, Target::None)),
        (Measure::Noop, format!("NOOP beside {STREAMS} streams, p99"), "ms", over(Stunnel, Target::Ratio(2.0))),
        (Measure::Empty, "memory of an empty process".into(), "MiB", at_most(6.0)),
        (Measure::FirstAccept, "from the start to the first accept".into(), "ms", at_most(50.0)),
        (
            Measure::ManyOpen,
            format!("idle sessions that stay open, of {many}"),
            "",
            (None, Target::Exactly(many as f64)),
        ),
        (Measure::ManyIdle, format!("memory of an idle session, {many} held"), "KiB", none),
        (Measure::ManyCpu, format!("CPU of {many} idle sessions, of a core"), "%", at_most(0.5)),
        (Measure::Busy, "16 at once: the program's core is busy".into(), "%", none),
        (Measure::LoadBusy, "16 at once: generator and mail server use, of a core".into(), "%", none),
    ]
}

/// Adds all rows to the report.
pub fn add_all(results: &Results, plan: &Plan, lab: &Lab, report: &mut Report) {
    for (measure, name, unit, (floor, target)) in rows(plan) {
        for program in Program::ALL {
            let Some(runs) = results.get(&(measure, program)) else { continue };
            let mut figure = Figure::new(format!("{name}: {}", program.name()), unit, runs.iter().copied());
            if program == Program::Relay {
                figure = figure.target(target);
                if let Some(floor) = floor.and_then(|floor| results.get(&(measure, floor))) {
                    figure = figure.over(floor.iter().copied());
                }
            }
            report.add(figure);
        }
    }
    let size = fs::metadata(&lab.relay).unwrap().len() as f64 / 1e6;
    report.add(Figure::new("the relay's binary", "MB", [size]).target(Target::AtMost(5.0)));
}

/// Returns a table with the medians of all programs side by side.
pub fn side_by_side(results: &Results, plan: &Plan) -> String {
    let heads: Vec<_> = Program::ALL.iter().map(|program| program.name()).collect();
    let mut table = format!("| median | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for (measure, name, unit, _) in rows(plan) {
        let cells = Program::ALL
            .map(|program| results.get(&(measure, program)).map_or_else(String::new, |runs| number(median(runs))));
        let unit = if unit.is_empty() { String::new() } else { format!(", {unit}") };
        table += &format!("| {name}{unit} | {} |\n", cells.join(" | "));
    }
    table
}
