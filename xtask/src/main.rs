//! `cargo xtask`: sets up LibTorch and data, then trains and tests data2vec.

/// Prints a result to standard output. Ignores write errors: the reader may close the pipe early.
macro_rules! out {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}

/// Prints a progress message, warning or error to standard error.
macro_rules! status {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

mod archive;
mod bench;
mod check;
mod data;
mod disk;
mod doctor;
mod files;
mod finetune;
mod hash;
mod http;
mod launch;
mod libtorch;
mod lock;
mod nearest;
mod progress;
mod python;
mod repo;
mod train;
mod zip;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::data::catalog::Catalog;
use crate::finetune::FinetuneArgs;
use crate::train::TrainArgs;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about,
    version,
    max_term_width = 100,
    after_help = "Start with `cargo xtask train speech`: it installs everything and trains a tiny model."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find LibTorch, or install it
    Libtorch {
        /// Install the build for NVIDIA GPUs (2.5 GB download instead of 0.13 GB)
        #[arg(long)]
        cuda: bool,
        /// Install into DIR; set LIBTORCH to DIR to use it [default: .libtorch]
        #[arg(long, value_name = "DIR")]
        path: Option<PathBuf>,
    },
    /// Fetch, verify or list data sets
    Data {
        /// Data sets to fetch into data/sets/NAME [default: list all]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// List all data sets
        #[arg(long)]
        list: bool,
        /// Compare fetched files with the digest in the catalog
        #[arg(long)]
        verify: bool,
    },
    /// Set up LibTorch and data, build, then pretrain
    ///
    /// `cargo xtask train speech` trains a tiny model on a small data set: a test of the
    /// installation.
    Train(TrainArgs),
    /// Set up LibTorch and data, build, then fine-tune; pretrains first if there is no encoder
    ///
    /// `cargo xtask finetune speech` fine-tunes a tiny encoder on a small labelled data set.
    Finetune(FinetuneArgs),
    /// Set up LibTorch and data, then run all tests of the workspace
    Test {
        /// Compare with Hugging Face transformers too, in DATA2VEC_PYTHON [default: a new virtual
        /// environment in target/bench/venv, 3 GB download]
        #[arg(long)]
        python: bool,
        /// Arguments for `cargo test`: a filter, --package, -- --nocapture
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Time training steps, inference or data loading, optionally against PyTorch (see
    /// benches/README.md)
    Bench(BenchArgs),
    /// Run every check that a change must pass: format, lints, documentation, tests
    Ci,
    /// Check this machine for required and optional programs
    Doctor,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            status!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let root = repo::root()?;
    match cli.command {
        Command::Libtorch { cuda, path } => {
            let libtorch = libtorch::ensure(&root, cuda, path.as_deref())?;
            out!("{}", libtorch::describe(&libtorch));
        }
        Command::Data { names, list, verify } => {
            let catalog = Catalog::read(&root)?;
            if list || names.is_empty() {
                data::list(&root, &catalog);
            }
            for name in names {
                if verify {
                    data::verify(&root, catalog.find(&name)?)?;
                } else {
                    out!("{}", data::ensure(&root, &catalog, &name)?.display());
                }
            }
        }
        Command::Train(args) => return train::run(&root, &args),
        Command::Finetune(args) => return finetune::run(&root, &args),
        Command::Test { python, args } => check::test(&root, python, &args)?,
        Command::Bench(args) => bench::run(&root, &args)?,
        Command::Ci => check::ci(&root)?,
        Command::Doctor => {
            if !doctor::run(&root)? {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
