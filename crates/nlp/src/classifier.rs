//! Inference with a fine-tuned classifier: texts to classes or numbers.

use std::path::Path;

use data2vec_core::{Error, FinetunedModel, HeadTask, Precision, Result};
use tch::{Device, Kind, Tensor};

use crate::dataset::collate;
use crate::feature::TokenEncoder;
use crate::sequence::encode;
use crate::tokenizer::Tokenizer;

/// A fine-tuned text classifier or regressor with its tokenizer, for inference.
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
/// # data2vec_core::FinetunedModel::<data2vec_nlp::TokenEncoder>::new(&vars.root(), encoder.clone(), head.clone())?;
/// # data2vec_core::model::finetuned::save_model(&dir, &vars.variables(), &encoder, Some(&head), None)?;
/// # tokenizer.save_with_encoder(&dir)?;
/// use data2vec_nlp::TextClassifier;
///
/// let model = TextClassifier::load(&dir, tch::Device::Cpu)?;
/// let classes = model.classify("a fine film")?;
/// let (label, probability) = &classes[0]; // most probable
/// assert!(model.labels().contains(label) && *probability >= 0.5);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TextClassifier {
    model: FinetunedModel<TokenEncoder>,
    tokenizer: Tokenizer,
    device: Device,
}

impl TextClassifier {
    /// Loads a fine-tuned model and its tokenizer from the directory `dir`.
    ///
    /// # Errors
    /// Returns an error if a file is missing or invalid, belongs to another feature encoder, or the
    /// tokenizer is not that of the encoder.
    pub fn load(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let tokenizer = Tokenizer::load_for_encoder(dir)?;
        let model = FinetunedModel::load(dir, device)?;
        tokenizer.check(&model.config().features)?;
        Ok(Self { model, tokenizer, device })
    }

    /// Sets the precision of inference; scores are always f32. bf16 is faster on hardware that
    /// supports it.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { model: self.model.with_precision(precision), ..self }
    }

    /// Returns the class names, in the order of the model's outputs, or the name of the number.
    pub fn labels(&self) -> &[String] {
        self.model.labels()
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns all classes with their probabilities, most probable first. The end of a text longer
    /// than `max_tokens` is ignored.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the text is blank or the model is not for classification.
    pub fn classify(&self, text: &str) -> Result<Vec<(String, f64)>> {
        self.classify_one(&[text])
    }

    /// Classifies several texts in one padded batch, see [`classify`](Self::classify).
    ///
    /// # Errors
    /// Returns the errors of [`classify`](Self::classify).
    pub fn classify_batch(&self, texts: &[&str]) -> Result<Vec<Vec<(String, f64)>>> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        self.classify_all(&texts.iter().map(std::slice::from_ref).collect::<Vec<_>>())
    }

    /// Classifies a pair of texts, in this order. The end of the longer text is ignored if the pair
    /// is longer than `max_tokens`.
    ///
    /// # Errors
    /// Returns the errors of [`classify`](Self::classify).
    pub fn classify_pair(&self, a: &str, b: &str) -> Result<Vec<(String, f64)>> {
        self.classify_one(&[a, b])
    }

    /// Returns the number that a regression model predicts for a text.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the text is blank or the model is not for regression.
    pub fn score(&self, text: &str) -> Result<f64> {
        self.score_one(&[text])
    }

    /// Returns the number that a regression model predicts for a pair of texts.
    ///
    /// # Errors
    /// Returns the errors of [`score`](Self::score).
    pub fn score_pair(&self, a: &str, b: &str) -> Result<f64> {
        self.score_one(&[a, b])
    }

    fn classify_one(&self, texts: &[&str]) -> Result<Vec<(String, f64)>> {
        Ok(self.classify_all(&[texts])?.remove(0))
    }

    fn classify_all(&self, examples: &[&[&str]]) -> Result<Vec<Vec<(String, f64)>>> {
        let logits = self.logits(examples, HeadTask::Classification)?;
        let probabilities = logits.softmax(-1, Kind::Double); // (B, C)
        let rank = |row| Ok(self.model.rank_labels(Vec::try_from(probabilities.get(row))?));
        (0..probabilities.size()[0]).map(rank).collect()
    }

    fn score_one(&self, texts: &[&str]) -> Result<f64> {
        Ok(self.logits(&[texts], HeadTask::Regression)?.f_double_value(&[0, 0])?)
    }

    /// Returns the outputs `(B, C)` for texts or pairs of texts.
    fn logits(&self, examples: &[&[&str]], task: HeadTask) -> Result<Tensor> {
        let trained = self.model.head_config().task;
        if trained != task {
            let reason = format!("the model was trained for {trained:?}, not {task:?}");
            return Err(Error::Input(reason.to_lowercase()));
        }
        if examples.iter().any(|texts| texts.iter().all(|text| text.trim().is_empty())) {
            return Err(Error::Input("no text".into()));
        }
        let max_tokens = self.model.config().features.max_tokens as usize;
        let ids = |texts: &&[&str]| Ok(encode(&self.tokenizer, texts, max_tokens)?.0);
        let rows: Vec<Vec<i64>> = examples.iter().map(ids).collect::<Result<_>>()?;
        let batch = collate(&rows, self.tokenizer.special().pad)?.to_device(self.device);
        Ok(self.model.forward(&batch)?.0)
    }
}
