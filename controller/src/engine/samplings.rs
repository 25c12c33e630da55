//! Pictures of checkpoints: which curator draws which is decided now and then, the curator says how far it is, and what it hands in is
//! registered.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::access::Scope;
use crescendo_core::decide::next_samplings;
use crescendo_core::error::RequestError;
use crescendo_core::ids::{JobId, NodeId, StageRef, Timestamp};
use crescendo_core::records::Write;
use crescendo_core::sampling::SamplingRef;
use crescendo_core::transitions;
use crescendo_node::runtime::random;
use crescendo_proto::samplings::{file_message, sampling_message};
use crescendo_proto::v1;
use crescendo_proto::v1::open_session_response::Message as Down;
use tokio::time::Instant;

use crate::engine::Engine;
use crate::engine::drawing::Drawing;
use crate::engine::request::{ActingNode, Answer, SamplesRequest, SamplesWord};
use crate::engine::views::Views;

/// What is to be drawn is looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A curator that says nothing for so long draws no more.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// Wait after a try that has failed, three times as long after each: an outage of minutes is lived through.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Failures that are remembered; a try more is no harm.
const MAX_RESTS: usize = 1024;

/// What is not durable of the drawing.
pub(super) struct SamplingWork {
    /// By the word that the curator alone knows.
    pub under_way: BTreeMap<String, Drawing>,
    /// Those that have failed are tried again then.
    rests: BTreeMap<SamplingRef, Timestamp>,
    looked_at: Instant,
}

impl SamplingWork {
    pub fn new() -> Self {
        Self { under_way: BTreeMap::new(), rests: BTreeMap::new(), looked_at: Instant::now() }
    }
}

impl Engine {
    pub(super) fn handle_samples(&mut self, request: SamplesRequest, now: Timestamp) {
        match request {
            SamplesRequest::Report { draw_id, node, word, by, reply } => {
                let answer = self.take_samples_word(&draw_id, &node, word, &by, now);
                self.hold(reply, answer);
            }
            SamplesRequest::Read { stage, step, scope, read_id, reply } => {
                let answer = self.read_samples(&stage, step, &scope, read_id, now);
                self.hold(reply, answer);
            }
        }
    }

    fn take_samples_word(
        &mut self,
        draw_id: &str,
        node: &NodeId,
        word: SamplesWord,
        by: &ActingNode,
        now: Timestamp,
    ) -> Answer<()> {
        self.observed.heard(node, now);
        let gone = || RequestError::NotFound { what: format!("drawing {draw_id}") };
        let drawing = self.samplings.under_way.get_mut(draw_id).ok_or_else(gone)?;
        if drawing.node != *node || by.as_ref().is_some_and(|by| by != node) {
            return Err(RequestError::Forbidden { what: format!("{node} does not draw that") }.into());
        }
        let sampling = drawing.sampling.clone();
        let outcome = match word {
            SamplesWord::Progress { done, of } => {
                (drawing.done, drawing.of, drawing.heard_at) = (done, of, now);
                self.progressed.insert(sampling.stage.job);
                return Ok(());
            }
            SamplesWord::Done(drawn) => {
                let SamplingRef { stage, step, .. } = &sampling;
                let (pictures, loss) = (drawn.pictures, drawn.validation.as_ref().map(|loss| loss.mean));
                tracing::info!(job = %stage.job, stage = %stage.stage, step, %node, pictures, loss, "samples are drawn");
                transitions::commit_samples(&self.state, &sampling, drawn, self.observed.wall(now))
            }
            SamplesWord::Failed(reason) => {
                self.samplings.under_way.remove(draw_id);
                self.samples_failed(&sampling, node, &reason, now);
                return Ok(());
            }
        };
        // What is refused stays under way: its curator says in a moment that it has failed.
        let writes: Vec<Write> = outcome?;
        self.samplings.under_way.remove(draw_id);
        self.samplings.rests.remove(&sampling);
        self.around.metrics.samplings("drawn");
        self.write_all(writes);
        Ok(())
    }

    fn samples_failed(&mut self, sampling: &SamplingRef, node: &NodeId, reason: &str, now: Timestamp) {
        let SamplingRef { stage, step, .. } = sampling;
        tracing::warn!(job = %stage.job, stage = %stage.stage, step, %node, reason, "samples are not drawn");
        self.around.metrics.samplings("failed");
        let told = format!("{node}: {reason}");
        // Of a job that is gone, or is on its way out, there is nothing to note.
        let Ok(writes) = transitions::fail_samples(&self.state, sampling, &told) else { return };
        let before = self.state.sampling(stage, *step).map_or(0, |known| known.tries());
        let wait = FIRST_RETRY.saturating_mul(3u32.saturating_pow(before));
        if self.samplings.rests.len() >= MAX_RESTS {
            self.samplings.rests.clear();
        }
        self.samplings.rests.insert(sampling.clone(), now.plus(wait));
        self.write_all(writes);
    }

    /// Has drawn what is to be drawn, by the curators that are there, and counts those as failed that say nothing any more.
    pub(super) fn go_on_sampling(&mut self, now: Timestamp) {
        if self.samplings.looked_at.elapsed() < LOOK_EVERY {
            return;
        }
        self.samplings.looked_at = Instant::now();
        self.look_at_drawings(now);
        let under_way = &self.samplings.under_way;
        let busy: Vec<(&SamplingRef, &NodeId)> =
            under_way.values().map(|drawing| (&drawing.sampling, &drawing.node)).collect();
        let rests = &self.samplings.rests;
        let may = |sampling: &SamplingRef| rests.get(sampling).is_none_or(|until| now >= *until);
        for (node, sampling) in next_samplings(&self.state, &self.observed, &self.limits, &busy, may, now) {
            let draw_id = random::id();
            let view = self.observed.nodes.get(&node);
            let incarnation = view.map(|view| view.incarnation.clone());
            let message = self.draw_message(&sampling, draw_id.clone());
            let Some((message, incarnation)) = message.zip(incarnation) else { continue };
            let SamplingRef { stage, step, .. } = &sampling;
            tracing::info!(job = %stage.job, stage = %stage.stage, step, %node, "a curator is asked to draw samples");
            self.reads.ask(node.clone(), Down::DrawSamples(message));
            let drawing = Drawing { sampling, node, incarnation, heard_at: now, done: 0, of: 0 };
            self.samplings.under_way.insert(draw_id, drawing);
        }
    }

    fn look_at_drawings(&mut self, now: Timestamp) {
        let is_over = |drawing: &Drawing| {
            let view = self.observed.nodes.get(&drawing.node);
            let is_there = view.is_some_and(|view| view.incarnation == drawing.incarnation);
            !is_there || now.since(drawing.heard_at) > SILENCE_LIMIT
        };
        let over: Vec<String> = self
            .samplings
            .under_way
            .iter()
            .filter(|(_, drawing)| is_over(drawing))
            .map(|(id, _)| id.clone())
            .collect();
        for drawing in over.iter().filter_map(|id| self.samplings.under_way.remove(id)).collect::<Vec<_>>() {
            let reason = "it has gone, or says nothing of them any more";
            self.samples_failed(&drawing.sampling, &drawing.node, reason, now);
        }
    }

    /// What the curator is told; none if there is nothing to draw with any more.
    fn draw_message(&self, sampling: &SamplingRef, draw_id: String) -> Option<v1::DrawSamples> {
        let SamplingRef { stage, step, generation } = sampling;
        let (assigned, checkpoint) = self.sampling_message(stage, *step, *generation)?;
        Some(v1::DrawSamples {
            draw_id,
            stage: assigned.stage,
            stage_index: assigned.stage_index,
            resolved_spec_json: assigned.resolved_spec_json,
            object_store_url: assigned.object_store_url,
            step: *step,
            generation: generation.0,
            checkpoint,
            reach: assigned.reach,
        })
    }

    fn read_samples(
        &mut self,
        stage: &StageRef,
        step: u64,
        scope: &Scope,
        read_id: String,
        now: Timestamp,
    ) -> Answer<v1::CheckpointFile> {
        self.whole_job(&stage.job, scope)?;
        let found = self.state.sampling(stage, step).and_then(|sampling| sampling.pictures());
        let what = || format!("pictures of step {step} of {stage}");
        let (key, file) = found.ok_or_else(|| RequestError::NotFound { what: what() })?;
        let file = file_message(file);
        self.ask_a_curator(key, read_id, now)?;
        Ok(file)
    }
}

impl Views<'_> {
    /// What is drawn of a job's stages, or of one, by stage and step.
    pub fn samplings(
        &self,
        id: &JobId,
        only: &str,
        scope: &Scope,
    ) -> Result<Vec<v1::Sampling>, RequestError> {
        let job = crate::engine::views::visible_job(self.state, id, scope)?;
        if !only.is_empty() && job.stage_index(only).is_none() {
            return Err(RequestError::NotFound { what: format!("stage {id}/{only}") });
        }
        let stages = job.stages.iter().filter(|stage| only.is_empty() || stage.id.stage.as_str() == only);
        let drawn = stages.flat_map(|stage| stage.samplings.values()).map(|sampling| {
            let id = sampling.id();
            let drawing = self.drawing.values().find(|drawing| drawing.sampling == id);
            let progress = drawing.map(|drawing| v1::SamplingProgress {
                node_id: drawing.node.to_string(),
                done: drawing.done,
                of: drawing.of,
            });
            sampling_message(sampling, progress)
        });
        Ok(drawn.collect())
    }
}
