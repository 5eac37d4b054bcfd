//! The target `network_config` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay_fuzz_inputs::run("network_config", data));
