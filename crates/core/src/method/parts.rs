//! The parts of the objective that a caller may replace.

use tch::nn;

use crate::method::config::Data2VecConfig;
use crate::method::decoder::{Decode, Decoder};
use crate::method::loss::{CrossEntropy, Loss};
use crate::method::mask::MaskStrategy;
use crate::method::target::{Target, TargetSource};
use crate::model::feature::{FeatureEncoder, InputTarget};
use crate::model::nn::Init;
use crate::model::transformer::WeightInit;

/// The replaceable parts of the objective. [`Parts::from_config`] builds the paper's.
#[derive(Debug)]
pub struct Parts {
    /// Chooses the masked tokens.
    pub masking: Box<dyn MaskStrategy>,
    /// Builds targets from the teacher's layers; `None`: the input is the target.
    pub target: Option<Box<dyn Target>>,
    /// Predicts targets from the student's features; its variables live below `decoder`.
    pub decoder: Box<dyn Decode>,
    /// Compares predictions with targets.
    pub loss: Box<dyn Loss>,
}

impl Parts {
    /// The parts that `config` describes, with decoder variables below `path`. The caller has
    /// validated it.
    pub fn from_config<F: FeatureEncoder>(
        config: &Data2VecConfig<F::Config>,
        masking: Box<dyn MaskStrategy>,
        path: &nn::Path,
    ) -> Self {
        let Data2VecConfig { transformer, features, decoder, target, loss, .. } = config;
        let init = match transformer.init {
            WeightInit::Bert => F::DECODER_INIT,
            WeightInit::Beit => Init::Beit,
        };
        let is_input = target.source == TargetSource::Input;
        let input = is_input.then(|| F::input_target(features)).flatten();
        let loss: Box<dyn Loss> = match input {
            Some(InputTarget::Classes(classes)) => {
                Box::new(CrossEntropy { classes, scale: loss.scale.unwrap_or(1.0) })
            }
            _ => Box::new(loss.clone()),
        };
        let widths = [transformer.dim, input.map_or(transformer.dim, InputTarget::width)];
        Self {
            masking,
            target: (!is_input).then(|| Box::new(target.clone()) as _),
            decoder: Box::new(Decoder::new(path, decoder, widths, init)),
            loss,
        }
    }
}
