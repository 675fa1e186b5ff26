//! `data2vec diff`: compares two runs.

use std::path::PathBuf;
use std::process::ExitCode;

use data2vec_train::diff::Differences;

use crate::terminal::{fail, out};

/// Arguments of `diff`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory of one run
    a: PathBuf,
    /// Directory of the other run
    b: PathBuf,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Prints the differences. The exit code is 0 if there are none, 1 if there are some, 2 on an
/// error.
pub fn run(args: &Args) -> ExitCode {
    match Differences::between(&args.a, &args.b) {
        Ok(differences) => {
            match args.json {
                true => out!("{}", differences.to_json()),
                false => {
                    differences.to_table([&args.a, &args.b]).iter().for_each(|line| out!("{line}"))
                }
            }
            ExitCode::from(u8::from(!differences.same))
        }
        Err(error) => {
            fail(&error);
            ExitCode::from(2)
        }
    }
}
