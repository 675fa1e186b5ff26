//! Behaviour of the released code that departs from the papers: see
//! [`ModelCompat`](crate::ModelCompat).

use tch::Tensor;

use crate::data::batch::{Batch, Tokens};
use crate::error::Result;
use crate::method::data2vec::Data2Vec;
use crate::method::mask::Mask;
use crate::model::feature::FeatureEncoder;

impl<F: FeatureEncoder> Data2Vec<F> {
    /// Targets of a teacher that sees only the masked tokens of `tokens` `(B, T, D)`, moved
    /// together. Returns `(B, T, D)` f32, zero at visible tokens.
    pub(super) fn target_from_masked(
        &self,
        batch: &Batch,
        tokens: &Tokens,
        mask: &Mask,
    ) -> Result<Tensor> {
        let masked = mask.inverted(tokens.lengths()).visible(tokens.lengths(), tokens.x.device());
        let together = Tokens::new(masked.gather(&tokens.x), Some(mask.counts())); // (B, N/B, D)
        let target = self.target(batch, &together)?; // (B, N/B, D)
        Ok(masked.restore(&target, &tokens.x.detach().zeros_like())) // (B, T, D)
    }
}
