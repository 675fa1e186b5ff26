//! `data2vec extract`: extracts features of files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use data2vec_core::io::checkpoint::write_tensors;
use data2vec_core::{ConvertModality, Extractor};
use indicatif::ProgressBar;
use ndarray::{Array2, Array3, ArrayView2, Axis, stack};
use ndarray_npy::WriteNpyExt;
use tch::Tensor;

use crate::commands::shared::ComputeArgs;
use crate::registry::{self, ModalityTask};
use crate::terminal::{check_failed, each_file, out};

/// Arguments of `extract`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory with encoder.safetensors and encoder.toml
    #[arg(long)]
    encoder: PathBuf,
    /// Audio, image or text files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Output: FILE.npy for one input, FILE.safetensors for any number, or a directory for one .npy
    /// per input
    #[arg(long)]
    out: PathBuf,
    /// Block to extract features from: a number from 1, last, or all (stacked along a new first
    /// axis)
    #[arg(long, default_value = "last")]
    layer: String,
    #[command(flatten)]
    compute: ComputeArgs,
}

struct Load<'a>(&'a Args);

impl ModalityTask for Load<'_> {
    type Output = Extractor;

    fn run<M: ConvertModality>(self) -> Result<Extractor> {
        let ComputeArgs { precision, .. } = self.0.compute;
        Ok(M::extractor(&self.0.encoder, self.0.compute.device()?, precision)?)
    }
}

enum Layers {
    One(usize),
    All,
}

enum Features {
    /// `(T, D)`
    One(Array2<f32>),
    /// `(blocks, T, D)`
    All(Array3<f32>),
}

/// Extracts features of every file.
pub fn run(args: &Args) -> Result<ExitCode> {
    let encoder = registry::by_model(&args.encoder, Load(args))?;
    let layers = match args.layer.as_str() {
        "last" => Layers::One(encoder.depth()),
        "all" => Layers::All,
        text => match text.parse() {
            Ok(n) if (1..=encoder.depth()).contains(&n) => Layers::One(n),
            _ => bail!("--layer must be 1 to {}, last or all, not {text}", encoder.depth()),
        },
    };
    let out = Output::new(&args.out, &args.files)?;
    let bar = ProgressBar::new(args.files.len() as u64);
    let mut written = BTreeMap::new();
    let read = |path: &Path| encoder.layers(path).with_context(|| path.display().to_string());
    let write = |path: &Path, all| out.write(path, select(all, &layers)?, &mut written);
    let failed = each_file(&args.files, &bar, read, write)?;
    out.finish(&written)?;
    let all = args.files.len();
    if failed < all {
        out!("wrote the features of {} to {}", files(all - failed), args.out.display());
    }
    check_failed(failed, &args.files)?;
    Ok(ExitCode::SUCCESS)
}

fn select(mut all: Vec<Array2<f32>>, layers: &Layers) -> Result<Features> {
    match layers {
        Layers::One(n) => Ok(Features::One(all.swap_remove(n - 1))),
        Layers::All => {
            let views: Vec<ArrayView2<f32>> = all.iter().map(Array2::view).collect();
            Ok(Features::All(stack(Axis(0), &views)?))
        }
    }
}

/// Returns the stem of the output file's name.
fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

enum Output {
    Npy(PathBuf),
    Directory(PathBuf),
    Safetensors(PathBuf),
}

impl Output {
    fn new(path: &Path, files: &[PathBuf]) -> Result<Self> {
        let inputs = files.len();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
            bail!("--out {}: there is no directory {}", path.display(), parent.display());
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => Ok(Self::Safetensors(path.to_owned())),
            Some("npy") if inputs == 1 => Ok(Self::Npy(path.to_owned())),
            Some("npy") => {
                bail!(
                    "--out {}: a .npy holds the features of one file, not of {inputs}; use a directory or a .safetensors",
                    path.display()
                )
            }
            Some(other) if !path.is_dir() => bail!(
                "--out {}: unknown ending .{other}; use .npy, .safetensors, or a directory without an ending",
                path.display()
            ),
            _ => {
                let mut names = BTreeSet::new();
                if let Some(name) =
                    files.iter().map(|file| stem(file)).find(|n| !names.insert(n.clone()))
                {
                    bail!(
                        "--out {}: two inputs are called {name}; write to a .safetensors, or extract them separately",
                        path.display()
                    );
                }
                std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
                Ok(Self::Directory(path.to_owned()))
            }
        }
    }

    fn write(
        &self,
        input: &Path,
        features: Features,
        written: &mut BTreeMap<String, Features>,
    ) -> Result<()> {
        let target = match self {
            Self::Npy(path) => path.clone(),
            Self::Directory(dir) => dir.join(format!("{}.npy", stem(input))),
            Self::Safetensors(_) => {
                written.insert(input.display().to_string(), features);
                return Ok(());
            }
        };
        let file = File::create(&target).with_context(|| target.display().to_string())?;
        let result = match features {
            Features::One(array) => array.write_npy(file),
            Features::All(array) => array.write_npy(file),
        };
        result.with_context(|| target.display().to_string())
    }

    fn finish(&self, written: &BTreeMap<String, Features>) -> Result<()> {
        let Self::Safetensors(path) = self else { return Ok(()) };
        if written.is_empty() {
            return Ok(()); // an empty file would look like a result
        }
        let mut tensors = HashMap::new();
        for (name, features) in written {
            let tensor = match features {
                Features::One(array) => Tensor::try_from(array.view().to_owned())?,
                Features::All(array) => Tensor::try_from(array.view().to_owned())?,
            };
            tensors.insert(name.clone(), tensor);
        }
        Ok(write_tensors(path, &tensors)?)
    }
}

/// Returns `1 file` or `3 files`.
fn files(count: usize) -> String {
    format!("{count} file{}", if count == 1 { "" } else { "s" })
}
