//! The rounds: each round starts, measures and stops every program, one after the other.

use std::{
    collections::BTreeMap,
    env, io,
    time::{Duration, Instant},
};

use crate::{
    Lab,
    load::{self, AT_ONCE, Client},
    machine,
    process::own_cpu,
    programs::{Program, Started},
    report::{Report, count, median, quantile},
    stand_in::MESSAGE,
};

/// The extent of the measurements.
pub struct Plan {
    /// Number of rounds with all programs.
    pub rounds: usize,
    /// The programs to measure.
    pub programs: Vec<Program>,
    /// Number of idle sessions that each program holds.
    pub held: usize,
    /// Number of idle sessions that the relay holds once.
    pub many: usize,
    /// Duration of the CPU measurement of idle sessions.
    pub idle: Duration,
    /// Duration of the concurrent logins, 16 at a time.
    pub logins: Duration,
    /// Number of logins one at a time.
    pub singles: usize,
    /// Number of messages copied in each direction.
    pub messages: usize,
    /// Duration of the NOOP measurement.
    pub noop: Duration,
}

/// The intended number of idle sessions of the relay.
pub const MANY: usize = 10_000;
/// Number of streams during the NOOP measurement.
pub const STREAMS: usize = 16;
/// Number of sessions that a program opens and closes before the first measurement, as many at a time as later. So the
/// memory of logins in progress does not count as memory of idle sessions.
const WARM_UP: usize = 2 * AT_ONCE;
/// Time until memory has settled.
const SETTLE: Duration = Duration::from_millis(500);

impl Plan {
    /// Reads the plan from the environment. `open_files` limits the sessions, because the relay has two connections for
    /// each session.
    pub fn from_environment(open_files: u64) -> Self {
        let quick = env::var("QUICK").is_ok_and(|value| value == "1");
        let seconds = |usual, short| Duration::from_secs(if quick { short } else { usual });
        let rounds = env::var("ROUNDS").map_or(if quick { 1 } else { 10 }, |rounds| rounds.parse().unwrap());
        assert!(rounds > 0, "ROUNDS must not be 0");
        let wanted = env::var("PROGRAMS").unwrap_or_default();
        let is_wanted = |program: &Program| wanted.split_whitespace().any(|name| name == format!("{program:?}"));
        let programs = Program::ALL.into_iter().filter(|program| wanted.is_empty() || is_wanted(program)).collect();
        let open_files = usize::try_from(open_files).unwrap_or(usize::MAX);
        Self {
            rounds,
            programs,
            held: if quick { 200 } else { 1_000 },
            many: if quick { 1_000 } else { MANY }.min(open_files.saturating_sub(100) / 2),
            idle: seconds(60, 5),
            logins: seconds(3, 1),
            singles: if quick { 50 } else { 200 },
            messages: if quick { 2 } else { 8 },
            noop: seconds(4, 2),
        }
    }
}

/// The measured values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Logins per second, 16 at a time.
    Logins,
    /// Median of the milliseconds from the connection to the login by IMAP, one at a time.
    Login,
    /// Median of the milliseconds from the connection to the login by SMTP, one at a time.
    SmtpLogin,
    /// Milliseconds of the program's CPU for one login, 16 at a time.
    Cpu,
    /// Percentage of TLS sessions at the mail server that were resumed.
    Resumed,
    /// Percentage of its core that the program used, 16 logins at a time.
    Busy,
    /// Percentage of a core that the generator and the mail server used, 16 logins at a time.
    LoadBusy,
    /// Memory in KiB for each idle session.
    Idle,
    /// MB per second from the mail server.
    Down,
    /// MB per second to the mail server.
    Up,
    /// Milliseconds of the program's CPU for 100 MB.
    CopyCpu,
    /// The 99th percentile of NOOP during the streams, in milliseconds.
    Noop,
    /// Memory in MiB after the start.
    Empty,
    /// Milliseconds from the start to the first accepted connection.
    FirstAccept,
    /// Number of the many idle sessions that stay open.
    ManyOpen,
    /// Memory in KiB for each of the many idle sessions.
    ManyIdle,
    /// Percentage of a core that the many idle sessions use.
    ManyCpu,
}

/// The values of all rounds.
pub type Results = BTreeMap<(Measure, Program), Vec<f64>>;

/// Measures all programs in turn.
pub async fn run(plan: &Plan, lab: &Lab, report: &mut Report) -> Results {
    let mut results = Results::new();
    let mut programs = plan.programs.clone();
    programs.retain(|program| match program.missing(lab) {
        Some(why) => {
            report.note(format!("{}: not measured: {why}", program.name()));
            false
        }
        None => true,
    });
    for round in 1..=plan.rounds {
        for program in &programs {
            let mut started = program.start(lab);
            let measured = measure(*program, &mut started, plan, lab).await;
            let (values, failed) = (measured.values, measured.failed);
            if let Some(why) = failed {
                report.note(format!("{}, round {round}: {why}", program.name()));
            }
            println!("  round {round}, {} (load {}): {values:.2?}", program.name(), machine::load());
            for (measure, value) in values {
                results.entry((measure, *program)).or_default().push(value);
            }
        }
    }
    if programs.contains(&Program::Relay) {
        many(plan, lab, report, &mut results).await.unwrap();
    }
    results
}

#[derive(Default)]
struct Measured {
    values: Vec<(Measure, f64)>,
    /// The failure of the program, if it failed.
    failed: Option<String>,
}

/// Measures one program in one round. Programs other than the relay may fail.
async fn measure(program: Program, started: &mut Started, plan: &Plan, lab: &Lab) -> Measured {
    let mut measured = Measured::default();
    let ended = all(program, started, plan, lab, &mut measured.values).await;
    if let Err(error) = ended {
        assert!(program != Program::Relay, "the relay: {error}");
        measured.failed = Some(error.to_string());
    }
    measured
}

async fn all(
    program: Program,
    started: &mut Started,
    plan: &Plan,
    lab: &Lab,
    values: &mut Vec<(Measure, f64)>,
) -> io::Result<()> {
    let (running, port) = (&started.running, started.imap);
    values.push((Measure::FirstAccept, started.first_accept.as_secs_f64() * 1000.0));
    tokio::time::sleep(SETTLE).await;
    values.push((Measure::Empty, running.memory() / 1024.0));

    // email-oauth2-proxy stores a key at its first login, and refuses other logins at the same time.
    drop(load::hold(port, 1).await?);
    drop(load::hold(port, WARM_UP).await?);
    tokio::time::sleep(SETTLE).await;
    let before = running.memory();
    let held = load::hold(port, program.holds(plan.held)).await?;
    tokio::time::sleep(SETTLE).await;
    values.push((Measure::Idle, (running.memory() - before) / count(held.len())));
    drop(held);
    tokio::time::sleep(SETTLE).await;

    let (cpu, load_cpu) = (running.cpu(), own_cpu() + lab.server.cpu());
    let (handshakes, begun) = (lab.handshakes(), Instant::now());
    let logins = count(load::logins(port, plan.logins).await?);
    let seconds = begun.elapsed().as_secs_f64();
    let (cpu, load_cpu) = (running.cpu() - cpu, own_cpu() + lab.server.cpu() - load_cpu);
    let after = lab.handshakes();
    values.push((Measure::Logins, logins / seconds));
    values.push((Measure::Cpu, cpu.as_secs_f64() * 1000.0 / logins));
    values.push((Measure::Busy, cpu.as_secs_f64() * 100.0 / seconds));
    values.push((Measure::LoadBusy, load_cpu.as_secs_f64() * 100.0 / seconds));
    values.push((Measure::Resumed, (after.1 - handshakes.1) * 100.0 / (after.0 - handshakes.0)));

    let times = load::one_at_a_time(port, plan.singles, plan.logins).await?;
    values.push((Measure::Login, median(&times)));
    if let Some(port) = started.smtp {
        let mut times = vec![];
        for _ in 0..plan.singles {
            times.push(Client::smtp(port).await?.as_secs_f64() * 1000.0);
        }
        values.push((Measure::SmtpLogin, median(&times)));
    }

    let (mut client, mut chunk) = (Client::imap(port).await?, vec![]);
    client.fetch(&mut chunk).await?;
    let cpu = running.cpu();
    let megabytes = count(plan.messages * MESSAGE) / 1e6;
    let begun = Instant::now();
    for _ in 0..plan.messages {
        client.fetch(&mut chunk).await?;
    }
    values.push((Measure::Down, megabytes / begun.elapsed().as_secs_f64()));
    let begun = Instant::now();
    for _ in 0..plan.messages {
        client.append(&mut chunk).await?;
    }
    values.push((Measure::Up, megabytes / begun.elapsed().as_secs_f64()));
    values.push((Measure::CopyCpu, (running.cpu() - cpu).as_secs_f64() * 1e5 / (2.0 * megabytes)));
    client.log_out().await?;

    let times = load::noop_beside(port, STREAMS, plan.noop).await?;
    values.push((Measure::Noop, quantile(&times, 0.99)));
    Ok(())
}

/// Measures many idle sessions of the relay.
async fn many(plan: &Plan, lab: &Lab, report: &mut Report, results: &mut Results) -> io::Result<()> {
    let started = Program::Relay.start(lab);
    let running = &started.running;
    drop(load::hold(started.imap, WARM_UP).await?);
    tokio::time::sleep(SETTLE).await;
    let before = running.memory();
    let mut held = load::hold(started.imap, plan.many).await?;
    tokio::time::sleep(4 * SETTLE).await;
    let memory = running.memory() - before;
    let (cpu, begun) = (running.cpu(), Instant::now());
    tokio::time::sleep(plan.idle).await;
    let share = (running.cpu() - cpu).as_secs_f64() * 100.0 / begun.elapsed().as_secs_f64();
    let mut open = 0;
    for client in &mut held {
        open += usize::from(client.done().await.is_ok());
    }
    report.note(format!("relay with {} idle sessions: {:.1} MiB resident", plan.many, (before + memory) / 1024.0));
    if plan.many < MANY {
        report.note(format!(
            "{} instead of {MANY} sessions: the limit of open files or QUICK permits no more",
            plan.many
        ));
    }
    let mut keep = |measure, value| results.insert((measure, Program::Relay), vec![value]);
    keep(Measure::ManyOpen, count(open));
    keep(Measure::ManyIdle, memory / count(plan.many));
    keep(Measure::ManyCpu, share);
    Ok(())
}
