//! What curators are asked to do in the object store: to read files for people, whose bytes never come here (a relay beside the
//! engine hands them on), and to collect what no record names.

use crescendo_core::access::Scope;
use crescendo_core::decide::choose_reader;
use crescendo_core::error::RequestError;
use crescendo_core::ids::{JobId, NodeId, Timestamp};
use crescendo_core::leftovers::{CollectRules, ListedObject, Wanted, deleted_objects, leftovers};
use crescendo_core::object_keys;
use crescendo_core::state::Job;
use crescendo_core::transitions;
use crescendo_proto::v1;
use crescendo_proto::v1::open_session_response::Message as Down;

use crate::engine::Engine;
use crate::engine::request::{Answer, ObjectRequest, Reply};
use crate::engine::review::{self, PairsAsked, PairsWanted};

/// What was asked for in this batch, and of whom last.
#[derive(Default)]
pub(super) struct Reads {
    asked: Vec<(NodeId, Down)>,
    last: Option<NodeId>,
}

impl Reads {
    /// What a curator is told once the batch is durable.
    pub fn ask(&mut self, node: NodeId, what: Down) {
        self.asked.push((node, what));
    }

    /// Their callers are told to try again.
    pub fn forget(&mut self) {
        self.asked.clear();
    }
}

impl Engine {
    pub(super) fn handle_objects(&mut self, request: ObjectRequest, now: Timestamp) {
        match request {
            ObjectRequest::ReadFile { job, scope, path, name, read_id, reply } => {
                let answer = self.read_file(&job, &scope, &path, &name, read_id, now);
                self.hold(reply, answer);
            }
            ObjectRequest::ReadKeptLog { job, scope, read_id, reply } => {
                self.read_kept_log(&job, &scope, read_id, reply, now);
            }
            ObjectRequest::ReadPairs { wanted, scope, read_id, reply } => {
                let answer = self.read_pairs(&wanted, &scope, read_id, now);
                self.hold(reply, answer);
            }
            ObjectRequest::CollectLeftovers { collect_id, job, dry_run, reply } => {
                self.collect_leftovers(collect_id, job.as_ref(), dry_run, reply, now);
            }
            ObjectRequest::JudgeObjects { listed, mark, wanted, reply } => {
                let answer = self.judge_objects(&listed, &mark, wanted, now);
                self.hold(reply, answer);
            }
        }
    }

    /// Chooses a curator, which is asked once the batch is durable: what it is to read may be registered in the same one.
    fn read_file(
        &mut self,
        job: &JobId,
        scope: &Scope,
        path: &str,
        name: &str,
        read_id: String,
        now: Timestamp,
    ) -> Answer<v1::CheckpointFile> {
        let file = transitions::checkpoint_file(self.whole_job(job, scope)?, path, name)?;
        let file = v1::CheckpointFile {
            name: file.name.clone(),
            size_bytes: file.size_bytes,
            sha256: file.sha256.clone(),
        };
        self.ask_a_curator(object_keys::checkpoint_file(path, name), read_id, now)?;
        Ok(file)
    }

    fn read_kept_log(
        &mut self,
        job: &JobId,
        scope: &Scope,
        read_id: String,
        reply: Reply<()>,
        now: Timestamp,
    ) {
        let key = self.whole_job(job, scope).map(|_| object_keys::logs(job.as_str()));
        let answer = key.and_then(|key| self.ask_a_curator(key, read_id, now));
        self.hold(reply, answer);
    }

    /// Has a curator read pairs, if there are any.
    fn read_pairs(
        &mut self,
        wanted: &PairsWanted,
        scope: &Scope,
        read_id: String,
        now: Timestamp,
    ) -> Answer<PairsAsked> {
        self.whole_job(&wanted.stage.job, scope)?;
        let (tars, asked) = review::tars_of(&self.state, wanted)?;
        if !tars.is_empty() {
            let node = self.reader(now)?;
            tracing::info!(%node, stage = %wanted.stage, units = tars.len(), "a curator is asked to read pairs");
            let object_store_url = self.around.config.object_store_url.clone();
            let read = wanted.command(read_id, object_store_url, tars);
            self.reads.asked.push((node, Down::ReadStoredPairs(read)));
        }
        Ok(asked)
    }

    /// A job whose files are there: it is not being deleted.
    pub(super) fn whole_job(&self, job: &JobId, scope: &Scope) -> Answer<&Job> {
        let found = self.job(job, scope)?;
        match self.state.deletion(job) {
            Some(_) => Err(RequestError::TooLate { what: format!("job {job} is being deleted") }.into()),
            None => Ok(found),
        }
    }

    pub(super) fn ask_a_curator(&mut self, key: String, read_id: String, now: Timestamp) -> Answer<()> {
        let node = self.reader(now)?;
        tracing::info!(%node, key, "a curator is asked to read a file");
        let object_store_url = self.around.config.object_store_url.clone();
        self.reads.ask(node, Down::ReadObject(v1::ReadObject { read_id, key, object_store_url }));
        Ok(())
    }

    fn reader(&mut self, now: Timestamp) -> Answer<NodeId> {
        let last = self.reads.last.as_ref();
        let node = choose_reader(&self.state, &self.observed, &self.limits, last, now).ok_or_else(|| {
            RequestError::Unserved { what: "no curator is connected that could read it".into() }
        })?;
        self.reads.last = Some(node.clone());
        Ok(node)
    }

    fn collect_leftovers(
        &mut self,
        collect_id: String,
        job: Option<&JobId>,
        dry_run: bool,
        reply: Reply<()>,
        now: Timestamp,
    ) {
        let prefix = job.map_or_else(|| object_keys::JOBS.to_owned(), |job| object_keys::job(job.as_str()));
        let answer = self.reader(now).map(|node| {
            tracing::info!(%node, prefix, dry_run, "a curator is asked to look for what is to be removed");
            let object_store_url = self.around.config.object_store_url.clone();
            let collect = v1::CollectObjects { collect_id, prefix, dry_run, object_store_url };
            self.reads.ask(node, Down::CollectObjects(collect));
        });
        self.hold(reply, answer);
    }

    /// Only in a root that is marked as this cluster's.
    fn judge_objects(
        &mut self,
        listed: &[ListedObject],
        mark: &v1::StoreMark,
        wanted: Wanted,
        now: Timestamp,
    ) -> Answer<Vec<usize>> {
        let is_own = self.state.cluster().is_some_and(|cluster| cluster.id == mark.cluster_id)
            && self.store_id() == Some(&mark.store_id);
        if !is_own {
            let url = &self.around.config.object_store_url;
            let (theirs, ours) =
                (&mark.cluster_id, self.state.cluster().map_or("none", |cluster| &cluster.id));
            let what = format!(
                "the root {url} is not marked as this cluster's: its mark names {theirs}, and this is {ours}; nothing in it is judged"
            );
            return Err(RequestError::TooLate { what }.into());
        }
        if let Wanted::Deletion { job, keep, dry_run } = wanted {
            return Ok(deleted_objects(&self.state, listed, &job, keep, dry_run));
        }
        let owns_root = mark.began_empty && wanted == Wanted::OfOneJob;
        let rules = CollectRules { grace: self.around.config.collect_grace, owns_root };
        Ok(leftovers(&self.state, listed, rules, self.observed.wall(now)))
    }

    pub(super) fn send_reads(&mut self) {
        for (node, read) in std::mem::take(&mut self.reads.asked) {
            self.send(&node, read);
        }
    }
}
