//! A job spec of any bytes is read or refused, and what is read can be written and read again.
#![no_main]

use crescendo_core::spec::{parse, to_yaml};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|yaml: &[u8]| match parse(yaml) {
    Ok(spec) => {
        let again = parse(to_yaml(&spec).as_bytes());
        assert_eq!(again.as_ref(), Ok(&spec), "the resolved spec is read differently");
    }
    Err(problems) => assert!(!problems.is_empty(), "refused without a reason"),
});
