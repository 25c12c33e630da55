//! One file a command.

pub mod cancel;
pub mod checkpoints;
pub mod drain;
pub mod get;
pub mod jobs;
pub mod logs;
pub mod nodes;
pub mod pairs;
pub mod submit;
pub mod token;
pub mod validate;
pub mod watch;
pub mod workbench;
