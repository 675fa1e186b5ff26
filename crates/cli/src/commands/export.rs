//! `data2vec export`: exports a model for other programs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use data2vec_core::ConvertModality;
use data2vec_core::io::convert::{EXPORTED_WEIGHTS, Model};
use tracing::warn;

use crate::commands::shared::check_empty;
use crate::registry::{self, ModalityTask};
use crate::terminal::out;

/// Target format.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Directory for transformers' `from_pretrained`; data2vec 1.0 encoders and heads only
    HuggingFace,
    /// Safetensors file with fairseq's tensor names (for 1.0 images, those of BEiT's fork)
    Fairseq,
    /// Safetensors file with our tensor names, and the config in its metadata
    Safetensors,
}

/// Arguments of `export`.
#[derive(clap::Args)]
pub struct Args {
    /// Model directory: encoder.safetensors, encoder.toml, and the head of a fine-tuned model
    model: PathBuf,
    /// Target format. fairseq reads only pickles; make one with
    /// `torch.save({"model": safetensors.torch.load_file(FILE)}, "model.pt")`
    #[arg(long)]
    to: Target,
    /// Directory to write to; must be new or empty
    #[arg(long)]
    out: PathBuf,
}

/// Exports a model.
pub fn run(args: &Args) -> Result<ExitCode> {
    check_empty(&args.out)?;
    registry::by_model(&args.model, args)
}

impl ModalityTask for &Args {
    type Output = ExitCode;

    fn run<M: ConvertModality>(self) -> Result<ExitCode> {
        let model = Model::read::<M::Encoder>(&self.model)?;
        let exported = match self.to {
            Target::HuggingFace => M::to_hugging_face(&model)?,
            Target::Fairseq => M::to_fairseq(&model)?,
            Target::Safetensors => model.to_native()?,
        };
        exported.write(&self.out)?;
        let hugging_face = self.to == Target::HuggingFace;
        let notes = M::write_exported_files(&self.model, &self.out, hugging_face)?;
        let path = self.out.join(EXPORTED_WEIGHTS);
        out!("wrote {} tensors to {}", exported.tensors.len(), path.display());
        exported.notes.iter().chain(&notes).for_each(|note| warn!("{note}"));
        Ok(ExitCode::SUCCESS)
    }
}
