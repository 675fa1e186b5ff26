//! `data2vec export`: our models for other programs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use data2vec_core::FeatureEncoder;
use data2vec_core::convert::{EXPORTED_WEIGHTS, Exported, Model};
use data2vec_nlp::convert::save_tokenizer;
use data2vec_nlp::{TokenEncoder, Tokenizer};
use data2vec_speech::WaveEncoder;
use data2vec_vision::PatchEncoder;

use crate::import::empty;
use crate::modality::{encoder_kind, unknown};
use crate::report::{note, out};

/// For whom.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// A folder for `from_pretrained` of transformers: encoders of 1.0, and heads
    HuggingFace,
    /// The names of fairseq (or of BEiT's fork, for images of 1.0) in a safetensors file
    Fairseq,
    /// All of it under our own names in a safetensors file, with its settings in the file's head
    Safetensors,
}

/// What `export` is told.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of a model: encoder.safetensors and encoder.toml, and what fine-tuning added
    model: PathBuf,
    /// For which program. fairseq's own files are Python pickles: there,
    /// `torch.save({"model": safetensors.torch.load_file(FILE)}, "model.pt")` makes one
    #[arg(long)]
    to: Target,
    /// Folder to write to; must be new or empty
    #[arg(long)]
    out: PathBuf,
}

/// Reads a model, and writes what it is elsewhere.
pub fn run(args: &Args) -> Result<()> {
    empty(&args.out)?;
    let kind = encoder_kind(&args.model)?;
    let exported = match kind.as_str() {
        WaveEncoder::NAME => {
            use data2vec_speech::convert::{to_fairseq, to_hugging_face};
            of(args, &Model::read::<WaveEncoder>(&args.model)?, to_hugging_face, to_fairseq)?
        }
        PatchEncoder::NAME => {
            use data2vec_vision::convert::{to_fairseq, to_hugging_face};
            of(args, &Model::read::<PatchEncoder>(&args.model)?, to_hugging_face, to_fairseq)?
        }
        TokenEncoder::NAME => {
            use data2vec_nlp::convert::{to_fairseq, to_hugging_face};
            of(args, &Model::read::<TokenEncoder>(&args.model)?, to_hugging_face, to_fairseq)?
        }
        other => return unknown(&args.model, other),
    };
    exported.write(&args.out)?;
    if kind == TokenEncoder::NAME {
        tokenizer(&args.model, &args.out, args.to)?;
    }
    out!("{} tensors to {}", exported.tensors.len(), args.out.join(EXPORTED_WEIGHTS).display());
    exported.notes.iter().for_each(note);
    Ok(())
}

type To<C> = fn(&Model<C>) -> data2vec_core::Result<Exported>;

fn of<C: serde::Serialize + serde::de::DeserializeOwned>(
    args: &Args,
    model: &Model<C>,
    to_hugging_face: To<C>,
    to_fairseq: To<C>,
) -> Result<Exported> {
    Ok(match args.to {
        Target::HuggingFace => to_hugging_face(model)?,
        Target::Fairseq => to_fairseq(model)?,
        Target::Safetensors => model.plain()?,
    })
}

/// Adds the tokenizer's files.
fn tokenizer(model: &Path, out: &Path, to: Target) -> Result<()> {
    match Tokenizer::load(model) {
        Ok(tokenizer) if to == Target::HuggingFace => Ok(save_tokenizer(&tokenizer, out)?),
        Ok(tokenizer) => Ok(tokenizer.save(out)?),
        Err(_) => {
            note(format!("{}: has no tokenizer to export with it", model.display()));
            Ok(())
        }
    }
}
