//! Starts a real etcd on free loopback ports.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// How long an etcd may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Another process may take a port between its choice and its use.
const START_ATTEMPTS: usize = 3;

/// Files with which an etcd serves TLS, PEM.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Roots for the certificates that clients have to show.
    pub client_ca: PathBuf,
}

/// A single-member etcd with its data in a temporary folder. Killed, and its folder removed, when dropped.
#[derive(Debug)]
pub struct EtcdProcess {
    program: PathBuf,
    dir: TempDir,
    client_port: u16,
    peer_port: u16,
    /// Tells it from an etcd of another test that took the port first.
    name: String,
    /// With the port that it is served at, beside the plain one.
    tls: Option<(EtcdTls, u16)>,
    child: Option<Child>,
}

impl EtcdProcess {
    /// Starts etcd (`CRESCENDO_ETCD` where that file exists, else `etcd` on the path) and waits until it answers.
    ///
    /// When there is none: `None` with a line on stderr, so that a test can skip itself in plain sight; but a panic
    /// where etcd has to be there, that is with `CI` or `CRESCENDO_REQUIRE_ETCD` set.
    pub async fn start_or_skip() -> Option<Self> {
        Self::start_or_skip_with(None).await
    }

    /// The same, at a TLS port too: see [`EtcdProcess::tls_endpoint`].
    pub async fn start_or_skip_with(tls: Option<EtcdTls>) -> Option<Self> {
        let chosen = std::env::var_os("CRESCENDO_ETCD").map(PathBuf::from).filter(|path| path.exists());
        match Self::start(chosen.unwrap_or_else(|| "etcd".into()), tls).await {
            Ok(etcd) => Some(etcd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let required =
                    ["CI", "CRESCENDO_REQUIRE_ETCD"].iter().any(|name| std::env::var_os(name).is_some());
                assert!(!required, "etcd is required here, but not found: {error}");
                eprintln!("SKIPPED: etcd is not on the path (set CRESCENDO_ETCD, or install etcd-server)");
                None
            }
            Err(error) => panic!("cannot start etcd: {error}"),
        }
    }

    /// Starts this etcd program and waits until it answers.
    pub async fn start(program: PathBuf, tls: Option<EtcdTls>) -> io::Result<Self> {
        let mut last_error = io::Error::other("not tried");
        for _ in 0..START_ATTEMPTS {
            let [client_port, peer_port, tls_port] = free_ports()?;
            let dir = tempfile::Builder::new().prefix("etcd-").tempdir()?;
            let name = format!("test-{}-{client_port}-{peer_port}", std::process::id());
            let tls = tls.clone().map(|files| (files, tls_port));
            let mut etcd =
                Self { program: program.clone(), dir, client_port, peer_port, name, tls, child: None };
            match etcd.run().await {
                Ok(()) => return Ok(etcd),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    /// The URL for clients.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The URL for clients with TLS and a certificate; `host` is a name that the server's certificate has. Absent if it
    /// was started without.
    pub fn tls_endpoint(&self, host: &str) -> Option<String> {
        self.tls.as_ref().map(|(_, port)| format!("https://{host}:{port}"))
    }

    /// The address for clients.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Has it refuse writes, as it does once its quota is used up, until it is told otherwise.
    pub async fn set_full(&self, full: bool) -> Result<(), etcd_client::Error> {
        use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client};
        let mut client = Client::connect([self.endpoint()], None).await?;
        let member = client.member_list().await?.members().first().map_or(0, etcd_client::Member::id);
        let action = if full { AlarmAction::Activate } else { AlarmAction::Deactivate };
        let mut options = AlarmOptions::new();
        options.with_member(member);
        client.alarm(action, AlarmType::Nospace, Some(options)).await?;
        Ok(())
    }

    /// Ends it with `SIGKILL`, keeping its data.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it, on the same ports and data, after [`EtcdProcess::kill`], and waits until it answers.
    pub async fn run(&mut self) -> io::Result<()> {
        let client_url = self.endpoint();
        let peer_url = format!("http://127.0.0.1:{}", self.peer_port);
        let log = File::options().create(true).append(true).open(self.dir.path().join("etcd.log"))?;
        let mut command = Command::new(&self.program);
        let mut client_urls = client_url.clone();
        if let Some((files, port)) = &self.tls {
            client_urls.push_str(&format!(",https://127.0.0.1:{port}"));
            command.arg("--cert-file").arg(&files.cert).arg("--key-file").arg(&files.key);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&files.client_ca);
        }
        let child = command
            .args(["--name", &self.name, "--log-level", "warn", "--logger", "zap"])
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client_urls, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("{}={peer_url}", self.name)])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        self.wait_until_it_answers().await
    }

    async fn wait_until_it_answers(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                let log = std::fs::read_to_string(self.dir.path().join("etcd.log")).unwrap_or_default();
                return Err(io::Error::other(format!("etcd ended with {status}: {log}")));
            }
            let asking = async {
                let mut client = etcd_client::Client::connect([self.endpoint()], None).await?;
                client.get("is anybody there", None).await?;
                client.member_list().await
            };
            if let Ok(Ok(answer)) = timeout(Duration::from_secs(1), asking).await {
                return if answer.members().iter().any(|member| member.name() == self.name) {
                    Ok(())
                } else {
                    Err(io::Error::other(format!("another etcd answers on port {}", self.client_port)))
                };
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "etcd does not answer"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_ports() -> io::Result<[u16; 3]> {
    // All are held at once, so that they differ.
    let bind = || TcpListener::bind("127.0.0.1:0");
    let held = [bind()?, bind()?, bind()?];
    let [first, second, third] = &held;
    Ok([first.local_addr()?.port(), second.local_addr()?.port(), third.local_addr()?.port()])
}
