//! `crescendo drain`.

use crescendo_proto::v1::DrainNodeRequest;

use crate::args::{Common, DrainArgs, Output};
use crate::connect::{self, CHANGE, Controller};
use crate::failure::Failure;
use crate::show::{self, json, words};

pub async fn run(common: &Common, args: &DrainArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request = DrainNodeRequest { node_id: args.node.clone(), undo: args.undo };
    let within = common.timeout.unwrap_or(CHANGE);
    let answer = controller
        .call(within, |channel| {
            let request = request.clone();
            async move { connect::nodes(channel).drain_node(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    let node = answer.node.unwrap_or_default();
    match common.output {
        Output::Json => json::print(&json::node(&node)),
        Output::Table => show::outln(format_args!("{}: {}", node.node_id, words::node_state(&node))),
    }
    Ok(())
}
