//! A whole run in one TOML file.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use data2vec_core::{
    AdamWConfig, Data2Vec, Data2VecConfig, DecoderConfig, EmaConfig, Error, FeatureEncoder,
    ModelConfig, RegressionLoss, Schedule, StepConfig, TargetConfig, TrainState, TransformerConfig,
};
use serde::{Deserialize, Serialize};
use tch::Device;
use toml::{Table, Value};

use crate::modality::Modality;
use crate::training::OnTrouble;

/// Everything that defines a run but where its data and its results are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
pub struct Recipe<M: Modality> {
    /// `speech`, ….
    pub modality: String,
    /// Of all randomness.
    pub seed: u64,
    /// Length of the run and what happens when.
    pub train: TrainConfig,
    /// Which examples, and how they become batches.
    pub data: M::Data,
    /// 1.0 or 2.0.
    pub model: ModelConfig,
    /// From raw signal to tokens.
    pub features: <M::Encoder as FeatureEncoder>::Config,
    /// From tokens to context.
    pub transformer: TransformerConfig,
    /// What is hidden.
    pub mask: M::Mask,
    /// What is predicted.
    pub target: TargetConfig,
    /// How far off a prediction is.
    pub loss: RegressionLoss,
    /// From context to prediction.
    pub decoder: DecoderConfig,
    /// How the teacher follows.
    pub ema: EmaConfig,
    /// AdamW.
    pub optimizer: AdamWConfig,
    /// Learning rates.
    pub schedule: Schedule,
}

/// Length of the run and what happens when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Most that a batch holds, in the modality's unit, before copies.
    pub batch: f64,
    /// Most examples in a batch, however small they are; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_examples: Option<usize>,
    /// Batches whose gradients add up to one step.
    pub accumulate: usize,
    /// Largest norm of the gradient; absent: no clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Share of the examples that training never sees.
    pub held_out: f64,
    /// Batches of held-out examples that an evaluation takes.
    pub eval_batches: usize,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Steps between lines of metrics.
    pub log_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Checkpoints that are kept, the newest ones.
    pub keep: usize,
    /// Checkpoints of multiples of so many steps are kept for ever; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
    /// Threads that load data.
    pub workers: usize,
    /// Unusable examples that are skipped before the run gives up.
    pub max_bad_examples: usize,
    /// What is done when the run has collapsed. Absent: it is said.
    #[serde(default, skip_serializing_if = "OnTrouble::is_warn")]
    pub on_trouble: OnTrouble,
    /// Where several processes train, each keeps the optimizer's moments of a part of the parameters alone, and in
    /// bf16 a part of the exact teacher: less memory, more to exchange, the same numbers. Absent: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shard_optimizer: bool,
}

impl TrainConfig {
    /// Checks the settings.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("steps", self.steps),
            ("max_examples", self.max_examples.unwrap_or(1) as u64),
            ("accumulate", self.accumulate as u64),
            ("eval_batches", self.eval_batches as u64),
            ("eval_every", self.eval_every),
            ("log_every", self.log_every),
            ("save_every", self.save_every),
            ("keep", self.keep as u64),
            ("keep_every", self.keep_every.unwrap_or(1)),
            ("workers", self.workers as u64),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, n)| *n == 0) {
            return Err(Error::config(format!("train.{key}"), "must be at least 1").into());
        }
        if !(self.batch > 0.0 && self.batch.is_finite()) {
            return Err(
                Error::config("train.batch", format!("{} is not above 0", self.batch)).into()
            );
        }
        if !(0.0..1.0).contains(&self.held_out) {
            let reason = format!("{} is not a share below 1", self.held_out);
            return Err(Error::config("train.held_out", reason).into());
        }
        if let Some(clip) = self.clip_norm.filter(|clip| !(*clip > 0.0)) {
            return Err(Error::config("train.clip_norm", format!("{clip} is not above 0")).into());
        }
        let save_every = self.save_every;
        if let Some(every) = self.keep_every.filter(|every| !every.is_multiple_of(save_every)) {
            let reason = format!("{every} is not a multiple of train.save_every = {save_every}");
            return Err(Error::config("train.keep_every", reason).into());
        }
        Ok(())
    }
}

/// Keys that may change between stopping and going on: they do not touch what is learned.
const FREE: [&str; 11] = [
    "model.activation_checkpointing",
    "train.eval_batches",
    "train.eval_every",
    "train.log_every",
    "train.save_every",
    "train.keep",
    "train.keep_every",
    "train.workers",
    "train.max_bad_examples",
    "train.on_trouble",
    "train.shard_optimizer",
];

impl<M: Modality> Recipe<M> {
    /// From a recipe's table.
    pub fn from_table(path: &Path, table: Table) -> Result<Self> {
        let recipe: Self = Value::Table(table).try_into().map_err(|e: toml::de::Error| {
            anyhow!("{}: {}", path.display(), explain(&e.to_string()))
        })?;
        recipe.validate().with_context(|| path.display().to_string())?;
        Ok(recipe)
    }

    fn validate(&self) -> Result<()> {
        let train = &self.train;
        train.validate()?;
        let model = &self.model;
        if model.copies < 1 {
            return Err(
                Error::config("model.copies", format!("{} is below 1", model.copies)).into()
            );
        }
        if !(model.noise_std >= 0.0 && model.noise_std.is_finite()) {
            let reason = format!("{} is not a standard deviation", model.noise_std);
            return Err(Error::config("model.noise_std", reason).into());
        }
        // The parts ask again when they are built; here, nothing has been touched yet.
        self.transformer.validate()?;
        M::Encoder::validate(&self.features, &self.transformer)?;
        M::check(&self.data, &self.features)?;
        M::masking(&self.mask, &self.features)?;
        self.target.validate(&self.transformer)?;
        self.loss.validate()?;
        self.decoder.validate(self.transformer.dim)?;
        self.ema.validate()?;
        self.optimizer.validate()?;
        self.schedule.validate(train.steps)?;
        Ok(())
    }

    /// What core's model wants to know.
    pub fn model(&self) -> Data2VecConfig<<M::Encoder as FeatureEncoder>::Config> {
        Data2VecConfig {
            model: self.model.clone(),
            features: self.features.clone(),
            transformer: self.transformer.clone(),
            target: self.target.clone(),
            loss: self.loss.clone(),
            decoder: self.decoder.clone(),
            ema: self.ema.clone(),
        }
    }

    /// A new model on `device`, before its first step.
    pub fn state(&self, device: Device) -> Result<TrainState<M::Encoder>> {
        let masking = M::masking(&self.mask, &self.features)?;
        let model = Data2Vec::new(self.model(), masking, device, self.seed)?;
        let TrainConfig { steps, clip_norm, .. } = self.train;
        let step = StepConfig { steps, clip_norm, seed: self.seed };
        Ok(TrainState::new(model, &self.optimizer, self.schedule.clone(), step)?)
    }
}

/// Reads a recipe, with `KEY=VALUE` overrides.
pub fn read(path: &Path, steps: Option<u64>, overrides: &[String]) -> Result<Table> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut table: Table = text
        .parse()
        .map_err(|e: toml::de::Error| anyhow!("{}, {}", path.display(), toml_error(&text, &e)))?;
    for text in overrides {
        set(&mut table, text).with_context(|| format!("--set {text}"))?;
    }
    if let Some(steps) = steps {
        set(&mut table, &format!("train.steps={steps}"))?;
    }
    Ok(table)
}

/// Puts `KEY=VALUE` into a recipe.
pub fn set(table: &mut Table, text: &str) -> Result<()> {
    let Some((key, value)) = text.split_once('=') else {
        bail!("is not KEY=VALUE");
    };
    // A bare word is a string: nobody wants to quote quotes in a shell.
    let value = match format!("v = {value}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("v").context("is not KEY=VALUE")?,
        Err(_) => Value::String(value.to_owned()),
    };
    let mut at = table;
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().filter(|last| !last.is_empty()).context("has no key")?;
    for part in parts {
        let hint = match nearest(part, at.keys().map(String::as_str)) {
            Some(near) if near != part => format!("; did you mean `{near}`?"),
            _ => String::new(),
        };
        let Some(Value::Table(inner)) = at.get_mut(part) else {
            bail!("there is no section `{part}` in the recipe{hint}");
        };
        at = inner;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// Where the parser stopped, and why.
pub fn toml_error(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let number = before.matches('\n').count();
    let line = text.lines().nth(number).unwrap_or_default().trim();
    format!("line {} (`{line}`): {}", number + 1, error.message())
}

/// The parser's words, with the key first and the nearest known one for a mistyped one.
pub fn explain(message: &str) -> String {
    let (what, place) = match message.trim().split_once("\nin ") {
        Some((what, place)) => (what, format!(" in {}", place.trim().replace('`', ""))),
        None => (message.trim(), String::new()),
    };
    let quoted: Vec<&str> = what.split('`').skip(1).step_by(2).collect();
    if what.starts_with("unknown field") {
        let (wrong, known) = (quoted[0], &quoted[1..]);
        let hint = match nearest(wrong, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known keys: {}", known.join(", ")),
        };
        return format!("unknown key `{wrong}`{place}; {hint}");
    }
    if let Some(key) = what.strip_prefix("missing field ") {
        return format!("the key {key} is missing{place}");
    }
    format!("{what}{place}")
}

/// The most similar of `known`, if any is similar at all.
pub fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.map(|k| (strsim::jaro_winkler(wrong, k), k));
    let best = near.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.75).then_some(best.1)
}

/// The recipe of the run in `folder`, as it was written there when it started.
pub fn of_run(folder: &Path) -> Result<Table> {
    let path = folder.join("recipe.toml");
    ensure!(path.is_file(), "{} is no run: it has no recipe.toml", folder.display());
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.parse().map_err(|e| anyhow!("{}, {}", path.display(), toml_error(&text, &e)))
}

/// Steps of the whole run that a recipe tells of.
pub fn steps(recipe: &Table) -> u64 {
    let steps = recipe.get("train").and_then(|train| train.get("steps"));
    steps.and_then(Value::as_integer).map_or(0, |steps| steps.max(0) as u64)
}

/// A recipe's keys, with their sections, and values.
pub fn keys(recipe: &Table) -> Vec<(String, String)> {
    fn walk(prefix: &str, table: &Table, keys: &mut Vec<(String, String)>) {
        for (key, value) in table {
            match value {
                Value::Table(inner) => walk(&format!("{prefix}{key}."), inner, keys),
                value => keys.push((format!("{prefix}{key}"), value.to_string())),
            }
        }
    }
    let mut keys = Vec::new();
    walk("", recipe, &mut keys);
    keys
}

/// `KEY: OLD → NEW` for every key that differs and must not, between starting and going on.
pub fn changes(old: &Table, new: &Table) -> Vec<String> {
    let mut changes = Vec::new();
    compare(&mut changes, String::new(), old, new);
    changes
}

fn compare(changes: &mut Vec<String>, prefix: String, old: &Table, new: &Table) {
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let path = format!("{prefix}{key}");
        match (old.get(key), new.get(key)) {
            (Some(Value::Table(a)), Some(Value::Table(b))) => {
                compare(changes, format!("{path}."), a, b);
            }
            (a, b) if a == b || FREE.contains(&path.as_str()) => {}
            (a, b) => {
                let show = |v: Option<&Value>| v.map_or("absent".into(), Value::to_string);
                changes.push(format!("{path}: {} → {}", show(a), show(b)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modality::Speech;
    use std::path::PathBuf;

    fn tiny() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../recipes/speech-tiny.toml")
    }

    fn read_with(overrides: &[&str]) -> Result<Recipe<Speech>> {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Recipe::from_table(&tiny(), read(&tiny(), None, &overrides)?)
    }

    #[test]
    fn overrides_reach_their_keys() {
        let recipe = read_with(&[
            "transformer.depth=3",
            "target.top_k=3",
            "mask.kind=blocks",
            "train.batch=1.5",
        ]);
        let recipe = recipe.expect("possible values");
        assert_eq!((recipe.transformer.depth, recipe.train.batch), (3, 1.5));
    }

    #[test]
    fn mistakes_name_the_key() {
        for (wrong, said) in [
            ("transformer.dpeth=3", "unknown key `dpeth` in transformer; did you mean `depth`?"),
            ("transfromer.depth=3", "no section `transfromer`"),
            ("transformer.depth=deep", "in transformer.depth"),
            ("train.steps=0", "train.steps: must be at least 1"),
            ("train.held_out=1.5", "train.held_out"),
            ("features.conv_layers=[[8,9,4294967295],[8,9,4294967295]]", "features.conv_layers"),
            ("train.keep_every=0", "train.keep_every: must be at least 1"),
            ("train.keep_every=7", "train.keep_every: 7 is not a multiple of train.save_every"),
            ("nonsense", "not KEY=VALUE"),
        ] {
            let error = format!("{:#}", read_with(&[wrong]).unwrap_err());
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn changes_are_listed_but_for_keys_that_touch_nothing() {
        let old = read(&tiny(), None, &[]).expect("a recipe");
        let new = read(&tiny(), Some(7), &["train.workers=9".into(), "seed=5".into()]);
        let changes = changes(&old, &new.expect("a recipe"));
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert!(changes[0].starts_with("seed: ") && changes[1].contains("train.steps: "));
    }
}
