//! `crescendo man`.

use clap::CommandFactory as _;

use crate::args::{Cli, ManArgs};
use crate::failure::Failure;
use crate::show;

pub fn run(args: &ManArgs) -> Result<(), Failure> {
    let shown = args.dir.display();
    std::fs::create_dir_all(&args.dir).map_err(Failure::from_error(format!("make {shown}")))?;
    clap_mangen::generate_to(Cli::command(), &args.dir)
        .map_err(Failure::from_error(format!("write man pages to {shown}")))?;
    show::errln(format_args!("read them with: man {shown}/crescendo.1"));
    Ok(())
}
