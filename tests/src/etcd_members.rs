//! An etcd of several members, each of which can be killed and started again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::ports::free_port;

/// All members run on this machine; killed when this is dropped. As they ship: a heartbeat every 100 ms, an election after
/// 1 s.
#[derive(Debug)]
pub struct EtcdMembers {
    program: PathBuf,
    folder: PathBuf,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    client: String,
    peer: String,
    child: Option<Child>,
}

impl EtcdMembers {
    /// Starts `count` members (`CRESCENDO_ETCD`, else `etcd` on the path) with their data below `folder`.
    pub async fn start(folder: &Path, count: usize) -> Result<EtcdMembers> {
        let chosen = std::env::var_os("CRESCENDO_ETCD").map(PathBuf::from).filter(|path| path.exists());
        let mut members = Vec::new();
        for index in 0..count {
            members.push(Member {
                name: format!("etcd-{index}"),
                client: format!("127.0.0.1:{}", free_port()?),
                peer: format!("127.0.0.1:{}", free_port()?),
                child: None,
            });
        }
        let program = chosen.unwrap_or_else(|| "etcd".into());
        let mut etcd = EtcdMembers { program, folder: folder.to_owned(), members };
        for index in 0..count {
            etcd.start_member(index)?;
        }
        Ok(etcd)
    }

    /// Where clients reach each member, host:port.
    pub fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// Starts a member that does not run, on the data it had.
    pub fn start_member(&mut self, index: usize) -> Result<()> {
        let initial: Vec<String> =
            self.members.iter().map(|member| format!("{}=http://{}", member.name, member.peer)).collect();
        let member = &mut self.members[index];
        let log = self.folder.join(format!("{}.log", member.name));
        let log = File::options().create(true).append(true).open(log).context("open etcd's log")?;
        let (client, peer) = (format!("http://{}", member.client), format!("http://{}", member.peer));
        let child = Command::new(&self.program)
            .args(["--name", &member.name, "--log-level", "warn", "--logger", "zap"])
            .arg("--data-dir")
            .arg(self.folder.join(&member.name))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &initial.join(",")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        member.child = Some(child);
        Ok(())
    }

    /// `kill -9` of a member.
    pub fn kill_9(&mut self, index: usize) -> Result<()> {
        let mut child = self.members[index].child.take().context("the member does not run")?;
        child.kill().context("kill")?;
        child.wait().context("wait")?;
        Ok(())
    }
}

impl Drop for EtcdMembers {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
