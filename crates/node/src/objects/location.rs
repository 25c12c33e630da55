//! Pure: what a URL of an object store says.

use std::path::PathBuf;

use super::ObjectsError;

/// Where an object store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Folder(PathBuf),
    /// Keys are below `prefix`, which may be empty.
    S3 {
        bucket: String,
        prefix: String,
    },
}

impl Location {
    pub fn parse(url: &str) -> Result<Self, ObjectsError> {
        let problem = |reason: &str| ObjectsError::Url { url: shown(url), reason: reason.into() };
        if let Some(path) = url.strip_prefix("file://") {
            return folder(path).map_err(problem);
        }
        match url.strip_prefix("s3://") {
            Some(rest) => s3(rest).map_err(problem),
            None => Err(problem("must begin with file:// or s3://")),
        }
    }
}

fn folder(path: &str) -> Result<Location, &'static str> {
    if !path.starts_with('/') {
        return Err("needs an absolute path, as in file:///var/lib/crescendo");
    }
    if path.contains('%') || path.split('/').any(|part| part == "..") {
        return Err("must be a plain path without '%' and '..'");
    }
    Ok(Location::Folder(PathBuf::from(path)))
}

fn s3(rest: &str) -> Result<Location, &'static str> {
    if rest.contains(['@', '?', '#']) {
        return Err(
            "must be s3://BUCKET or s3://BUCKET/PREFIX: keys and settings come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)",
        );
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let of_bucket = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(of_bucket) {
        return Err("needs a bucket's name: 3 to 63 characters of a-z, 0-9, '.' and '-'");
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let of_prefix = |c: char| c.is_ascii_alphanumeric() || "-_.=+/".contains(c);
    let empty = |part: &str| part.is_empty() || part == "." || part == "..";
    if !prefix.is_empty() && (!prefix.chars().all(of_prefix) || prefix.split('/').any(empty)) {
        return Err(
            "needs a plain prefix: names of a-z, A-Z, 0-9, '-', '_', '.', '=' and '+' between single '/'",
        );
    }
    Ok(Location::S3 { bucket: bucket.into(), prefix: prefix.into() })
}

/// A URL as it may be shown: what may be a password is left out.
fn shown(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) if rest.contains(['@', '?', '#']) => format!("{scheme}://…"),
        _ => url.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_read() {
        let s3 = |bucket: &str, prefix: &str| Location::S3 { bucket: bucket.into(), prefix: prefix.into() };
        for (url, expected) in [
            ("file:///var/lib/x", Location::Folder("/var/lib/x".into())),
            ("s3://bucket", s3("bucket", "")),
            ("s3://bucket/", s3("bucket", "")),
            ("s3://my.bucket-1/team/a=b/", s3("my.bucket-1", "team/a=b")),
        ] {
            assert_eq!(Location::parse(url).unwrap(), expected, "{url}");
        }
    }

    #[test]
    fn what_cannot_be_opened_is_refused() {
        for bad in [
            "",
            "/tmp",
            "gs://bucket",
            "file://relative",
            "file:///a/../b",
            "s3://",
            "s3://ab",
            "s3://Bucket",
            "s3://bucket//x",
            "s3://bucket/../x",
            "s3://bucket/a b",
            "s3:///x",
        ] {
            assert!(matches!(Location::parse(bad), Err(ObjectsError::Url { .. })), "{bad}");
        }
    }

    #[test]
    fn keys_in_a_url_are_refused_and_not_repeated() {
        for bad in
            ["s3://id:secret@bucket/x", "s3://bucket?key=secret", "s3://bucket/x#secret", "ftp://u:secret@h"]
        {
            let error = Location::parse(bad).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
