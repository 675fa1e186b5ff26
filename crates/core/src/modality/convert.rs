//! Conversion of a modality's models from and to other programs.

use std::path::Path;

use crate::error::Result;
use crate::io::convert::{ExportedModel, ImportOptions, Imported, Model, Source};
use crate::modality::Features;
use crate::modality::finetune::FinetuneModality;

/// A modality whose checkpoints can be imported from and exported to other programs.
pub trait ConvertModality: FinetuneModality {
    /// Converts a checkpoint; `None` if its layout is not one of this modality.
    ///
    /// # Errors
    /// If the layout is known but a tensor or setting is missing, damaged or unsupported.
    fn import(
        source: &mut Source,
        options: &ImportOptions,
    ) -> Result<Option<Imported<Features<Self>>>>;

    /// Writes further files of an imported model, such as a tokenizer, to the directory `out`.
    /// Returns notes for the user. The default writes nothing.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if they cannot be written.
    fn write_imported_files(
        _source: &Source,
        _options: &ImportOptions,
        _out: &Path,
    ) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Converts a model for Hugging Face transformers.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if it has no counterpart there.
    fn to_hugging_face(model: &Model<Features<Self>>) -> Result<ExportedModel>;

    /// Converts a model for fairseq.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if it has no counterpart there.
    fn to_fairseq(model: &Model<Features<Self>>) -> Result<ExportedModel>;

    /// Writes further files of an exported model, such as a tokenizer, from the directory `model` to
    /// `out`, in the format of transformers if `hugging_face`. Returns notes for the user. The
    /// default writes nothing.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if they cannot be written.
    fn write_exported_files(
        _model: &Path,
        _out: &Path,
        _hugging_face: bool,
    ) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
