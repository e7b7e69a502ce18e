//! The stand-in for KYBIO's host: verifies each signature, answers always the same, and keeps count, so that a peer that doesn't do the
//! job shows. HTTP/1.1 over TLS by its own few lines, for it must cost little beside what is measured.

use std::cell::RefCell;
use std::io::{BufRead, stdin};
use std::net::TcpListener;
use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;

use super::process::Process;
use super::{Cores, Result, Street, for_task, rule, tls};

/// What is answered, in the size of an ordinary answer.
const ANSWER: &str = r#"{"status":"success","messages":["ok"],"data":{"orderNo":"2016030112000012345678901","customerUid":102066793346170331,"balance":100.50,"point":12.3,"createdDate":"2016-03-01 12:00:00","remark":"accepted and printed by the till of the first shop"}}"#;

/// What a stub is started with.
#[derive(Debug, Deserialize, Serialize)]
pub struct Plan {
    tls: PathBuf,
    ports: usize,
}

/// What it has seen.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Connections that were taken.
    pub connections: u64,
    /// Requests whose signature is right.
    pub signed: u64,
    /// Requests without one.
    pub unsigned: u64,
    /// Requests whose signature is wrong.
    pub forged: u64,
}

/// A running stub.
pub struct Stub {
    process: Process,
    /// Where it listens.
    pub ports: Vec<u16>,
}

impl Stub {
    /// Starts one that listens on so many ports.
    pub fn start(street: &Street, ports: usize, cores: Cores) -> Result<Self> {
        let plan = Plan {
            tls: street.path("tls"),
            ports,
        };
        let mut process = Process::start(&mut for_task("stub", &plan, cores)?)?;
        let ports = serde_json::from_str(&process.line()?)?;
        Ok(Self { process, ports })
    }

    /// What it has seen since it was asked last.
    pub fn seen(&mut self) -> Result<Seen> {
        Ok(serde_json::from_str(&self.process.ask("seen")?)?)
    }
}

/// The task: prints its ports, and then what it has seen for each line that it reads.
pub fn run(plan: Plan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let seen = Rc::new(RefCell::new(Seen::default()));
    let acceptor = TlsAcceptor::from(tls::server(&plan.tls)?);
    LocalSet::new().block_on(&runtime, async {
        let mut ports = Vec::new();
        for _ in 0..plan.ports {
            let socket = TcpListener::bind("127.0.0.1:0")?;
            socket.set_nonblocking(true)?;
            ports.push(socket.local_addr()?.port());
            let socket = net::TcpListener::from_std(socket)?;
            tokio::task::spawn_local(accept(socket, acceptor.clone(), Rc::clone(&seen)));
        }
        println!("{}", serde_json::to_string(&ports)?);
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || {
            for _ in stdin().lock().lines().map_while(std::result::Result::ok) {
                if tell.blocking_send(()).is_err() {
                    return;
                }
            }
        });
        while told.recv().await.is_some() {
            println!("{}", serde_json::to_string(&seen.take())?);
        }
        Ok(())
    })
}

async fn accept(socket: net::TcpListener, acceptor: TlsAcceptor, seen: Rc<RefCell<Seen>>) {
    loop {
        let Ok((stream, _)) = socket.accept().await else {
            continue;
        };
        let (acceptor, seen) = (acceptor.clone(), Rc::clone(&seen));
        tokio::task::spawn_local(async move {
            // Not worth a word: the proxy that it concerns would show failures.
            let _ = stream.set_nodelay(true);
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            seen.borrow_mut().connections += 1;
            let _ = serve(stream, &seen).await;
        });
    }
}

/// Answers one request after the other.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    seen: &RefCell<Seen>,
) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(16 * 1_024);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\r\n{ANSWER}",
        ANSWER.len()
    );
    loop {
        buffer.clear();
        let end = loop {
            if let Some(end) = head_end(&buffer) {
                break end;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let length: usize = field(&buffer[..end], "content-length")
            .and_then(|value| value.parse().ok())
            .unwrap_or(0);
        buffer.reserve(length);
        while buffer.len() < end + length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let (head, body) = buffer.split_at(end);
        let expected = rule::app_id_of(body).map(|app_id| rule::signature(app_id, body));
        let count = |seen: &mut Seen| match field(head, "data-signature") {
            None => seen.unsigned += 1,
            Some(signature)
                if expected.as_deref() == Some(signature)
                    && field(head, "time-stamp").is_some() =>
            {
                seen.signed += 1
            }
            Some(_) => seen.forged += 1,
        };
        count(&mut seen.borrow_mut());
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
}

/// Where the body begins, once the head is whole.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// A field of a head.
pub fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
    lines.find_map(|line| {
        let (each, value) = line.split_once(':')?;
        each.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
