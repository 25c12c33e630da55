//! `crescendo doctor`: what is wrong with this machine, its files and the cluster, each with what to do.
//!
//! ```text
//!   programs ─▶ machine ─▶ libtorch, NCCL (crescendo-workbench doctor) ─▶ certificates ─▶ controllers ─▶ stores
//! ```
//!
//! Every look has a deadline, and one that fails keeps none of the others from being taken.

mod certificates;
mod cluster;
mod machine;
mod programs;
mod report;
mod stores;

use crate::args::{Common, DoctorArgs, Output};
use crate::connect::Controller;
use crate::failure::Failure;
use crate::settings;
use crate::show;
use report::{Check, Report};

pub async fn run(common: &Common, args: &DoctorArgs) -> Result<(), Failure> {
    let mut report = Report::default();
    report.extend(programs::check().await);
    report.extend(machine::check(args).await);
    report.extend(programs::workbench(args.gpu).await);
    // A machine without a cluster is looked at all the same.
    match settings::find(common) {
        Ok(target) => {
            report.extend(certificates::check(&target.tls));
            match Controller::to(target).await {
                Ok(controller) => {
                    let seen = cluster::check(&controller).await;
                    report.extend(seen.checks);
                    let named = args.object_store.as_deref().or(controller.object_store());
                    report.extend(stores::objects(named, seen.object_store.as_deref()).await);
                }
                Err(failure) => {
                    report.add(Check::failed("controller", failure.to_string(), "correct what it names"))
                }
            }
        }
        Err(failure) => {
            report.add(Check::skipped("controller", failure.to_string()));
            report.extend(stores::objects(args.object_store.as_deref(), None).await);
        }
    }
    if let Some(store) = &args.store {
        report.add(stores::records(store, &args.store_tls).await);
    }
    match common.output {
        Output::Json => show::json::print(&report.as_json()),
        Output::Table => show::out(&report),
    }
    match report.failures() {
        0 => Ok(()),
        1 => Err(Failure::other("one check has failed")),
        failures => Err(Failure::other(format!("{failures} checks have failed"))),
    }
}
