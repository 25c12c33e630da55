//! `crescendo logs`. With `-f` a lost connection is taken up again with the lines that were not printed yet.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use crescendo_proto::v1::{LogLine, ReadLogsRequest};
use tokio::time::Instant;
use tonic::Status;

use super::get;
use crate::args::{Common, LogsArgs, Output};
use crate::connect::{self, Controller, LOOK, WATCH, brief};
use crate::failure::Failure;
use crate::show::{self, json, words};

/// Largest number of lines that the controller hands out at once.
const MOST: u32 = 10_000;
/// Printed lines that are remembered.
const MOST_PRINTED: usize = 2 * MOST as usize;

pub async fn run(common: &Common, args: &LogsArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let patience = common.timeout.unwrap_or(if args.follow { WATCH } else { LOOK });
    let mut printer = Printer { output: common.output, printed: Printed::new(args.tail as usize) };
    let mut reached = false;
    let mut lost_at: Option<Instant> = None;
    loop {
        let tail_lines = if reached { MOST } else { args.tail };
        let request = ReadLogsRequest { job_id: args.job.clone(), tail_lines, follow: args.follow };
        let before = printer.printed.count;
        let status = match read(&controller, request, &mut printer).await {
            Ok(()) if !args.follow => return Ok(()),
            Ok(()) => {
                // The stream ends with the job, but also when the controller stops.
                let ended = get::fetch(&controller, common, &args.job).await;
                if ended.is_ok_and(|job| words::is_final(job.state())) {
                    return Ok(());
                }
                Status::unavailable("the controller closed the connection")
            }
            Err(status) if !connect::is_cut(&status) => return Err(Failure::refused(&status)),
            Err(status) => status,
        };
        if printer.printed.count != before || !reached {
            lost_at = None;
        }
        reached |= printer.printed.count > 0;
        let since = *lost_at.get_or_insert_with(|| {
            if args.follow {
                show::errln(format_args!(
                    "the controller cannot be reached ({}); trying again",
                    brief(&status)
                ));
            }
            Instant::now()
        });
        let patience = if reached || args.follow { patience } else { patience.min(LOOK) };
        if since.elapsed() >= patience {
            return Err(controller.unreachable(&status));
        }
        controller.turn();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn read(
    controller: &Controller,
    request: ReadLogsRequest,
    printer: &mut Printer,
) -> Result<(), Status> {
    let channel = controller.channel().map_err(|failure| Status::invalid_argument(failure.to_string()))?;
    let mut lines = connect::jobs(channel).read_logs(request).await?.into_inner();
    while let Some(answer) = lines.message().await? {
        let Some(line) = answer.line else { continue };
        if printer.printed.adds(&line) {
            printer.print(&line);
        }
    }
    Ok(())
}

fn at(line: &LogLine) -> (i64, i32) {
    line.at.as_ref().map_or((0, 0), |at| (at.seconds, at.nanos))
}

struct Printer {
    output: Output,
    printed: Printed,
}

/// The lines that were printed: those of several processes come in no order of time, and what a new controller learns
/// late is old.
struct Printed {
    tail: usize,
    hasher: RandomState,
    lines: HashSet<u64>,
    in_order: VecDeque<(u64, (i64, i32))>,
    /// Of all of them.
    count: usize,
    first: Option<(i64, i32)>,
    /// Nothing that is older is printed.
    since: Option<(i64, i32)>,
}

impl Printed {
    fn new(tail: usize) -> Printed {
        Printed {
            tail,
            hasher: RandomState::new(),
            lines: HashSet::new(),
            in_order: VecDeque::new(),
            count: 0,
            first: None,
            since: None,
        }
    }

    /// Whether the line is new; it is not afterwards.
    fn adds(&mut self, line: &LogLine) -> bool {
        let at = at(line);
        let key = self.hasher.hash_one((at, &line.node_id, line.rank, &line.message));
        if self.since.is_some_and(|since| at < since) || !self.lines.insert(key) {
            return false;
        }
        self.count += 1;
        self.in_order.push_back((key, at));
        let first = *self.first.get_or_insert(at);
        // More is asked for after a lost connection than at first: what lies before was not asked for.
        if self.since.is_none() && self.count >= self.tail {
            self.since = Some(first);
        }
        if self.in_order.len() > MOST_PRINTED
            && let Some((key, at)) = self.in_order.pop_front()
        {
            self.lines.remove(&key);
            self.since = self.since.max(Some(at));
        }
        true
    }
}

impl Printer {
    fn print(&self, line: &LogLine) {
        if line.dropped_before > 0 && self.output == Output::Table {
            let count = line.dropped_before;
            show::outln(format_args!("… {count} lines were dropped here, since the buffer was full"));
        }
        match self.output {
            Output::Json => show::outln(json::log_line(line)),
            Output::Table => show::outln(text(line)),
        }
    }
}

pub fn text(line: &LogLine) -> String {
    let rank = if line.rank < 0 { String::new() } else { format!("/{}", line.rank) };
    let stage =
        if line.stage.is_empty() { String::new() } else { format!(" {} g{}", line.stage, line.generation) };
    let (at, level, node) = (words::time(line.at.as_ref()), &line.level, &line.node_id);
    format!("{at} {level:<5} {node}{rank}{stage}: {}", words::one_line(&line.message))
}
