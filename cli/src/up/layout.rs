//! What `up` starts: folders, programs and their arguments.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::binaries;
use super::process::Plan;
use crate::args::{Store, UpArgs};
use crate::failure::Failure;

pub struct Layout {
    /// Absolute.
    pub dir: PathBuf,
    pub object_store: String,
    controller: PathBuf,
    curator: PathBuf,
    trainer: PathBuf,
    store: String,
    library_root: PathBuf,
    curators: u32,
    trainers: u32,
    slots: u32,
    device: &'static str,
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
            curators: args.curators,
            trainers: args.trainers,
            slots: args.slots,
            device: args.device.word(),
            _lock: lock,
        })
    }

    pub fn node_count(&self) -> usize {
        self.curators as usize + self.trainers as usize
    }

    pub fn controller(&self) -> Plan {
        self.plan(
            "controller",
            &self.controller,
            &[],
            &[("--store", self.store.clone().into()), ("--object-store", self.object_store.clone().into())],
        )
    }

    /// Curators and trainers, which look for the controller at `controller`.
    pub fn nodes(&self, controller: &str) -> Vec<Plan> {
        let common = |name: &str| {
            vec![
                ("--node-id", OsString::from(name)),
                ("--controller", controller.into()),
                ("--library-root", self.library_root.clone().into()),
                // All of the cluster ends together: there is no one to hand over to.
                ("--drain-seconds", "0".into()),
            ]
        };
        let curators = (0..self.curators).map(|index| {
            let name = format!("curator-{index}");
            self.plan(&name, &self.curator, &[], &common(&name))
        });
        let trainers = (0..self.trainers).map(|index| {
            let name = format!("trainer-{index}");
            let mut options = common(&name);
            options.push(("--slots", self.slots.to_string().into()));
            options.push(("--device", self.device.into()));
            options.push(("--scratch", self.dir.join("scratch").join(&name).into()));
            self.plan(&name, &self.trainer, &["agent"], &options)
        });
        curators.chain(trainers).collect()
    }

    fn plan(&self, name: &str, program: &Path, first: &[&str], options: &[(&str, OsString)]) -> Plan {
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
        Plan {
            name: name.to_owned(),
            program: program.to_owned(),
            args,
            log: self.dir.join("logs").join(format!("{name}.log")),
            port_file,
        }
    }
}
