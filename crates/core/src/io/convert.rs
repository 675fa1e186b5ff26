//! Import from and export to the checkpoint layouts of other programs.
//!
//! A [`NameMap`] maps tensor names in both directions; the modality crates have one per layout. A
//! [`Source`] is the content of a checkpoint.

mod export;
mod labels;
mod name_map;
mod native;
mod settings;
mod source;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use tch::{Device, Kind, Tensor, nn};

use crate::io::checkpoint::{assign, filter_by_prefix, read_tensors};
use crate::model::encoder::{ENCODER_WEIGHTS, read_config};
use crate::model::finetuned::{HEAD_CONFIG, HEAD_WEIGHTS, read_head, read_mask_token, save_model};
use crate::model::head::Head;
use crate::{Encoder, EncoderConfig, Error, FeatureEncoder, HeadConfig, Result, TransformerConfig};

pub use export::{EXPORTED_WEIGHTS, ExportedModel, label_config};
pub use labels::{check_label_count, class_labels, read_labels};
pub use name_map::NameMap;
pub use native::import_native;
pub use settings::{Settings, pretrained_config};
pub use source::{INDEX, Marker, Source, WEIGHTS, ema_weight_name, shard_names};

/// User options of an import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Whether to import the averaged weights instead of the trained ones.
    pub teacher: bool,
    /// Number of attention heads, if the checkpoint does not contain it.
    pub heads: Option<i64>,
    /// File of the head's labels.
    pub labels: Option<PathBuf>,
    /// File or directory of a tokenizer; `None`: the one beside the checkpoint.
    pub tokenizer: Option<PathBuf>,
}

/// The content of a model directory in memory: an encoder with optional head and mask token.
#[derive(Debug)]
pub struct Model<C> {
    /// Settings of the encoder.
    pub config: EncoderConfig<C>,
    /// Settings of the head, if there is one.
    pub head: Option<HeadConfig>,
    /// Values of the variables, f32.
    pub vars: HashMap<String, Tensor>,
    /// Mask token `(D)`, if there is one.
    pub mask_token: Option<Tensor>,
}

impl<C> Model<C> {
    /// Returns all variables, including the mask token.
    pub fn all_vars(&self) -> HashMap<String, Tensor> {
        let named = |token: &Tensor| (MASK_TOKEN.to_owned(), token.shallow_clone());
        let vars = self.vars.iter().map(|(name, var)| (name.clone(), var.shallow_clone()));
        vars.chain(self.mask_token.as_ref().map(named)).collect()
    }
}

impl<C: Serialize + DeserializeOwned> Model<C> {
    /// Reads the model directory `dir` of an encoder `F`.
    ///
    /// # Errors
    /// Returns an error if a file is missing or invalid, or belongs to another feature encoder.
    pub fn read<F: FeatureEncoder<Config = C>>(dir: &Path) -> Result<Self> {
        let config = read_config::<F>(dir)?;
        let head = dir.join(HEAD_CONFIG).exists().then(|| read_head(dir)).transpose()?;
        let store = variables::<F>(&config.features, &config.transformer, head.as_ref())?;
        let mut files = vec![(ENCODER_WEIGHTS, "encoder.")];
        files.extend(head.as_ref().map(|_| (HEAD_WEIGHTS, "head.")));
        for (file, prefix) in files {
            let path = dir.join(file);
            assign(&path, &filter_by_prefix(&store.variables(), prefix), &read_tensors(&path)?)?;
        }
        let vars = store.variables().into_iter().map(|(name, var)| (name, var.detach())).collect();
        Ok(Self { config, head, vars, mask_token: read_mask_token(dir)? })
    }

    /// Converts the model to a single safetensors file under the native names, with `encoder.toml`
    /// and `head.toml` in its metadata.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if settings cannot be serialised.
    pub fn to_native(&self) -> Result<ExportedModel> {
        let string = |value: std::result::Result<String, toml::ser::Error>| {
            value.map_err(|e| Error::Input(e.to_string()))
        };
        let mut metadata =
            HashMap::from([(native::ENCODER.into(), string(toml::to_string(&self.config))?)]);
        if let Some(head) = &self.head {
            metadata.insert(native::HEAD.into(), string(toml::to_string(head))?);
        }
        Ok(ExportedModel { tensors: self.all_vars(), metadata, ..ExportedModel::default() })
    }

    /// Writes the model directory `dir`.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mask_token = self.mask_token.as_ref();
        save_model(dir, &self.vars, &self.config, self.head.as_ref(), mask_token)
    }
}

/// An imported checkpoint.
#[derive(Debug)]
pub struct Imported<C> {
    /// Description of the checkpoint for messages.
    pub description: String,
    /// The imported model.
    pub model: Model<C>,
    /// Use of the tensors of the checkpoint.
    pub report: Report,
}

/// Use of the tensors of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Number of imported tensors.
    pub taken: usize,
    /// Number of imported tensors with another name here.
    pub renamed: usize,
    /// Names of the tensors that were not imported.
    pub left_out: Vec<String>,
    /// Further notes for the user, one line each.
    pub notes: Vec<String>,
}

/// Name of the mask token in a [`NameMap`].
pub const MASK_TOKEN: &str = "mask_token";

/// Imports a model of the given settings from `source`, by the names in `names`; imports the mask
/// token if there is one.
///
/// # Errors
/// Returns [`Error::Tensor`] if a tensor is missing (with the most similar names) or has another
/// shape, and [`Error::Config`] if a setting is invalid.
pub fn import<F: FeatureEncoder>(
    source: &Source,
    names: &NameMap,
    features: F::Config,
    transformer: TransformerConfig,
    head: Option<HeadConfig>,
) -> Result<Imported<F::Config>> {
    let store = variables::<F>(&features, &transformer, head.as_ref())?;
    let shapes = store.variables().into_iter().map(|(name, var)| (name, var.size()));
    let mut shapes: Vec<(String, Vec<i64>)> = shapes.collect();
    if names.sources(MASK_TOKEN).is_some_and(|s| source.tensors.contains_key(&s[0].name)) {
        shapes.push((MASK_TOKEN.into(), vec![transformer.dim]));
    }
    let (mut vars, report) = collect(source, names, shapes)?;
    let config = EncoderConfig { encoder: F::NAME.to_owned(), features, transformer };
    let mask_token = vars.remove(MASK_TOKEN);
    Ok(Imported {
        description: String::new(),
        model: Model { config, head, vars, mask_token },
        report,
    })
}

/// Creates the variables of a model.
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

/// Collects the values of the variables of the given `shapes` from the tensors of `source`.
fn collect(
    source: &Source,
    names: &NameMap,
    mut shapes: Vec<(String, Vec<i64>)>,
) -> Result<(HashMap<String, Tensor>, Report)> {
    shapes.sort(); // for a deterministic first error
    let (mut vars, mut report, mut used) =
        (HashMap::new(), Report::default(), BTreeSet::<String>::new());
    for (name, shape) in &shapes {
        let parts = names
            .sources(name)
            .ok_or_else(|| Error::config(name, format!("{} has no such tensor", names.layout())))?;
        let mut part_shape = names.shape(name).unwrap_or_else(|| shape.clone());
        part_shape[0] /= parts.len() as i64;
        let mut values = Vec::new();
        for part in &parts {
            let value = match source.tensors.get(&part.name) {
                Some(tensor) => {
                    let size = tensor.size();
                    if !equal_without_ones(&size, &part_shape) {
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
                    let expected =
                        shapes.iter().filter_map(|(name, _)| names.sources(name)).flatten();
                    let expected: BTreeSet<String> = expected.map(|part| part.name).collect();
                    return Err(source.missing(&part.name, |name| !expected.contains(name)));
                }
            };
            values.push(value);
        }
        // Copied: a tensor may be a view of a much larger storage.
        let value = match values.as_slice() {
            [one] => one.reshape(shape).copy(),
            all => Tensor::cat(all, 0).reshape(shape),
        };
        vars.insert(name.clone(), value);
    }
    let unused = source.tensors.keys().filter(|name| !used.contains(*name));
    report.left_out = unused.cloned().collect();
    Ok((vars, report))
}

/// Returns whether shapes are equal apart from dimensions of size 1.
fn equal_without_ones(a: &[i64], b: &[i64]) -> bool {
    let without_ones =
        |shape: &[i64]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
    without_ones(a) == without_ones(b)
}

/// Converts variables to the names and shapes of another layout.
///
/// # Errors
/// Returns [`Error::Config`] naming a variable that the layout does not have.
pub fn export(vars: &HashMap<String, Tensor>, names: &NameMap) -> Result<HashMap<String, Tensor>> {
    let mut exported = HashMap::new();
    for (name, tensor) in vars {
        let parts = names
            .sources(name)
            .ok_or_else(|| Error::config(name, format!("{} has no such tensor", names.layout())))?;
        let tensor = match names.shape(name) {
            Some(shape) => tensor.reshape(shape),
            None => tensor.shallow_clone(),
        };
        let rows = tensor.size().first().copied().unwrap_or(1) / parts.len() as i64;
        for (i, part) in parts.iter().enumerate().filter(|(_, part)| !part.optional) {
            let value = match parts.len() {
                1 => tensor.shallow_clone(),
                _ => tensor.narrow(0, i as i64 * rows, rows),
            };
            exported.insert(part.name.clone(), value.contiguous());
        }
    }
    Ok(exported)
}
