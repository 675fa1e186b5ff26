//! `data2vec`: pretrain on your own data, and use what was pretrained.

mod bench;
mod classify;
mod curve;
mod data;
mod device;
mod diff;
mod doctor;
mod energy;
mod evaluate;
mod export;
mod extract;
mod finetune;
mod histogram;
mod hub;
mod import;
mod judge;
mod log;
mod metrics;
mod modality;
mod page;
mod plan;
mod pretrain;
mod probe;
mod ranks;
mod recipe;
#[cfg(test)]
mod recipe_tests;
mod record;
mod report;
mod run;
mod screen;
mod signals;
mod sources;
mod tokenizer;
mod training;
mod transcribe;
mod tune_recipe;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::training::Conduct;

/// Pretrain data2vec on your own data, and use what was pretrained.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pretrain by a recipe; the same command goes on where it was stopped
    Pretrain(PretrainArgs),
    /// Fine-tune an encoder on labelled examples; the same command goes on where it was stopped
    Finetune(finetune::Args),
    /// Tell how good a fine-tuned model is on labelled examples
    Evaluate(evaluate::Args),
    /// Tell what a fine-tuned model takes files for
    Classify(classify::Args),
    /// Tell how much an encoder's features know of classes, without training it: nearest neighbours and
    /// a linear map
    Probe(probe::Args),
    /// Write an exported encoder's features of files
    Extract(extract::Args),
    /// Read a checkpoint of Hugging Face, fairseq or BEiT's fork, or fetch one from the hub
    Import(import::Args),
    /// Write a model for transformers or fairseq
    Export(export::Args),
    /// Tell what differs between two runs; the exit code is 1 if anything does
    Diff(diff::Args),
    /// Tell whether a run learns, has collapsed or diverged, and by which figures; the exit code is 0 if
    /// nothing grave is wrong, 1 if it has collapsed or diverged, 2 if that cannot be told
    Doctor(doctor::Args),
    /// Measure steps and forward passes of a recipe on random inputs, one for each line of standard
    /// input; `cargo xtask bench` is the way to use it
    #[command(subcommand)]
    Bench(bench::Command),
    /// Look at data before training on them
    #[command(subcommand)]
    Data(data::Command),
    /// Make a tokenizer of one's own
    #[command(subcommand)]
    Tokenizer(tokenizer::Command),
    /// Write the page of a run, or one that compares several
    Report(page::Args),
    /// Write down what is said in recordings
    Transcribe(transcribe::Args),
}

/// What `pretrain` is told.
#[derive(clap::Args)]
pub struct PretrainArgs {
    /// A recipe: a TOML file that tells the whole run
    recipe: PathBuf,
    /// A folder of recordings, images or texts, a manifest, one file; or shards: a folder of .tar or .parquet, a
    /// pattern as in "data-{000..041}.tar"; or a .toml that names several of these with their weights
    #[arg(long)]
    data: PathBuf,
    /// Folder of the run: checkpoints, metrics, curve, encoder
    #[arg(long)]
    out: PathBuf,
    /// cpu, cuda or cuda:N; without it: a GPU if there is one
    #[arg(long)]
    device: Option<String>,
    /// Optimizer steps, in place of the recipe's
    #[arg(long)]
    steps: Option<u64>,
    /// Only tell how much memory the largest batch needs and what would fit; nothing is trained
    #[arg(long)]
    plan: bool,
    /// Only go on with a run that is already in --out
    #[arg(long)]
    resume: bool,
    /// The same numbers from the same command on the same GPU, every time; slower. On a CPU they are so anyway
    #[arg(long)]
    deterministic: bool,
    /// Labelled examples of which nearest neighbours tell the class at every evaluation, so that it shows whether
    /// something is learned, whatever the loss does
    #[arg(long, value_name = "DATA")]
    probe: Option<PathBuf>,
    #[command(flatten)]
    conduct: Conduct,
    /// Another value for a key of the recipe, as in --set transformer.depth=6
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

fn main() -> ExitCode {
    data2vec_torch_ext::keep_freed_memory();
    let command = Cli::parse().command;
    report::guarded(|| {
        sources::show_indexing()?;
        run(command)
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Pretrain(args) => {
            if args.deterministic {
                data2vec_torch_ext::set_deterministic(true)?;
            }
            modality::with_recipe(&args.recipe, args.steps, &args.set, &args)
        }
        Command::Finetune(args) => finetune::run(&args),
        Command::Evaluate(args) => args.run(),
        Command::Classify(args) => classify::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Probe(args) => args.run(),
        Command::Extract(args) => extract::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Import(args) => import::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Export(args) => export::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Diff(args) => Ok(diff::run(&args)),
        Command::Doctor(args) => Ok(doctor::run(&args)),
        Command::Bench(command) => bench::run(&command),
        Command::Data(command) => data::run(&command),
        Command::Tokenizer(command) => tokenizer::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => page::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Transcribe(args) => transcribe::run(&args).map(|()| ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
