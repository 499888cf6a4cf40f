//! A server that is measured: deferd, or what it is compared with; killed when dropped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use super::peer;

/// The longest time that a benchmark takes.
pub const TIME_LIMIT: Duration = Duration::from_secs(300);

/// A server that prints `listening on http://ADDRESS`.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    /// Starts deferd on a free port; its log goes to `/dev/null`.
    pub fn deferd(log: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
        command.args(["--listen", "127.0.0.1:0"]).args(arguments).env("RUST_LOG", log);
        Self::start(&mut command)
    }

    /// Starts the deferd that `DEFERD_BEFORE` names, if it is set: the binary of an earlier commit, to be measured in
    /// turn with this one.
    pub fn before(log: &str, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(std::env::var_os("DEFERD_BEFORE")?);
        command.args(["--listen", "127.0.0.1:0"]).args(arguments).env("RUST_LOG", log);
        Some(Self::start(&mut command))
    }

    /// Starts deferd under a command that takes another command as its last arguments, and ends with it.
    pub fn under(command: &mut Command, arguments: &[&str]) -> Self {
        command.arg(env!("CARGO_BIN_EXE_deferd")).args(["--listen", "127.0.0.1:0"]);
        Self::start(command.args(arguments).env("RUST_LOG", "warn"))
    }

    /// Starts the bare loop, which is this program itself.
    pub fn bare() -> Self {
        Self::start(Command::new(std::env::current_exe().unwrap()).arg("bare"))
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn start(command: &mut Command) -> Self {
        peer::mark_own(command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on http://");
        let address = address.unwrap_or_else(|| panic!("it says {line:?}")).parse().unwrap();
        Self { child, address }
    }

    /// Ends it in order.
    pub fn end(mut self) {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Returns its resident memory, in bytes.
    pub fn resident(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// Returns its highest resident memory, in bytes.
    pub fn highest(&self) -> f64 {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kib * 1024.0
    }

    /// Returns its [`processor_time`].
    pub fn processor_time(&self) -> f64 {
        processor_time(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls `holds` repeatedly until it returns true.
pub fn wait_until(rest: Duration, mut holds: impl FnMut() -> bool) {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    let begin = *BEGIN.get_or_init(Instant::now);
    while !holds() {
        assert!(begin.elapsed() < TIME_LIMIT, "no end within {TIME_LIMIT:?}");
        thread::sleep(rest);
    }
}

/// Returns the processor time of a process and the children that it has reaped so far, in seconds.
pub fn processor_time(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may contain anything; the field after it is the third.
    let fields = stat[stat.rfind(')').unwrap() + 1..].split_whitespace();
    // utime, stime, cutime, cstime: in hundredths of a second, whatever the kernel's own unit.
    let ticks = fields.skip(14 - 3).take(4).map(|ticks| ticks.parse::<f64>().unwrap());
    ticks.sum::<f64>() / 100.0
}
