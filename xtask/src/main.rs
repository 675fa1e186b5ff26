//! `cargo xtask`: sets up LibTorch and data, then trains and tests data2vec.

/// What was asked for, to standard output. Whoever reads it may stop reading.
macro_rules! out {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}

/// What is going on, to standard error.
macro_rules! tell {
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

use crate::bench::Bench;
use crate::data::catalog::Catalog;
use crate::finetune::Finetune;
use crate::train::Train;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about,
    version,
    max_term_width = 100,
    after_help = "Start with `cargo xtask train speech`: it sets up all it needs and trains a tiny model."
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find LibTorch, or install it in .libtorch
    Libtorch {
        /// The one for NVIDIA GPUs (2.5 GB to download instead of 0.13)
        #[arg(long)]
        cuda: bool,
        /// Install there instead; set LIBTORCH to that folder to use it
        #[arg(long, value_name = "DIR")]
        path: Option<PathBuf>,
    },
    /// Fetch data sets into data/sets, or list them
    Data {
        /// Names from the list
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// List what there is
        #[arg(long)]
        list: bool,
        /// Read fetched sets again and compare them with what they should be
        #[arg(long)]
        verify: bool,
    },
    /// Pretrain: sets up LibTorch and data, builds, and runs the `data2vec` program
    ///
    /// `cargo xtask train speech` alone trains a tiny model on a small data set, to see that all works.
    Train(Train),
    /// Fine-tune an encoder on labelled data: sets up as `train` does, and pretrains first if need be
    ///
    /// `cargo xtask finetune speech` alone takes the tiny encoder of `cargo xtask train speech` to a small labelled data set.
    Finetune(Finetune),
    /// Set up LibTorch and data, then run every test of the workspace
    Test {
        /// Compare with transformers too: makes a Python environment in target/bench/venv (3 GB to
        /// download), unless the variable DATA2VEC_PYTHON names an interpreter that has it
        #[arg(long)]
        python: bool,
        /// For `cargo test`: a filter, --package, -- --nocapture, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Time training steps, alone or in turn with the same in PyTorch (see benches/README.md)
    Bench(Bench),
    /// What must pass before a change is merged: format, lints, documentation, tests
    Ci,
    /// Tell what this machine has and what it lacks
    Doctor,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            tell!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let root = repo::root()?;
    match cli.command {
        Task::Libtorch { cuda, path } => {
            let libtorch = libtorch::ensure(&root, cuda, path.as_deref())?;
            out!("{}", libtorch::describe(&libtorch));
        }
        Task::Data { names, list, verify } => {
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
        Task::Train(train) => return train::run(&root, &train),
        Task::Finetune(finetune) => return finetune::run(&root, &finetune),
        Task::Test { python, args } => check::test(&root, python, &args)?,
        Task::Bench(bench) => bench::run(&root, &bench)?,
        Task::Ci => check::ci(&root)?,
        Task::Doctor => {
            if !doctor::run(&root)? {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
