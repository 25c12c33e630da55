//! How each kind of server is started, and when it is ready.

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub(super) const BUCKET: &str = "crescendo-test";
pub(super) const KEY_ID: &str = "test-key";
pub(super) const SECRET: &str = "test-secret-that-no-one-may-see";

/// A server that begins to serve.
pub(super) struct Launched {
    pub child: Child,
    /// Of S3.
    pub port: u16,
    pub ready: Ready,
}

/// What says that a server is ready.
pub(super) struct Ready {
    /// Answered with success.
    health: String,
    /// Can be written and deleted without a key.
    probe: Option<String>,
}

impl Ready {
    /// An error as long as it is not ready.
    pub async fn holds(&self, client: &reqwest::Client) -> reqwest::Result<()> {
        if let Some(probe) = &self.probe {
            client.put(probe).body("written").send().await?.error_for_status()?;
            client.delete(probe).send().await?.error_for_status()?;
        }
        client.get(&self.health).send().await?.error_for_status()?;
        Ok(())
    }
}

/// Starts `program` with `data` for its files and one bucket.
pub(super) fn launch(program: &Path, data: &Path) -> io::Result<Launched> {
    let is_minio =
        program.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("minio"));
    if is_minio { minio(program, data) } else { seaweedfs(program, data) }
}

/// So many free ports: all at once, so that no two are the same.
fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let taken: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    let mut ports = [0; N];
    for (port, taken) in ports.iter_mut().zip(&taken) {
        *port = taken.local_addr()?.port();
    }
    Ok(ports)
}

fn seaweedfs(program: &Path, data: &Path) -> io::Result<Launched> {
    const NAMES: [&str; 8] = [
        "-s3.port",
        "-filer.port",
        "-s3.port.grpc",
        "-filer.port.grpc",
        "-master.port",
        "-master.port.grpc",
        "-volume.port",
        "-volume.port.grpc",
    ];
    let people = serde_json::json!({ "identities": [{
        "name": "test",
        "credentials": [{ "accessKey": KEY_ID, "secretKey": SECRET }],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }] });
    let config = data.join("s3.json");
    std::fs::write(&config, people.to_string())?;
    let ports = free_ports::<{ NAMES.len() }>()?;
    let child = quietly(program)
        .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-iam=false"])
        .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"])
        // Small volumes, so that a few fit on any disk.
        .args(["-master.volumeSizeLimitMB=64", "-volume.max=16"])
        .args(NAMES.iter().zip(ports).map(|(name, port)| format!("{name}={port}")))
        .arg(format!("-dir={}", data.display()))
        .arg(format!("-s3.config={}", config.display()))
        .spawn()?;
    let [s3, filer, ..] = ports;
    let ready = Ready {
        health: format!("http://127.0.0.1:{s3}/healthz"),
        // A bucket is a folder of its file server. That something can be written there says that all parts have found each other.
        probe: Some(format!("http://127.0.0.1:{filer}/buckets/{BUCKET}/probe")),
    };
    Ok(Launched { child, port: s3, ready })
}

fn minio(program: &Path, data: &Path) -> io::Result<Launched> {
    // A folder below its data is a bucket.
    std::fs::create_dir_all(data.join(BUCKET))?;
    let [s3, console] = free_ports()?;
    let child = quietly(program)
        .args(["server", "--address", &format!("127.0.0.1:{s3}")])
        .args(["--console-address", &format!("127.0.0.1:{console}")])
        .arg(data)
        .envs([("MINIO_ROOT_USER", KEY_ID), ("MINIO_ROOT_PASSWORD", SECRET), ("MINIO_UPDATE", "off")])
        .spawn()?;
    let health = format!("http://127.0.0.1:{s3}/minio/health/ready");
    Ok(Launched { child, port: s3, ready: Ready { health, probe: None } })
}

fn quietly(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
