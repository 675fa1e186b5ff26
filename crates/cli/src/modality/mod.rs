//! The one place that knows which modalities there are. Adding one: a type below that implements
//! [`Modality`], and an arm in [`with_recipe`], [`with_modality`], [`with_model`], [`extractor`] and
//! [`classifier`].

use std::fmt::{Debug, Display};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use data2vec_core::encoder::ENCODER_CONFIG;
use data2vec_core::{Batch, Dataset, FeatureEncoder, MaskStrategy};
use data2vec_nlp::{TextClassifier, TextEncoder, TokenEncoder, read_text};
use data2vec_speech::{AudioClassifier, SpeechEncoder, WaveEncoder, audio};
use data2vec_vision::{ImageClassifier, PatchEncoder, Pixels, VisionEncoder};
use ndarray::Array2;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tch::Tensor;
use toml::Table;

use crate::device::Place;
use crate::recipe::{nearest, read, toml_error};
use crate::training::feed::Units;

mod nlp;
mod portrait;
mod speech;
mod stored;
mod tunable;
mod vision;

pub use nlp::Nlp;
pub use portrait::{Portrait, Raster};
pub use speech::Speech;
pub use stored::{Measure, Parcel, Parcels, Sight, Stored};
pub use tunable::{LabelledExamples, Source, Split, Tunable};
pub use vision::Vision;

/// What a recipe and the training loop need to know of a modality.
pub trait Modality: Clone + Debug + PartialEq + 'static {
    /// From raw signal to tokens.
    type Encoder: FeatureEncoder + 'static;
    /// Examples.
    type Dataset: Dataset<Batch = Batch>;
    /// The recipe's data section.
    type Data: Clone + Debug + PartialEq + Serialize + DeserializeOwned;
    /// The recipe's mask section.
    type Mask: Clone + Debug + PartialEq + Serialize + DeserializeOwned;
    /// In what `train.batch` and throughput are counted.
    const UNITS: Units;

    /// The recipe's masks, for its tokens.
    fn masking(
        mask: &Self::Mask,
        features: &<Self::Encoder as FeatureEncoder>::Config,
    ) -> Result<Box<dyn MaskStrategy>>;

    /// Whether the data section is possible, and suits the features.
    fn check(data: &Self::Data, features: &<Self::Encoder as FeatureEncoder>::Config)
    -> Result<()>;

    /// Lists the examples at `path`. What is remembered of them for the next start goes to `cache`.
    fn open(
        path: &Path,
        data: &Self::Data,
        features: &<Self::Encoder as FeatureEncoder>::Config,
        held_out: f64,
        seed: u64,
        cache: &Path,
    ) -> Result<Examples<Self::Dataset>>;

    /// What is at `path`, as it is stored; `data` tells how a recipe reads it.
    fn stored(path: &Path, data: Option<&Self::Data>) -> Result<Stored>;

    /// A batch of `rows` random inputs, of `size` units each where sizes are free.
    fn random(
        features: &<Self::Encoder as FeatureEncoder>::Config,
        rows: i64,
        size: f64,
    ) -> Result<Batch>;

    /// What it depends on, besides the recipe, which inputs mean what: a run goes on with the same alone.
    fn meaning(_dataset: &Self::Dataset) -> Option<&str> {
        None
    }

    /// What an example looks like: a row of a batch's inputs, of which an encoder makes `tokens` tokens.
    fn portray(
        dataset: &Self::Dataset,
        features: &<Self::Encoder as FeatureEncoder>::Config,
        example: &Tensor,
        tokens: i64,
    ) -> Result<Portrait>;

    /// What is known of the examples at `indices`: their class, or what is said in them. `data` is where the
    /// user found them.
    fn labels(
        _dataset: &Self::Dataset,
        _data: &Path,
        indices: &[usize],
    ) -> Result<Vec<Option<String>>> {
        Ok(vec![None; indices.len()])
    }

    /// Writes to an exported encoder's folder what its users need besides.
    fn export(_dataset: &Self::Dataset, _dir: &Path) -> Result<()> {
        Ok(())
    }
}

/// The examples of a run.
pub struct Examples<D> {
    /// To train on.
    pub train: D,
    /// Never trained on.
    pub held_out: Option<D>,
    /// What was found, in one line.
    pub summary: String,
    /// Unusable ones, each with its reason.
    pub skipped: Vec<String>,
}

/// In what a modality, by its name in recipes, counts its data.
pub fn unit(modality: &str) -> Option<&'static str> {
    match modality {
        "speech" => Some(Speech::UNITS.name),
        "vision" => Some(Vision::UNITS.name),
        "nlp" => Some(Nlp::UNITS.name),
        _ => None,
    }
}

/// What a recipe can name.
const MODALITIES: [&str; 3] = ["speech", "vision", "nlp"];

/// Something to do by a recipe, whatever its modality.
pub trait Task {
    /// Does it by the recipe at `path`, of which `table` is what it says.
    fn run<M: Tunable>(self, path: &Path, table: Table) -> Result<ExitCode>;
}

/// Reads the recipe at `path`, and does `task` for the modality that it names.
pub fn with_recipe(
    path: &Path,
    steps: Option<u64>,
    overrides: &[String],
    task: impl Task,
) -> Result<ExitCode> {
    let table = read(path, steps, overrides)?;
    let recipe = path.display();
    let Some(name) = table.get("modality") else {
        bail!("{recipe}: the key `modality` is missing; there are {}", MODALITIES.join(", "))
    };
    let Some(name) = name.as_str() else {
        bail!("{recipe}: modality: {name} is not a name; there are {}", MODALITIES.join(", "))
    };
    match name {
        "speech" => task.run::<Speech>(path, table),
        "vision" => task.run::<Vision>(path, table),
        "nlp" => task.run::<Nlp>(path, table),
        other => bail!("{recipe}: {}", unknown_modality(other)),
    }
}

/// Something to do for a modality that is named, without a recipe.
pub trait NamedTask {
    /// Does it.
    fn run<M: Tunable>(self) -> Result<ExitCode>;
}

/// Does `task` for the modality `name`.
pub fn with_modality(name: &str, task: impl NamedTask) -> Result<ExitCode> {
    match name {
        "speech" => task.run::<Speech>(),
        "vision" => task.run::<Vision>(),
        "nlp" => task.run::<Nlp>(),
        other => bail!("--modality: {}", unknown_modality(other)),
    }
}

fn unknown_modality(name: &str) -> String {
    let hint = nearest(name, MODALITIES.into_iter()).map_or_else(
        || format!("there are {}", MODALITIES.join(", ")),
        |near| format!("did you mean `{near}`?"),
    );
    format!("unknown modality `{name}`; {hint}")
}

/// Something to do with a model's folder, whatever its modality.
pub trait ModelTask {
    /// Does it.
    fn run<M: Tunable>(self) -> Result<ExitCode>;
}

/// Does `task` for the modality of the model in the folder `dir`.
pub fn with_model(dir: &Path, task: impl ModelTask) -> Result<ExitCode> {
    match encoder_kind(dir)?.as_str() {
        WaveEncoder::NAME => task.run::<Speech>(),
        PatchEncoder::NAME => task.run::<Vision>(),
        TokenEncoder::NAME => task.run::<Nlp>(),
        other => unknown(dir, other),
    }
}

/// Which feature encoder the folder `dir` holds.
pub fn encoder_kind(dir: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct Kind {
        encoder: String,
    }
    let path = dir.join(ENCODER_CONFIG);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let kind: Kind = toml::from_str(&text)
        .map_err(|e| anyhow!("{}, {}", path.display(), toml_error(&text, &e)))?;
    Ok(kind.encoder)
}

/// An error that tells which encoders there are.
pub fn unknown<T>(dir: &Path, kind: &str) -> Result<T> {
    let known = [WaveEncoder::NAME, PatchEncoder::NAME, TokenEncoder::NAME].join(", ");
    let path = dir.join(ENCODER_CONFIG);
    bail!("{}: an encoder of unknown kind `{kind}`; there are {known}", path.display())
}

/// `(T, D)` of each block for a file.
type Layers = dyn Fn(&Path) -> Result<Vec<Array2<f32>>>;

/// An exported encoder, whatever it encodes.
pub struct Extractor {
    /// Number of blocks.
    pub depth: usize,
    /// What it makes of a file.
    pub layers: Box<Layers>,
}

/// Reads the folder of an exported encoder of any kind.
pub fn extractor(dir: &Path, place: &Place) -> Result<Extractor> {
    let device = place.device()?;
    Ok(match encoder_kind(dir)?.as_str() {
        WaveEncoder::NAME => {
            let encoder = SpeechEncoder::load(dir, device)?.in_precision(place.precision);
            let depth = encoder.depth();
            let layers = move |path: &Path| Ok(encoder.layers(&audio::read(path)?)?);
            Extractor { depth, layers: Box::new(layers) }
        }
        PatchEncoder::NAME => {
            let encoder = VisionEncoder::load(dir, device)?.in_precision(place.precision);
            let depth = encoder.depth();
            let layers = move |path: &Path| Ok(encoder.layers(&Pixels::read(path)?)?);
            Extractor { depth, layers: Box::new(layers) }
        }
        TokenEncoder::NAME => {
            let encoder = TextEncoder::load(dir, device)?.in_precision(place.precision);
            let depth = encoder.depth();
            let layers = move |path: &Path| Ok(encoder.layers(&read_text(path)?)?);
            Extractor { depth, layers: Box::new(layers) }
        }
        other => unknown(dir, other)?,
    })
}

/// The classes of a file, each with its probability, the most probable first.
pub type Classifier = dyn Fn(&Path) -> Result<Vec<(String, f64)>>;

/// Reads the folder of a model of any kind that was fine-tuned to tell classes apart.
pub fn classifier(dir: &Path, place: &Place) -> Result<Box<Classifier>> {
    let device = place.device()?;
    Ok(match encoder_kind(dir)?.as_str() {
        WaveEncoder::NAME => {
            let model = AudioClassifier::load(dir, device)?.in_precision(place.precision);
            Box::new(move |path| {
                let classes = model.classify(&audio::read(path)?)?;
                Ok(classes.into_iter().map(|(label, share)| (label, f64::from(share))).collect())
            })
        }
        PatchEncoder::NAME => {
            let model = ImageClassifier::load(dir, device)?.in_precision(place.precision);
            Box::new(move |path| Ok(model.classify(&Pixels::read(path)?)?))
        }
        TokenEncoder::NAME => {
            let model = TextClassifier::load(dir, device)?.in_precision(place.precision);
            Box::new(move |path| Ok(model.classify(&read_text(path)?)?))
        }
        other => unknown(dir, other)?,
    })
}

/// What is trained on, and the share `held_out` of it that is not, if any.
fn split<D>(
    all: D,
    held_out: f64,
    at: impl FnOnce(D, f64) -> data2vec_core::Result<(D, D)>,
) -> Result<(D, Option<D>)> {
    if held_out == 0.0 {
        return Ok((all, None));
    }
    let (train, held_out) = at(all, held_out)?;
    Ok((train, Some(held_out)))
}

/// Unusable files, each with its reason, in one line each.
fn reasons<E: Display>(skipped: &[(PathBuf, E)]) -> Vec<String> {
    skipped.iter().map(|(path, why)| format!("{}: {why}", path.display())).collect()
}
