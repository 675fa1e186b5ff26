//! The parts of the objective that a caller may replace.

use tch::nn;

use crate::method::config::Data2VecConfig;
use crate::method::decoder::{Decode, Decoder};
use crate::method::loss::Loss;
use crate::method::mask::MaskStrategy;
use crate::method::target::Target;
use crate::model::feature::FeatureEncoder;
use crate::model::nn::Init;
use crate::model::transformer::WeightInit;

/// The replaceable parts of the objective. [`Parts::from_config`] builds the paper's.
#[derive(Debug)]
pub struct Parts {
    /// Chooses the masked tokens.
    pub masking: Box<dyn MaskStrategy>,
    /// Builds targets from the teacher's layers.
    pub target: Box<dyn Target>,
    /// Predicts targets from the student's features; its variables live below `decoder`.
    pub decoder: Box<dyn Decode>,
    /// Compares predictions with targets.
    pub loss: Box<dyn Loss>,
}

impl Parts {
    /// The parts that `config` describes, with decoder variables below `path`.
    pub fn from_config<F: FeatureEncoder>(
        config: &Data2VecConfig<F::Config>,
        masking: Box<dyn MaskStrategy>,
        path: &nn::Path,
    ) -> Self {
        let Data2VecConfig { transformer, decoder, target, loss, .. } = config;
        let init = match transformer.init {
            WeightInit::Bert => F::DECODER_INIT,
            WeightInit::Beit => Init::Beit,
        };
        Self {
            masking,
            target: Box::new(target.clone()),
            decoder: Box::new(Decoder::new(path, decoder, transformer.dim, init)),
            loss: Box::new(loss.clone()),
        }
    }
}
