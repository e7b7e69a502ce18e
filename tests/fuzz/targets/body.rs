//! Request bodies.

#![no_main]

use kybio_gateway_fuzz::{checks, seeds, sow};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: sow("body", &seeds::body()),
    |input: &[u8]| {
        checks::body(input);
    }
);
