//! `crescendo whoami`.

use std::time::Duration;

use crescendo_proto::v1::{WhoAmIRequest, WhoAmIResponse};
use serde_json::{Value, json};

use crate::args::{Common, Output};
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::show;

pub async fn run(common: &Common) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let told = fetch(&controller, common.timeout.unwrap_or(LOOK)).await?;
    match common.output {
        Output::Json => show::json::print(&as_json(&told)),
        Output::Table => show::outln(words(&told)),
    }
    Ok(())
}

pub async fn fetch(controller: &Controller, within: Duration) -> Result<WhoAmIResponse, Failure> {
    controller
        .call(within, |channel| async move { connect::access(channel).who_am_i(WhoAmIRequest {}).await })
        .await
        .map_err(|status| controller.failure(&status))
}

/// `ada (submitter of tenant research)`.
pub fn words(told: &WhoAmIResponse) -> String {
    let name = &told.name;
    let tenant =
        if told.tenant.is_empty() { "every tenant".to_owned() } else { format!("tenant {}", told.tenant) };
    show::words::one_line(&format!("{name} ({} of {tenant})", told.role))
}

fn as_json(told: &WhoAmIResponse) -> Value {
    let WhoAmIResponse { name, role, tenant, version, leads, leader, at: _, object_store_url } = told;
    json!({
        "name": name,
        "role": role,
        "tenant": tenant,
        "controllerVersion": version,
        "controllerLeads": leads,
        "leader": leader,
        "objectStore": object_store_url,
    })
}
