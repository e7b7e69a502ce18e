//! A process that ends with its owner.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Result;
use super::clock;

/// How long one may take to be there.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A process, and its two pipes.
pub struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let output = child.stdout.take().ok_or("no pipe")?;
        Ok(Self {
            input: child.stdin.take(),
            output: BufReader::new(output),
            child,
        })
    }

    /// Its id, and those of its children.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let pid = self.child.id();
        let mut pids = vec![pid];
        pids.extend(clock::children(pid)?);
        Ok(pids)
    }

    /// Its own id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until somebody takes connections there, and says how long that took.
    pub fn listens(&mut self, port: u16) -> Result<Duration> {
        let (began, address) = (Instant::now(), SocketAddr::from(([127, 0, 0, 1], port)));
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("it ended at once: {status}").into());
            }
            if began.elapsed() > START_TIMEOUT {
                return Err(format!("nobody listens on {address}").into());
            }
            sleep(Duration::from_millis(1));
        }
        Ok(began.elapsed())
    }

    /// Waits until it has started so many of its own.
    pub fn has_children(&self, count: usize) -> Result<()> {
        let began = Instant::now();
        while clock::children(self.pid())?.len() < count {
            if began.elapsed() > START_TIMEOUT {
                return Err("its workers don't come".into());
            }
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The next line that it says.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            return Err(format!("it ended without a word: {}", self.child.wait()?).into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Says a line to it, and hears one.
    pub fn ask(&mut self, question: &str) -> Result<String> {
        let input = self.input.as_mut().ok_or("no pipe")?;
        writeln!(input, "{question}")?;
        input.flush()?;
        self.line()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whoever listens to the pipe ends by itself; nginx's master wants to be asked, so that its workers end too.
        drop(self.input.take());
        let asked = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let began = Instant::now();
        while asked.as_ref().is_ok_and(|status| status.success())
            && began.elapsed() < Duration::from_secs(3)
        {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            sleep(Duration::from_millis(5));
        }
        // It may have gone by now, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
