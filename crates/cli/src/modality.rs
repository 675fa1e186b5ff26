//! The one place that knows which modalities there are. Adding one: a type below that implements
//! [`Modality`], and an arm in [`pretrain`] and in `extract::run`.

use std::fmt::Debug;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use data2vec_core::{Dataset, FeatureEncoder, MaskStrategy};
use data2vec_speech::{
    HeldOut, SpeechDataConfig, SpeechDataset, SpeechMaskConfig, WaveEncoder, WaveEncoderConfig,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::recipe::{Recipe, nearest, read};
use crate::{PretrainArgs, pretrain};

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

    /// The recipe's masks.
    fn masking(mask: &Self::Mask) -> Result<Box<dyn MaskStrategy>>;

    /// Lists the examples at `path`. What is remembered of them for the next start goes to `cache`.
    fn open(
        path: &Path,
        data: &Self::Data,
        features: &<Self::Encoder as FeatureEncoder>::Config,
        held_out: f64,
        seed: u64,
        cache: &Path,
    ) -> Result<Examples<Self::Dataset>>;
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

/// Reads the recipe, and trains the modality that it names.
pub fn pretrain(args: &PretrainArgs) -> Result<ExitCode> {
    let table = read(&args.recipe, args.steps, &args.set)?;
    let name = table.get("modality").and_then(|v| v.as_str());
    match name.with_context(|| format!("{}: the key `modality` is missing", args.recipe.display()))? {
        "speech" => pretrain::run::<Speech>(args, Recipe::from_table(&args.recipe, table)?),
        other => {
            let hint = nearest(other, ["speech"].into_iter())
                .map_or_else(|| "there is `speech`".into(), |near| format!("did you mean `{near}`?"));
            bail!("{}: unknown modality `{other}`; {hint}", args.recipe.display())
        }
    }
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
    const SIZE_OF_UNIT: f64 = data2vec_speech::audio::SAMPLE_RATE as f64;

    fn masking(mask: &Self::Mask) -> Result<Box<dyn MaskStrategy>> {
        mask.validate()?;
        Ok(Box::new(mask.clone()))
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
        let skipped = all.skipped().iter().map(|(_, reason)| reason.clone()).collect();
        let too_short = all.too_short();
        let (train, held_out) = match held_out {
            0.0 => (all, None),
            share => {
                let (train, held_out) = all.split(HeldOut::Share(share), seed)?;
                (train, Some(held_out))
            }
        };
        let amount = |d: &SpeechDataset| format!("{}, {:.1} min", d.len(), d.seconds() / 60.0);
        let summary = format!(
            "recordings to train on: {}; held out: {}; too short: {too_short}",
            amount(&train),
            held_out.as_ref().map_or("none".into(), amount),
        );
        Ok(Examples { train, held_out, summary, skipped })
    }
}
