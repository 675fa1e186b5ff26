//! Text as a modality: what a trainer and the conversions need.

use std::path::Path;
use std::sync::Arc;

use data2vec_core::io::convert::{
    ExportedModel, ImportOptions, Imported, Model, Source as Checkpoint,
};
use data2vec_core::modality::baseline::Examples;
use data2vec_core::modality::finetune::{Classifier, split};
use data2vec_core::modality::hold_out;
use data2vec_core::modality::raw::{
    FileStats, Measure, RawDataset, ShardEntries, ShardEntry, portable_path,
};
use data2vec_core::{
    Batch, ConvertModality, Dataset, EncoderConfig, Error, Extractor, FinetuneModality, HeadTask,
    LabelledSource, LabelledSplits, MaskStrategy, Modality, NoMask, OnProgress, Precision, Preview,
    Progress, RawFeatures, Result, Source, Splits, Units,
};
use tch::{Device, Kind, Tensor};

use crate::classifier::TextClassifier;
use crate::config::{LabelledTextConfig, TextDataConfig, TokenEncoderConfig};
use crate::convert::{self, save_tokenizer};
use crate::dataset::TextDataset;
use crate::encoder::TextEncoder;
use crate::feature::TokenEncoder;
use crate::labelled::{LabelledFiles, LabelledTexts};
use crate::listing::read_text;
use crate::mask::TextMaskConfig;
use crate::raw::{TextFileStats, TextFiles};
use crate::tfidf::TfIdf;
use crate::tokenizer::{TOKENIZER_FILE, Tokenizer};

/// Text, counted in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Nlp;

impl Modality for Nlp {
    const NAME: &'static str = "nlp";
    const UNITS: Units = Units { name: "tokens", size: 1.0 };
    type Encoder = TokenEncoder;
    type Dataset = TextDataset;
    type Data = TextDataConfig;
    type Mask = TextMaskConfig;

    fn masking(mask: &Self::Mask, _: &TokenEncoderConfig) -> Result<Box<dyn MaskStrategy>> {
        mask.validate()?;
        Ok(Box::new(mask.clone()))
    }

    fn validate(data: &Self::Data, features: &TokenEncoderConfig) -> Result<()> {
        data.validate()?;
        data.validate_for(features)
    }

    fn open(source: &Source<Self>, on_progress: OnProgress) -> Result<Splits<TextDataset>> {
        let Source { path, data, features, held_out, seed, cache } = *source;
        data.validate_for(features)?;
        let all = TextDataset::open(path, data, cache, &mut |progress| {
            let (done, total) = (progress.bytes, progress.total);
            on_progress(Progress { what: "bytes tokenized", done, total });
        })?;
        all.tokenizer().check(features)?;
        let skipped = all.skipped();
        let (documents, replaced) = (all.num_documents(), all.num_replaced());
        let (train, held_out) = hold_out(all, held_out, |all, share| all.split(share, seed))?;
        let amount = |d: &TextDataset| format!("{} in {} blocks", d.num_tokens(), d.len());
        let summary = format!(
            "{documents} documents; tokens to train on: {}; held out: {}; not UTF-8: {replaced} places",
            amount(&train),
            held_out.as_ref().map_or("none".into(), amount),
        );
        Ok(Splits { train, held_out, summary, skipped })
    }

    fn extractor(dir: &Path, device: Device, precision: Precision) -> Result<Extractor> {
        let encoder = TextEncoder::load(dir, device)?.with_precision(precision);
        Ok(Extractor::new(encoder.depth(), move |path| encoder.layers(&read_text(path)?)))
    }

    fn raw_dataset(path: &Path, data: Option<&Self::Data>) -> Result<RawDataset> {
        let strict = TextDataConfig::strict();
        let all = Arc::new(TextFiles::open(path, data.unwrap_or(&strict))?);
        let files = all.clone();
        let shard_entry: ShardEntries = Box::new(move |index| {
            let (path, field, content) = files.read_file(index)?;
            let (path, content) = (portable_path(path)?, content.into());
            Ok(ShardEntry { path, field, content, sidecars: Vec::new() })
        });
        let labelled = "is a table of labelled texts; only unlabelled texts can be packed";
        Ok(RawDataset {
            noun: "documents",
            files: all.len(),
            measures: &[Measure { name: "letters", has_total: true }],
            filters: Vec::new(),
            notes: Vec::new(),
            broken: all.skipped(),
            shard_entry: if all.has_labels() { Err(labelled.into()) } else { Ok(shard_entry) },
            inspect: Box::new(move |index| {
                let TextFileStats { chars, labels, invalid, replaced } = all.stats(index)?;
                let path = all.path(index);
                let not_text = (replaced > 0).then(|| format!("{replaced} places are not UTF-8"));
                let empty = chars.is_empty() && invalid.is_empty();
                let empty = empty.then(|| "contains no text".to_owned());
                let broken = invalid.into_iter().chain(not_text).chain(empty);
                Ok(FileStats {
                    kind: path.extension().unwrap_or_default().to_string_lossy().into_owned(),
                    sizes: chars.into_iter().map(|chars| chars as f64).collect(),
                    labels,
                    broken: broken.map(|why| format!("{}: {why}", path.display())).collect(),
                })
            }),
        })
    }

    fn random_batch(features: &TokenEncoderConfig, rows: i64, size: f64) -> Result<Batch> {
        let (vocabulary, kind) = (features.vocabulary, (Kind::Int64, Device::Cpu));
        Batch::new(Tensor::randint(vocabulary, [rows, size as i64], kind))
    }

    fn fingerprint(dataset: &TextDataset) -> Option<&str> {
        Some(dataset.tokenizer().fingerprint())
    }

    fn preview(
        dataset: &TextDataset,
        _: &TokenEncoderConfig,
        example: &Tensor,
        _tokens: i64,
    ) -> Result<Option<Preview>> {
        let ids: Vec<i64> = example.to_device(Device::Cpu).try_into()?;
        let piece = |id: &i64| {
            let piece = dataset.tokenizer().decode(&[*id])?;
            Ok(if piece.is_empty() { "·".to_owned() } else { piece }) // a special token
        };
        Ok(Some(Preview::Pieces(ids.iter().map(piece).collect::<Result<_>>()?)))
    }

    fn export(dataset: &TextDataset, dir: &Path) -> Result<()> {
        dataset.tokenizer().save_with_encoder(dir)
    }
}

impl FinetuneModality for Nlp {
    type Labelled = LabelledTexts;
    type LabelledData = LabelledTextConfig;
    type FinetuneMask = NoMask;

    fn validate_finetuning(data: &LabelledTextConfig, task: HeadTask) -> Result<()> {
        if task == HeadTask::Ctc {
            return Err(Error::config(
                "head.task",
                "must be \"classification\" or \"regression\" for texts",
            ));
        }
        data.validate()
    }

    fn default_data(
        config: &EncoderConfig<TokenEncoderConfig>,
        _: HeadTask,
    ) -> Result<LabelledTextConfig> {
        Ok(LabelledTextConfig { max_tokens: config.features.max_tokens as usize })
    }

    fn open_labelled(source: &LabelledSource<Self>) -> Result<LabelledSplits<LabelledTexts>> {
        source.data.validate_for(&source.config.features)?;
        let tokenizer = Arc::new(Tokenizer::load_for_encoder(source.encoder)?);
        tokenizer.check(&source.config.features)?;
        let files = LabelledFiles::find(source.path)?;
        let open = |file: &Path, labels: Option<&[String]>| {
            LabelledTexts::open(file, source.data, source.task, tokenizer.clone(), labels)
        };
        let all = open(&files.train, source.labels)?;
        let labels = all.labels().to_vec();
        let own = files.validation.first().map(|file| open(file, Some(&labels))).transpose()?;
        let mut skipped = all.skipped();
        skipped.extend(own.iter().flat_map(LabelledTexts::skipped));
        let (train, held_out, test) = split(all, own, source.split)?;
        let count = |texts: &Option<LabelledTexts>| texts.as_ref().map_or(0, LabelledTexts::len);
        let summary = format!(
            "{} to train on, {} held out, {} test",
            train.describe(),
            count(&held_out),
            count(&test),
        );
        Ok(LabelledSplits { train, held_out, test, labels, summary, skipped })
    }

    /// TF-IDF of words and pairs of words; the texts of a pair are joined.
    fn raw_features(
        train: Examples<LabelledTexts>,
        test: Examples<LabelledTexts>,
    ) -> Result<Option<RawFeatures>> {
        let texts = |(dataset, indices): Examples<LabelledTexts>| -> Result<Vec<String>> {
            indices.iter().map(|&index| dataset.text(index)).collect()
        };
        let (train, test) = (texts(train)?, texts(test)?);
        let tfidf = TfIdf::fit(&train, test.len());
        let [train, test] = [train, test].map(|texts| tfidf.transform(&texts));
        Ok(Some(RawFeatures { name: "TF-IDF of words and pairs of words", train, test }))
    }

    fn classifier(model: &Path, device: Device, precision: Precision) -> Result<Box<Classifier>> {
        let model = TextClassifier::load(model, device)?.with_precision(precision);
        Ok(Box::new(move |path| model.classify(&read_text(path)?)))
    }

    fn commands(model: &str, _task: HeadTask) -> Vec<String> {
        vec![format!("echo \"A TEXT\" | data2vec classify --model {model} -")]
    }

    fn export_labelled(dataset: &LabelledTexts, dir: &Path) -> Result<()> {
        dataset.tokenizer().save_with_encoder(dir)
    }
}

impl ConvertModality for Nlp {
    fn import(
        source: &mut Checkpoint,
        options: &ImportOptions,
    ) -> Result<Option<Imported<TokenEncoderConfig>>> {
        let tokenizer = find_tokenizer(options, &source.dir)?;
        convert::import(source, options, tokenizer.as_ref())
    }

    fn write_imported_files(
        source: &Checkpoint,
        options: &ImportOptions,
        out: &Path,
    ) -> Result<Vec<String>> {
        match find_tokenizer(options, &source.dir)? {
            Some(tokenizer) => tokenizer.save_with_encoder(out).map(|()| Vec::new()),
            None => Ok(vec![format!(
                "the checkpoint has no tokenizer: put one into {}, or import with --tokenizer",
                out.display()
            )]),
        }
    }

    fn to_hugging_face(model: &Model<TokenEncoderConfig>) -> Result<ExportedModel> {
        convert::to_hugging_face(model)
    }

    fn to_fairseq(model: &Model<TokenEncoderConfig>) -> Result<ExportedModel> {
        convert::to_fairseq(model)
    }

    fn write_exported_files(model: &Path, out: &Path, hugging_face: bool) -> Result<Vec<String>> {
        match Tokenizer::load(model) {
            Ok(tokenizer) if hugging_face => save_tokenizer(&tokenizer, out)?,
            Ok(tokenizer) => tokenizer.save(out)?,
            Err(_) => {
                return Ok(vec![format!("{}: has no tokenizer to export", model.display())]);
            }
        }
        Ok(Vec::new())
    }
}

/// Loads the user's tokenizer, or the one in the directory of the checkpoint.
fn find_tokenizer(options: &ImportOptions, dir: &Path) -> Result<Option<Tokenizer>> {
    let has = |name: &str| dir.join(name).is_file();
    let found = has(TOKENIZER_FILE) || has("merges.txt") || has("vocab.bpe");
    let path = options.tokenizer.as_deref().or(found.then_some(dir));
    path.map(Tokenizer::load).transpose()
}
