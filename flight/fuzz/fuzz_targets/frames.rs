#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| arrow_quant_flight::fuzzing::frames(bytes));
