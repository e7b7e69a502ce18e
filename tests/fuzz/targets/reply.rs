//! Replies of the vendor's host.

#![no_main]

use kybio_gateway_fuzz::{checks, seeds, sow};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: sow("reply", &seeds::reply()),
    |input: &[u8]| {
        checks::reply(input);
    }
);
