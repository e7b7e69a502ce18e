//! What users may rely on, each in a file of its own, over real sockets with real certificates. They would pass against a rewrite.

#![allow(
    missing_docs,
    unreachable_pub,
    reason = "names are sentences, and nobody imports a test"
)]
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that isn't as it should be"
)]

mod support;

// Bytes
mod bytes; // B1: every byte comes through, with a right signature
mod invalid_bodies; // B3: invalid input never costs a call
mod replies; // B2: replies come back byte for byte

// Who gets in
mod authorization; // W2: a caller reaches its own accounts and operations alone
mod certificates; // W1: no valid certificate, no request
mod headers; // W3: what goes up is our own request

// Calls
mod calls; // outcomes, deadlines, connections
mod samples; // the documented calls, end to end to the stand-in host

// The stand-in host
mod misbehaving; // resets, silence, broken answers: on demand, for those who try how callers bear them

// Secrets
mod keys; // S2: a bad key file disables its account alone
mod secrets; // S1: nothing that comes out holds a key or a signature

// Feel
mod demo; // F1: one command to a signed call in front of your eyes

// Operation
mod configuration; // faults are told all at once, with their places
mod drain; // an orderly end
mod observing; // metrics, log, health
mod protocols; // HTTP/1.1, HTTP/2, curl

// Tidiness
mod layers; // imports go down only
mod tidy; // dependencies, files
