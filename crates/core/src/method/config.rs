//! The settings of a data2vec model, as recipes write them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::method::decoder::DecoderConfig;
use crate::method::loss::RegressionLoss;
use crate::method::target::{TargetConfig, TargetSource};
use crate::method::teacher::{EmaConfig, EmaScope};
use crate::model::feature::{FeatureEncoder, InputTarget};
use crate::model::transformer::TransformerConfig;
use crate::train::precision::Precision;

/// How the student treats masked tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskedInput {
    /// Replaces them by a learned mask token (1.0).
    Replace,
    /// Drops them; the decoder gets noise in their place (2.0).
    Drop,
}

/// The `model` section of a recipe. The default is 2.0's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Replace (1.0) or drop (2.0) masked tokens.
    pub masked_input: MaskedInput,
    /// Number of masks of each example in a step (M).
    pub copies: i64,
    /// Standard deviation of the decoder's noise at masked tokens; used by `drop` only.
    pub noise_std: f64,
    /// Precision of matrix products and convolutions; absent: `f32`.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// Keeps only the input of each of the student's blocks and recomputes the block for its
    /// gradients: about a third more time, much less memory, the same numbers. Absent: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub activation_checkpointing: bool,
    /// Departures from the papers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compat: Vec<ModelCompat>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            masked_input: MaskedInput::Drop,
            copies: 8,
            noise_std: 0.01,
            precision: Precision::F32,
            activation_checkpointing: false,
            compat: Vec::new(),
        }
    }
}

/// Behaviour of the released code that departs from the papers, for exact reproduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelCompat {
    /// The teacher sees only the masked tokens, moved together, instead of the whole input (fairseq
    /// issue 4881). Requires `replace` and a teacher that uses the student's tokens.
    TeacherSeesHidden,
}

/// All settings of a [`Data2Vec`](crate::Data2Vec) except its mask strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct Data2VecConfig<C> {
    /// Masked input, copies, precision.
    pub model: ModelConfig,
    /// The feature encoder.
    pub features: C,
    /// The transformer.
    pub transformer: TransformerConfig,
    /// How targets are built from the teacher's layers.
    pub target: TargetConfig,
    /// The regression loss.
    pub loss: RegressionLoss,
    /// The decoder.
    pub decoder: DecoderConfig,
    /// How the teacher follows the student.
    pub ema: EmaConfig,
}

impl<C> Data2VecConfig<C> {
    /// Checks every setting that does not depend on the modality.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first invalid key.
    pub fn validate(&self) -> Result<()> {
        let Self { model, transformer, target, loss, decoder, ema, .. } = self;
        if model.copies < 1 {
            return Err(Error::config("model.copies", format!("{} is below 1", model.copies)));
        }
        if self.teacher_sees_masked()
            && (model.masked_input == MaskedInput::Drop || ema.scope == EmaScope::Everything)
        {
            let reason = "`teacher-sees-hidden` needs masked_input = \"replace\" and ema.scope \
                          \"blocks\" or \"context\"";
            return Err(Error::config("model.compat", reason));
        }
        transformer.validate()?;
        target.validate(transformer)?;
        loss.validate()?;
        decoder.validate(transformer.dim)?;
        ema.validate()
    }

    /// Checks that the features can be predicted if `target.source` is the input.
    pub(crate) fn validate_input_target<F: FeatureEncoder<Config = C>>(&self) -> Result<()> {
        if self.target.source != TargetSource::Input {
            return Ok(());
        }
        let Some(input) = F::input_target(&self.features) else {
            let reason = format!("\"input\" is not supported by `{}` features", F::NAME);
            return Err(Error::config("target.source", reason));
        };
        if self.teacher_sees_masked() {
            let reason =
                "`teacher-sees-hidden` needs a teacher; target.source = \"input\" has none";
            return Err(Error::config("model.compat", reason));
        }
        if self.loss.cls.is_some() {
            let reason = "target.source = \"input\" has no such loss; leave it out";
            return Err(Error::config("loss.cls", reason));
        }
        if matches!(input, InputTarget::Classes(_)) && self.loss.beta != 0.0 {
            let reason = format!("must be 0, not {}: token ids have no regression", self.loss.beta);
            return Err(Error::config("loss.beta", reason));
        }
        Ok(())
    }

    /// Whether [`ModelCompat::TeacherSeesHidden`] is set.
    pub(crate) fn teacher_sees_masked(&self) -> bool {
        self.model.compat.contains(&ModelCompat::TeacherSeesHidden)
    }
}
