//! Files that curators are asked to read for people. The bytes never come here: a relay beside the engine hands them on.

use crescendo_core::access::Scope;
use crescendo_core::decide::choose_reader;
use crescendo_core::error::RequestError;
use crescendo_core::ids::{JobId, NodeId, Timestamp};
use crescendo_core::object_keys;
use crescendo_core::transitions;
use crescendo_proto::v1;
use crescendo_proto::v1::open_session_response::Message as Down;

use crate::engine::Engine;
use crate::engine::request::{Answer, Reply};

/// What was asked for in this batch, and of whom last.
#[derive(Default)]
pub(super) struct Reads {
    asked: Vec<(NodeId, v1::ReadObject)>,
    last: Option<NodeId>,
}

impl Reads {
    /// Their callers are told to try again.
    pub fn forget(&mut self) {
        self.asked.clear();
    }
}

impl Engine {
    /// Chooses a curator, which is asked once the batch is durable: what it is to read may be registered in the same one.
    pub(super) fn read_file(
        &mut self,
        job: &JobId,
        scope: &Scope,
        path: &str,
        name: &str,
        read_id: String,
        now: Timestamp,
    ) -> Answer<v1::CheckpointFile> {
        let file = transitions::checkpoint_file(self.job(job, scope)?, path, name)?;
        let file = v1::CheckpointFile {
            name: file.name.clone(),
            size_bytes: file.size_bytes,
            sha256: file.sha256.clone(),
        };
        self.ask_a_curator(object_keys::checkpoint_file(path, name), read_id, now)?;
        Ok(file)
    }

    pub(super) fn read_kept_log(
        &mut self,
        job: &JobId,
        scope: &Scope,
        read_id: String,
        reply: Reply<()>,
        now: Timestamp,
    ) {
        let key = self.job(job, scope).map(|_| object_keys::logs(job.as_str()));
        let answer = key.and_then(|key| self.ask_a_curator(key, read_id, now));
        self.hold(reply, answer);
    }

    fn ask_a_curator(&mut self, key: String, read_id: String, now: Timestamp) -> Answer<()> {
        let last = self.reads.last.as_ref();
        let node = choose_reader(&self.state, &self.observed, &self.limits, last, now).ok_or_else(|| {
            RequestError::Unserved { what: "no curator is connected that could read it".into() }
        })?;
        let object_store_url = self.around.config.object_store_url.clone();
        self.reads.last = Some(node.clone());
        self.reads.asked.push((node, v1::ReadObject { read_id, key, object_store_url }));
        Ok(())
    }

    pub(super) fn send_reads(&mut self) {
        for (node, read) in std::mem::take(&mut self.reads.asked) {
            tracing::info!(%node, key = read.key, "a curator is asked to read a file");
            self.send(&node, Down::ReadObject(read));
        }
    }
}
