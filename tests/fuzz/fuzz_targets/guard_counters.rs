//! The target `guard_counters` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay_fuzz_inputs::run("guard_counters", data));
