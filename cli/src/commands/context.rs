//! `crescendo context`: clusters by name.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::args::{Common, ContextAddArgs, ContextCommand, Output};
use crate::failure::Failure;
use crate::settings::file::{Config, ConfigFile, Context};
use crate::show::{self, table::Table};

pub fn run(common: &Common, command: &ContextCommand) -> Result<(), Failure> {
    let file = ConfigFile::required(common.config.as_deref())?;
    match command {
        ContextCommand::Add(args) => add(common, &file, args),
        ContextCommand::Use(args) => {
            file.update(|config| {
                known(config, &args.name)?;
                config.current = Some(args.name.clone());
                Ok(())
            })?;
            show::errln(format_args!("commands go to {} now", args.name));
            Ok(())
        }
        ContextCommand::List => {
            list(common.output, &file.load()?);
            Ok(())
        }
        ContextCommand::Remove(args) => {
            file.update(|config| {
                known(config, &args.name)?;
                config.contexts.remove(&args.name);
                config.current.take_if(|current| *current == args.name);
                Ok(())
            })?;
            file.forget_token(&args.name)
        }
    }
}

fn known<'c>(config: &'c Config, name: &str) -> Result<&'c Context, Failure> {
    config.contexts.get(name).ok_or_else(|| {
        Failure::Usage(format!(
            "there is no context {name}; `crescendo context list` shows those that there are"
        ))
    })
}

fn add(common: &Common, file: &ConfigFile, args: &ContextAddArgs) -> Result<(), Failure> {
    let mut context = of_flags(common)?;
    if context.controllers.is_empty() {
        return Err(Failure::Usage("name the cluster's controllers with --controller HOST:PORT".into()));
    }
    if context.token_file.is_some() && !args.exec.is_empty() {
        return Err(Failure::Usage("give either --token-file or --exec, not both".into()));
    }
    context.exec.clone_from(&args.exec);
    context.tenant.clone_from(&args.tenant);
    context.object_store.clone_from(&args.object_store);
    let current = file.update(|config| {
        if config.contexts.contains_key(&args.name) && !args.replace {
            return Err(Failure::Usage(format!(
                "there is a context {} already; --replace takes its place",
                args.name
            )));
        }
        config.contexts.insert(args.name.clone(), context);
        // The first one is meant to be used.
        config.current.get_or_insert_with(|| args.name.clone());
        Ok(config.current.clone())
    })?;
    if current.as_ref() == Some(&args.name) {
        show::errln(format_args!("commands go to {} now", args.name));
    } else {
        show::errln(format_args!("use it with: crescendo context use {}", args.name));
    }
    Ok(())
}

/// A context as the common flags describe it, with absolute paths: it is used from other folders too.
pub fn of_flags(common: &Common) -> Result<Context, Failure> {
    let absolute = |path: &Option<PathBuf>| -> Result<Option<PathBuf>, Failure> {
        path.as_deref().map(existing).transpose()
    };
    Ok(Context {
        controllers: common.controller.clone(),
        tls_ca: absolute(&common.tls_ca)?,
        tls_cert: absolute(&common.tls_cert)?,
        tls_key: absolute(&common.tls_key)?,
        token_file: absolute(&common.token_file)?,
        ..Context::default()
    })
}

fn existing(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(Failure::from_error(path.display()))
}

fn list(output: Output, config: &Config) {
    let is_current = |name: &String| config.current.as_ref() == Some(name);
    match output {
        Output::Json => {
            let contexts: Vec<_> = config
                .contexts
                .iter()
                .map(|(name, context)| json!({"name": name, "current": is_current(name), "context": context}))
                .collect();
            show::json::print(&contexts.into());
        }
        Output::Table => {
            let mut table = Table::new(&["", "NAME", "CONTROLLERS", "ROOTS", "LOGIN", "TENANT"]);
            for (name, context) in &config.contexts {
                table.row([
                    if is_current(name) { "*".into() } else { String::new() },
                    name.clone(),
                    context.controllers.join(","),
                    context.tls_ca.as_ref().map_or_else(|| "-".into(), |path| path.display().to_string()),
                    login(context),
                    context.tenant.clone().unwrap_or_else(|| "-".into()),
                ]);
            }
            show::out(table);
        }
    }
}

fn login(context: &Context) -> String {
    match (&context.token_file, context.exec.first(), &context.tls_cert) {
        (Some(file), ..) => format!("token in {}", file.display()),
        (None, Some(program), _) => format!("token from {program}"),
        (None, None, Some(cert)) => format!("certificate {}", cert.display()),
        (None, None, None) => "-".into(),
    }
}
