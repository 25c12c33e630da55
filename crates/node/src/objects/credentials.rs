//! Keys of S3 from a file, as a mounted secret is one: sections of `name = value`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use super::ObjectsError;

/// Largest file that is read.
const MAX_BYTES: u64 = 64 << 10;

/// One section of a file, read again when the file has changed.
pub struct SharedFile {
    path: PathBuf,
    profile: String,
    read: Mutex<(Option<SystemTime>, Arc<AwsCredential>)>,
}

impl std::fmt::Debug for SharedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedFile").field("path", &self.path).field("profile", &self.profile).finish()
    }
}

impl SharedFile {
    pub fn open(path: PathBuf, profile: String) -> Result<Self, ObjectsError> {
        let refused = |reason| ObjectsError::Setting { name: "AWS_SHARED_CREDENTIALS_FILE", reason };
        let (changed, credential) = load(&path, &profile).map_err(refused)?;
        Ok(Self { path, profile, read: Mutex::new((changed, Arc::new(credential))) })
    }

    fn newest(&self) -> Arc<AwsCredential> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = std::fs::metadata(&self.path).and_then(|facts| facts.modified()).ok();
        if changed.is_some() && changed != read.0 {
            match load(&self.path, &self.profile) {
                Ok((changed, credential)) => *read = (changed, Arc::new(credential)),
                // Perhaps half-written: the old keys may still do.
                Err(reason) => tracing::warn!(reason, "the new keys of the object store cannot be read"),
            }
        }
        read.1.clone()
    }
}

#[async_trait]
impl CredentialProvider for SharedFile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(self.newest())
    }
}

fn load(path: &Path, profile: &str) -> Result<(Option<SystemTime>, AwsCredential), String> {
    let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let facts = std::fs::metadata(path).map_err(unreadable)?;
    if facts.len() > MAX_BYTES {
        return Err(format!("{} is larger than {MAX_BYTES} bytes", path.display()));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let credential = parse(&text, profile).map_err(|reason| format!("{}: {reason}", path.display()))?;
    Ok((facts.modified().ok(), credential))
}

/// The key in a section. Errors repeat nothing of the file.
fn parse(text: &str, profile: &str) -> Result<AwsCredential, String> {
    let (mut inside, mut found) = (false, false);
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == profile;
            found |= inside;
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| inside) else { continue };
        let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        match name.trim() {
            "aws_access_key_id" => id = value,
            "aws_secret_access_key" => secret = value,
            "aws_session_token" => token = value,
            _ => {}
        }
    }
    match (found, id, secret) {
        (false, ..) => Err(format!("there is no section [{profile}]")),
        (true, Some(key_id), Some(secret_key)) => Ok(AwsCredential { key_id, secret_key, token }),
        (true, ..) => Err(format!("section [{profile}] needs aws_access_key_id and aws_secret_access_key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=B\n\n[team]\naws_access_key_id=C\n\
                        aws_secret_access_key = D=/+ \naws_session_token = E\nregion = x\n[half]\naws_access_key_id=F\n";

    #[test]
    fn sections_are_told_apart() {
        let key = |profile| parse(FILE, profile).map(|key| (key.key_id, key.secret_key, key.token));
        assert_eq!(key("default"), Ok(("A".into(), "B".into(), None)));
        assert_eq!(key("team"), Ok(("C".into(), "D=/+".into(), Some("E".into()))));
        assert!(key("half").unwrap_err().contains("[half] needs"));
        assert!(key("none").unwrap_err().contains("no section [none]"));
    }

    #[test]
    fn new_keys_are_taken_up_and_a_broken_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        let mut hour = 0;
        let mut write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            hour += 1;
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(3600 * hour);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        write(FILE);
        let file = SharedFile::open(path.clone(), "default".into()).unwrap();
        assert_eq!(file.newest().secret_key, "B");
        write("[default]\naws_access_key_id = A\naws_secret_access_key = new\n");
        assert_eq!(file.newest().secret_key, "new");
        write("[default]\n");
        assert_eq!(file.newest().secret_key, "new");
        assert!(!format!("{file:?}").contains("new"));
    }
}
