//! Distance: what goes through comes out later, in both directions, as over a network with this round trip.

use std::io::{Read, stdin};
use std::net::TcpListener;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{self, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::process::Process;
use super::{Cores, Result, for_task};

/// What a relay is started with.
#[derive(Debug, Deserialize, Serialize)]
pub struct Plan {
    /// Where it leads, one of its own ports to each.
    pub to: Vec<u16>,
    /// There and back.
    pub round_trip_ms: u64,
}

/// A running relay.
pub struct Relay {
    _process: Process,
    /// Where it listens, in the order of where it leads.
    pub ports: Vec<u16>,
}

impl Relay {
    /// Starts one.
    pub fn start(plan: &Plan, cores: Cores) -> Result<Self> {
        let mut process = Process::start(&mut for_task("relay", plan, cores)?)?;
        let ports = serde_json::from_str(&process.line()?)?;
        Ok(Self {
            _process: process,
            ports,
        })
    }
}

/// The task: prints its ports, and goes on until its input ends.
pub fn run(plan: Plan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let one_way = Duration::from_millis(plan.round_trip_ms) / 2;
    runtime.block_on(async {
        let mut ports = Vec::new();
        for to in plan.to {
            let socket = TcpListener::bind("127.0.0.1:0")?;
            socket.set_nonblocking(true)?;
            ports.push(socket.local_addr()?.port());
            tokio::spawn(accept(net::TcpListener::from_std(socket)?, to, one_way));
        }
        println!("{}", serde_json::to_string(&ports)?);
        let ended = tokio::task::spawn_blocking(|| stdin().read_to_end(&mut Vec::new()));
        ended.await??;
        Ok(())
    })
}

async fn accept(socket: net::TcpListener, to: u16, one_way: Duration) {
    while let Ok((near, _)) = socket.accept().await {
        tokio::spawn(async move {
            // The kernel takes a connection at once; the first byte pays for that round trip too.
            tokio::time::sleep(one_way * 2).await;
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else {
                return;
            };
            let ((near_read, near_write), (far_read, far_write)) =
                (near.into_split(), far.into_split());
            tokio::spawn(carry(near_read, far_write, one_way));
            carry(far_read, near_write, one_way).await;
        });
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin + Send + 'static,
    one_way: Duration,
) {
    let (send, mut sent) = mpsc::channel::<(Instant, Vec<u8>)>(1_024);
    tokio::spawn(async move {
        while let Some((due, bytes)) = sent.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The other side may have gone before.
        let _ = to.shutdown().await;
    });
    let mut buffer = vec![0; 16 * 1_024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if send
            .send((Instant::now() + one_way, buffer[..count].to_vec()))
            .await
            .is_err()
        {
            return;
        }
    }
}
