//! Values as people read them.

use std::time::{Duration, SystemTime};

use crescendo_proto::v1::{Histogram, JobState, Node, NodeKind, NodeReach, StagePhase};
use prost_types::Timestamp;

pub fn job_state(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Placing => "placing",
        JobState::Running => "running",
        JobState::Paused => "paused",
        JobState::Preempting => "preempting",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// Will the job never change again?
pub fn is_final(state: JobState) -> bool {
    match state {
        JobState::Succeeded | JobState::Failed | JobState::Cancelled => true,
        JobState::Unspecified
        | JobState::Queued
        | JobState::Placing
        | JobState::Running
        | JobState::Paused
        | JobState::Preempting => false,
    }
}

pub fn stage_phase(phase: StagePhase) -> &'static str {
    match phase {
        StagePhase::Unspecified => "unknown",
        StagePhase::Pending => "pending",
        StagePhase::Curating => "curating",
        StagePhase::Training => "training",
        StagePhase::Done => "done",
        StagePhase::Waiting => "waiting",
        StagePhase::Stopped => "stopped",
    }
}

pub fn node_kind(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::Unspecified => "unknown",
        NodeKind::Trainer => "trainer",
        NodeKind::Curator => "curator",
    }
}

/// What a node is up to, in a word or a few.
pub fn node_state(node: &Node) -> String {
    let mut state = state_of_node(node);
    if !node.rival_address.is_empty() {
        state.push_str(&format!("; another of this name, at {}, is refused", node.rival_address));
    }
    if !node.store_fault.is_empty() {
        state.push_str(&format!("; gets no new work: {}", node.store_fault));
    }
    for stuck in &node.stuck_slots {
        state.push_str(&format!("; slot {} is held: {}", stuck.slot, stuck.what));
    }
    state
}

fn state_of_node(node: &Node) -> String {
    let busy = !node.running.is_empty() || !node.curating.is_empty();
    match node.reach() {
        NodeReach::Silent => {
            format!(
                "silent for {}",
                span(Duration::try_from_secs_f64(node.silent_seconds).unwrap_or_default())
            )
        }
        NodeReach::Connected | NodeReach::Unspecified if node.draining && busy => "draining".into(),
        NodeReach::Connected | NodeReach::Unspecified if node.draining => "drained".into(),
        NodeReach::Connected | NodeReach::Unspecified if !node.cordon_reason.is_empty() => {
            format!("cordoned: {}", node.cordon_reason)
        }
        reach @ (NodeReach::Connected | NodeReach::Unspecified) => node_reach(reach).into(),
    }
}

pub fn node_reach(reach: NodeReach) -> &'static str {
    match reach {
        NodeReach::Unspecified => "unknown",
        NodeReach::Connected => "connected",
        NodeReach::Silent => "silent",
    }
}

/// The instant, unless it is absent or out of the range of clocks.
pub fn system_time(at: Option<&Timestamp>) -> Option<SystemTime> {
    let at = at?;
    let seconds = u64::try_from(at.seconds).ok().filter(|seconds| *seconds < 253_402_300_800)?;
    let nanos = u32::try_from(at.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// RFC 3339 in UTC, to the second; `-` if there is none.
pub fn time(at: Option<&Timestamp>) -> String {
    system_time(at).map_or_else(|| "-".into(), |at| humantime::format_rfc3339_seconds(at).to_string())
}

/// At most the two largest units, e.g. `3h 20m`.
pub fn span(span: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(span.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// An estimate in seconds; nothing if it is unknown.
pub fn eta(seconds: f64) -> Option<String> {
    (seconds.is_finite() && seconds > 0.0).then(|| span(Duration::from_secs_f64(seconds.clamp(1.0, 1e8))))
}

/// `1 note`, `2 notes`.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    if unit == 0 { format!("{bytes} {name}") } else { format!("{value:.1} {name}") }
}

/// Text from outside on one line, without characters that would move the cursor.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `12 similarity_low, 3 too_small`; empty if nothing was rejected.
pub fn rejected(rejected: &std::collections::BTreeMap<String, u64>) -> String {
    let mut reasons: Vec<_> = rejected.iter().filter(|(_, count)| **count > 0).collect();
    reasons.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    reasons
        .iter()
        .map(|(reason, count)| format!("{count} {}", one_line(reason)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `2 steps skipped`; nothing if none was.
pub fn skipped_steps(count: u64) -> Option<String> {
    (count > 0).then(|| format!("{count} step{} skipped", if count == 1 { "" } else { "s" }))
}

/// A distribution as one line of bars between its ends, e.g. `-1 ▁▃█▂ 1 (120 candidates)`.
pub fn distribution(histogram: &Histogram) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = histogram.counts.iter().copied().max().unwrap_or(0);
    let bar = |count: &u64| match *count {
        0 => ' ',
        // The fullest bucket has the highest bar, and whatever is not empty has one.
        count => BARS[((count as f64 / most as f64 * 8.0).ceil() as usize).clamp(1, 8) - 1],
    };
    let bars: String = histogram.counts.iter().map(bar).collect();
    let total = histogram.counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
    format!("{} |{bars}| {} ({total} candidates)", histogram.least, histogram.most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_keep_two_units() {
        assert_eq!(span(Duration::from_millis(12_900)), "12s");
        assert_eq!(span(Duration::from_secs(3 * 3600 + 20 * 60 + 5)), "3h 20m");
        assert_eq!(eta(f64::NAN), None);
        assert_eq!(eta(61.0).as_deref(), Some("1m 1s"));
    }

    #[test]
    fn a_distribution_is_a_line_of_bars() {
        let histogram = Histogram { least: 0.0, most: 4.0, counts: vec![0, 1, 4, 8] };
        assert_eq!(distribution(&histogram), "0 | ▁▄█| 4 (13 candidates)");
        assert_eq!(distribution(&Histogram { counts: vec![0], ..histogram }), "0 | | 4 (0 candidates)");
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!((bytes(0), bytes(1023), bytes(1536)), ("0 B".into(), "1023 B".into(), "1.5 KiB".into()));
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn times_from_outside_never_overflow() {
        let at = |seconds, nanos| Timestamp { seconds, nanos };
        assert_eq!(time(Some(&at(0, 0))), "1970-01-01T00:00:00Z");
        for bad in [at(-1, 0), at(i64::MAX, 0), at(0, -1), at(0, i32::MAX)] {
            assert_eq!(time(Some(&bad)), "-");
        }
    }

    #[test]
    fn most_frequent_rejections_come_first() {
        let counts = [("a".to_owned(), 1), ("b".to_owned(), 5), ("c".to_owned(), 0)].into();
        assert_eq!(rejected(&counts), "5 b, 1 a");
    }
}
