//! `cargo xtask train MODALITY`: LibTorch, data, a build, and then the `data2vec` program itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::data::{
    self,
    catalog::{Catalog, DataSet},
};
use crate::launch::{self, Processes};
use crate::libtorch::{self, LibTorch};
use crate::{nearest, repo};

/// Recipes whose names begin so are for fine-tuning.
pub const FINETUNE: &str = "finetune-";

/// What the user typed.
#[derive(Clone, Debug, Default, Args)]
pub struct Train {
    /// speech, or any other modality that has recipes
    pub modality: String,
    /// A recipe of recipes/ by name, or a file [default: MODALITY-tiny; with --data, MODALITY]
    #[arg(long, value_name = "NAME|FILE")]
    pub recipe: Option<String>,
    /// What any run is told.
    #[command(flatten)]
    pub run: Run,
}

/// What the user typed of a run, whatever is trained.
#[derive(Clone, Debug, Default, Args)]
pub struct Run {
    /// A data set of the catalog, a folder, a file, or shards [default: the catalog's for this modality]
    #[arg(long, value_name = "NAME|DIR|FILE")]
    pub data: Option<String>,
    /// Where checkpoints, logs and the encoder go [default: runs/RECIPE]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// cpu, cuda or cuda:N [default: a GPU if there is one]
    #[arg(long)]
    pub device: Option<String>,
    /// Stop after so many optimizer steps
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Only go on with a run that is already in --out
    #[arg(long)]
    pub resume: bool,
    /// Override a key of the recipe; may be given often
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// On how many processes.
    #[command(flatten)]
    pub processes: Processes,
    /// Further arguments for the `data2vec` program
    #[arg(last = true, value_name = "ARGS")]
    pub more: Vec<OsString>,
}

/// Where the data are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// In the catalog, perhaps not fetched yet.
    Named(String),
    /// On the disk.
    Path(PathBuf),
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// A file.
    pub recipe: PathBuf,
    /// What to train on.
    pub data: Data,
    /// The run's folder.
    pub out: PathBuf,
}

/// What is on the disk, as far as a plan depends on it.
pub trait Files {
    /// The names of the recipes, without `.toml`.
    fn recipes(&self) -> Vec<String>;
    /// Whether something is there.
    fn exists(&self, path: &Path) -> bool;
}

/// The real one, below the repository.
pub struct Disk<'a>(pub &'a Path);

impl Files for Disk<'_> {
    fn recipes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.join("recipes")).into_iter().flatten().flatten();
        let files = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "toml"));
        let mut names: Vec<String> = files
            .filter_map(|path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
            .collect();
        names.sort();
        names
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }
}

/// Does it. On Unix this does not return once the program runs.
pub fn run(root: &Path, train: &Train) -> Result<ExitCode> {
    let catalog = Catalog::read(root)?;
    let plan = plan(root, train, &catalog, &Disk(root))?;
    let libtorch = libtorch_for(root, &train.run)?;
    let data = fetch(root, &catalog, &plan.data)?;
    build(root, &libtorch)?;
    launch::run(&train.run.processes, || {
        let mut program = Command::new(program(root));
        program.args(arguments("pretrain", &plan, &data, &train.run, &[]));
        repo::with_libtorch(&mut program, &libtorch);
        program
    })
}

/// The LibTorch that a run needs, installed if need be.
pub fn libtorch_for(root: &Path, run: &Run) -> Result<LibTorch> {
    let wants_cuda = run.device.as_deref().is_some_and(|device| device.starts_with("cuda"));
    // Before gigabytes are fetched for nothing.
    ensure!(!wants_cuda || libtorch::has_gpu(), "--device cuda: no NVIDIA GPU with a driver here");
    libtorch::ensure(root, wants_cuda, None)
}

/// Where the data are, once they are there.
pub fn fetch(root: &Path, catalog: &Catalog, data: &Data) -> Result<PathBuf> {
    match data {
        Data::Named(name) => data::ensure(root, catalog, name),
        Data::Path(path) => Ok(path.clone()),
    }
}

/// Builds the program.
pub fn build(root: &Path, libtorch: &LibTorch) -> Result<()> {
    let mut build = repo::cargo(root);
    build.args(["build", "--release", "--package", "data2vec"]);
    repo::run(repo::with_libtorch(&mut build, libtorch))
}

/// Where cargo puts the program.
pub fn program(root: &Path) -> PathBuf {
    // Relative to the repository, where cargo is run.
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    root.join(target).join("release").join(format!("data2vec{}", std::env::consts::EXE_SUFFIX))
}

/// Decides on recipe, data and folder, or says in one line what is wrong.
pub fn plan(root: &Path, train: &Train, catalog: &Catalog, files: &dyn Files) -> Result<Plan> {
    let mut recipes = files.recipes();
    recipes.retain(|name| !name.starts_with(FINETUNE));
    check_modality(&train.modality, recipes.iter().map(String::as_str))?;
    let recipe = match (&train.recipe, &train.run.data) {
        (Some(recipe), _) => recipe,
        (None, None) => &format!("{}-tiny", train.modality),
        (None, Some(_)) => &train.modality,
    };
    let recipe = find_recipe(root, recipe, &recipes, files)?;
    let data = find_data(&train.run, catalog, files, || catalog.default_for(&train.modality))?;
    let out = out(root, &train.run, &recipe, "")?;
    Ok(Plan { recipe, data, out })
}

/// Whether there are recipes for a modality, given the names of all.
pub fn check_modality<'a>(
    modality: &str,
    recipes: impl Iterator<Item = &'a str> + Clone,
) -> Result<()> {
    let of_modality = |name: &str| {
        name.strip_prefix(modality).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    if !recipes.clone().any(of_modality) {
        let known: BTreeSet<&str> = recipes.filter_map(|name| name.split('-').next()).collect();
        let known: Vec<&str> = known.into_iter().collect();
        bail!("no recipes for {modality:?}{}", nearest::suggestion(modality, &known));
    }
    Ok(())
}

/// What is trained on: what the user named, or the default.
pub fn find_data<'a>(
    run: &Run,
    catalog: &'a Catalog,
    files: &dyn Files,
    default: impl FnOnce() -> Result<&'a DataSet>,
) -> Result<Data> {
    Ok(match &run.data {
        None => Data::Named(default()?.name.clone()),
        Some(data) if files.exists(Path::new(data)) => Data::Path(PathBuf::from(data)),
        // Shards, as the program finds them itself.
        Some(data) if data.contains(['{', '*', '?']) || data.contains("://") => {
            Data::Path(PathBuf::from(data))
        }
        Some(data) if data.contains(['/', '\\', '.']) => {
            bail!("--data {data}: there is no such folder or file")
        }
        Some(data) => {
            let set = catalog
                .find(data)
                .with_context(|| format!("--data {data} is no file and no folder"))?;
            Data::Named(set.name.clone())
        }
    })
}

/// The run's folder: what the user named, or one for the recipe and what else tells it from others.
pub fn out(root: &Path, run: &Run, recipe: &Path, suffix: &str) -> Result<PathBuf> {
    let stem = recipe.file_stem().context("--recipe names no file")?.to_string_lossy();
    let default = || repo::shown(&root.join("runs").join(format!("{stem}{suffix}")));
    Ok(run.out.clone().unwrap_or_else(default))
}

/// A recipe's file, by its name or its path.
pub fn find_recipe(
    root: &Path,
    recipe: &str,
    recipes: &[String],
    files: &dyn Files,
) -> Result<PathBuf> {
    let name = recipe.strip_suffix(".toml").unwrap_or(recipe);
    if recipes.iter().any(|known| known == name)
        && (name == recipe || !files.exists(Path::new(recipe)))
    {
        return Ok(repo::shown(&root.join("recipes").join(format!("{name}.toml"))));
    }
    if files.exists(Path::new(recipe)) {
        return Ok(PathBuf::from(recipe));
    }
    let known: Vec<&str> = recipes.iter().map(String::as_str).collect();
    bail!("no recipe {recipe:?}{}", nearest::suggestion(name, &known))
}

/// The command line of the `data2vec` program.
pub fn arguments(
    verb: &str,
    plan: &Plan,
    data: &Path,
    run: &Run,
    own: &[OsString],
) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec![verb.into(), (&plan.recipe).into()];
    line.extend(own.iter().cloned());
    line.extend(["--data".into(), repo::shown(data).into(), "--out".into(), (&plan.out).into()]);
    if let Some(device) = &run.device {
        line.extend(["--device".into(), device.into()]);
    }
    if let Some(steps) = run.steps {
        line.extend(["--steps".into(), steps.to_string().into()]);
    }
    if run.resume {
        line.push("--resume".into());
    }
    for set in &run.set {
        line.extend(["--set".into(), set.into()]);
    }
    line.extend(run.more.iter().cloned());
    line
}

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
