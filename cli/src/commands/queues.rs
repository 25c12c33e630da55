//! `crescendo queues` and `crescendo usage`.

use std::time::{Duration, SystemTime};

use crescendo_proto::v1::{
    ListQueuesRequest, ListQueuesResponse, ListUsageRequest, Queue, QueueSlots, TenantShare, Usage,
};
use serde_json::{Value, json};

use crate::args::{Common, Output, UsageArgs};
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::show::table::Table;
use crate::show::{self, json as shown, words};

pub async fn run(common: &Common) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let answer = controller
        .call(common.timeout.unwrap_or(LOOK), |channel| async move {
            connect::queues(channel).list_queues(ListQueuesRequest {}).await
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    match common.output {
        Output::Json => shown::print(&as_json(&answer)),
        Output::Table => show::out(text(&answer, SystemTime::now())),
    }
    Ok(())
}

pub async fn usage(common: &Common, args: &UsageArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request = ListUsageRequest {
        from_month: args.from.clone().unwrap_or_default(),
        to_month: args.to.clone().unwrap_or_default(),
    };
    let answer = controller
        .call(common.timeout.unwrap_or(LOOK), |channel| {
            let request = request.clone();
            async move { connect::queues(channel).list_usage(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    if args.csv {
        show::out(csv(&answer.usage));
        return Ok(());
    }
    match common.output {
        Output::Json => shown::print(&answer.usage.iter().map(usage_json).collect()),
        Output::Table => show::out(usage_table(&answer.usage)),
    }
    Ok(())
}

fn text(answer: &ListQueuesResponse, now: SystemTime) -> String {
    let mut out = String::new();
    if answer.queues.iter().any(|queue| !queue.name.is_empty()) {
        out.push_str(&queue_table(&answer.queues, now).to_string());
    } else {
        out.push_str("There are no queues: all jobs wait in one.\n");
    }
    if !answer.tenants.is_empty() {
        let order = if answer.fair_share {
            let half_life = words::span(Duration::from_secs(answer.half_life_seconds));
            format!("\nTenants (fair share; what was used {half_life} ago counts half):\n")
        } else {
            "\nTenants:\n".to_owned()
        };
        out.push_str(&order);
        out.push_str(&tenant_table(&answer.tenants).to_string());
    }
    out
}

fn queue_table(queues: &[Queue], now: SystemTime) -> Table {
    let mut table = Table::new(&[
        "QUEUE", "DEVICE", "SURE", "MAX", "USED", "BORROWED", "RUNNING", "WAITING", "PENDING", "OLDEST",
        "FOR",
    ]);
    for queue in queues {
        let none = QueueSlots { device: "-".into(), ..QueueSlots::default() };
        let slots = if queue.slots.is_empty() { std::slice::from_ref(&none) } else { &queue.slots };
        for (at, slots) in slots.iter().enumerate() {
            // What is of the queue and not of a kind stands in its first row.
            let of_queue = |text: String| if at == 0 { text } else { String::new() };
            table.row([
                of_queue(if queue.name.is_empty() { "(none)".into() } else { queue.name.clone() }),
                slots.device.clone(),
                slots.guaranteed.to_string(),
                slots.max.map_or_else(|| "-".into(), |max| max.to_string()),
                slots.used.to_string(),
                slots.borrowed.to_string(),
                of_queue(queue.running_jobs.to_string()),
                of_queue(queue.waiting_jobs.to_string()),
                of_queue(queue.pending_slots.to_string()),
                of_queue(oldest(queue, now).map_or_else(|| "-".into(), words::span)),
                of_queue(if queue.open_to_all { "all".into() } else { queue.tenants.join(", ") }),
            ]);
        }
    }
    table
}

/// How long the queue's oldest job has waited.
fn oldest(queue: &Queue, now: SystemTime) -> Option<Duration> {
    let since = SystemTime::try_from(queue.oldest_waiting_since?).ok()?;
    Some(now.duration_since(since).unwrap_or_default())
}

fn tenant_table(tenants: &[TenantShare]) -> Table {
    let mut table = Table::new(&["TENANT", "SHARE", "SLOTS", "RECENT SLOT-HOURS", "PART", "FAIR"]);
    for one in tenants {
        table.row([
            one.tenant.clone(),
            one.share.to_string(),
            one.used_slots.to_string(),
            format!("{:.1}", one.used_slot_seconds / 3600.0),
            percent(one.used_part),
            percent(one.fair_part),
        ]);
    }
    table
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

fn as_json(answer: &ListQueuesResponse) -> Value {
    json!({
        "queues": answer.queues.iter().map(queue_json).collect::<Vec<_>>(),
        "tenants": answer.tenants.iter().map(tenant_json).collect::<Vec<_>>(),
        "fairShare": answer.fair_share,
        "halfLifeSeconds": answer.half_life_seconds,
    })
}

fn queue_json(queue: &Queue) -> Value {
    let slots = |slots: &QueueSlots| {
        json!({
            "device": slots.device,
            "guaranteed": slots.guaranteed,
            "max": slots.max,
            "used": slots.used,
            "borrowed": slots.borrowed,
        })
    };
    json!({
        "name": (!queue.name.is_empty()).then_some(&queue.name),
        "slots": queue.slots.iter().map(slots).collect::<Vec<_>>(),
        "runningJobs": queue.running_jobs,
        "waitingJobs": queue.waiting_jobs,
        "pendingSlots": queue.pending_slots,
        "oldestWaitingSince": queue.oldest_waiting_since.as_ref().map(|at| words::time(Some(at))),
        "tenants": (!queue.open_to_all).then_some(&queue.tenants),
        "order": queue.order,
        "packing": queue.packing,
        "nodeLabels": queue.node_labels,
    })
}

fn tenant_json(one: &TenantShare) -> Value {
    json!({
        "tenant": one.tenant,
        "share": one.share,
        "usedSlots": one.used_slots,
        "usedSlotSeconds": one.used_slot_seconds,
        "usedPart": one.used_part,
        "fairPart": one.fair_part,
    })
}

fn usage_json(usage: &Usage) -> Value {
    json!({
        "tenant": usage.tenant,
        "month": usage.month,
        "device": usage.device,
        "slotSeconds": usage.slot_seconds,
    })
}

fn usage_table(usage: &[Usage]) -> Table {
    let mut table = Table::new(&["TENANT", "MONTH", "DEVICE", "SLOT-HOURS"]);
    for one in usage {
        let hours = format!("{:.2}", one.slot_seconds / 3600.0);
        table.row([one.tenant.clone(), one.month.clone(), one.device.clone(), hours]);
    }
    table
}

/// Names and kinds have no character that CSV would have quoted.
fn csv(usage: &[Usage]) -> String {
    let line = |one: &Usage| {
        format!("{},{},{},{:.4}\n", one.tenant, one.month, one.device, one.slot_seconds / 3600.0)
    };
    let head = "tenant,month,device,slot_hours\n".to_owned();
    std::iter::once(head).chain(usage.iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_has_a_row_a_kind_of_device() {
        let slots = |device: &str, guaranteed, max, used, borrowed| QueueSlots {
            device: device.into(),
            guaranteed,
            max,
            used,
            borrowed,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(7200);
        let answer = ListQueuesResponse {
            queues: vec![
                Queue {
                    name: "research".into(),
                    slots: vec![slots("cpu", 0, None, 1, 1), slots("cuda", 16, Some(32), 20, 4)],
                    running_jobs: 3,
                    waiting_jobs: 2,
                    pending_slots: 9,
                    oldest_waiting_since: Some(prost_types::Timestamp { seconds: 3600, nanos: 0 }),
                    tenants: vec!["research".into()],
                    ..Queue::default()
                },
                Queue { open_to_all: true, ..Queue::default() },
            ],
            tenants: vec![TenantShare {
                tenant: "research".into(),
                share: 2,
                used_slots: 21,
                used_slot_seconds: 5400.0,
                used_part: 0.75,
                fair_part: 0.5,
            }],
            fair_share: true,
            half_life_seconds: 7 * 24 * 3600,
        };
        let lines: Vec<String> = text(&answer, now).lines().map(str::to_owned).collect();
        let cells = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(cells(&lines[1]), "research cpu 0 - 1 1 3 2 9 1h research");
        assert_eq!(cells(&lines[2]), "cuda 16 32 20 4");
        assert_eq!(cells(&lines[3]), "(none) - 0 - 0 0 0 0 0 - all");
        assert!(lines[5].contains("counts half"), "{}", lines[5]);
        assert_eq!(cells(&lines[7]), "research 2 21 1.5 75 % 50 %");
        assert!(text(&ListQueuesResponse::default(), now).starts_with("There are no queues"));
    }

    #[test]
    fn use_is_listed_for_spreadsheets() {
        let usage = Usage {
            tenant: "research".into(),
            month: "2026-11".into(),
            device: "cuda".into(),
            slot_seconds: 5400.0,
        };
        assert_eq!(csv(&[usage]), "tenant,month,device,slot_hours\nresearch,2026-11,cuda,1.5000\n");
    }
}
