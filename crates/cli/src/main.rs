//! `data2vec`: pretrains on your own data, and uses the result.

mod commands;
mod registry;
mod signals;
mod terminal;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::commands::{
    bench, classify, data, diff, doctor, evaluate, export, extract, finetune, import, pretrain,
    probe, report, tokenizer, transcribe,
};

/// Pretrain data2vec on your own data, fine-tune it, and use the result
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pretrain an encoder; the same command resumes a stopped run
    Pretrain(pretrain::Args),
    /// Fine-tune an encoder on labelled examples; the same command resumes a stopped run
    Finetune(finetune::Args),
    /// Evaluate a fine-tuned model on labelled examples
    Evaluate(evaluate::Args),
    /// Classify files with a fine-tuned model
    Classify(classify::Args),
    /// Transcribe recordings with a fine-tuned model
    Transcribe(transcribe::Args),
    /// Probe frozen features with k-NN and a linear classifier
    Probe(probe::Args),
    /// Extract features of files with an exported encoder
    Extract(extract::Args),
    /// Import a checkpoint of Hugging Face, fairseq or BEiT's fork, from a file or the hub
    Import(import::Args),
    /// Export a model for transformers or fairseq
    Export(export::Args),
    /// Compare two runs
    ///
    /// The exit code is 0 if they are the same, 1 if they differ, 2 on an error.
    Diff(diff::Args),
    /// Diagnose a run: check for collapse, divergence and failure to learn
    ///
    /// The exit code is 0 if nothing severe was found, 1 if the run has collapsed or diverged, 2 on
    /// an error.
    Doctor(doctor::Args),
    /// Write the HTML report of a run, or one that overlays several runs
    Report(report::Args),
    /// Inspect data before training, or pack them into shards
    #[command(subcommand)]
    Data(data::Command),
    /// Train a tokenizer
    #[command(subcommand)]
    Tokenizer(tokenizer::Command),
    /// Time training steps, forward passes or data loading; used by `cargo xtask bench`
    #[command(subcommand)]
    Bench(bench::Command),
}

fn main() -> ExitCode {
    data2vec_torch_ext::keep_freed_memory();
    let command = Cli::parse().command;
    terminal::guarded(|| {
        terminal::init()?;
        run(command)
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Pretrain(args) => pretrain::run(args),
        Command::Finetune(args) => finetune::run(args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Classify(args) => classify::run(&args),
        Command::Transcribe(args) => transcribe::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Diff(args) => Ok(diff::run(&args)),
        Command::Doctor(args) => Ok(doctor::run(&args)),
        Command::Report(args) => report::run(&args),
        Command::Data(command) => data::run(&command),
        Command::Tokenizer(command) => tokenizer::run(&command),
        Command::Bench(command) => bench::run(&command),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
