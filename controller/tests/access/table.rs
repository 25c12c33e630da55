//! The table of rules against the services that there are, and against what is written of it.

use std::collections::BTreeSet;
use std::path::Path;

use crescendo_core::access::{RULES, markdown_table, rule_of};
use crescendo_proto::DESCRIPTORS;
use prost::Message as _;
use prost_types::FileDescriptorSet;

/// Every call of every service that any process has, by reflection.
fn calls() -> BTreeSet<String> {
    let sets = [
        DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut calls = BTreeSet::new();
    for set in sets {
        let set = FileDescriptorSet::decode(set).expect("descriptors");
        for file in set.file {
            for service in &file.service {
                for method in &service.method {
                    calls.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
    }
    calls
}

#[test]
fn every_call_has_a_rule_and_every_rule_a_call() {
    let calls = calls();
    assert!(calls.contains("/crescendo.v1.JobService/SubmitJob"), "the walk finds calls");
    let without: Vec<_> = calls.iter().filter(|call| rule_of(call).is_none()).collect();
    assert!(without.is_empty(), "calls without a rule in crescendo_core::access: {without:?}");
    let rules = RULES.iter().map(|rule| format!("/{}/{}", rule.service, rule.method));
    let idle: Vec<_> = rules.filter(|path| !calls.contains(path)).collect();
    assert!(idle.is_empty(), "rules without a call: {idle:?}");
}

#[test]
fn the_documentation_follows_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let (begin, end) = ("<!-- calls -->\n", "<!-- end of calls -->");
    let text = std::fs::read_to_string(&path).expect("docs/security.md is there");
    let (before, rest) = text.split_once(begin).expect("the table has its begin mark");
    let (written, after) = rest.split_once(end).expect("the table has its end mark");
    let expected = format!("\n{}\n", markdown_table());
    if written != expected && std::env::var_os("CRESCENDO_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{expected}{end}{after}"))
            .expect("docs/security.md can be written");
        return;
    }
    assert_eq!(written, expected, "run this test once with CRESCENDO_BLESS=1 to write the table anew");
}
