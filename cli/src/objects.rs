//! The object store, as commands read it.

use std::path::Path;
use std::sync::Arc;

use crescendo_node::objects::{self, Location, with_causes};
use object_store::ObjectStore;

use crate::commands::whoami;
use crate::connect::{Controller, LOOK};
use crate::failure::Failure;

/// Its URL: from the flag, or else from the context or the cluster that `up` runs, or else as the controller says.
pub async fn url(controller: &Controller, given: Option<&str>) -> Result<String, Failure> {
    if let Some(url) = given.or(controller.object_store()) {
        return as_url(url);
    }
    let told = whoami::fetch(controller, LOOK).await?.object_store_url;
    if told.is_empty() {
        return Err(Failure::Usage(
            "what is asked for lies in the object store: give its folder or URL with --object-store".into(),
        ));
    }
    Ok(told)
}

/// How a file comes out of the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Read from here, at this URL, which the command line names.
    Direct(String),
    /// Read from here, at this URL, as far as the environment tells; through the controller if the store does not let it.
    DirectFirst(String),
    /// Through the controller, which has a curator read it.
    Relayed,
}

/// The way to the object at `key`: direct where the command line names the store, or [`reaches`] it.
pub async fn way(controller: &Controller, given: Option<&str>, key: &str) -> Result<Way, Failure> {
    if let Some(given) = given {
        return Ok(Way::Direct(as_url(given)?));
    }
    let (url, named) = match controller.object_store() {
        Some(known) => (as_url(known)?, true),
        None => (whoami::fetch(controller, LOOK).await?.object_store_url, false),
    };
    let has = |folder: &Path| folder.join(key).is_file();
    let direct = reaches(&url, named, has, |name| std::env::var_os(name).is_some());
    Ok(if direct { Way::DirectFirst(url) } else { Way::Relayed })
}

/// Whether this machine reads the store at `url` by itself: a folder that it was told of (`named`) or that has what is asked
/// for, or a bucket that the environment has a key of.
fn reaches(url: &str, named: bool, has: impl Fn(&Path) -> bool, is_set: impl Fn(&str) -> bool) -> bool {
    match Location::parse(url) {
        Ok(Location::Folder(folder)) => named || has(&folder),
        Ok(Location::S3 { .. }) => KEYS.into_iter().any(is_set),
        // Opening it says what is wrong with it, to whoever has written it.
        Err(_) => named,
    }
}

/// A folder of this machine as a URL; a URL as it is.
pub fn as_url(given: &str) -> Result<String, Failure> {
    if given.contains("://") {
        return Ok(given.to_owned());
    }
    let folder =
        Path::new(given).canonicalize().map_err(Failure::from_error(format!("object store {given}")))?;
    Ok(format!("file://{}", folder.display()))
}

/// Opens what is there already: a folder that is missing is not made.
pub fn open_existing(url: &str) -> Result<Arc<dyn ObjectStore>, Failure> {
    let failed = |error: objects::ObjectsError| Failure::other(with_causes(&error));
    if let Location::Folder(folder) = Location::parse(url).map_err(failed)?
        && !folder.is_dir()
    {
        return Err(Failure::Usage(format!(
            "the object store is {}, a folder that this machine does not have; --object-store names it as it is reached from here",
            folder.display()
        )));
    }
    objects::open(url).map_err(failed)
}

/// An error of the store with its causes, some of which end in nothing.
pub fn readable(error: &dyn std::error::Error) -> String {
    with_causes(error).trim_end_matches([':', ' ']).to_owned()
}

/// Variables any of which gives a key of a bucket.
const KEYS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
];

/// What to add to an error of reading from `url`: that nobody has given a key, where that is so. Empty otherwise.
pub fn without_keys(url: &str, is_set: impl Fn(&str) -> bool) -> &'static str {
    if !url.starts_with("s3://") || KEYS.into_iter().any(is_set) {
        return "";
    }
    "; the environment has no key of the bucket: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another of those in docs/object-store.md"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_does_not_reach_comes_through_the_controller() {
        let key = |name: &str| name == "AWS_ACCESS_KEY_ID";
        assert!(reaches("file:///mnt/objects", true, |_| false, |_| false), "the context has named it");
        assert!(reaches(
            "file:///mnt/objects",
            false,
            |folder| folder == Path::new("/mnt/objects"),
            |_| false
        ));
        assert!(!reaches("file:///mnt/objects", false, |_| false, key), "a folder of other machines");
        for named in [false, true] {
            assert!(reaches("s3://bucket/one", named, |_| false, key));
            assert!(!reaches("s3://bucket/one", named, |_| true, |_| false), "without a key of it");
        }
        assert!(!reaches("", false, |_| true, key), "the controller does not say");
    }

    #[test]
    fn a_missing_key_is_told_of_where_one_is_needed() {
        assert!(without_keys("s3://b/p", |_| false).contains("AWS_ACCESS_KEY_ID"));
        assert_eq!(without_keys("s3://b/p", |name| name == "AWS_WEB_IDENTITY_TOKEN_FILE"), "");
        assert_eq!(without_keys("file:///b", |_| false), "");
    }
}
