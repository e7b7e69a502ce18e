//! `demo`: the whole line on this machine, in front of your eyes: throwaway certificates, a stand-in host, the gateway, and a tour of
//! calls through it.

mod caller;
mod paper;
mod scene;
mod tour;

use std::process::ExitCode;
use std::thread;

use anyhow::Context;
use clap::Args;
use tokio::runtime;
use tokio_util::sync::CancellationToken;

use crate::cli::demo::paper::Paper;
use crate::cli::demo::scene::Scene;
use crate::cli::signals::Signals;
use crate::clock::Clock;
use crate::config::environment;
use crate::observe::log;
use crate::server::Server;
use crate::server::socket::Passed;
use crate::stop::Stop;

/// How long it stays.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// End after the tour, with exit code 0 if all went as it should and 1 if not
    #[arg(long)]
    once: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(show(arguments.once))
}

async fn show(once: bool) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::watch()?;
    let mut paper = Paper::new();
    paper.title("kybio-gateway: a tour on this machine alone")?;
    let (scene, stand_in) = Scene::set(Clock::system()).await?;
    let config = scene.config(Clock::system().since_epoch())?;
    let stop = Stop::default();
    let server = Server::bind(
        config,
        None,
        Clock::system(),
        stop.clone(),
        Passed::default(),
    )?;
    let (address, admin) = (server.address()?, server.admin_address()?);
    let address = address.tcp().context("the tour's own address")?;
    let serving = thread::Builder::new()
        .name("gateway".to_owned())
        .spawn(move || server.run(async {}))?;
    let hosting = CancellationToken::new();
    let host = tokio::spawn(stand_in.serve(hosting.clone()));

    paper.line(&format!("stand-in host   https://{}   not KYBIO: it checks signatures by itself, and forgets all at the end", scene.host_address))?;
    paper.line(&format!(
        "gateway         https://localhost:{}   mTLS",
        address.port()
    ))?;
    paper.line(&format!("metrics         http://{admin}/metrics"))?;
    paper.line(&format!("files           {}", scene.folder().display()))?;

    let toured = tokio::select! {
        toured = tour::take(&mut paper, &scene, address, admin) => toured,
        () = signals.wish_to_end() => Err(anyhow::anyhow!("ended before the tour was over")),
    };
    // Kept to the end, so that the last lines are written.
    let mut writer = None;
    if let (Ok(()), false) = (&toured, once) {
        let settings = log::Settings {
            format: log::Format::Human,
            level: log::Level::Info,
            plain: environment::no_color(),
        };
        let (subscriber, _, kept) = log::subscriber(&settings);
        writer = Some(kept);
        let _ = tracing::subscriber::set_global_default(subscriber);
        // The log goes first: what is pasted is to be seen.
        paper.curl(scene.folder(), address)?;
        signals.wish_to_end().await;
    }
    stop.draining.cancel();
    let ended = tokio::task::spawn_blocking(move || serving.join()).await?;
    hosting.cancel();
    host.await?;
    ended
        .map_err(|_| anyhow::anyhow!("the gateway panicked"))?
        .context("the gateway")?;
    drop(writer);
    toured.map(|()| ExitCode::SUCCESS)
}
