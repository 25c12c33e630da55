//! One file a command.

pub mod checkpoints;
pub mod completion;
pub mod context;
pub mod cp;
pub mod curation;
pub mod drain;
pub mod explain;
pub mod get;
mod held_out;
pub mod jobs;
pub mod library;
pub mod login;
pub mod logs;
pub mod man;
pub mod nodes;
pub mod objects;
pub mod on_this_machine;
pub mod pairs;
pub mod spec_file;
pub mod steer;
pub mod submit;
pub mod token;
pub mod validate;
pub mod watch;
pub mod whoami;
pub mod workbench;
