//! `make bench ONLY=relay`: measures the relay beside stunnel, Dovecot's login proxy, nginx and email-oauth2-proxy, in turn.
//! `docs/performance.md` explains the measurements.
//!
//! Environment variables: `ROUNDS` (10), `QUICK` (1: one short round, as a trial), `PROGRAMS` (some of them: "Relay Stunnel"),
//! `RELAY` (the relay's binary), `EMAIL_PROXY` (the folder of email-oauth2-proxy), `RELAY_BENCH_LOGS` (1: what the programs say).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the benchmark")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![allow(clippy::print_stdout, reason = "the benchmark prints its results")]

mod authority;
mod load;
#[path = "../machine.rs"]
#[allow(dead_code, reason = "shared with the benchmark of the broker")]
mod machine;
mod process;
mod programs;
#[path = "../report.rs"]
#[allow(dead_code, reason = "shared with the benchmark of the broker")]
mod report;
mod rounds;
mod stand_in;
mod table;

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
};

use process::{Core, Cores, Running};
use report::Report;
use rounds::Plan;

/// The state that all measurements share: the stand-in mail server, the files and the cores.
pub struct Lab {
    /// The folder of the programs' files.
    folder: PathBuf,
    /// The root certificate of the mail server.
    root_file: PathBuf,
    /// The relay's binary.
    relay: PathBuf,
    /// The Python environment of email-oauth2-proxy.
    email_proxy: PathBuf,
    imap: u16,
    smtp: u16,
    http: u16,
    cores: Cores,
    server: Running,
}

impl Lab {
    /// Starts the mail server as a separate process.
    fn start(cores: Cores) -> Self {
        let folder = report::folder().join("relay/run");
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        let root_file = folder.join("root.pem");
        let mut command = Command::new(env::current_exe().unwrap());
        command.arg("stand-in").arg(&root_file).stdout(Stdio::piped());
        let mut child = cores.spawn(Core::Server, &mut command).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ports: Vec<u16> = line.split_whitespace().map(|port| port.parse().unwrap()).collect();
        let [imap, smtp, http] = ports[..] else { panic!("the stand-in mail server did not start") };
        let mut server = Running::default();
        server.add(child);
        let given = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_default());
        Self {
            folder,
            root_file,
            relay: given("RELAY"),
            email_proxy: given("EMAIL_PROXY"),
            imap,
            smtp,
            http,
            cores,
            server,
        }
    }

    /// Returns the number of TLS handshakes of the mail server so far, and how many of them resumed a session.
    fn handshakes(&self) -> (f64, f64) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.http)).unwrap();
        stream.write_all(b"GET /handshakes HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let numbers = text.rsplit("\r\n").next().unwrap();
        let (all, resumed) = numbers.split_once(' ').unwrap();
        (all.parse().unwrap(), resumed.parse().unwrap())
    }
}

fn main() {
    let open_files = process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let arguments: Vec<_> = env::args().collect();
    if let [_, command, root_file, ..] = &arguments[..]
        && command == "stand-in"
    {
        return runtime.block_on(stand_in::serve(root_file.as_ref()));
    }
    let plan = Plan::from_environment(open_files);
    let mut report = Report::default();
    machine::machine().into_iter().for_each(|line| report.condition(line));
    let lab = Lab::start(Cores::assign());
    let results = runtime.block_on(rounds::run(&plan, &lab, &mut report));
    table::add_all(&results, &plan, &lab, &mut report);
    machine::occupation().into_iter().for_each(|line| report.condition(format!("at the end, {line}")));
    let folder = report::folder().join("relay");
    report.finish(&folder);
    let beside = table::side_by_side(&results, &plan);
    println!("\n{beside}");
    fs::write(folder.join("side-by-side.md"), beside).unwrap();
}
