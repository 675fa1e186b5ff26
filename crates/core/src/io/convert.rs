//! Other programs' checkpoints, in and out: which of their tensors is which of ours.
//!
//! A [`Table`] says it once for both directions; the modalities' crates have one for each layout that they
//! know. A [`Source`] is what was found in a checkpoint.

mod exported;
mod labels;
mod own;
mod settings;
mod source;
mod table;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use tch::{Device, Kind, Tensor, nn};

use crate::checkpoint::{assign, read_tensors};
use crate::encoder::{ENCODER_WEIGHTS, read_config};
use crate::head::Head;
use crate::tuned::{HEAD_CONFIG, HEAD_WEIGHTS, read_head, read_mask_token, share, write_model};
use crate::{
    Encoder, EncoderConfig, Error, FeatureEncoder, HeadConfig, NormPlacement, Result,
    TransformerConfig, WeightInit,
};

pub use exported::{EXPORTED_WEIGHTS, Exported, label_settings};
pub use labels::{as_many, classes, read_labels};
pub use own::import_own;
pub use settings::{Settings, pretraining};
pub use source::{INDEX, Marker, Source, WEIGHTS, parts, teachers_place};
pub use table::Table;

/// What a user adds to what a checkpoint says of itself.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The averaged weights rather than the trained ones.
    pub teacher: bool,
    /// Attention heads, where the checkpoint does not tell.
    pub heads: Option<i64>,
    /// A file that tells what a head's outputs mean.
    pub labels: Option<PathBuf>,
}

/// A model's folder in memory: an encoder, and what comes with it.
#[derive(Debug)]
pub struct Model<C> {
    /// The encoder's settings.
    pub config: EncoderConfig<C>,
    /// The head's, where it has one.
    pub head: Option<HeadConfig>,
    /// Values of our variables, f32.
    pub vars: HashMap<String, Tensor>,
    /// `(D)`: what stands in the places of hidden tokens, where it has one.
    pub mask_token: Option<Tensor>,
}

impl<C> Model<C> {
    /// Its variables, the mask token among them.
    pub fn all_vars(&self) -> HashMap<String, Tensor> {
        let named = |token: &Tensor| (MASK_TOKEN.to_owned(), token.shallow_clone());
        let vars = self.vars.iter().map(|(name, var)| (name.clone(), var.shallow_clone()));
        vars.chain(self.mask_token.as_ref().map(named)).collect()
    }
}

impl<C: Serialize + DeserializeOwned> Model<C> {
    /// Reads the folder `dir` of an encoder `F`.
    ///
    /// # Errors
    /// If a file is missing or broken, or belongs to another feature encoder.
    pub fn read<F: FeatureEncoder<Config = C>>(dir: &Path) -> Result<Self> {
        let config = read_config::<F>(dir)?;
        let head = dir.join(HEAD_CONFIG).exists().then(|| read_head(dir)).transpose()?;
        let store = variables::<F>(&config.features, &config.transformer, head.as_ref())?;
        let mut files = vec![(ENCODER_WEIGHTS, "encoder.")];
        files.extend(head.as_ref().map(|_| (HEAD_WEIGHTS, "head.")));
        for (file, prefix) in files {
            let path = dir.join(file);
            assign(&path, &share(&store.variables(), prefix), &read_tensors(&path)?)?;
        }
        let vars = store.variables().into_iter().map(|(name, var)| (name, var.detach())).collect();
        Ok(Self { config, head, vars, mask_token: read_mask_token(dir)? })
    }

    /// All of it under our own names, with `encoder.toml` and `head.toml` in the head of the file of tensors.
    ///
    /// # Errors
    /// [`Error::Input`] if settings have no form as text.
    pub fn plain(&self) -> Result<Exported> {
        let text = |value: std::result::Result<String, toml::ser::Error>| {
            value.map_err(|e| Error::Input(e.to_string()))
        };
        let mut facts =
            HashMap::from([(own::ENCODER.into(), text(toml::to_string(&self.config))?)]);
        if let Some(head) = &self.head {
            facts.insert(own::HEAD.into(), text(toml::to_string(head))?);
        }
        Ok(Exported { tensors: self.all_vars(), facts, ..Exported::default() })
    }

    /// Writes the model's folder.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mask_token = self.mask_token.as_ref();
        write_model(dir, &self.vars, &self.config, self.head.as_ref(), mask_token)
    }
}

/// A checkpoint in our terms.
#[derive(Debug)]
pub struct Imported<C> {
    /// What it was, in words.
    pub what: String,
    /// What it is here.
    pub model: Model<C>,
    /// What became of its tensors.
    pub report: Report,
}

/// What became of a checkpoint's tensors.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many of theirs were taken.
    pub taken: usize,
    /// How many of these have other names here.
    pub renamed: usize,
    /// Names of those that were left out.
    pub left_out: Vec<String>,
    /// Whatever else is worth knowing, a line each.
    pub notes: Vec<String>,
}

/// Name of the variable that stands in the places of hidden tokens, in a [`Table`].
pub const MASK_TOKEN: &str = "mask_token";

/// Takes from `source` what a model of `config` and `head` needs, by `table`. A mask token is taken if
/// there is one.
///
/// # Errors
/// [`Error::Tensor`] for a tensor that is missing, with the nearest names, or has another shape;
/// [`Error::Config`] if the settings are impossible.
pub fn import<F: FeatureEncoder>(
    source: &Source,
    table: &Table,
    features: F::Config,
    transformer: TransformerConfig,
    head: Option<HeadConfig>,
) -> Result<Imported<F::Config>> {
    let store = variables::<F>(&features, &transformer, head.as_ref())?;
    let shapes = store.variables().into_iter().map(|(name, var)| (name, var.size()));
    let mut shapes: Vec<(String, Vec<i64>)> = shapes.collect();
    if table.parts(MASK_TOKEN).is_some_and(|parts| source.tensors.contains_key(&parts[0].name)) {
        shapes.push((MASK_TOKEN.into(), vec![transformer.dim]));
    }
    let (mut vars, report) = take(source, table, shapes)?;
    let config = EncoderConfig { encoder: F::NAME.to_owned(), features, transformer };
    let mask_token = vars.remove(MASK_TOKEN);
    Ok(Imported { what: String::new(), model: Model { config, head, vars, mask_token }, report })
}

/// A post-norm transformer of these sizes, without dropout; `hidden` is the MLP's width.
pub fn transformer(
    dim: i64,
    depth: usize,
    heads: i64,
    hidden: i64,
    norm_eps: f64,
) -> TransformerConfig {
    TransformerConfig {
        dim,
        depth,
        heads,
        mlp_ratio: hidden as f64 / dim as f64,
        norm: NormPlacement::Post,
        norm_eps,
        input_norm: false,
        init: WeightInit::Bert,
        layer_scale: None,
        input_dropout: 0.0,
        dropout: 0.0,
        attention_dropout: 0.0,
        activation_dropout: 0.0,
        layer_drop: 0.0,
        drop_path: 0.0,
    }
}

/// The variables of a model.
fn variables<F: FeatureEncoder>(
    features: &F::Config,
    transformer: &TransformerConfig,
    head: Option<&HeadConfig>,
) -> Result<nn::VarStore> {
    let store = nn::VarStore::new(Device::Cpu);
    let root = store.root();
    Encoder::<F>::new(&(&root / "encoder"), features, transformer)?;
    if let Some(head) = head {
        Head::new(&(&root / "head"), head, transformer.dim)?;
    }
    Ok(store)
}

fn take(
    source: &Source,
    table: &Table,
    mut shapes: Vec<(String, Vec<i64>)>,
) -> Result<(HashMap<String, Tensor>, Report)> {
    shapes.sort(); // the first error is always the same one
    let (mut vars, mut report, mut used) =
        (HashMap::new(), Report::default(), BTreeSet::<String>::new());
    for (name, shape) in &shapes {
        let parts = table.parts(name).ok_or_else(|| {
            Error::config(name, format!("{} has nothing of that kind", table.layout()))
        })?;
        let whole = table.shape(name).unwrap_or_else(|| shape.clone());
        let mut part_shape = whole.clone();
        part_shape[0] /= parts.len() as i64;
        let mut values = Vec::new();
        for part in &parts {
            let value = match source.tensors.get(&part.name) {
                Some(tensor) => {
                    let size = tensor.size();
                    if !same_but_ones(&size, &part_shape) {
                        let reason = format!("has shape {size:?}, not {part_shape:?}");
                        return Err(source.bad(&part.name, reason));
                    }
                    report.taken += 1;
                    report.renamed += usize::from(part.name != *name);
                    used.insert(part.name.clone());
                    tensor.to_kind(Kind::Float).reshape(&part_shape)
                }
                None if part.optional => Tensor::zeros(&part_shape, (Kind::Float, Device::Cpu)),
                None => {
                    let names = shapes.iter().filter_map(|(name, _)| table.parts(name)).flatten();
                    let wanted: BTreeSet<String> = names.map(|part| part.name).collect();
                    return Err(source.missing(&part.name, |name| !wanted.contains(name)));
                }
            };
            values.push(value);
        }
        // A copy: what was read may be a view of much more.
        let value = match values.as_slice() {
            [one] => one.reshape(shape).copy(),
            all => Tensor::cat(all, 0).reshape(shape),
        };
        vars.insert(name.clone(), value);
    }
    let left = source.tensors.keys().filter(|name| !used.contains(*name));
    report.left_out = left.cloned().collect();
    Ok((vars, report))
}

/// Whether shapes are the same but for dimensions of 1.
fn same_but_ones(a: &[i64], b: &[i64]) -> bool {
    let of = |shape: &[i64]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
    of(a) == of(b)
}

/// Our variables under their names.
///
/// # Errors
/// [`Error::Config`] that names a variable for which the layout has no place.
pub fn export(vars: &HashMap<String, Tensor>, table: &Table) -> Result<HashMap<String, Tensor>> {
    let mut theirs = HashMap::new();
    for (name, tensor) in vars {
        let parts = table.parts(name).ok_or_else(|| {
            Error::config(name, format!("{} has no place for it", table.layout()))
        })?;
        let tensor = match table.shape(name) {
            Some(shape) => tensor.reshape(shape),
            None => tensor.shallow_clone(),
        };
        let rows = tensor.size().first().copied().unwrap_or(1) / parts.len() as i64;
        for (i, part) in parts.iter().enumerate().filter(|(_, part)| !part.optional) {
            let value = match parts.len() {
                1 => tensor.shallow_clone(),
                _ => tensor.narrow(0, i as i64 * rows, rows),
            };
            theirs.insert(part.name.clone(), value.contiguous());
        }
    }
    Ok(theirs)
}
