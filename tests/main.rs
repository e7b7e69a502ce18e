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
mod fuzzing; // B1, B2, B3, W2: the readers of bytes that others wrote, with bytes that nobody thought of
mod invalid_bodies; // B3: invalid input never costs a call
mod replies; // B2: replies come back byte for byte

// Who gets in
mod authorization; // W2: a caller reaches its own accounts and operations alone
mod certificates; // W1: no valid certificate, no request
mod evictions; // W1, U2: who has lost its right to come in is out, on open connections too
mod framing; // W4: no framing trick makes an extra call, or gives one caller's answer to another
mod headers; // W3: what goes up is our own request
mod paths; // W2: whatever the request line says, only the granted operation is reached
mod sidecar; // listeners without TLS: users of a unix socket, and loopback

// Calls
mod calls; // outcomes and deadlines of single calls
mod campaign; // X1, X2, X3: thousands of calls through every fault, laid beside what the host knows
mod connections; // U5, U8: a name's address that moves, connections that are warm
mod faults; // X1, X2, X3: each kind of call under each kind of fault, and callers that stop waiting
mod memory; // U3: what callers can make the gateway hold is bounded
mod misbehaving; // the stand-in host has all those faults on demand
mod outages; // X4, U7: no storm while a host is down, served again within a second after
mod quota; // X4: an account whose calls for the day are used up is refused here
mod samples; // the documented calls, end to end to the stand-in host
mod turns; // how many calls at a time, and who goes next

// Abuse
mod floods; // U3: who floods is ended, or harms nobody
mod limits; // U3: how many connections there may be, in total, from each address, of each caller
mod log_injection; // what others choose is text in the log, and no more
mod parking; // U3: a connection that's kept for later costs next to nothing, and is as good as any other

// Secrets
mod concealment; // S1: nobody looks into the gateway's memory, and there a key is in one place
mod credentials; // a key that KYBIO doesn't take is seen within one call, with what to look at
mod destinations; // S3: a signed body goes to the account's own host, or nowhere
mod keys; // S2: a bad key file disables its account alone; at a reload the key before it is kept
mod migration; // callers that still sign for themselves are told from those that don't
mod rotation; // a key takes another's place under load without a refused signature, and is seen by its fingerprint
mod secrets; // S1: nothing that comes out holds a key or a signature

// Feel
mod demo; // F1: one command to a signed call in front of your eyes

// Operation
mod checks; // F2: what would show only later, or only to callers, is told by `check`
mod configuration; // F2: faults are told all at once, with their places
mod continuity; // U2: what is under way, and what is remembered, outlives a reload
mod dashboards; // F3: every query of a dashboard and every rule, on a real Prometheus against real traffic
mod descriptors; // out of them, what is open goes on
mod drain; // U1: an orderly end
mod foreign; // OpenSSL, curl, nghttp2, Python
mod observing; // metrics, log, health
mod protocols; // HTTP/1.1, HTTP/2
mod records; // one line for each request, found by others' ids; what health says
mod reloads; // U2: a new configuration is taken whole while calls go on, or not at all
mod restart; // U1: a restart on a passed socket refuses nobody; a second process on the port
mod schema; // editors are told what the gateway takes
mod series; // U6: series of configured names are bounded, and end with them
mod shown; // what holds, and where it comes from
mod slow; // U3: whoever stalls is let go of, and nobody else notices
mod systemd; // what systemd is told, and its units

// Tidiness
mod building; // releases are built with the counts of what runs how often
mod layers; // imports go down only
mod tidy; // dependencies, files
