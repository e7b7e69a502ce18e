//! A process that's out of descriptors: what is open goes on, what needs another one is told so, and nothing has to be restarted.

use std::process::Command;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::gateway::{NOT_RELOADED, UNCHANGED};
use crate::support::tools::PATIENCE;
use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Pki, Setup, Upstream, tools};

/// Descriptors that are left when the crowd comes, of whom each wants one.
const LEFT: usize = 4;
const CROWD: usize = 20;

#[tokio::test]
async fn out_of_descriptors_open_connections_are_served_and_it_passes() {
    let pki = Pki::new();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let upstream = Upstream::scripted(&pki, move |seen| {
        if seen.text().contains("held") {
            Act::once_open(&held, SUCCESS)
        } else {
            Act::ok(SUCCESS)
        }
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    // The crowd says nothing, and isn't let go of before it goes.
    setup.listener.push_str("handshake_timeout = \"1m\"\n");
    setup.runtime.push_str("reload_interval = \"0s\"\n");
    let gateway = setup.start().await;
    let client = Arc::new(gateway.http2_client(&pki));
    let call = async |body: &'static str| client.call("customerOpenApi/add", body).await;
    assert_eq!(call("{}").await.status, 200);
    assert_eq!(gateway.metric(ERRORS).await, 0.0);

    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap();
    let soft = format!("--nofile={}:", open.count() + LEFT);
    let limited =
        tools::run(Command::new("prlimit").args(["--pid", &gateway.pid().to_string(), &soft]));
    assert!(limited.status.success(), "{limited:?}");
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(TcpStream::connect(gateway.address).await.unwrap());
    }
    let event = gateway
        .event(|event| event["message"] == "a connection couldn't be taken")
        .await;
    assert_eq!(event["level"], "WARN", "{event}");
    assert!(event["error"].as_str().unwrap().contains("os error 24"));

    // A warm connection to the host is there.
    assert_eq!(call("{}").await.status, 200);
    // While it's taken, others need new ones; one of them finds that there's no descriptor left.
    let mut held = JoinSet::new();
    for _ in 0..LEFT + 2 {
        let client = Arc::clone(&client);
        held.spawn(async move { client.call("customerOpenApi/add", "{\"held\":1}").await });
    }
    let first = held.join_next().await.unwrap().unwrap();
    let busy = (503, "gateway-busy".into(), "not-sent".into(), "yes".into());
    assert_eq!(first.refusal(), busy, "{}", first.text());
    gate.add_permits(LEFT + 2);
    let mut served = 0;
    while let Some(answer) = held.join_next().await {
        let answer = answer.unwrap();
        if answer.status == 200 {
            served += 1;
        } else {
            assert_eq!(answer.refusal(), busy, "{}", answer.text());
        }
    }
    assert!(served > 0, "the warm one");
    // None of that was the host's fault: it isn't held to be down. Files can't be read either; what holds goes on holding.
    assert_eq!(gateway.hang_up().await["message"], NOT_RELOADED);
    assert_eq!(call("{}").await.status, 200);

    drop(crowd);
    let mark = gateway.mark();
    gateway.metric_reaches(ERRORS, 1.0).await;
    let gone = async {
        while gateway.metric("kybio_gateway_downstream_connections").await > 1.0 {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, gone).await.is_ok());
    for anew in [gateway.client(&pki), gateway.http2_client(&pki)] {
        assert_eq!(anew.call("customerOpenApi/add", "{}").await.status, 200);
    }
    assert_eq!(gateway.hang_up().await["message"], UNCHANGED);
    let errors = gateway.printed()[mark..]
        .iter()
        .filter(|line| line.contains("\"ERROR\""))
        .count();
    assert_eq!(errors, 0);
    assert_eq!(upstream.seen().len(), 5 + served);
}

const ERRORS: &str = "kybio_gateway_accept_errors_total";
