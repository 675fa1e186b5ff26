//! `cargo xtask train MODALITY`: sets up LibTorch and data, builds, then runs `data2vec pretrain`.

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
use crate::launch::{self, LaunchArgs};
use crate::libtorch::{self, LibTorch};
use crate::{nearest, repo};

/// Prefix of the names of fine-tuning recipes.
pub const FINETUNE: &str = "finetune-";

/// Arguments of `cargo xtask train`.
#[derive(Clone, Debug, Default, Args)]
pub struct TrainArgs {
    /// Modality: speech, vision or nlp
    pub modality: String,
    /// Recipe in recipes/ or file [default: MODALITY-tiny; with --data, MODALITY]
    #[arg(long, value_name = "NAME|FILE")]
    pub recipe: Option<String>,
    /// Arguments shared with `finetune`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `cargo xtask train` and `finetune`.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Data set of the catalog, directory, file or shards [default: the catalog's for this
    /// modality]
    #[arg(long, value_name = "NAME|DIR|FILE")]
    pub data: Option<String>,
    /// Run directory for checkpoints, logs and the encoder [default: runs/RECIPE, or
    /// runs/RECIPE-DATA with --data]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Device: cpu, cuda or cuda:N [default: a GPU if available]
    #[arg(long)]
    pub device: Option<String>,
    /// Stop after N optimizer steps [default: all steps of the recipe]
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Resume the run in --out; fail if there is none
    #[arg(long)]
    pub resume: bool,
    /// Override a key of the recipe; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Process group.
    #[command(flatten)]
    pub launch: LaunchArgs,
    /// Further arguments for `data2vec`
    #[arg(last = true, value_name = "ARGS")]
    pub extra_args: Vec<OsString>,
}

/// Location of training data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataLocation {
    /// Data set of the catalog, by name; may not be fetched yet.
    Catalog(String),
    /// Path, or a pattern of shards.
    Path(PathBuf),
}

/// Resolved settings of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Path of the recipe.
    pub recipe: PathBuf,
    /// Training data.
    pub data: DataLocation,
    /// Run directory.
    pub out: PathBuf,
}

/// File system access of [`plan`], replaceable in tests.
pub trait FileSystem {
    /// Returns the names of the recipes without `.toml`, sorted.
    fn recipes(&self) -> Vec<String>;
    /// Returns whether `path` exists.
    fn exists(&self, path: &Path) -> bool;
}

/// The real file system; contains the repository root.
pub struct RealFileSystem<'a>(pub &'a Path);

impl FileSystem for RealFileSystem<'_> {
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

/// Runs `cargo xtask train`. On Unix, a single-process run replaces this process.
pub fn run(root: &Path, args: &TrainArgs) -> Result<ExitCode> {
    let catalog = Catalog::read(root)?;
    let plan = plan(root, args, &catalog, &RealFileSystem(root))?;
    let libtorch = libtorch_for(root, &args.run)?;
    let data = fetch(root, &catalog, &plan.data)?;
    build(root, &libtorch)?;
    launch::run(&args.run.launch, || {
        let mut program = Command::new(program_path(root));
        program.args(program_args("pretrain", &plan, &data, &args.run, &[]));
        repo::with_libtorch(&mut program, &libtorch);
        program
    })
}

/// Returns the LibTorch for the device of a run; installs it first if necessary.
pub fn libtorch_for(root: &Path, run: &RunArgs) -> Result<LibTorch> {
    let wants_cuda = run.device.as_deref().is_some_and(|device| device.starts_with("cuda"));
    // Checked before gigabytes are downloaded.
    ensure!(!wants_cuda || libtorch::has_gpu(), "--device cuda: no NVIDIA GPU with a driver found");
    libtorch::ensure(root, wants_cuda, None)
}

/// Returns the path of the data; fetches a data set of the catalog first if necessary.
pub fn fetch(root: &Path, catalog: &Catalog, data: &DataLocation) -> Result<PathBuf> {
    match data {
        DataLocation::Catalog(name) => data::ensure(root, catalog, name),
        DataLocation::Path(path) => Ok(path.clone()),
    }
}

/// Builds the `data2vec` program.
pub fn build(root: &Path, libtorch: &LibTorch) -> Result<()> {
    let mut build = repo::cargo(root);
    build.args(["build", "--release", "--package", "data2vec"]);
    repo::run(repo::with_libtorch(&mut build, libtorch))
}

/// Returns the path of the `data2vec` program that cargo builds.
pub fn program_path(root: &Path) -> PathBuf {
    // Relative to the repository root, where cargo runs.
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    root.join(target).join("release").join(format!("data2vec{}", std::env::consts::EXE_SUFFIX))
}

/// Resolves recipe, data and run directory.
///
/// # Errors
/// If the modality, the recipe or the data set is unknown; the message suggests the nearest name.
pub fn plan(
    root: &Path,
    args: &TrainArgs,
    catalog: &Catalog,
    files: &dyn FileSystem,
) -> Result<Plan> {
    let mut recipes = files.recipes();
    recipes.retain(|name| !name.starts_with(FINETUNE));
    check_modality(&args.modality, recipes.iter().map(String::as_str))?;
    let recipe = match (&args.recipe, &args.run.data) {
        (Some(recipe), _) => recipe,
        (None, None) => &format!("{}-tiny", args.modality),
        (None, Some(_)) => &args.modality,
    };
    let recipe = find_recipe(root, recipe, &recipes, files)?;
    let data = find_data(&args.run, catalog, files, || catalog.default_for(&args.modality))?;
    let out = run_dir(root, &args.run, &recipe, "")?;
    Ok(Plan { recipe, data, out })
}

/// Fails unless `recipes` contains a recipe `MODALITY` or `MODALITY-…`.
pub fn check_modality<'a>(
    modality: &str,
    recipes: impl Iterator<Item = &'a str> + Clone,
) -> Result<()> {
    let is_match = |name: &str| {
        name.strip_prefix(modality).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    if !recipes.clone().any(is_match) {
        let known: BTreeSet<&str> = recipes.filter_map(|name| name.split('-').next()).collect();
        let known: Vec<&str> = known.into_iter().collect();
        bail!("no recipes for modality {modality:?}{}", nearest::suggestion(modality, &known));
    }
    Ok(())
}

/// Resolves `--data`, or returns the default data set.
pub fn find_data<'a>(
    run: &RunArgs,
    catalog: &'a Catalog,
    files: &dyn FileSystem,
    default: impl FnOnce() -> Result<&'a DataSet>,
) -> Result<DataLocation> {
    Ok(match &run.data {
        None => DataLocation::Catalog(default()?.name.clone()),
        Some(data) if files.exists(Path::new(data)) => DataLocation::Path(PathBuf::from(data)),
        // Shards, which the program resolves.
        Some(data) if data.contains(['{', '*', '?']) || data.contains("://") => {
            DataLocation::Path(PathBuf::from(data))
        }
        Some(data) if data.contains(['/', '\\', '.']) => {
            bail!("--data {data}: no such file or directory")
        }
        Some(data) => {
            let set = catalog
                .find(data)
                .with_context(|| format!("--data {data}: no such file, directory or data set"))?;
            DataLocation::Catalog(set.name.clone())
        }
    })
}

/// Returns the run directory: `--out`, or `runs/RECIPE` with `suffix`, or `runs/RECIPE-DATA` with
/// `suffix` for data of the user's: runs on other data need other directories.
pub fn run_dir(root: &Path, run: &RunArgs, recipe: &Path, suffix: &str) -> Result<PathBuf> {
    if let Some(out) = &run.out {
        return Ok(out.clone());
    }
    let recipe = recipe.file_stem().context("--recipe is not a file name")?.to_string_lossy();
    let data = run.data.as_deref().map_or_else(String::new, data_name);
    Ok(repo::display_path(&root.join("runs").join(format!("{recipe}{data}{suffix}"))))
}

/// Returns `-` and the last part of the path or URL of data, without its ending and with only
/// characters that need no quotes; "" if there are none.
fn data_name(data: &str) -> String {
    let last = data.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default();
    let last = Path::new(last).file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = last.chars().map(plain).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { String::new() } else { format!("-{name}") }
}

/// Returns the path of a recipe, given its name or its path.
pub fn find_recipe(
    root: &Path,
    recipe: &str,
    recipes: &[String],
    files: &dyn FileSystem,
) -> Result<PathBuf> {
    let name = recipe.strip_suffix(".toml").unwrap_or(recipe);
    if recipes.iter().any(|known| known == name)
        && (name == recipe || !files.exists(Path::new(recipe)))
    {
        return Ok(repo::display_path(&root.join("recipes").join(format!("{name}.toml"))));
    }
    if files.exists(Path::new(recipe)) {
        return Ok(PathBuf::from(recipe));
    }
    let known: Vec<&str> = recipes.iter().map(String::as_str).collect();
    bail!("unknown recipe {recipe:?}{}", nearest::suggestion(name, &known))
}

/// Returns the command line of the `data2vec` program: subcommand `verb`, the arguments of `plan`
/// and `run`, and `own`, those of the subcommand.
pub fn program_args(
    verb: &str,
    plan: &Plan,
    data: &Path,
    run: &RunArgs,
    own: &[OsString],
) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec![verb.into(), (&plan.recipe).into()];
    line.extend(own.iter().cloned());
    line.extend([
        "--data".into(),
        repo::display_path(data).into(),
        "--out".into(),
        (&plan.out).into(),
    ]);
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
    line.extend(run.extra_args.iter().cloned());
    line
}

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
