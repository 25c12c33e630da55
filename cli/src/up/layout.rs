//! What `up` starts: folders, programs and their arguments.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::binaries;
use super::process::LaunchSpec;
use crate::args::{Store, UpArgs};
use crate::failure::Failure;

/// How long curators may take when they are stopped: half of it to finish a unit, or else it is given back. Nobody reads
/// from them any more.
const CURATORS_WITHIN: Duration = Duration::from_secs(6);

pub struct Layout {
    /// Absolute.
    pub dir: PathBuf,
    pub object_store: String,
    controller: PathBuf,
    curator: PathBuf,
    trainer: PathBuf,
    store: String,
    pub library_root: PathBuf,
    /// What tenants and queues may use.
    tenants: Option<PathBuf>,
    curators: u32,
    trainers: u32,
    slots: u32,
    device: &'static str,
    /// How long trainers may take to save when they are stopped.
    save_within: Duration,
    /// Held as long as the cluster runs, so that no other `up` uses the folder.
    _lock: File,
}

impl Layout {
    pub fn prepare(dir: Option<&Path>, args: &UpArgs) -> Result<Layout, Failure> {
        let controller = binaries::find("crescendo-controller")?;
        let curator = binaries::find("crescendo-curator-node")?;
        let trainer = binaries::find("crescendo-trainer-node")?;

        let dir = dir.unwrap_or(Path::new(".crescendo"));
        let failed = |what: &Path| Failure::from_error(format!("prepare {}", what.display()));
        for folder in ["logs", "run", "objects"] {
            std::fs::create_dir_all(dir.join(folder)).map_err(failed(dir))?;
        }
        let dir = dir.canonicalize().map_err(failed(dir))?;
        let lock_path = dir.join("up.lock");
        let lock = File::create(&lock_path).map_err(failed(&lock_path))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => Failure::other(format!(
                "another `crescendo up` runs in {}; stop it, or use another --dir",
                dir.display()
            )),
            std::fs::TryLockError::Error(error) => {
                Failure::other(format!("lock {}: {error}", lock_path.display()))
            }
        })?;

        let root = args.library_root.as_deref().unwrap_or(Path::new("."));
        let library_root = root.canonicalize().map_err(failed(root))?;
        let found = |file: &PathBuf| {
            file.canonicalize().map_err(Failure::from_error(format!("read --tenants {}", file.display())))
        };
        let tenants = args.tenants.as_ref().map(found).transpose()?;
        let store = match &args.store {
            Store::Embedded => format!("embedded:{}", dir.join("store").display()),
            Store::Etcd(location) => location.clone(),
        };
        let object_store = format!("file://{}", dir.join("objects").display());
        Ok(Layout {
            dir,
            object_store,
            controller,
            curator,
            trainer,
            store,
            library_root,
            tenants,
            curators: args.curators,
            trainers: args.trainers,
            slots: args.slots,
            device: args.device.word(),
            save_within: args.save_within,
            _lock: lock,
        })
    }

    /// How long trainers may take to save when they are stopped.
    pub fn save_within(&self) -> Duration {
        self.save_within
    }

    pub fn node_count(&self) -> usize {
        self.curators as usize + self.trainers as usize
    }

    pub fn controller(&self) -> LaunchSpec {
        let mut options = vec![
            ("--store", self.store.clone().into()),
            ("--object-store", self.object_store.clone().into()),
        ];
        options.extend(self.tenants.clone().map(|file| ("--tenants", file.into())));
        self.plan("controller", &self.controller, &[], &options, Duration::ZERO)
    }

    /// Curators, which look for the controller at `controller`.
    pub fn curators(&self, controller: &str) -> Vec<LaunchSpec> {
        let one = |index| {
            let name = format!("curator-{index}");
            let within = self.save_within.min(CURATORS_WITHIN);
            let mut options = self.common(&name, controller, within);
            options.push(("--scratch", self.dir.join("scratch").join(&name).into()));
            self.plan(&name, &self.curator, &[], &options, within)
        };
        (0..self.curators).map(one).collect()
    }

    /// Trainers, which look for the controller at `controller`.
    pub fn trainers(&self, controller: &str) -> Vec<LaunchSpec> {
        let one = |index| {
            let name = format!("trainer-{index}");
            let mut options = self.common(&name, controller, self.save_within);
            options.push(("--slots", self.slots.to_string().into()));
            options.push(("--device", self.device.into()));
            options.push(("--scratch", self.dir.join("scratch").join(&name).into()));
            self.plan(&name, &self.trainer, &["agent"], &options, self.save_within)
        };
        (0..self.trainers).map(one).collect()
    }

    /// Options of every node.
    fn common(&self, name: &str, controller: &str, drain: Duration) -> Vec<(&'static str, OsString)> {
        vec![
            ("--node-id", OsString::from(name)),
            ("--controller", controller.into()),
            ("--library-root", self.library_root.clone().into()),
            ("--drain-seconds", drain.as_secs().to_string().into()),
        ]
    }

    /// `drain`: how long the process may take to hand over before it stops.
    fn plan(
        &self,
        name: &str,
        program: &Path,
        first: &[&str],
        options: &[(&str, OsString)],
        drain: Duration,
    ) -> LaunchSpec {
        let port_file = self.dir.join("run").join(format!("{name}.json"));
        let mut args: Vec<OsString> = first.iter().map(OsString::from).collect();
        for (option, value) in options {
            args.push(option.into());
            args.push(value.clone());
        }
        // Loopback only: no one else is there to protect from, and nobody has made certificates.
        args.push("--dev".into());
        args.push("--port-file".into());
        args.push(port_file.clone().into());
        LaunchSpec {
            name: name.to_owned(),
            program: program.to_owned(),
            args,
            log: self.dir.join("logs").join(format!("{name}.log")),
            port_file,
            drain,
        }
    }
}
