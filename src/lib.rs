//! kybio-gateway: internal services send plain KYBIO JSON over mTLS; it decides who may do what with which merchant account, puts
//! `appId` in, stamps, signs, forwards over a kept TLS connection, and says what happened. It's the only process that holds a key.
//!
//! ```text
//! socket --listener--> Peer --identity--> Caller --policy--> Grant --payload--> Payload --sign--> SignedBody --upstream--> Reply
//! ```
//!
//! # Floors
//! Imports go down only; `tests/layers.rs` has the table.
//! ```text
//! process    main
//! commands   cli
//! assembly   server  admin  config
//! line       proxy
//! stations   listener  identity  policy  payload  quota  slots  keyring  sign  upstream  retry  reply
//! observe    observe
//! words      account  answers  operation  operations  name  outcome  pattern  pieces  clock  stop
//! beside     simulator
//! ```
//!
//! # Words
//! *caller*: an internal service. *account*: an appId with its key, on one *upstream*. *operation*: `module/method`. *grant*: this
//! caller may call this operation with this account. *payload*: a body that names its account. *stamp*, *signature*: what each
//! *attempt* carries. *reply*: what the upstream said. *exchange*: the record of all that. *outcome*: what happened to the call.
//!
//! # What isn't here
//! `sign` knows no HTTP and no clock. `retry` decides, and never waits or sends. No module reads the environment but `config::environment`, and none reads the machine's time
//! but `clock`. Nothing below `config` knows TOML (the catalogue's file aside). `policy`, `sign`, `reply` and `proxy::respond` do no
//! IO. There are no globals: registry, clock and configuration are made once and passed.

pub mod cli;

pub mod admin;
pub mod config;
pub mod server;

pub mod proxy;

pub mod identity;
pub mod keyring;
pub mod listener;
pub mod payload;
pub mod policy;
pub mod quota;
pub mod reply;
pub mod retry;
pub mod sign;
pub mod slots;
pub mod upstream;

pub mod observe;

pub mod account;
pub mod answers;
pub mod clock;
pub mod name;
pub mod operation;
pub mod operations;
pub mod outcome;
pub mod pattern;
pub mod pieces;
pub mod stop;

pub mod simulator;
