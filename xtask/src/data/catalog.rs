//! `data/catalog.toml`: the data sets, their sources and their digests.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::transcripts::Layout;
use crate::{archive, hash, nearest};

/// The parsed catalog.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Data sets in the order of the file.
    pub set: Vec<DataSet>,
}

/// One data set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSet {
    /// Name, also of its directory in `data/sets`.
    pub name: String,
    /// `speech`, `vision` or `nlp`.
    pub modality: String,
    /// Modality that pretrains on this data set unless `--data` names another.
    pub default_for: Option<String>,
    /// Modality that fine-tunes on this labelled data set unless `--data` names another.
    pub default_for_finetune: Option<String>,
    /// SPDX identifier, if the licence has one.
    pub licence: String,
    /// One-line description.
    pub description: String,
    /// Approximate size of the extracted files.
    pub bytes: u64,
    /// Layout of the transcripts, converted to a table when the data set is fetched.
    pub transcripts: Option<Layout>,
    /// [`hash::TreeDigest::sha256`] of all files, including converted transcripts; identical for
    /// all sources.
    pub digest: Option<String>,
    /// Sources, tried in this order.
    pub source: Vec<Source>,
}

/// One way to get a complete data set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name for messages: "Debian", "the authors' site".
    pub name: String,
    /// Archives that together make the data set.
    pub archive: Vec<Archive>,
}

/// One file to download.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// HTTP(S) address.
    pub url: Option<String>,
    /// Debian package, `NAME=VERSION`.
    pub deb: Option<String>,
    /// Python package, `NAME==VERSION`.
    pub pypi: Option<String>,
    /// npm package, `NAME@VERSION`.
    pub npm: Option<String>,
    /// Path of a nested archive to extract from instead.
    pub inside: Option<String>,
    /// SHA-256 of the downloaded file. Optional only if the data set has a digest.
    pub sha256: Option<String>,
    /// Files to extract.
    pub take: Vec<Take>,
}

/// Selects files of an archive and maps them to paths in the data set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Take {
    /// Path of a file in the archive, or of a directory with a trailing `/`; `.` for the download
    /// itself if it is not an archive; empty for the complete archive.
    pub from: String,
    /// Destination of that file or directory in the data set.
    pub to: String,
    /// Restricts a directory to files with this suffix.
    #[serde(default)]
    pub suffix: String,
    /// Decompresses each file with gzip.
    #[serde(default)]
    pub gunzip: bool,
}

/// Where an [`Archive`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// Downloaded over HTTP(S).
    Url(&'a str),
    /// Fetched with `apt-get download`.
    Deb(&'a str),
    /// Fetched with `pip download`.
    PyPi(&'a str),
    /// Fetched with `npm pack`.
    Npm(&'a str),
}

impl Archive {
    /// Returns the one origin that is given.
    pub fn origin(&self) -> Result<Origin<'_>> {
        match (&self.url, &self.deb, &self.pypi, &self.npm) {
            (Some(url), None, None, None) => Ok(Origin::Url(url)),
            (None, Some(package), None, None) => Ok(Origin::Deb(package)),
            (None, None, Some(package), None) => Ok(Origin::PyPi(package)),
            (None, None, None, Some(package)) => Ok(Origin::Npm(package)),
            _ => bail!("an archive needs exactly one of url, deb, pypi, npm"),
        }
    }
}

impl Take {
    /// Returns the destination of a file of the archive if it is selected.
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
        Self::parse(&text).with_context(|| format!("invalid catalog: {}", path.display()))
    }

    /// Parses and checks a catalog.
    pub fn parse(text: &str) -> Result<Self> {
        let catalog: Self = toml::from_str(text)?;
        let mut names = BTreeSet::new();
        let (mut pretrain_defaults, mut finetune_defaults) = (BTreeSet::new(), BTreeSet::new());
        for set in &catalog.set {
            set.check().with_context(|| format!("data set {}", set.name))?;
            ensure!(names.insert(&set.name), "duplicate data set {}", set.name);
            if let Some(modality) = &set.default_for {
                ensure!(
                    pretrain_defaults.insert(modality),
                    "{modality} has two default data sets for pretraining"
                );
            }
            if let Some(modality) = &set.default_for_finetune {
                ensure!(
                    finetune_defaults.insert(modality),
                    "{modality} has two default data sets for fine-tuning"
                );
            }
        }
        Ok(catalog)
    }

    /// Returns the data set named `name`.
    pub fn find(&self, name: &str) -> Result<&DataSet> {
        if let Some(set) = self.set.iter().find(|set| set.name == name) {
            return Ok(set);
        }
        let names: Vec<&str> = self.set.iter().map(|set| set.name.as_str()).collect();
        bail!("unknown data set {name:?}{}", nearest::suggestion(name, &names))
    }

    /// Returns the default data set for pretraining.
    pub fn default_for(&self, modality: &str) -> Result<&DataSet> {
        self.set.iter().find(|set| set.default_for.as_deref() == Some(modality)).with_context(
            || format!("the catalog has no default data set for {modality}; name one with --data"),
        )
    }

    /// Returns the default data set for fine-tuning.
    pub fn default_for_finetune(&self, modality: &str) -> Result<&DataSet> {
        let default = |set: &&DataSet| set.default_for_finetune.as_deref() == Some(modality);
        self.set.iter().find(default).with_context(|| {
            format!(
                "the catalog has no default data set to fine-tune {modality}; name one with --data"
            )
        })
    }
}

impl DataSet {
    fn check(&self) -> Result<()> {
        archive::safe_path(Path::new(""), &self.name)?;
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(
            self.name.bytes().all(allowed),
            "a name may contain only lower-case letters, digits and hyphens"
        );
        ensure!(!self.licence.is_empty(), "licence is empty");
        ensure!(!self.source.is_empty(), "source is empty");
        ensure!(self.digest.as_deref().is_none_or(hash::is_sha256), "digest is not a SHA-256");
        ensure!(
            self.digest.is_some() || self.source.len() == 1,
            "several sources need a digest, which shows that they are identical"
        );
        for archive in self.source.iter().flat_map(|source| &source.archive) {
            let origin = archive.origin()?;
            match &archive.sha256 {
                Some(sha256) => {
                    ensure!(hash::is_sha256(sha256), "{origin:?}: sha256 is not a SHA-256")
                }
                None => ensure!(
                    self.digest.is_some(),
                    "{origin:?}: needs a sha256, or the data set a digest"
                ),
            }
            ensure!(!archive.take.is_empty(), "{origin:?}: take is empty");
            ensure!(
                archive.inside.is_none() || archive.take.iter().all(|take| take.from != "."),
                "{origin:?}: `inside` cannot be combined with from = \".\""
            );
            for take in &archive.take {
                let is_dir = |path: &str| path.is_empty() || path.ends_with('/');
                ensure!(
                    is_dir(&take.from) == is_dir(&take.to),
                    "{origin:?}: from {:?} and to {:?} must both be files or both directories",
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
    fn project_catalog_is_valid() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let catalog = Catalog::read(root).unwrap();
        for modality in ["speech", "vision", "nlp"] {
            assert_eq!(catalog.default_for(modality).unwrap().modality, modality);
            assert_eq!(catalog.default_for_finetune(modality).unwrap().modality, modality);
        }
        for set in &catalog.set {
            for archive in set.source.iter().flat_map(|source| &source.archive) {
                let is_package = !matches!(archive.origin().unwrap(), Origin::Url(_));
                assert!(
                    !is_package || archive.sha256.is_some(),
                    "{}: package without sha256",
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

    fn parse_error(text: &str) -> String {
        format!("{:#}", Catalog::parse(text).unwrap_err())
    }

    const SET: &str = "[[set]]\nname = \"a\"\nmodality = \"speech\"\nlicence = \"MIT\"\ndescription = \"d\"\nbytes = 1\n";

    #[test]
    fn rejects_invalid_entries() {
        let hash = "0".repeat(64);
        let source = |archive: &str, take: &str| {
            format!(
                "{SET}[[set.source]]\nname = \"s\"\n[[set.source.archive]]\n{archive}\ntake = [{take}]\n"
            )
        };
        let take = "{ from = \"a/\", to = \"\" }";
        assert!(parse_error(&source("url = \"http://x\"", take)).contains("needs a sha256"));
        assert!(
            parse_error(&source("url = \"http://x\"\nsha256 = \"12\"", take))
                .contains("is not a SHA-256")
        );
        let valid = format!("url = \"http://x\"\nsha256 = \"{hash}\"");
        assert!(
            parse_error(&source(&format!("{valid}\ndeb = \"b\""), take))
                .contains("exactly one of url, deb, pypi, npm")
        );
        assert!(
            parse_error(&source(&valid, "{ from = \"a\", to = \"../b\" }")).contains("unsafe path")
        );
        assert!(
            parse_error(&source(&valid, "{ from = \"a/\", to = \"b\" }"))
                .contains("both be files or both directories")
        );
        assert!(parse_error(&source(&valid, take).replace("MIT", "")).contains("licence is empty"));
        assert!(
            parse_error(&source(&valid, take).replace("licence", "license"))
                .contains("unknown field")
        );
        assert!(
            parse_error(&source(&valid, take).replace("\"a\"", "\"../a\""))
                .contains("data set ../a")
        );
        assert!(Catalog::parse(&source(&valid, take)).is_ok());
    }

    #[test]
    fn maps_selected_files_to_destinations() {
        let directory =
            Take { from: "usr/a/".into(), to: "b/".into(), suffix: ".wav".into(), gunzip: false };
        assert_eq!(directory.destination("usr/a/x/1.wav").as_deref(), Some("b/x/1.wav"));
        assert_eq!(directory.destination("usr/a/x/1.txt"), None);
        let file =
            Take { from: "usr/a.gz".into(), to: "c".into(), suffix: String::new(), gunzip: true };
        assert_eq!(file.destination("usr/a.gz").as_deref(), Some("c"));
        assert_eq!(file.destination("usr/a.gz2"), None);
    }
}
