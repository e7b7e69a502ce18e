//! Request targets with their hosts.

#![no_main]

use kybio_gateway_fuzz::{checks, seeds, sow};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: sow("path", &seeds::path()),
    |input: &[u8]| {
        checks::path(input);
    }
);
