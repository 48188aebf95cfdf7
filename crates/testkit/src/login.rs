//! The command `login` as a process, and its output.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use super::{Namespace, process, wait::until};

/// A running `login`. Dropping it kills the process.
pub struct Login {
    child: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
}

impl Login {
    /// Starts a `login` in this namespace.
    pub fn start(ns: &Namespace, arguments: &[&str]) -> Self {
        Self::spawn(process::mortal(broker()), ns, arguments)
    }

    /// Starts a `login` for which `host` resolves to this machine.
    pub fn start_with_host(host: &str, ns: &Namespace, arguments: &[&str]) -> Self {
        let hosts = ns.cluster.dir().join(format!("{}.hosts", ns.name));
        Self::spawn(process::mortal_with_hosts(broker(), &[host.to_owned()], &hosts), ns, arguments)
    }

    /// Starts a `login` whose browser is a script that writes the URL to a file. Returns the file.
    pub fn start_with_browser(ns: &Namespace, arguments: &[&str]) -> (Self, PathBuf) {
        let folder = process::output(Command::new("mktemp").args(["-d", "-t", "mtb-browser.XXXXXX"]));
        let folder = PathBuf::from(folder.trim_end());
        let (started, script) = (folder.join("started"), folder.join("xdg-open"));
        let text = format!("#!/bin/sh\nprintf %s \"$1\" >{0}.new && mv {0}.new {0}\n", started.display());
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        (Self::spawn_in(process::mortal(broker()), ns, arguments, path.into()), started)
    }

    fn spawn(command: Command, ns: &Namespace, arguments: &[&str]) -> Self {
        Self::spawn_in(command, ns, arguments, std::env::var_os("PATH").unwrap())
    }

    fn spawn_in(mut command: Command, ns: &Namespace, arguments: &[&str], path: OsString) -> Self {
        command
            .args(["login", "-n", &ns.name])
            .args(arguments)
            .env_clear()
            .env("PATH", path)
            .env("KUBECONFIG", ns.cluster.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = process::spawn(command).unwrap();
        let (out, err) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
        Self { child, out, err }
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of standard error that begins with `begin`, and returns the line.
    pub async fn line(&self, begin: &str) -> String {
        until(&format!("a line that begins with {begin}"), async || {
            let err = self.err();
            err.lines().find(|line| line.starts_with(begin)).map(str::to_owned).ok_or(err)
        })
        .await
    }

    /// Returns the URL that the user opens in a browser.
    pub async fn url(&self) -> String {
        self.line("https://").await
    }

    /// Types a line into standard input.
    pub fn enter(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits until the process ends. Returns its status, standard output and standard error.
    pub async fn end(mut self) -> (ExitStatus, String, String) {
        let status = until("login ends", async || {
            self.child.try_wait().unwrap().ok_or_else(|| self.err.lock().unwrap().clone())
        })
        .await;
        // The reading threads end when the pipes close, which happens when the process ends.
        until("its output is read", async || match (Arc::strong_count(&self.out), Arc::strong_count(&self.err)) {
            (1, 1) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        (status, self.out.lock().unwrap().clone(), self.err())
    }

    /// Waits for the end of a failed `login`, and returns its error message.
    pub async fn refused(self) -> String {
        let (status, out, err) = self.end().await;
        assert_eq!((status.code(), out.as_str()), (Some(1), ""), "{err}");
        err.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or_else(|| panic!("{err}")).to_owned()
    }

    fn err(&self) -> String {
        self.err.lock().unwrap().clone()
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn broker() -> PathBuf {
    process::binary("mail-token-broker")
}

fn collect(pipe: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let kept = text.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            *kept.lock().unwrap() += &format!("{line}\n");
        }
    });
    text
}
