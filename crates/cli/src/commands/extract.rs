//! `data2vec extract`: features of files by an exported encoder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use ndarray::{Array2, Array3, ArrayView2, Axis, stack};
use ndarray_npy::WriteNpyExt;

use crate::report::{check_failed, each_file, out};
use crate::{device::Place, modality};

/// What `extract` is told.
#[derive(clap::Args)]
pub struct Args {
    /// Folder with encoder.safetensors and encoder.toml
    #[arg(long)]
    encoder: PathBuf,
    /// Audio or image files, as the encoder wants them
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// FILE.npy for one input; FILE.safetensors for any number, by path; or a folder, one .npy each
    #[arg(long)]
    out: PathBuf,
    /// Which block's output: 1, 2, …, `last`, or `all` of them, stacked in front
    #[arg(long, default_value = "last")]
    layer: String,
    #[command(flatten)]
    place: Place,
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

/// Reads every file, runs the encoder, writes the features.
pub fn run(args: &Args) -> Result<()> {
    let encoder = modality::extractor(&args.encoder, &args.place)?;
    let layers = match args.layer.as_str() {
        "last" => Layers::One(encoder.depth),
        "all" => Layers::All,
        text => match text.parse() {
            Ok(n) if (1..=encoder.depth).contains(&n) => Layers::One(n),
            _ => bail!("--layer {text}: not one of 1 to {}, last, all", encoder.depth),
        },
    };
    let out = Output::new(&args.out, &args.files)?;
    let bar = ProgressBar::new(args.files.len() as u64);
    let mut written = BTreeMap::new();
    let read = |path: &Path| (encoder.layers)(path).with_context(|| path.display().to_string());
    let write = |path: &Path, all| out.write(path, select(all, &layers)?, &mut written);
    let failed = each_file(&args.files, &bar, read, write)?;
    out.finish(&written)?;
    let all = args.files.len();
    if failed < all {
        out!("{} files to {}", all - failed, args.out.display());
    }
    check_failed(failed, &args.files)
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

/// What the features of `file` are called in a folder.
fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

enum Output {
    Npy(PathBuf),
    Folder(PathBuf),
    Safetensors(PathBuf),
}

impl Output {
    fn new(path: &Path, files: &[PathBuf]) -> Result<Self> {
        let inputs = files.len();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => Ok(Self::Safetensors(path.to_owned())),
            Some("npy") if inputs == 1 => Ok(Self::Npy(path.to_owned())),
            Some("npy") => {
                bail!(
                    "--out {}: one .npy holds one file's features, not {inputs}; name a folder or a .safetensors",
                    path.display()
                )
            }
            _ => {
                let mut names = BTreeSet::new();
                if let Some(name) =
                    files.iter().map(|file| stem(file)).find(|n| !names.insert(n.clone()))
                {
                    bail!("two inputs are called {name}; write to a .safetensors, or one by one");
                }
                std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
                Ok(Self::Folder(path.to_owned()))
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
            Self::Folder(dir) => dir.join(format!("{}.npy", stem(input))),
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
            return Ok(()); // nothing that could be taken for a result
        }
        let mut tensors = std::collections::HashMap::new();
        for (name, features) in written {
            let tensor = match features {
                Features::One(array) => tch::Tensor::try_from(array.view().to_owned())?,
                Features::All(array) => tch::Tensor::try_from(array.view().to_owned())?,
            };
            tensors.insert(name.clone(), tensor);
        }
        Ok(data2vec_core::checkpoint::write_tensors(path, &tensors)?)
    }
}
