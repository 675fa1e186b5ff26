//! The modality: log-mel spectrograms. Audio files, masks and labels come from `data2vec-speech`.

use std::path::Path;

use data2vec_core::modality::{finetune, hold_out};
use data2vec_core::model::nn::{Init, Linear};
use data2vec_core::{
    Batch, Dataset, EncoderConfig, Error, Extractor, FeatureEncoder, FinetuneModality, HeadTask,
    LabelledSource, LabelledSplits, MaskStrategy, Modality, NoMask, OnProgress, Precision, Result,
    Source, Splits, Tokens, TransformerConfig, Units,
};
use data2vec_speech::{
    LabelKind, LabelledSpeech, LabelledSpeechConfig, SpeechDataConfig, SpeechDataset,
    SpeechMaskConfig, TranscribedDataset, WaveEncoderConfig, audio, mel_filters,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

/// The recipe's `features` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpectrogramConfig {
    /// Number of mel bands.
    bands: usize,
    /// Window of a token in samples; windows do not overlap.
    window: i64,
    /// Maximum number of tokens.
    max_tokens: i64,
}

/// Maps samples to one token per window: log power in mel bands, then a linear layer.
#[derive(Debug)]
pub struct SpectrogramEncoder {
    filters: Tensor,
    linear: Linear,
    positions: Tensor,
    config: SpectrogramConfig,
}

impl FeatureEncoder for SpectrogramEncoder {
    const NAME: &'static str = "spectrogram";
    type Config = SpectrogramConfig;

    fn validate(config: &SpectrogramConfig, _: &TransformerConfig) -> Result<()> {
        match config.bands >= 1 && config.window >= 2 * config.bands as i64 {
            true => Ok(()),
            false => Err(Error::config("features.bands", "must be 1 to half of features.window")),
        }
    }

    fn new(path: &nn::Path, config: &SpectrogramConfig, transformer: &TransformerConfig) -> Self {
        let dim = transformer.dim;
        let init = nn::Init::Randn { mean: 0.0, stdev: 0.02 };
        let bands = config.bands as i64;
        Self {
            filters: mel_filters(config.bands, config.window as usize).to_device(path.device()),
            linear: Linear::new(&(path / "embed" / "linear"), bands, dim, Init::Torch),
            positions: (path / "positions").var("table", &[config.max_tokens, dim], init),
            config: config.clone(),
        }
    }

    fn embed(&self, batch: &Batch, _train: bool) -> Result<Tokens> {
        let window = self.config.window;
        let frames = batch.inputs.f_unfold(1, window, window)?; // (B, T, W)
        let power = frames.f_fft_rfft(None, -1, "ortho")?.f_abs()?.f_square()?; // (B, T, W/2+1)
        let mel = power.f_matmul(&self.filters.tr())?.f_clamp_min(1e-8)?.f_log()?; // (B, T, bands)
        let lengths = batch.lengths().map(|all| all.iter().map(|n| n / window).collect());
        Ok(Tokens::new(self.linear.forward(&mel), lengths)) // (B, T, D)
    }

    fn add_positions(&self, tokens: &Tokens, _train: bool) -> Result<Tensor> {
        let x = &tokens.x + self.positions.f_narrow(0, 0, tokens.num_tokens())?; // (B, T, D)
        Ok(tokens.zero_padding(&x))
    }
}

/// Recordings, as spectrograms.
#[derive(Clone, Debug, PartialEq)]
pub struct Spectrogram;

impl Modality for Spectrogram {
    const NAME: &'static str = "spectrogram";
    const UNITS: Units = Units { name: "s of audio", size: audio::SAMPLE_RATE as f64 };
    type Encoder = SpectrogramEncoder;
    type Dataset = SpeechDataset;
    type Data = SpeechDataConfig;
    type Mask = SpeechMaskConfig;

    fn validate(data: &SpeechDataConfig, _: &SpectrogramConfig) -> Result<()> {
        data.validate()
    }

    fn masking(mask: &SpeechMaskConfig, _: &SpectrogramConfig) -> Result<Box<dyn MaskStrategy>> {
        mask.validate()?;
        Ok(Box::new(mask.clone()))
    }

    fn open(source: &Source<Self>, _: OnProgress) -> Result<Splits<SpeechDataset>> {
        let all = SpeechDataset::open(source.path, source.data, Some(source.cache))?;
        let (skipped, summary) = (all.skipped(), format!("{} recordings", all.len()));
        let split = |all: &SpeechDataset, share| all.split(share, source.seed);
        let (train, held_out) = hold_out(all, source.held_out, split)?;
        Ok(Splits { train, held_out, summary, skipped })
    }

    fn extractor(dir: &Path, device: Device, precision: Precision) -> Result<Extractor> {
        Extractor::load::<SpectrogramEncoder>(dir, device, precision, |_, path| {
            Batch::new(Tensor::from_slice(&audio::read(path)?).unsqueeze(0))
        })
    }

    fn random_batch(_: &SpectrogramConfig, rows: i64, size: f64) -> Result<Batch> {
        let samples = (size * Self::UNITS.size) as i64;
        Batch::new(Tensor::randn([rows, samples], (Kind::Float, Device::Cpu)))
    }
}

/// Labels for probes: each recording's directory is its class.
impl FinetuneModality for Spectrogram {
    type Labelled = TranscribedDataset;
    type LabelledData = LabelledSpeechConfig;
    type FinetuneMask = NoMask;

    fn validate_finetuning(_: &LabelledSpeechConfig, _: HeadTask) -> Result<()> {
        Ok(())
    }

    fn default_data(
        _: &EncoderConfig<SpectrogramConfig>,
        _: HeadTask,
    ) -> Result<LabelledSpeechConfig> {
        Ok(LabelledSpeechConfig { label: LabelKind::Class, ..LabelledSpeechConfig::default() })
    }

    fn open_labelled(source: &LabelledSource<Self>) -> Result<LabelledSplits<TranscribedDataset>> {
        let features = WaveEncoderConfig::default();
        let all = LabelledSpeech::open(source.path, source.data, &features, source.cache)?;
        let (train, _, test) = finetune::split(all, None, source.split)?;
        let (labels, summary) = (train.labels()?, format!("{} recordings", train.len()));
        let test = test.map(|test| test.dataset(&labels)).transpose()?;
        let (train, skipped) = (train.dataset(&labels)?, Vec::new());
        Ok(LabelledSplits { train, held_out: None, test, labels, summary, skipped })
    }
}
