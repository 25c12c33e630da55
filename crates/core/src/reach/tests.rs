use std::sync::Arc;

use super::*;
use crate::ids::{RequestId, Timestamp};
use crate::job::JobState;
use crate::records::{JobRecord, Record};
use crate::spec;

const SPEC: &str = "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: uno, tenant: TENANT}
spec:
  model: {preset: flux-dev, weights: 'models/flux1-dev.safetensors'}
  endpoints:
    - {name: vlm, url: 'https://api.example.com/v1', model: m, key: vlm}
  stages:
    - references: 1
      data:
        source: import
        path: PATH
        format: webdataset
        filter:
          similarity: {min: 0.5, encoder: dino.safetensors}
          judge: {min: 3, endpoint: vlm}
";

fn spec(tenant: &str, path: &str) -> JobSpec {
    let text = SPEC.replace("TENANT", tenant).replace("PATH", path);
    spec::parse(text.as_bytes()).expect("the spec is right")
}

/// One job of each of two tenants: `a-1` of a, `b-1` of b.
fn state() -> ClusterState {
    let jobs = ["a", "b"].map(|tenant| {
        Record::Job(JobRecord {
            id: JobId::parse(&format!("{tenant}-1")).expect("valid"),
            request: RequestId::parse("r").expect("valid"),
            spec: Arc::new(spec(tenant, "p")),
            spec_json: Arc::from(&b"{}"[..]),
            state: JobState::Succeeded,
            submitted_at: Timestamp(0),
            trace: None,
            started_at: None,
            finished_at: None,
        })
    });
    ClusterState::load(jobs.into()).0
}

fn told(rules: &ReachRules, tenant: &str, path: &str) -> Vec<Overreach> {
    let spec = spec(tenant, path);
    rules.of(tenant, &spec, &state()).overreaches(&spec)
}

/// Rules in which tenant a has its key, and what is in `grant` besides.
fn rules(grant: Grant) -> ReachRules {
    let granted = Grant { keys: BTreeSet::from(["vlm".to_owned()]), ..grant };
    ReachRules {
        operator: None,
        shared: vec!["models".to_owned()],
        listed: BTreeMap::from([(Tenant::parse("a").expect("valid"), granted)]),
        others: Grant::default(),
    }
}

#[test]
fn a_tenant_reads_its_own_and_what_is_shared() {
    let plain = rules(Grant::default());
    for path in [
        "sets/x",
        "./sets/x",
        "'store:tenants/a/x'",
        "'store:/tenants/a/x'",
        "'store:jobs/a-1/stage-1/pairs'",
        "'store:models'",
        "'store:models/x'",
        "a..b/x",
    ] {
        assert_eq!(told(&plain, "a", path), [], "{path}");
    }
    for path in [
        "/data/x",
        "../x",
        "x/../../y",
        "'store:jobs/b-1/stage-1/pairs'",
        "'store:jobs/b-1'",
        "'store:jobs'",
        "'store:jobs/none-such/stage-1/pairs'",
        "'store:tenants/b/x'",
        "'store:tenants/ab'",
        "'store:models-2'",
        "'store:'",
        "'store:tenants/a/../b'",
        "'store:jobs/a-1/../b-1/stage-1/pairs'",
        "'store:..'",
    ] {
        let found = told(&plain, "a", path);
        let fields: Vec<&str> = found.iter().map(|found| found.field.as_str()).collect();
        assert_eq!(fields, ["spec.stages[0].data.path"], "{path}: {found:?}");
    }
    let message = &told(&plain, "a", "'store:jobs/b-1/x'")[0].message;
    assert_eq!(
        message,
        "store:jobs/b-1/x is not the tenant's: it may name what is below store:tenants/a, store:models, and its own jobs' files"
    );
}

#[test]
fn a_root_that_the_operator_allows_is_open() {
    let granted = rules(Grant { roots: vec!["/data/uno".into()], ..Grant::default() });
    assert_eq!(told(&granted, "a", "/data/uno/x"), []);
    for path in ["/data/uno-2", "/data/uno/../x", "/data", "/"] {
        assert_eq!(told(&granted, "a", path).len(), 1, "{path}");
    }
    assert!(told(&granted, "a", "/etc")[0].message.ends_with("allows: /data/uno"));
}

#[test]
fn prefixes_of_the_operator_take_the_place_of_the_tenants_own() {
    let granted = rules(Grant { store_prefixes: Some(vec!["sets/a".into()]), ..Grant::default() });
    assert_eq!(told(&granted, "a", "'store:sets/a/x'"), []);
    assert_eq!(told(&granted, "a", "'store:tenants/a/x'").len(), 1);
}

#[test]
fn keys_and_addresses_are_those_of_the_tenant() {
    let found = told(&rules(Grant::default()), "b", "x");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].field.as_str(), found[0].message.as_str()),
        ("spec.endpoints[0].key", "key `vlm` is not among those that the operator gives the tenant: none")
    );
    let none = rules(Grant { endpoints: Some(Vec::new()), ..Grant::default() });
    assert_eq!(told(&none, "a", "x")[0].field, "spec.endpoints[0].url");
}

#[test]
fn where_nobody_says_anything_the_default_tenant_is_the_operator() {
    let rules = ReachRules::default();
    assert_eq!(told(&rules, "default", "/data/x"), []);
    assert_eq!(told(&rules, "default", "'store:jobs/b-1/x'"), []);
    assert_eq!(told(&rules, "a", "/data/x").len(), 2, "path and key");
}

#[test]
fn what_lies_beside_weights_is_in_their_folder() {
    let mut spec = spec("a", "x");
    spec.model.weights = Some("store:sets/one/w.safetensors".to_owned());
    let granted =
        rules(Grant { store_prefixes: Some(vec!["sets/one/w.safetensors".into()]), ..Grant::default() });
    let found = granted.of("a", &spec, &state()).overreaches(&spec);
    assert_eq!(found.len(), 1, "its encoders are looked for in the folder: {found:?}");
    spec.model.encoders = Some("encoders".to_owned());
    assert_eq!(granted.of("a", &spec, &state()).overreaches(&spec), []);
}
