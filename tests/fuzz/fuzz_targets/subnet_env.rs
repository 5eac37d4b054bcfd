//! The target `subnet_env` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay_fuzz_inputs::run("subnet_env", data));
