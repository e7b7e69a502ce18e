//! Lines on their way to whoever reads them: kept for a moment, and written together by a thread of its own, so that no call waits for a
//! reader, and a busy gateway writes a hundred lines at a time instead of waking somebody up for each.

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for a slow reader. Beyond that they're dropped: a log that nobody reads isn't to stop the calls.
const LINES_MAX: usize = 2_000;

/// How long the first of them waits for others. Nobody reads a log as it comes faster than that.
const GATHERING: Duration = Duration::from_millis(5);

/// How long the lines that are left may take at the end.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(1_200);

/// Where lines go.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Rings for the first line, and at the end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    lines: usize,
    dropped: usize,
    ended: bool,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines, and puts them into `batch`, which is empty. False at the end, when there are none left.
    fn gather(&self, batch: &mut Vec<u8>) -> bool {
        let waiting = self.waiting();
        let there = self
            .changed
            .wait_while(waiting, |waiting| waiting.lines == 0 && !waiting.ended);
        let waiting = there.unwrap_or_else(PoisonError::into_inner);
        let gathered = self
            .changed
            .wait_timeout_while(waiting, GATHERING, |waiting| !waiting.ended);
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(batch, &mut waiting.bytes);
        waiting.lines = 0;
        !batch.is_empty()
    }
}

impl Lines {
    /// Starts the thread that writes them. Whoever keeps the [`Writer`] says when the end is.
    pub fn start(mut to: impl Write + Send + 'static) -> (Self, Writer) {
        let lines = Self(Arc::new(Shared {
            waiting: Mutex::default(),
            changed: Condvar::new(),
        }));
        let shared = Arc::clone(&lines.0);
        let (done, ended) = mpsc::channel();
        let write = move || {
            let mut batch = Vec::new();
            while shared.gather(&mut batch) {
                // There's nowhere to say that the log can't be written.
                let _ = to.write_all(&batch).and_then(|()| to.flush());
                batch.clear();
            }
            let _ = done.send(());
        };
        let thread = thread::Builder::new().name("log".to_owned()).spawn(write);
        if thread.is_err() {
            // Nobody will come for them: they're dropped, and counted.
            lines.0.waiting().ended = true;
        }
        let writer = Writer {
            shared: Arc::clone(&lines.0),
            ended,
        };
        (lines, writer)
    }

    /// One whole line, with its end.
    pub fn push(&self, line: &[u8]) {
        let mut waiting = self.0.waiting();
        if waiting.lines == LINES_MAX || waiting.ended {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes.extend_from_slice(line);
        waiting.lines += 1;
        let is_first = waiting.lines == 1;
        drop(waiting);
        if is_first {
            self.0.changed.notify_one();
        }
    }

    /// Lines that were dropped so far because nobody took them in time.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.0.waiting().dropped
    }
}

/// As the library has it, which hands each line over whole.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Has what is left written when it's dropped, for a bounded time.
#[must_use]
pub struct Writer {
    shared: Arc<Shared>,
    /// The thread has written all, or is gone.
    ended: mpsc::Receiver<()>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.waiting().ended = true;
        self.shared.changed.notify_one();
        // Where nobody reads, the thread hangs: the end doesn't wait for it.
        let _ = self.ended.recv_timeout(LAST_LINES_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use super::LINES_MAX;
    use super::Lines;
    use std::io;
    use std::io::Write;
    use std::sync::mpsc;

    /// Says what is written, and waits for leave to go on after each piece.
    struct Reader {
        pieces: mpsc::Sender<String>,
        leave: mpsc::Receiver<()>,
    }

    impl Write for Reader {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(piece.to_vec()).expect("text");
            self.pieces.send(text).expect("the test listens");
            self.leave.recv().expect("the test says so");
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn reader() -> (Reader, mpsc::Receiver<String>, mpsc::Sender<()>) {
        let ((pieces, read), (go, leave)) = (mpsc::channel(), mpsc::channel());
        (Reader { pieces, leave }, read, go)
    }

    #[test]
    fn lines_come_in_their_order_and_the_last_ones_at_the_end() {
        let (reader, read, go) = reader();
        let (lines, writer) = Lines::start(reader);
        for _ in 0..10 {
            go.send(()).expect("it listens");
        }
        lines.push(b"one\n");
        assert_eq!(read.recv().expect("it's written"), "one\n");
        lines.push(b"two\n");
        lines.push(b"three\n");
        drop(writer);
        let rest: String = read.try_iter().collect();
        assert_eq!((rest.as_str(), lines.dropped()), ("two\nthree\n", 0));
        lines.push(b"four\n");
        assert_eq!(lines.dropped(), 1, "nobody comes for it any more");
    }

    #[test]
    fn what_nobody_takes_is_dropped_and_counted_and_nothing_waits_for_it() {
        let (reader, read, go) = reader();
        let (lines, writer) = Lines::start(reader);
        lines.push(b"one\n");
        assert_eq!(read.recv().expect("it's being written"), "one\n");
        for _ in 0..LINES_MAX + 3 {
            lines.push(b"more\n");
        }
        assert_eq!(lines.dropped(), 3);
        go.send(()).expect("it listens");
        let more = read.recv().expect("all at once");
        assert_eq!(more.lines().count(), LINES_MAX);
        go.send(()).expect("it listens");
        drop(writer);
    }
}
