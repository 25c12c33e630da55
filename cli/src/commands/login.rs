//! `crescendo login`: a token is tried, then kept for a context.

#![allow(unsafe_code, reason = "the terminal is told not to show a token")]

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};

use super::{context, whoami};
use crate::args::{Common, LoginArgs};
use crate::connect::{Controller, LOOK};
use crate::failure::Failure;
use crate::settings::file::{ConfigFile, Context};
use crate::settings::token::{self, MAX_TOKEN_BYTES, Token, TokenSource};
use crate::settings::{Origin, Target, Tls};
use crate::show;

/// Context of a login that names none, where there is no current one.
const DEFAULT: &str = "default";

pub async fn run(common: &Common, args: &LoginArgs) -> Result<(), Failure> {
    let file = ConfigFile::required(common.config.as_deref())?;
    let config = file.load()?;
    let name = common.context.clone().or(config.current).unwrap_or_else(|| DEFAULT.to_owned());
    if args.forget {
        file.forget_token(&name)?;
        return file.update(|config| {
            if let Some(context) = config.contexts.get_mut(&name) {
                context.token_file = None;
            }
            Ok(())
        });
    }
    let known = config.contexts.get(&name).cloned();
    let mut context = changed(known, context::of_flags(common)?);
    if context.controllers.is_empty() {
        return Err(Failure::Usage(format!(
            "context {name} has no cluster yet: name its controllers with --controller HOST:PORT"
        )));
    }
    let typed = read().await?;
    let target = Target {
        addresses: context.controllers.clone(),
        tls: Tls { ca: context.tls_ca.clone(), cert: context.tls_cert.clone(), key: context.tls_key.clone() },
        token: TokenSource::Given(typed.clone()),
        tenant: None,
        object_store: None,
        library_root: None,
        origin: Origin::Context(name.clone()),
    };
    let controller = Controller::to(target).await?;
    let told = whoami::fetch(&controller, common.timeout.unwrap_or(LOOK)).await?;
    context.token_file = Some(file.store_token(&name, &typed)?);
    context.exec.clear();
    let kept = context.token_file.clone().unwrap_or_default();
    file.update(|config| {
        config.contexts.insert(name.clone(), context);
        config.current.get_or_insert_with(|| name.clone());
        Ok(())
    })?;
    show::errln(format_args!(
        "{name}: logged in as {}; the token is kept in {}",
        whoami::words(&told),
        kept.display()
    ));
    Ok(())
}

/// What the flags say goes before what the context had.
fn changed(known: Option<Context>, flags: Context) -> Context {
    let Some(known) = known else { return flags };
    Context {
        controllers: if flags.controllers.is_empty() { known.controllers } else { flags.controllers },
        tls_ca: flags.tls_ca.or(known.tls_ca),
        tls_cert: flags.tls_cert.or(known.tls_cert),
        tls_key: flags.tls_key.or(known.tls_key),
        ..known
    }
}

async fn read() -> Result<Token, Failure> {
    let what = "the token on standard input";
    let on_terminal = io::stdin().is_terminal();
    let echo = on_terminal.then(|| {
        show::err("Token: ");
        NoEcho::begin()
    });
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        let mut input = io::stdin().lock().take(MAX_TOKEN_BYTES + 1);
        // On a terminal a line is all; in a file there may be an empty one before it.
        let read = if on_terminal { input.read_line(&mut text) } else { input.read_to_string(&mut text) };
        read.map(|_| text)
    });
    let text = tokio::select! {
        text = reading => text,
        // The terminal shows what is typed again before this ends.
        _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
    };
    if echo.is_some() {
        show::err("\n");
    }
    let text = text.map_err(Failure::from_error(format!("read {what}")))?;
    token::checked(&text.map_err(Failure::from_error(format!("read {what}")))?, what)
}

/// The terminal does not show what is typed, until this is dropped.
struct NoEcho(Option<libc::termios>);

impl NoEcho {
    fn begin() -> NoEcho {
        // SAFETY: an all-zero termios is a valid value to be overwritten; the calls only read and write it.
        unsafe {
            let mut before: libc::termios = std::mem::zeroed();
            if libc::tcgetattr(libc::STDIN_FILENO, &raw mut before) != 0 {
                return NoEcho(None);
            }
            let mut quiet = before;
            quiet.c_lflag &= !libc::ECHO;
            if libc::tcsetattr(libc::STDIN_FILENO, libc::TCSAFLUSH, &raw const quiet) != 0 {
                return NoEcho(None);
            }
            NoEcho(Some(before))
        }
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // SAFETY: as above. A terminal that has gone needs no restoring.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const before) };
        }
    }
}
