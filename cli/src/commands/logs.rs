//! `crescendo logs`. With `-f` a lost connection is taken up again behind the last line that was printed.

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

pub async fn run(common: &Common, args: &LogsArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let patience = common.timeout.unwrap_or(if args.follow { WATCH } else { LOOK });
    let mut printer = Printer { output: common.output, last: None };
    let mut reached = false;
    let mut lost_at: Option<Instant> = None;
    loop {
        let tail_lines = if reached { MOST } else { args.tail };
        let request = ReadLogsRequest { job_id: args.job.clone(), tail_lines, follow: args.follow };
        let before = printer.last;
        let status = match read(&controller, request, before, &mut printer).await {
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
        if printer.last != before || !reached {
            lost_at = None;
        }
        reached |= printer.last.is_some();
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
    skip_until: Option<(i64, i32)>,
    printer: &mut Printer,
) -> Result<(), Status> {
    let channel = controller.channel().map_err(|failure| Status::invalid_argument(failure.to_string()))?;
    let mut lines = connect::jobs(channel).read_logs(request).await?.into_inner();
    while let Some(answer) = lines.message().await? {
        let Some(line) = answer.line else { continue };
        if skip_until.is_none_or(|seen| at(&line) > seen) {
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
    /// Time of the last line.
    last: Option<(i64, i32)>,
}

impl Printer {
    fn print(&mut self, line: &LogLine) {
        self.last = self.last.max(Some(at(line)));
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
