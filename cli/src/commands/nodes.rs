//! `crescendo nodes`.

use std::time::Duration;

use crescendo_core::sizes;
use crescendo_proto::v1::{ForgetNodeRequest, ListNodesRequest, Node};

use crate::args::{Common, NodesAction, NodesArgs, Output};
use crate::connect::{self, CHANGE, Controller, LOOK};
use crate::failure::Failure;
use crate::show::table::Table;
use crate::show::{self, json, words};

pub async fn run(common: &Common, args: &NodesArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    if let Some(NodesAction::Forget { node }) = &args.action {
        return forget(&controller, node, common).await;
    }
    let nodes = fetch(&controller, common.timeout.unwrap_or(LOOK)).await?;
    match common.output {
        Output::Json => json::print(&nodes.iter().map(json::node).collect()),
        Output::Table => show::out(table(&nodes)),
    }
    Ok(())
}

async fn forget(controller: &Controller, node: &str, common: &Common) -> Result<(), Failure> {
    let request = ForgetNodeRequest { node_id: node.to_owned() };
    controller
        .call(common.timeout.unwrap_or(CHANGE), |channel| {
            let request = request.clone();
            async move { connect::nodes(channel).forget_node(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    match common.output {
        Output::Json => json::print(&serde_json::json!({"nodeId": node, "forgotten": true})),
        Output::Table => show::outln(format_args!("{node}: forgotten")),
    }
    Ok(())
}

pub async fn fetch(controller: &Controller, within: Duration) -> Result<Vec<Node>, Failure> {
    let answer = controller
        .call(within, |channel| async move { connect::nodes(channel).list_nodes(ListNodesRequest {}).await })
        .await
        .map_err(|status| controller.failure(&status))?;
    Ok(answer.nodes)
}

/// `cuda, 85.00 GB`.
fn device(node: &Node) -> String {
    match (node.device.as_str(), node.device_memory_bytes) {
        ("", _) => "-".into(),
        (device, 0) => device.to_owned(),
        (device, bytes) => format!("{device}, {}", sizes::gigabytes(bytes)),
    }
}

fn table(nodes: &[Node]) -> Table {
    let mut table = Table::new(&["NODE", "KIND", "STATE", "SLOTS", "DEVICE", "ADDRESS", "WORKS ON"]);
    for node in nodes {
        let slots = if node.slots == 0 { "-".into() } else { format!("{}/{}", node.slots_used, node.slots) };
        let training = node.running.iter().map(|attempt| format!("{}/{}", attempt.job_id, attempt.stage));
        let curating = node.curating.iter().map(|stage| format!("{}/{}", stage.job_id, stage.stage));
        let work: Vec<String> = training.chain(curating).collect();
        table.row([
            node.node_id.clone(),
            words::node_kind(node.kind()).into(),
            words::node_state(node),
            slots,
            device(node),
            node.address.clone(),
            if work.is_empty() { "-".into() } else { work.join(", ") },
        ]);
    }
    table
}
