//! `data/catalog.toml`: which data sets there are, where each can be had, and what proves that it is the right one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{archive, hash, nearest};

/// All data sets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// In the order of the file.
    pub set: Vec<DataSet>,
}

/// One data set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSet {
    /// Also its folder in `data/sets`.
    pub name: String,
    /// `speech`, `vision` or `nlp`.
    pub modality: String,
    /// The modality that trains on it when no data are named.
    pub default_for: Option<String>,
    /// The modality that is fine-tuned on it when no data are named: it has labels.
    pub default_for_finetune: Option<String>,
    /// SPDX where there is one.
    pub licence: String,
    /// One line.
    pub description: String,
    /// Of the unpacked files, about.
    pub bytes: u64,
    /// [`hash::TreeDigest::sha256`] of the unpacked files: the same whatever the source.
    pub digest: Option<String>,
    /// Tried in this order.
    pub source: Vec<Source>,
}

/// One way to get a whole data set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// For messages: "Debian", "the authors' site".
    pub name: String,
    /// All are needed.
    pub archive: Vec<Archive>,
}

/// One file to download.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// An address.
    pub url: Option<String>,
    /// A Debian package, `NAME=VERSION`.
    pub deb: Option<String>,
    /// A Python package, `NAME==VERSION`.
    pub pypi: Option<String>,
    /// A JavaScript package, `NAME@VERSION`.
    pub npm: Option<String>,
    /// An archive inside of it that is meant instead.
    pub inside: Option<String>,
    /// Of the downloaded file. May be missing only where the set's digest proves the content.
    pub sha256: Option<String>,
    /// What to take out of it.
    pub take: Vec<Take>,
}

/// Which files of an archive go where.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Take {
    /// A file's path in the archive, or a folder's with a `/` at its end; `.` takes the download itself, which is no archive;
    /// empty, the whole archive.
    pub from: String,
    /// Where to, likewise.
    pub to: String,
    /// Takes only files whose names end so.
    #[serde(default)]
    pub suffix: String,
    /// Takes off gzip.
    #[serde(default)]
    pub gunzip: bool,
}

/// How an [`Archive`] is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetch<'a> {
    /// Over HTTP.
    Url(&'a str),
    /// With `apt-get download`.
    Deb(&'a str),
    /// With `pip download`.
    PyPi(&'a str),
    /// With `npm pack`.
    Npm(&'a str),
}

impl Archive {
    /// Which one of the four it is.
    pub fn fetch(&self) -> Result<Fetch<'_>> {
        match (&self.url, &self.deb, &self.pypi, &self.npm) {
            (Some(url), None, None, None) => Ok(Fetch::Url(url)),
            (None, Some(package), None, None) => Ok(Fetch::Deb(package)),
            (None, None, Some(package), None) => Ok(Fetch::PyPi(package)),
            (None, None, None, Some(package)) => Ok(Fetch::Npm(package)),
            _ => bail!("an archive needs one of url, deb, pypi, npm"),
        }
    }
}

impl Take {
    /// Where a file of the archive goes, if it is one of these.
    pub fn destination(&self, path: &str) -> Option<String> {
        if self.from.is_empty() || self.from.ends_with('/') {
            let rest = path.strip_prefix(&self.from)?;
            rest.ends_with(&self.suffix).then(|| format!("{}{rest}", self.to))
        } else {
            (path == self.from).then(|| self.to.clone())
        }
    }
}

impl Catalog {
    /// Reads and checks `data/catalog.toml`.
    pub fn read(root: &Path) -> Result<Self> {
        let path = root.join("data/catalog.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is wrong", path.display()))
    }

    /// Parses and checks a catalog.
    pub fn parse(text: &str) -> Result<Self> {
        let catalog: Self = toml::from_str(text)?;
        let mut names = BTreeSet::new();
        let (mut defaults, mut labelled) = (BTreeSet::new(), BTreeSet::new());
        for set in &catalog.set {
            set.check().with_context(|| format!("data set {}", set.name))?;
            ensure!(names.insert(&set.name), "data set {} is there twice", set.name);
            if let Some(modality) = &set.default_for {
                ensure!(defaults.insert(modality), "{modality} has two default data sets");
            }
            if let Some(modality) = &set.default_for_finetune {
                ensure!(
                    labelled.insert(modality),
                    "{modality} has two default data sets for fine-tuning"
                );
            }
        }
        Ok(catalog)
    }

    /// The data set of that name.
    pub fn find(&self, name: &str) -> Result<&DataSet> {
        if let Some(set) = self.set.iter().find(|set| set.name == name) {
            return Ok(set);
        }
        let names: Vec<&str> = self.set.iter().map(|set| set.name.as_str()).collect();
        bail!("no data set {name:?}{}", nearest::suggestion(name, &names))
    }

    /// What a modality trains on when no data are named.
    pub fn default_for(&self, modality: &str) -> Result<&DataSet> {
        self.set.iter().find(|set| set.default_for.as_deref() == Some(modality)).with_context(
            || {
                format!(
                    "no data set of the catalog is the default for {modality}: name one with --data"
                )
            },
        )
    }

    /// What a modality is fine-tuned on when no data are named.
    pub fn default_for_finetune(&self, modality: &str) -> Result<&DataSet> {
        let default = |set: &&DataSet| set.default_for_finetune.as_deref() == Some(modality);
        self.set.iter().find(default).with_context(|| {
            format!("no labelled data set of the catalog is the default for {modality}: name one with --data")
        })
    }
}

impl DataSet {
    fn check(&self) -> Result<()> {
        archive::safe_path(Path::new(""), &self.name)?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(self.name.bytes().all(plain), "a name has small letters, digits and hyphens only");
        ensure!(!self.licence.is_empty(), "no licence");
        ensure!(!self.source.is_empty(), "no source");
        ensure!(self.digest.as_deref().is_none_or(hash::is_sha256), "the digest is no SHA-256");
        ensure!(
            self.digest.is_some() || self.source.len() == 1,
            "several sources need a digest to prove that they are the same"
        );
        for archive in self.source.iter().flat_map(|source| &source.archive) {
            let fetch = archive.fetch()?;
            match &archive.sha256 {
                Some(sha256) => ensure!(hash::is_sha256(sha256), "{fetch:?}: the sha256 is none"),
                None => ensure!(
                    self.digest.is_some(),
                    "{fetch:?}: neither sha256 nor a digest proves it"
                ),
            }
            ensure!(!archive.take.is_empty(), "{fetch:?}: nothing is taken from it");
            ensure!(
                archive.inside.is_none() || archive.take.iter().all(|take| take.from != "."),
                "{fetch:?}: `inside` names an archive, \".\" takes the download as it is"
            );
            for take in &archive.take {
                let folder = |path: &str| path.is_empty() || path.ends_with('/');
                ensure!(
                    folder(&take.from) == folder(&take.to),
                    "{fetch:?}: {:?} and {:?} do not fit",
                    take.from,
                    take.to
                );
                if !take.to.is_empty() {
                    archive::safe_path(Path::new(""), &take.to)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn the_projects_catalog_is_right() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let catalog = Catalog::read(root).unwrap();
        for modality in ["speech", "vision", "nlp"] {
            assert_eq!(catalog.default_for(modality).unwrap().modality, modality);
            assert_eq!(catalog.default_for_finetune(modality).unwrap().modality, modality);
        }
        for set in &catalog.set {
            for archive in set.source.iter().flat_map(|source| &source.archive) {
                let package = !matches!(archive.fetch().unwrap(), Fetch::Url(_));
                assert!(
                    !package || archive.sha256.is_some(),
                    "{}: a package has no sha256",
                    set.name
                );
            }
        }
        assert!(
            catalog
                .find("asterisk-core-sound-en")
                .unwrap_err()
                .to_string()
                .contains("asterisk-core-sounds-en")
        );
    }

    fn wrong(text: &str) -> String {
        format!("{:#}", Catalog::parse(text).unwrap_err())
    }

    const SET: &str = "[[set]]\nname = \"a\"\nmodality = \"speech\"\nlicence = \"MIT\"\ndescription = \"d\"\nbytes = 1\n";

    #[test]
    fn mistakes_are_named() {
        let hash = "0".repeat(64);
        let source = |archive: &str, take: &str| {
            format!(
                "{SET}[[set.source]]\nname = \"s\"\n[[set.source.archive]]\n{archive}\ntake = [{take}]\n"
            )
        };
        let take = "{ from = \"a/\", to = \"\" }";
        assert!(wrong(&source("url = \"http://x\"", take)).contains("neither sha256 nor a digest"));
        assert!(
            wrong(&source("url = \"http://x\"\nsha256 = \"12\"", take)).contains("sha256 is none")
        );
        let good = format!("url = \"http://x\"\nsha256 = \"{hash}\"");
        assert!(
            wrong(&source(&format!("{good}\ndeb = \"b\""), take))
                .contains("one of url, deb, pypi, npm")
        );
        assert!(
            wrong(&source(&good, "{ from = \"a\", to = \"../b\" }"))
                .contains("does not name a file below")
        );
        assert!(wrong(&source(&good, "{ from = \"a/\", to = \"b\" }")).contains("do not fit"));
        assert!(wrong(&source(&good, take).replace("MIT", "")).contains("no licence"));
        assert!(
            wrong(&source(&good, take).replace("licence", "license")).contains("unknown field")
        );
        assert!(wrong(&source(&good, take).replace("\"a\"", "\"../a\"")).contains("data set ../a"));
        assert!(Catalog::parse(&source(&good, take)).is_ok());
    }

    #[test]
    fn takes_name_their_destination() {
        let folder =
            Take { from: "usr/a/".into(), to: "b/".into(), suffix: ".wav".into(), gunzip: false };
        assert_eq!(folder.destination("usr/a/x/1.wav").as_deref(), Some("b/x/1.wav"));
        assert_eq!(folder.destination("usr/a/x/1.txt"), None);
        let file =
            Take { from: "usr/a.gz".into(), to: "c".into(), suffix: String::new(), gunzip: true };
        assert_eq!(file.destination("usr/a.gz").as_deref(), Some("c"));
        assert_eq!(file.destination("usr/a.gz2"), None);
    }
}
