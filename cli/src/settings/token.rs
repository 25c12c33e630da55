//! Tokens: where they come from, and how they are kept out of sight.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// Longest token that is read: far above any JSON Web Token.
pub const MAX_TOKEN_BYTES: u64 = 64 * 1024;
/// A command that prints a token may ask a person to look at a browser.
const EXEC_DEADLINE: Duration = Duration::from_secs(60);
const EXEC_POLL: Duration = Duration::from_millis(20);

/// A token. It shows itself to no one by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Token {
    fn from(text: String) -> Token {
        Token(text)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Where the token is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TokenSource {
    #[default]
    None,
    /// From the environment, or just typed.
    Given(Token),
    /// Read each time that it is needed: whoever renews it writes the file.
    File(PathBuf),
    /// A program and its arguments; it prints the token.
    Exec(Vec<String>),
}

impl TokenSource {
    pub fn is_some(&self) -> bool {
        *self != TokenSource::None
    }

    /// The token, if there is to be one.
    pub fn read(&self) -> Result<Option<Token>, Failure> {
        match self {
            TokenSource::None => Ok(None),
            TokenSource::Given(token) => checked(token.reveal(), "the token in CRESCENDO_TOKEN").map(Some),
            TokenSource::File(path) => read_file(path).map(Some),
            TokenSource::Exec(command) => exec(command).map(Some),
        }
    }
}

fn read_file(path: &Path) -> Result<Token, Failure> {
    let shown = path.display();
    let file =
        std::fs::File::open(path).map_err(Failure::from_error(format!("read the token in {shown}")))?;
    let found = file.metadata().map_err(Failure::from_error(format!("read the token in {shown}")))?;
    // A group may read it: that is how Kubernetes mounts a secret for a user that is not root.
    if found.is_file() && found.mode() & 0o007 != 0 {
        return Err(Failure::Usage(format!(
            "the token in {shown} can be read by everyone on this machine; close it with: chmod 600 {shown}"
        )));
    }
    let mut text = String::new();
    file.take(MAX_TOKEN_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(Failure::from_error(format!("read the token in {shown}")))?;
    checked(&text, &format!("the token in {shown}"))
}

/// One word of visible ASCII, with line ends around it perhaps.
pub fn checked(text: &str, what: &str) -> Result<Token, Failure> {
    let token = text.trim();
    if token.is_empty() {
        return Err(Failure::Usage(format!("{what} is empty")));
    }
    if token.len() as u64 > MAX_TOKEN_BYTES {
        return Err(Failure::Usage(format!("{what} is longer than {MAX_TOKEN_BYTES} bytes")));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::Usage(format!("{what} is not a token: it must be one word of visible ASCII")));
    }
    Ok(Token(token.to_owned()))
}

fn exec(command: &[String]) -> Result<Token, Failure> {
    let Some((program, args)) = command.split_first() else {
        return Err(Failure::Usage("the context's exec names no program".into()));
    };
    let what = format!("get a token from `{program}`");
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Failure::from_error(&what))?;
    // The output is read beside the wait, so that a program that writes much cannot block.
    let output = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        match output {
            Some(output) => output.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text).map(|_| text),
            None => Ok(text),
        }
    });
    let began = Instant::now();
    let status = loop {
        match child.try_wait().map_err(Failure::from_error(&what))? {
            Some(status) => break status,
            None if began.elapsed() >= EXEC_DEADLINE => {
                let _ = child.kill();
                let _ = child.wait();
                let seconds = EXEC_DEADLINE.as_secs();
                return Err(Failure::other(format!("{what}: it did not end within {seconds} s")));
            }
            None => std::thread::sleep(EXEC_POLL),
        }
    };
    if !status.success() {
        return Err(Failure::other(format!("{what}: {status}; what it says is above")));
    }
    let text = reader
        .join()
        .map_err(|_| Failure::other(format!("{what}: its output cannot be read")))?
        .map_err(Failure::from_error(&what))?;
    checked(&text, &format!("what `{program}` printed"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(mode: u32, content: &str) -> (tempfile::TempDir, TokenSource) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, TokenSource::File(path))
    }

    #[test]
    fn a_token_file_must_be_closed_to_others() {
        let (_dir, open) = file(0o644, "abc");
        let message = open.read().unwrap_err().to_string();
        assert!(message.contains("chmod 600"), "{message}");
        for mode in [0o600, 0o440] {
            let (_dir, closed) = file(mode, "abc\n");
            assert_eq!(closed.read().unwrap().unwrap().reveal(), "abc");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_repeated() {
        for bad in ["", " \n", "two words", "tok\u{e9}n", "a\nb", &"x".repeat(70_000)] {
            let (_dir, source) = file(0o600, bad);
            let message = source.read().unwrap_err().to_string();
            assert!(bad.trim().is_empty() || !message.contains(bad.trim()), "{message}");
        }
        assert_eq!(format!("{:?}", Token::from("secret".to_owned())), "[redacted]");
    }

    #[test]
    fn a_program_prints_the_token_or_fails() {
        let sh = |script: &str| TokenSource::Exec(["sh", "-c", script].map(str::to_owned).to_vec());
        assert_eq!(sh("echo abc").read().unwrap().unwrap().reveal(), "abc");
        assert!(sh("exit 3").read().unwrap_err().to_string().contains("exit status: 3"));
        assert!(
            TokenSource::Exec(vec!["/nowhere/x".into()])
                .read()
                .unwrap_err()
                .to_string()
                .contains("/nowhere/x")
        );
        assert!(sh("yes | head -c 200000").read().is_err());
        assert!(TokenSource::Exec(Vec::new()).read().is_err());
    }
}
