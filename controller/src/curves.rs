//! Curves of the stages: what ranks report, and the histories that people had read. In bounded memory, beside the engine.
//!
//! ```text
//!   rank 0 ─ AttemptReport ─▶ engine ─ push ─▶ CurveHub ─ curve ─▶ WatchViews, ReadCurves
//!   checkpoint ─ a curator reads its history ─ keep ─┘
//! ```
//!
//! Reports come at most twice a second, so of steps that are faster some are missing until the next checkpoint. A controller
//! that begins to lead knows what the histories say, and what is reported from then on.

mod history;
pub mod trace;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crescendo_core::error::RequestError;
use crescendo_core::ids::{Generation, StageRef};
use crescendo_proto::v1;
use tokio::time::Instant;

pub use history::parse;
pub use trace::{Point, Trace};

/// Stages whose curves are kept; the one that nobody touched longest goes first.
const MAX_STAGES: usize = 256;
/// Buckets of what was reported, and of a history: some 130 kB and 260 kB.
const REPORTED_BUCKETS: usize = 1024;
const KEPT_BUCKETS: usize = 2048;
/// Largest history that is read: some 400,000 steps.
pub const MAX_HISTORY_BYTES: u64 = 64 << 20;
/// A history is not read anew before this, however many checkpoints come.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(20);
/// One that could not be read is tried again after this: a curator may have come.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(3);
const DEFAULT_POINTS: usize = 1000;
const MAX_POINTS: usize = 4000;

/// The curves. Cheap to clone.
#[derive(Clone, Default)]
pub struct CurveHub(Arc<Mutex<Stages>>);

#[derive(Default)]
struct Stages {
    by_stage: BTreeMap<StageRef, Known>,
    clock: u64,
}

struct Known {
    reported: Trace,
    generation: Generation,
    /// The history up to its last step, shared with whoever draws it.
    kept: Option<Arc<Trace>>,
    /// When a history was last asked for, and why it did not come.
    asked_at: Option<Instant>,
    trouble: String,
    /// Grows with whatever is added.
    revision: u64,
    /// Grows with each history.
    histories: u64,
    touched: u64,
}

/// A stage whose curve is asked for, as the registry has it.
#[derive(Clone, Debug, PartialEq)]
pub struct CurveSource {
    pub stage: StageRef,
    pub steps_total: u64,
    pub history: Option<HistoryFile>,
}

/// The history in the newest checkpoint of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// The checkpoint's folder.
    pub path: String,
    /// Steps that it tells of.
    pub steps: u64,
    pub size_bytes: u64,
    pub sha256: String,
}

/// What somebody has of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    revision: u64,
    epochs: (u64, u64, usize),
    after_step: u64,
}

impl CurveHub {
    fn lock(&self) -> MutexGuard<'_, Stages> {
        // A panic elsewhere leaves nothing half done here.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what rank 0 of an attempt reports. Only the newest attempt goes back to steps that were done before.
    pub fn push(&self, stage: &StageRef, generation: Generation, point: &Point) {
        // Before its first step a rank has no numbers.
        if point.step == 0 || point.values.iter().all(|value| *value == 0.0 || value.is_nan()) {
            return;
        }
        let mut stages = self.lock();
        let known = stages.known(stage);
        if generation < known.generation {
            return;
        }
        if generation > known.generation {
            known.generation = generation;
            known.reported.forget_from(point.step);
            if let Some(kept) = &mut known.kept
                && kept.last_step() >= point.step
            {
                Arc::make_mut(kept).forget_from(point.step);
            }
        }
        if point.step > known.reported.last_step() {
            known.reported.push(point);
            known.revision += 1;
        }
    }

    /// Whether the history of `source` may be worth reading.
    pub fn may_want(&self, source: &CurveSource) -> bool {
        wanted_file(self.lock().known(&source.stage), source).is_some()
    }

    /// The history of `source`, if it is worth reading now; then whoever asks is the one who reads it.
    pub fn wants(&self, source: &CurveSource) -> Option<HistoryFile> {
        let mut stages = self.lock();
        let known = stages.known(&source.stage);
        let file = wanted_file(known, source)?.clone();
        known.asked_at = Some(Instant::now());
        Some(file)
    }

    /// Takes over a history, or why there is none.
    pub fn keep(&self, stage: &StageRef, history: Result<Trace, String>) {
        let mut stages = self.lock();
        let known = stages.known(stage);
        match history {
            Ok(trace) => {
                known.kept = Some(Arc::new(trace));
                known.trouble.clear();
                known.histories += 1;
            }
            Err(why) => known.trouble = why,
        }
        known.revision += 1;
    }

    /// What is new of a curve; none if nothing is. Whoever has seen nothing gets a curve in any case.
    pub fn curve(
        &self,
        source: &CurveSource,
        max_points: usize,
        seen: Option<Cursor>,
    ) -> Option<(v1::Curve, Cursor)> {
        let (reported, kept, revision, histories, trouble) = {
            let mut stages = self.lock();
            let known = stages.known(&source.stage);
            if seen.is_some_and(|seen| seen.revision == known.revision) {
                return None;
            }
            (
                known.reported.clone(),
                known.kept.clone(),
                known.revision,
                known.histories,
                known.trouble.clone(),
            )
        };
        let buckets = trace::joined(kept.as_deref(), &reported);
        let each = trace::each_of(buckets.len(), max_points);
        let epochs = (reported.epoch(), histories + kept.as_ref().map_or(0, |kept| kept.epoch()), each);
        let after_step = seen.filter(|seen| seen.epochs == epochs).map_or(0, |seen| seen.after_step);
        let StageRef { job, stage } = &source.stage;
        let first_step = buckets.first().map_or(0, |bucket| bucket.first_step);
        let incomplete = match first_step {
            0 | 1 => String::new(),
            first if trouble.is_empty() => format!("steps before {first} are not known here"),
            first => format!("steps before {first} are not known here: {trouble}"),
        };
        let mut curve = v1::Curve {
            job_id: job.to_string(),
            stage: stage.to_string(),
            steps_total: source.steps_total,
            incomplete,
            ..v1::Curve::default()
        };
        let after_step = trace::points(&buckets, each, after_step, &mut curve);
        Some((curve, Cursor { revision, epochs, after_step }))
    }
}

fn wanted_file<'a>(known: &Known, source: &'a CurveSource) -> Option<&'a HistoryFile> {
    let file = source.history.as_ref().filter(|file| file.size_bytes <= MAX_HISTORY_BYTES)?;
    let has = known.kept.as_ref().map_or(0, |kept| kept.last_step());
    let heard_all = known.reported.is_gapless() && known.reported.last_step() >= file.steps;
    let pause = if known.trouble.is_empty() { READ_AGAIN_AFTER } else { TRY_AGAIN_AFTER };
    let soon = known.asked_at.is_some_and(|asked| asked.elapsed() < pause);
    (has < file.steps && !heard_all && !soon).then_some(file)
}

impl Stages {
    fn known(&mut self, stage: &StageRef) -> &mut Known {
        self.clock += 1;
        let clock = self.clock;
        if !self.by_stage.contains_key(stage)
            && self.by_stage.len() >= MAX_STAGES
            && let Some(oldest) =
                self.by_stage.iter().min_by_key(|(_, known)| known.touched).map(|(stage, _)| stage.clone())
        {
            self.by_stage.remove(&oldest);
        }
        let known = self.by_stage.entry(stage.clone()).or_insert_with(|| Known {
            reported: Trace::new(REPORTED_BUCKETS),
            generation: Generation(0),
            kept: None,
            asked_at: None,
            trouble: String::new(),
            revision: 0,
            histories: 0,
            touched: clock,
        });
        known.touched = clock;
        known
    }
}

/// Points of one curve as they were asked for.
pub fn points_wanted(max_points: u32) -> Result<usize, RequestError> {
    match max_points as usize {
        0 => Ok(DEFAULT_POINTS),
        points @ 2..=MAX_POINTS => Ok(points),
        _ => Err(RequestError::invalid("max_points", format!("must be 2 to {MAX_POINTS}"))),
    }
}

/// Reads a history as a trace.
pub fn read_history(content: &[u8], sha256: &str) -> Result<Trace, String> {
    parse(content, sha256, KEPT_BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str) -> StageRef {
        crescendo_proto::convert::stage("uno-7f3kq2", name).unwrap()
    }

    fn source(name: &str, history: Option<HistoryFile>) -> CurveSource {
        CurveSource { stage: stage(name), steps_total: 100, history }
    }

    fn point(step: u64) -> Point {
        Point { step, values: [1.0, 1.0, 1e-4, 2.0, 0.0] }
    }

    fn history_of(steps: u64) -> HistoryFile {
        HistoryFile { path: "a".into(), steps, size_bytes: 100, sha256: String::new() }
    }

    #[test]
    fn reports_become_a_curve_that_grows() {
        let (hub, source) = (CurveHub::default(), source("base", None));
        let (empty, cursor) = hub.curve(&source, 100, None).unwrap();
        assert!(empty.steps.is_empty());
        assert!(hub.curve(&source, 100, Some(cursor)).is_none(), "nothing is new");
        hub.push(&source.stage, Generation(1), &Point { step: 7, values: [0.0; 5] });
        for step in 1..=3 {
            hub.push(&source.stage, Generation(1), &point(step));
        }
        hub.push(&source.stage, Generation(1), &point(2));
        let (curve, cursor) = hub.curve(&source, 100, Some(cursor)).unwrap();
        assert_eq!((curve.after_step, curve.steps.as_slice()), (0, [1, 2, 3].as_slice()));
        hub.push(&source.stage, Generation(1), &point(4));
        let (curve, cursor) = hub.curve(&source, 100, Some(cursor)).unwrap();
        assert_eq!((curve.after_step, curve.steps.as_slice()), (2, [3, 4].as_slice()));
        // The next attempt begins at an earlier step; what is left of the one before changes nothing.
        hub.push(&source.stage, Generation(2), &point(3));
        hub.push(&source.stage, Generation(1), &point(9));
        let (curve, _) = hub.curve(&source, 100, Some(cursor)).unwrap();
        assert_eq!((curve.after_step, curve.steps.as_slice()), (0, [1, 2, 3].as_slice()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_history_is_read_once_and_only_where_it_tells_more() {
        let hub = CurveHub::default();
        let told = source("base", Some(history_of(3)));
        for step in 1..=3 {
            hub.push(&told.stage, Generation(1), &point(step));
        }
        assert_eq!(hub.wants(&told), None, "all of it was reported");
        let untold = source("more", Some(history_of(3)));
        hub.push(&untold.stage, Generation(1), &point(5));
        assert_eq!(hub.wants(&untold), Some(history_of(3)));
        assert_eq!(hub.wants(&untold), None, "somebody reads it");
        hub.keep(&untold.stage, Err("no curator is connected".into()));
        let (curve, _) = hub.curve(&untold, 100, None).unwrap();
        assert_eq!(curve.incomplete, "steps before 5 are not known here: no curator is connected");
        tokio::time::advance(TRY_AGAIN_AFTER).await;
        assert_eq!(hub.wants(&untold), Some(history_of(3)));
        let mut trace = Trace::new(KEPT_BUCKETS);
        (1..=3).for_each(|step| trace.push(&point(step)));
        hub.keep(&untold.stage, Ok(trace));
        tokio::time::advance(READ_AGAIN_AFTER).await;
        assert_eq!(hub.wants(&untold), None);
        let (curve, _) = hub.curve(&untold, 100, None).unwrap();
        assert_eq!((curve.steps.as_slice(), curve.incomplete.as_str()), ([1, 2, 3, 5].as_slice(), ""));
        let large = HistoryFile { size_bytes: MAX_HISTORY_BYTES + 1, ..history_of(9) };
        assert_eq!(hub.wants(&source("large", Some(large))), None);
    }

    #[test]
    fn stages_are_bounded() {
        let hub = CurveHub::default();
        for at in 0..MAX_STAGES + 3 {
            hub.push(&stage(&format!("stage-{at}")), Generation(1), &point(1));
        }
        assert_eq!(hub.lock().by_stage.len(), MAX_STAGES);
        let (curve, _) = hub.curve(&source("stage-0", None), 100, None).unwrap();
        assert!(curve.steps.is_empty(), "the oldest went first");
    }
}
