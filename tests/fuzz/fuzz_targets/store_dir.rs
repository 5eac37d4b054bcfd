//! The target `store_dir` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay_fuzz_inputs::run("store_dir", data));
