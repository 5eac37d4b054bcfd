//! The target `map_dump` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay_fuzz_inputs::run("map_dump", data));
