//! `cargo xtask finetune MODALITY`: all that `train` does, an encoder pretrained if there is none, and then
//! the `data2vec` program itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use clap::Args;

use crate::data::catalog::Catalog;
use crate::train::{self, Disk, FINETUNE, Files, Run, Train};
use crate::{launch, repo};

/// What the user typed.
#[derive(Clone, Debug, Default, Args)]
pub struct Finetune {
    /// speech, or any other modality that has recipes
    pub modality: String,
    /// A recipe of recipes/ by name, or a file [default: finetune-MODALITY-tiny]
    #[arg(long, value_name = "NAME|FILE")]
    pub recipe: Option<String>,
    /// An exported encoder's folder [default: runs/MODALITY-tiny/encoder, or runs/speech-longer/encoder; pretrained first if it
    /// is not there]
    #[arg(long, value_name = "DIR")]
    pub encoder: Option<PathBuf>,
    /// Start from random weights, to see what pretraining is worth
    #[arg(long)]
    pub from_scratch: bool,
    /// Another seed than the recipe's
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// What any run is told.
    #[command(flatten)]
    pub run: Run,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Comes first, where there is no encoder yet.
    pub pretrain: Option<train::Plan>,
    /// The encoder's folder.
    pub encoder: PathBuf,
    /// The rest of it.
    pub finetune: train::Plan,
}

/// Does it. On Unix this does not return once the program runs.
pub fn run(root: &Path, finetune: &Finetune) -> Result<ExitCode> {
    let catalog = Catalog::read(root)?;
    let plan = plan(root, finetune, &catalog, &Disk(root))?;
    let libtorch = train::libtorch_for(root, &finetune.run)?;
    let data = train::fetch(root, &catalog, &plan.finetune.data)?;
    train::build(root, &libtorch)?;
    if let Some(pretrain) = &plan.pretrain {
        let Train { modality, run, .. } = pretraining(root, finetune);
        let steps = run.steps.map_or(String::new(), |steps| format!(" for {steps} steps"));
        let encoder = plan.encoder.display();
        tell!("no encoder in {encoder} yet: pretraining it first on {modality}{steps}");
        let data = train::fetch(root, &catalog, &pretrain.data)?;
        let mut program = Command::new(train::program(root));
        program.args(train::arguments("pretrain", pretrain, &data, &run, &[]));
        repo::run(repo::with_libtorch(&mut program, &libtorch))?;
    }
    let own = own_arguments(finetune, &plan.encoder);
    launch::run(&finetune.run.processes, || {
        let mut program = Command::new(train::program(root));
        program.args(train::arguments("finetune", &plan.finetune, &data, &finetune.run, &own));
        repo::with_libtorch(&mut program, &libtorch);
        program
    })
}

/// Decides on everything, or says in one line what is wrong.
pub fn plan(root: &Path, asked: &Finetune, catalog: &Catalog, files: &dyn Files) -> Result<Plan> {
    let Finetune { modality, run, .. } = asked;
    let mut recipes = files.recipes();
    recipes.retain(|name| name.starts_with(FINETUNE));
    train::check_modality(modality, recipes.iter().filter_map(|name| name.strip_prefix(FINETUNE)))?;
    let recipe = asked.recipe.clone().unwrap_or_else(|| format!("{FINETUNE}{modality}-tiny"));
    let recipe = train::find_recipe(root, &recipe, &recipes, files)?;
    let data = train::find_data(run, catalog, files, || catalog.default_for_finetune(modality))?;
    // Runs to be compared do not share a folder.
    let scratch = if asked.from_scratch { "-from-scratch" } else { "" };
    let seed = asked.seed.map_or(String::new(), |seed| format!("-seed-{seed}"));
    let out = train::out(root, run, &recipe, &format!("{scratch}{seed}"))?;
    let finetune = train::Plan { recipe, data, out };

    let exported = |dir: &Path| files.exists(&dir.join("encoder.toml"));
    if let Some(encoder) = &asked.encoder {
        ensure!(
            exported(encoder),
            "--encoder {}: no encoder.toml in it; `cargo xtask train {modality}` makes such a folder",
            encoder.display()
        );
        return Ok(Plan { pretrain: None, encoder: encoder.clone(), finetune });
    }
    let pretrain = train::plan(root, &pretraining(root, asked), catalog, files)?;
    let encoder = pretrain.out.join("encoder");
    let pretrain = (!exported(&encoder)).then_some(pretrain);
    Ok(Plan { pretrain, encoder, finetune })
}

/// What one would type to pretrain the default encoder: the quick start, but for speech, where so short a one is no
/// better than none.
fn pretraining(root: &Path, asked: &Finetune) -> Train {
    let mut run = Run { device: asked.run.device.clone(), ..Run::default() };
    if asked.modality == "speech" {
        run.steps = Some(1500);
        run.out = Some(repo::shown(&root.join("runs/speech-longer")));
    }
    Train { modality: asked.modality.clone(), recipe: None, run }
}

/// What the program is told besides.
pub fn own_arguments(asked: &Finetune, encoder: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["--encoder".into(), encoder.into()];
    if asked.from_scratch {
        line.push("--from-scratch".into());
    }
    if let Some(seed) = asked.seed {
        line.extend(["--set".into(), format!("seed={seed}").into()]);
    }
    line
}

#[cfg(test)]
#[path = "finetune_tests.rs"]
mod tests;
