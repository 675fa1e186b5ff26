//! A fine-tuned encoder, from text to labels.

use std::path::Path;

use data2vec_core::{Batch, Error, HeadTask, Precision, Result, Tuned};
use tch::{Device, Kind, Tensor};

use crate::{TokenEncoder, Tokenizer, sequence::sequence};

/// A fine-tuned model of texts with its tokenizer, ready for inference.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("data2vec-classifier-{}", std::process::id()));
/// # let tokenizer = data2vec_nlp::Tokenizer::train(["a"].into_iter(), 261)?;
/// # let encoder: data2vec_core::EncoderConfig<data2vec_nlp::TokenEncoderConfig> = serde_json::from_str(r#"{
/// #     "encoder": "token",
/// #     "features": {"vocabulary": 261, "max_tokens": 64, "pad": 1, "mask": 260, "dropout": 0, "norm_eps": 1e-5,
/// #         "early_positions": true},
/// #     "transformer": {"dim": 8, "depth": 1, "heads": 1, "mlp_ratio": 2, "norm": "post", "norm_eps": 1e-5,
/// #         "input_norm": false, "init": "bert", "input_dropout": 0, "dropout": 0, "attention_dropout": 0,
/// #         "activation_dropout": 0, "layer_drop": 0, "drop_path": 0}}"#)?;
/// # let head: data2vec_core::HeadConfig = serde_json::from_str(
/// #     r#"{"task": "classification", "pool": "first", "dropout": 0, "labels": ["blame", "praise"]}"#)?;
/// # let vars = tch::nn::VarStore::new(tch::Device::Cpu);
/// # data2vec_core::Tuned::<data2vec_nlp::TokenEncoder>::new(&vars.root(), encoder.clone(), head.clone())?;
/// # data2vec_core::tuned::write_model(&dir, &vars.variables(), &encoder, Some(&head), None)?;
/// # tokenizer.save_with_encoder(&dir)?;
/// use data2vec_nlp::TextClassifier;
///
/// let model = TextClassifier::load(&dir, tch::Device::Cpu)?;
/// let classes = model.classify("a fine film")?;
/// let (label, probability) = &classes[0]; // the likeliest
/// assert!(model.labels().contains(label) && *probability >= 0.5);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TextClassifier {
    tuned: Tuned<TokenEncoder>,
    tokenizer: Tokenizer,
    device: Device,
}

impl TextClassifier {
    /// Reads the folder that fine-tuning exported.
    ///
    /// # Errors
    /// If a file is missing or broken, holds another kind of encoder or no head, they do not fit, or the
    /// tokenizer is not the one that was exported with it.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let tokenizer = Tokenizer::of_encoder(dir)?;
        let tuned = Tuned::load(dir, device)?;
        tokenizer.check(&tuned.config().features)?;
        Ok(Self { tuned, tokenizer, device })
    }

    /// Computes in `precision` from now on; answers are f32 in any. bf16 is the faster one on hardware that has it.
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { tuned: self.tuned.in_precision(precision), ..self }
    }

    /// The classes' names, or the number's.
    pub fn labels(&self) -> &[String] {
        self.tuned.labels()
    }

    /// Text to ids and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The classes of a text, each with its probability, likeliest first. Of a text with more tokens than the
    /// encoder takes at once the end is left out.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no text or the model tells numbers.
    pub fn classify(&self, text: &str) -> Result<Vec<(String, f64)>> {
        self.classes(&[text])
    }

    /// The same of a pair of texts, the order of which matters. Of too long a pair the end of the longer text is
    /// left out.
    ///
    /// # Errors
    /// As [`classify`](Self::classify).
    pub fn classify_pair(&self, a: &str, b: &str) -> Result<Vec<(String, f64)>> {
        self.classes(&[a, b])
    }

    /// The number that belongs to a text.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no text or the model tells classes.
    pub fn score(&self, text: &str) -> Result<f64> {
        self.number(&[text])
    }

    /// The same of a pair of texts.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn score_pair(&self, a: &str, b: &str) -> Result<f64> {
        self.number(&[a, b])
    }

    fn classes(&self, texts: &[&str]) -> Result<Vec<(String, f64)>> {
        let logits = self.logits(texts, HeadTask::Classification)?;
        let shares = Vec::<f64>::try_from(logits.softmax(-1, Kind::Double).squeeze_dim(0))?;
        Ok(self.tuned.ranked(shares))
    }

    fn number(&self, texts: &[&str]) -> Result<f64> {
        Ok(self.logits(texts, HeadTask::Regression)?.f_double_value(&[0, 0])?)
    }

    /// `(1, C)`.
    fn logits(&self, texts: &[&str], task: HeadTask) -> Result<Tensor> {
        let trained = self.tuned.head_config().task;
        if trained != task {
            let reason = format!("the model was trained for {trained:?}, not {task:?}");
            return Err(Error::Input(reason.to_lowercase()));
        }
        if texts.iter().all(|text| text.trim().is_empty()) {
            return Err(Error::Input("no text".into()));
        }
        let most = self.tuned.config().features.max_tokens as usize;
        let (ids, _) = sequence(&self.tokenizer, texts, most)?;
        let inputs = Tensor::from_slice(&ids).unsqueeze(0).to_device(self.device); // (1, T)
        Ok(self.tuned.forward(&Batch::new(inputs)?)?.0)
    }
}
