//! Export of tokenizers to Hugging Face.

use std::path::Path;

use data2vec_core::{Error, Result};
use serde_json::json;
use tokenizers::PostProcessorWrapper;
use tokenizers::processors::roberta::RobertaProcessing;

use crate::tokenizer::{TOKENIZER_FILE, Tokenizer};

/// Writes the tokenizer to the directory `dir` for `AutoTokenizer.from_pretrained`, which adds
/// `<s>` and `</s>` to each text, unlike [`Tokenizer::encode`].
///
/// # Errors
/// Returns [`Error::Io`] if a file cannot be written, [`Error::File`] for a tokenizer from GPT-2's
/// files, whose ids transformers does not support.
pub fn save_tokenizer(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    let path = dir.join(TOKENIZER_FILE);
    let Some(inner) = tokenizer.inner() else {
        let reason = "transformers needs RoBERTa's vocab.json and merges.txt; it cannot read \
                      encoder.json, vocab.bpe and dict.txt";
        return Err(Error::file(&path, reason));
    };
    let special = tokenizer.special();
    let token = |id: i64| {
        let name = inner.id_to_token(id as u32).unwrap_or_default();
        (name, id as u32)
    };
    let processor = RobertaProcessing::new(token(special.eos), token(special.bos))
        .trim_offsets(true)
        .add_prefix_space(false);
    let mut exported = inner.clone();
    exported.with_post_processor(Some(PostProcessorWrapper::Roberta(processor)));
    exported.set_encode_special_tokens(false);
    let text = exported.to_string(true).map_err(|e| Error::file(&path, e.to_string()))?;
    let names = json!({
        "bos_token": token(special.bos).0,
        "cls_token": token(special.bos).0,
        "eos_token": token(special.eos).0,
        "sep_token": token(special.eos).0,
        "pad_token": token(special.pad).0,
        "unk_token": token(special.unk).0,
        "mask_token": token(special.mask).0,
    });
    let mut settings = names.clone();
    if let Some(settings) = settings.as_object_mut() {
        settings.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        settings.insert("add_prefix_space".into(), json!(false));
    }
    for (name, text) in [
        (TOKENIZER_FILE, text),
        ("tokenizer_config.json", format!("{settings:#}\n")),
        ("special_tokens_map.json", format!("{names:#}\n")),
    ] {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
    }
    Ok(())
}
