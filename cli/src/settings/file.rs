//! The configuration file: contexts, each a cluster and how to log in there.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::token::{Token, TokenSource};
use crate::failure::Failure;

/// Largest configuration that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What `config.yaml` holds. Tokens are never in it: it names files or programs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Context that is used unless another is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// A cluster, and how to log in there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Context {
    /// host:port of each controller.
    pub controllers: Vec<String>,
    /// PEM file of the roots that controllers are verified by; the system's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// PEM files of this user's certificate and its key, where certificates are the login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// File with the token, as `crescendo login` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Or a program that prints the token, and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Tenant whose jobs are listed unless asked otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Folder or URL of the object store, for what is read from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<String>,
}

impl Context {
    pub fn token(&self) -> TokenSource {
        match (&self.token_file, self.exec.is_empty()) {
            (Some(file), _) => TokenSource::File(file.clone()),
            (None, false) => TokenSource::Exec(self.exec.clone()),
            (None, true) => TokenSource::None,
        }
    }
}

/// Where the configuration lies.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
}

impl ConfigFile {
    /// As given, else `crescendo/config.yaml` below `$XDG_CONFIG_HOME` or `~/.config`. `None` for a user without a home.
    pub fn locate(given: Option<&Path>) -> Option<ConfigFile> {
        if let Some(path) = given {
            return Some(ConfigFile { path: path.to_owned() });
        }
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base =
            absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
        Some(ConfigFile { path: base.join("crescendo/config.yaml") })
    }

    /// For commands that change it.
    pub fn required(given: Option<&Path>) -> Result<ConfigFile, Failure> {
        ConfigFile::locate(given).ok_or_else(|| {
            Failure::Usage("there is no home folder: name the configuration with --config".into())
        })
    }

    /// What it holds; nothing if it is not there.
    pub fn load(&self) -> Result<Config, Failure> {
        let shown = self.path.display();
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Config::default()),
            Err(error) => return Err(Failure::other(format!("read {shown}: {error}"))),
        };
        let found = file.metadata().map_err(Failure::from_error(format!("read {shown}")))?;
        // It names programs that are run.
        if found.mode() & 0o022 != 0 {
            return Err(Failure::Usage(format!(
                "{shown} can be changed by other users of this machine; close it with: chmod 600 {shown}"
            )));
        }
        if found.len() > MAX_BYTES {
            return Err(Failure::Usage(format!("{shown} is larger than {MAX_BYTES} bytes")));
        }
        let text = io::read_to_string(file).map_err(Failure::from_error(format!("read {shown}")))?;
        if text.trim().is_empty() {
            return Ok(Config::default());
        }
        serde_yaml::from_str(&text).map_err(|error| Failure::Usage(format!("{shown}: {error}")))
    }

    /// Reads it, lets `change` change it, and writes it. Two commands do so one after the other.
    pub fn update<T>(&self, change: impl FnOnce(&mut Config) -> Result<T, Failure>) -> Result<T, Failure> {
        let shown = self.path.display().to_string();
        let folder = self.folder();
        make_folder(&folder).map_err(Failure::from_error(format!("make {}", folder.display())))?;
        let lock = File::create(self.path.with_extension("lock"))
            .map_err(Failure::from_error(format!("lock {shown}")))?;
        lock.lock().map_err(Failure::from_error(format!("lock {shown}")))?;
        let mut config = self.load()?;
        let result = change(&mut config)?;
        let text = serde_yaml::to_string(&config).map_err(Failure::from_error(format!("write {shown}")))?;
        write_private(&self.path, text.as_bytes()).map_err(Failure::from_error(format!("write {shown}")))?;
        Ok(result)
    }

    fn folder(&self) -> PathBuf {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        }
    }

    /// Where the token of a context is kept.
    fn token_path(&self, context: &str) -> PathBuf {
        self.folder().join("tokens").join(context)
    }

    /// Keeps a context's token, readable to its owner alone; where that is.
    pub fn store_token(&self, context: &str, token: &Token) -> Result<PathBuf, Failure> {
        let path = self.token_path(context);
        let store = || {
            make_folder(path.parent().unwrap_or(Path::new(".")))?;
            write_private(&path, format!("{}\n", token.reveal()).as_bytes())?;
            path.canonicalize()
        };
        store().map_err(Failure::from_error(format!("write {}", path.display())))
    }

    /// Takes away what [`ConfigFile::store_token`] has kept. A token file of somebody else is left alone.
    pub fn forget_token(&self, context: &str) -> Result<(), Failure> {
        let path = self.token_path(context);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::other(format!("remove {}: {error}", path.display())))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Names of contexts become names of files.
pub fn check_name(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let dots = name.chars().all(|c| c == '.');
    if (1..=64).contains(&name.len()) && name.chars().all(fits) && !dots {
        Ok(name.to_owned())
    } else {
        Err("1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'".into())
    }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Puts a file in place as a whole, never readable to others in between.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    // One that was left behind may have other rights.
    let _ = std::fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_written_is_private_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = ConfigFile::locate(Some(&dir.path().join("a/config.yaml"))).unwrap();
        assert_eq!(file.load().unwrap(), Config::default());
        let context = Context { controllers: vec!["lab:7070".into()], ..Context::default() };
        file.update(|config| {
            config.contexts.insert("lab".into(), context.clone());
            Ok(())
        })
        .unwrap();
        let token = file.store_token("lab", &"secret".to_owned().into()).unwrap();
        assert_eq!(file.load().unwrap().contexts["lab"], context);
        assert_eq!((mode(&file.path), mode(&token), mode(token.parent().unwrap())), (0o600, 0o600, 0o700));
        assert_eq!(TokenSource::File(token.clone()).read().unwrap().unwrap().reveal(), "secret");
        file.forget_token("lab").unwrap();
        file.forget_token("lab").unwrap();
        assert!(!token.exists());
    }

    #[test]
    fn a_file_that_others_may_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, "contexts: {}\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let file = ConfigFile::locate(Some(&path)).unwrap();
        assert!(file.load().unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        for bad in ["contexts:\n  lab: {controlers: [a]}\n", "contexts: 3\n", "a: [", "contexts: {lab: {}}"] {
            std::fs::write(&path, bad).unwrap();
            let message = ConfigFile::locate(Some(&path)).unwrap().load().unwrap_err().to_string();
            assert!(message.contains("config.yaml"), "{message}");
        }
    }

    #[test]
    fn names_of_contexts_stay_in_their_folder() {
        for bad in ["", "..", "a/b", "a b", "ü", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("lab-1.eu_west").is_ok());
    }
}
