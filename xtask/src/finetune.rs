//! `cargo xtask finetune MODALITY`: sets up as `train` does, pretrains if there is no encoder, then
//! runs `data2vec finetune`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use clap::Args;

use crate::data::catalog::Catalog;
use crate::train::{self, FINETUNE, FileSystem, RealFileSystem, RunArgs, TrainArgs};
use crate::{launch, repo};

/// Arguments of `cargo xtask finetune`.
#[derive(Clone, Debug, Default, Args)]
pub struct FinetuneArgs {
    /// Modality: speech, vision or nlp
    pub modality: String,
    /// Recipe in recipes/ or file [default: finetune-MODALITY-tiny]
    #[arg(long, value_name = "NAME|FILE")]
    pub recipe: Option<String>,
    /// Exported encoder [default: runs/MODALITY-tiny/encoder, or runs/speech-longer/encoder;
    /// pretrained first if missing]
    #[arg(long, value_name = "DIR")]
    pub encoder: Option<PathBuf>,
    /// Start from random weights: the baseline without pretraining
    #[arg(long)]
    pub from_scratch: bool,
    /// Random seed [default: the recipe's]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Arguments shared with `train`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Resolved settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Pretraining run, if the encoder does not exist.
    pub pretrain: Option<train::Plan>,
    /// Directory of the encoder.
    pub encoder: PathBuf,
    /// Fine-tuning run.
    pub finetune: train::Plan,
}

/// Runs `cargo xtask finetune`. On Unix, a single-process run replaces this process.
pub fn run(root: &Path, args: &FinetuneArgs) -> Result<ExitCode> {
    let catalog = Catalog::read(root)?;
    let plan = plan(root, args, &catalog, &RealFileSystem(root))?;
    let libtorch = train::libtorch_for(root, &args.run)?;
    let data = train::fetch(root, &catalog, &plan.finetune.data)?;
    train::build(root, &libtorch)?;
    if let Some(pretrain) = &plan.pretrain {
        let TrainArgs { modality, run, .. } = pretrain_args(root, args);
        let steps = run.steps.map_or(String::new(), |steps| format!(" for {steps} steps"));
        let encoder = plan.encoder.display();
        status!("no encoder in {encoder}; pretraining {modality} first{steps}");
        let data = train::fetch(root, &catalog, &pretrain.data)?;
        let mut program = Command::new(train::program_path(root));
        program.args(train::program_args("pretrain", pretrain, &data, &run, &[]));
        repo::run(repo::with_libtorch(&mut program, &libtorch))?;
    }
    let own = finetune_args(args, &plan.encoder);
    launch::run(&args.run.launch, || {
        let mut program = Command::new(train::program_path(root));
        program.args(train::program_args("finetune", &plan.finetune, &data, &args.run, &own));
        repo::with_libtorch(&mut program, &libtorch);
        program
    })
}

/// Resolves encoder, recipe, data and run directory.
pub fn plan(
    root: &Path,
    args: &FinetuneArgs,
    catalog: &Catalog,
    files: &dyn FileSystem,
) -> Result<Plan> {
    let FinetuneArgs { modality, run, .. } = args;
    let mut recipes = files.recipes();
    recipes.retain(|name| name.starts_with(FINETUNE));
    train::check_modality(modality, recipes.iter().filter_map(|name| name.strip_prefix(FINETUNE)))?;
    let recipe = args.recipe.clone().unwrap_or_else(|| format!("{FINETUNE}{modality}-tiny"));
    let recipe = train::find_recipe(root, &recipe, &recipes, files)?;
    let data = train::find_data(run, catalog, files, || catalog.default_for_finetune(modality))?;
    // Runs to be compared need different run directories.
    let scratch = if args.from_scratch { "-from-scratch" } else { "" };
    let seed = args.seed.map_or(String::new(), |seed| format!("-seed-{seed}"));
    let out = train::run_dir(root, run, &recipe, &format!("{scratch}{seed}"))?;
    let finetune = train::Plan { recipe, data, out };

    let is_exported = |dir: &Path| files.exists(&dir.join("encoder.toml"));
    if let Some(encoder) = &args.encoder {
        ensure!(
            is_exported(encoder),
            "--encoder {}: contains no encoder.toml; `cargo xtask train {modality}` exports an encoder",
            encoder.display()
        );
        return Ok(Plan { pretrain: None, encoder: encoder.clone(), finetune });
    }
    let pretrain = train::plan(root, &pretrain_args(root, args), catalog, files)?;
    let encoder = pretrain.out.join("encoder");
    let pretrain = (!is_exported(&encoder)).then_some(pretrain);
    Ok(Plan { pretrain, encoder, finetune })
}

/// Returns the arguments that pretrain the default encoder. Speech pretrains for longer than the
/// quick start, after which the encoder is no better than random weights.
fn pretrain_args(root: &Path, args: &FinetuneArgs) -> TrainArgs {
    let mut run = RunArgs { device: args.run.device.clone(), ..RunArgs::default() };
    if args.modality == "speech" {
        run.steps = Some(1500);
        run.out = Some(repo::display_path(&root.join("runs/speech-longer")));
    }
    TrainArgs { modality: args.modality.clone(), recipe: None, run }
}

/// Returns the arguments of `data2vec finetune` that `pretrain` does not have.
pub fn finetune_args(args: &FinetuneArgs, encoder: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["--encoder".into(), encoder.into()];
    if args.from_scratch {
        line.push("--from-scratch".into());
    }
    if let Some(seed) = args.seed {
        line.extend(["--set".into(), format!("seed={seed}").into()]);
    }
    line
}

#[cfg(test)]
#[path = "finetune_tests.rs"]
mod tests;
