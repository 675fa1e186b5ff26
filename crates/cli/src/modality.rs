//! The one place that knows which modalities there are. Adding one: a type below that implements
//! [`Modality`], and an arm in [`with_recipe`] and in [`extractor`].

use std::fmt::{Debug, Display};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use data2vec_core::encoder::ENCODER_CONFIG;
use data2vec_core::{Batch, Dataset, Error, FeatureEncoder, MaskStrategy};
use data2vec_nlp::{
    TextDataConfig, TextDataset, TextEncoder, TextMaskConfig, TokenEncoder, TokenEncoderConfig,
    read_text,
};
use data2vec_speech::{
    HeldOut, SpeechDataConfig, SpeechDataset, SpeechEncoder, SpeechMaskConfig, WaveEncoder,
    WaveEncoderConfig, audio,
};
use data2vec_vision::{
    PatchEncoder, PatchEncoderConfig, Pixels, VisionDataConfig, VisionDataset, VisionEncoder,
    VisionMaskConfig,
};
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::Array2;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tch::{Device, Kind, Tensor};

use crate::recipe::{Recipe, nearest, read, toml_error};

/// What a recipe and the training loop need to know of a modality.
pub trait Modality: Clone + Debug + PartialEq + 'static {
    /// From raw signal to tokens.
    type Encoder: FeatureEncoder + 'static;
    /// Examples.
    type Dataset: Dataset;
    /// The recipe's data section.
    type Data: Clone + Debug + PartialEq + Serialize + DeserializeOwned;
    /// The recipe's mask section.
    type Mask: Clone + Debug + PartialEq + Serialize + DeserializeOwned;
    /// In what `train.batch` and throughput are counted.
    const UNIT: &'static str;
    /// [`Dataset::size`] of one such unit.
    const SIZE_OF_UNIT: f64;

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

/// What a recipe can name.
const MODALITIES: [&str; 3] = ["speech", "vision", "nlp"];

/// Something to do by a recipe, whatever its modality.
pub trait Task {
    /// Does it.
    fn run<M: Modality>(self, recipe: Recipe<M>) -> Result<ExitCode>;
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
        "speech" => task.run(Recipe::<Speech>::from_table(path, table)?),
        "vision" => task.run(Recipe::<Vision>::from_table(path, table)?),
        "nlp" => task.run(Recipe::<Nlp>::from_table(path, table)?),
        other => {
            let hint = nearest(other, MODALITIES.into_iter()).map_or_else(
                || format!("there are {}", MODALITIES.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            bail!("{recipe}: unknown modality `{other}`; {hint}")
        }
    }
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
pub fn extractor(dir: &Path, device: Device) -> Result<Extractor> {
    /// Only the kind: the rest is the encoder's own.
    #[derive(Deserialize)]
    struct Kind {
        encoder: String,
    }
    let path = dir.join(ENCODER_CONFIG);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let kind: Kind = toml::from_str(&text)
        .map_err(|e| anyhow!("{}, {}", path.display(), toml_error(&text, &e)))?;
    Ok(match kind.encoder.as_str() {
        WaveEncoder::NAME => {
            let encoder = SpeechEncoder::load(dir, device)?;
            let depth = encoder.depth();
            let layers = move |path: &Path| Ok(encoder.layers(&audio::read(path)?)?);
            Extractor { depth, layers: Box::new(layers) }
        }
        PatchEncoder::NAME => {
            let encoder = VisionEncoder::load(dir, device)?;
            let depth = encoder.depth();
            let layers = move |path: &Path| Ok(encoder.layers(&Pixels::read(path)?)?);
            Extractor { depth, layers: Box::new(layers) }
        }
        TokenEncoder::NAME => {
            let encoder = TextEncoder::load(dir, device)?;
            let depth = encoder.depth();
            let layers = move |path: &Path| Ok(encoder.layers(&read_text(path)?)?);
            Extractor { depth, layers: Box::new(layers) }
        }
        other => {
            let known = [WaveEncoder::NAME, PatchEncoder::NAME, TokenEncoder::NAME].join(", ");
            bail!("{}: an encoder of unknown kind `{other}`; there are {known}", path.display())
        }
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

/// Recordings, counted in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Speech;

impl Modality for Speech {
    type Encoder = WaveEncoder;
    type Dataset = SpeechDataset;
    type Data = SpeechDataConfig;
    type Mask = SpeechMaskConfig;
    const UNIT: &'static str = "s of audio";
    const SIZE_OF_UNIT: f64 = audio::SAMPLE_RATE as f64;

    fn masking(mask: &Self::Mask, _: &WaveEncoderConfig) -> Result<Box<dyn MaskStrategy>> {
        mask.validate()?;
        Ok(Box::new(mask.clone()))
    }

    fn check(data: &Self::Data, features: &WaveEncoderConfig) -> Result<()> {
        data.validate()?;
        // Masks need a frame to hide and one to show.
        let least = (features.receptive_field() + features.hop()) as f64 / Self::SIZE_OF_UNIT;
        if data.min_seconds < least {
            let reason = format!("{} is too short: two frames take {least} s", data.min_seconds);
            return Err(Error::config("data.min_seconds", reason).into());
        }
        Ok(())
    }

    fn open(
        path: &Path,
        data: &Self::Data,
        features: &WaveEncoderConfig,
        held_out: f64,
        seed: u64,
        cache: &Path,
    ) -> Result<Examples<Self::Dataset>> {
        let all = SpeechDataset::open(path, data, Some(cache))?.normalized(features.normalize);
        let skipped = reasons(all.skipped());
        let too_short = all.too_short();
        let (train, held_out) =
            split(all, held_out, |all, share| all.split(HeldOut::Share(share), seed))?;
        let amount = |d: &SpeechDataset| format!("{}, {:.1} min", d.len(), d.seconds() / 60.0);
        let summary = format!(
            "recordings to train on: {}; held out: {}; too short: {too_short}",
            amount(&train),
            held_out.as_ref().map_or("none".into(), amount),
        );
        Ok(Examples { train, held_out, summary, skipped })
    }

    fn random(_: &WaveEncoderConfig, rows: i64, size: f64) -> Result<Batch> {
        let samples = (size * Self::SIZE_OF_UNIT) as i64;
        Ok(Batch::new(Tensor::randn([rows, samples], (Kind::Float, Device::Cpu)))?)
    }
}

/// Images, counted one by one.
#[derive(Clone, Debug, PartialEq)]
pub struct Vision;

impl Modality for Vision {
    type Encoder = PatchEncoder;
    type Dataset = VisionDataset;
    type Data = VisionDataConfig;
    type Mask = VisionMaskConfig;
    const UNIT: &'static str = "images";
    const SIZE_OF_UNIT: f64 = 1.0;

    fn masking(mask: &Self::Mask, features: &PatchEncoderConfig) -> Result<Box<dyn MaskStrategy>> {
        features.validate()?;
        Ok(Box::new(mask.on_grid(features.grid())?))
    }

    fn check(data: &Self::Data, _: &PatchEncoderConfig) -> Result<()> {
        Ok(data.validate()?)
    }

    fn open(
        path: &Path,
        data: &Self::Data,
        features: &PatchEncoderConfig,
        held_out: f64,
        seed: u64,
        _cache: &Path,
    ) -> Result<Examples<Self::Dataset>> {
        let all = VisionDataset::open(path, data, features)?;
        let skipped = reasons(all.skipped());
        let (train, held_out) = split(all, held_out, |all, share| all.split(share, seed))?;
        let summary = format!(
            "images to train on: {}; held out: {}",
            train.len(),
            held_out.as_ref().map_or("none".into(), |held_out| held_out.len().to_string()),
        );
        Ok(Examples { train, held_out, summary, skipped })
    }

    fn random(features: &PatchEncoderConfig, rows: i64, _size: f64) -> Result<Batch> {
        let [height, width] = features.image_size;
        let size = [rows, features.channels, height, width];
        Ok(Batch::new(Tensor::randn(size, (Kind::Float, Device::Cpu)))?)
    }
}

/// Text, counted in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Nlp;

impl Modality for Nlp {
    type Encoder = TokenEncoder;
    type Dataset = TextDataset;
    type Data = TextDataConfig;
    type Mask = TextMaskConfig;
    const UNIT: &'static str = "tokens";
    const SIZE_OF_UNIT: f64 = 1.0;

    fn masking(mask: &Self::Mask, _: &TokenEncoderConfig) -> Result<Box<dyn MaskStrategy>> {
        mask.validate()?;
        Ok(Box::new(mask.clone()))
    }

    fn check(data: &Self::Data, features: &TokenEncoderConfig) -> Result<()> {
        data.validate()?;
        Ok(data.fits(features)?)
    }

    fn open(
        path: &Path,
        data: &Self::Data,
        features: &TokenEncoderConfig,
        held_out: f64,
        seed: u64,
        cache: &Path,
    ) -> Result<Examples<Self::Dataset>> {
        data.fits(features)?;
        let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
            "tokens {bar:24} {bytes}/{total_bytes} left {eta}",
        )?);
        let all = TextDataset::open(path, data, cache, &mut |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.bytes);
        })?;
        bar.finish_and_clear();
        all.tokenizer().check(features)?;
        let skipped = all.skipped();
        let (documents, replaced) = (all.documents(), all.replaced());
        let (train, held_out) = split(all, held_out, |all, share| all.split(share, seed))?;
        let amount = |d: &TextDataset| format!("{} in {} blocks", d.tokens(), d.len());
        let summary = format!(
            "{documents} documents; tokens to train on: {}; held out: {}; not UTF-8: {replaced} places",
            amount(&train),
            held_out.as_ref().map_or("none".into(), amount),
        );
        Ok(Examples { train, held_out, summary, skipped })
    }

    fn random(features: &TokenEncoderConfig, rows: i64, size: f64) -> Result<Batch> {
        let (vocabulary, kind) = (features.vocabulary, (Kind::Int64, Device::Cpu));
        Ok(Batch::new(Tensor::randint(vocabulary, [rows, size as i64], kind))?)
    }

    fn meaning(dataset: &TextDataset) -> Option<&str> {
        Some(dataset.tokenizer().fingerprint())
    }

    fn export(dataset: &TextDataset, dir: &Path) -> Result<()> {
        Ok(dataset.tokenizer().save_with_encoder(dir)?)
    }
}
