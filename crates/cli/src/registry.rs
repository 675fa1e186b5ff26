//! The list of modalities. To add one, add its type to `modalities!` below; nothing else lists
//! them.

use std::path::Path;

use anyhow::{Result, bail};
use data2vec_core::io::toml::read_toml;
use data2vec_core::model::encoder::find_config;
use data2vec_core::{ConvertModality, FeatureEncoder, Modality};
use data2vec_train::recipe::{self, nearest};
use serde::Deserialize;
use toml::Table;

/// Work that is the same for every modality.
pub trait ModalityTask {
    /// The result of the work.
    type Output;

    /// Does the work for one modality.
    fn run<M: ConvertModality>(self) -> Result<Self::Output>;
}

/// Identifies a modality.
enum Key<'a> {
    /// By its name in recipes.
    Name(&'a str),
    /// By the feature encoder of a model directory.
    Encoder(&'a str),
}

impl Key<'_> {
    fn is<M: Modality>(&self) -> bool {
        match *self {
            Key::Name(name) => name == M::NAME,
            Key::Encoder(name) => name == M::Encoder::NAME,
        }
    }
}

macro_rules! modalities {
    ($($modality:ty),+ $(,)?) => {
        /// Names of the modalities in recipes.
        pub const NAMES: &[&str] = &[$(<$modality as Modality>::NAME),+];

        /// Names of their feature encoders in model directories.
        const ENCODERS: &[&str] =
            &[$(<<$modality as Modality>::Encoder as FeatureEncoder>::NAME),+];

        /// Runs `task` for the modality with this key. Returns `None` if there is none.
        fn dispatch<T: ModalityTask>(key: &Key, task: T) -> Option<Result<T::Output>> {
            $(if key.is::<$modality>() {
                return Some(task.run::<$modality>());
            })+
            None
        }

        /// Runs `task` for each modality until one returns true. Returns whether one did.
        pub fn find<T>(task: &mut T) -> Result<bool>
        where
            for<'a> &'a mut T: ModalityTask<Output = bool>,
        {
            $(if (&mut *task).run::<$modality>()? {
                return Ok(true);
            })+
            Ok(false)
        }
    };
}

modalities!(data2vec_speech::Speech, data2vec_vision::Vision, data2vec_nlp::Nlp);

/// Runs `task` for the modality called `name`.
pub fn by_name<T: ModalityTask>(name: &str, task: T) -> Result<T::Output> {
    dispatch(&Key::Name(name), task).unwrap_or_else(|| bail!(unknown_modality(name)))
}

/// Reads the recipe at `path`, makes a task from its table with `task`, and runs it for the
/// recipe's modality.
pub fn by_recipe<T: ModalityTask>(
    path: &Path,
    steps: Option<u64>,
    overrides: &[String],
    task: impl FnOnce(Table) -> T,
) -> Result<T::Output> {
    let table = recipe::read(path, steps, overrides)?;
    let (recipe, names) = (path.display(), NAMES.join(", "));
    let Some(name) = table.get("modality") else {
        bail!("{recipe}: the key `modality` is missing; set it to one of {names}")
    };
    let Some(name) = name.as_str().map(str::to_owned) else {
        bail!("{recipe}: modality = {name} is not a string; set it to one of {names}")
    };
    let task = task(table);
    dispatch(&Key::Name(&name), task)
        .unwrap_or_else(|| bail!("{recipe}: {}", unknown_modality(&name)))
}

/// Runs `task` for the modality of the model in `dir`.
pub fn by_model<T: ModalityTask>(dir: &Path, task: T) -> Result<T::Output> {
    #[derive(Deserialize)]
    struct Header {
        encoder: String,
    }
    let path = find_config(dir)?;
    let Header { encoder } = read_toml(&path)?;
    dispatch(&Key::Encoder(&encoder), task).unwrap_or_else(|| {
        let known = ENCODERS.join(", ");
        bail!("{}: unknown encoder `{encoder}`; known encoders: {known}", path.display())
    })
}

fn unknown_modality(name: &str) -> String {
    let hint = nearest(name, NAMES.iter().copied()).map_or_else(
        || format!("use one of {}", NAMES.join(", ")),
        |near| format!("did you mean `{near}`?"),
    );
    format!("unknown modality `{name}`; {hint}")
}
