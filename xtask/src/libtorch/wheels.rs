//! Installs LibTorch for the CPU from wheels of the Python package index.
//!
//! The Linux wheels of torch are built for CUDA and have about 500 MB. Without its CUDA kernels,
//! torch still needs two small CUDA libraries, which are in two other wheels. A wheel is a ZIP
//! archive; only its directory and the selected members are downloaded. The wheel's `RECORD` has
//! the SHA-256 of every member, and `pins.rs` has the SHA-256 of `RECORD`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use indicatif::ProgressBar;

use super::VERSION;
use super::pins::{Pin, Platform};
use crate::hash::{self, HashingWriter};
use crate::http::Client;
use crate::zip::{self, LocalFile, Member};
use crate::{archive, progress, python};

/// Asks pip for the URLs of the platform's wheels.
pub fn resolve(platform: &Platform) -> Result<Vec<python::ResolvedWheel>> {
    let requirements: Vec<String> = platform.wheels.iter().map(Pin::requirement).collect();
    python::resolve_wheels(&requirements, platform.tags)
}

/// Installs LibTorch into `tree`. Keeps downloads in `parts`, so that a later call resumes.
pub fn install(
    platform: &Platform,
    resolved: &[python::ResolvedWheel],
    tree: &Path,
    parts: &Path,
) -> Result<()> {
    let certificates: Vec<PathBuf> = python::pip_certificates().into_iter().collect();
    let client = Client::new(&certificates);
    let mut wheels = Vec::new();
    for pin in platform.wheels {
        let package = pin.requirement.split('=').next().unwrap_or_default();
        let wheel = resolved.iter().find(|wheel| wheel.name == package);
        let mismatch =
            wheel.and_then(|wheel| wheel.sha256.as_ref()).filter(|sha256| *sha256 != pin.sha256);
        ensure!(
            mismatch.is_none(),
            "the package index has another {package} than the pinned one; check whether it rebuilds packages"
        );
        let url = wheel.map(|wheel| wheel.url.as_str());
        wheels.push(Wheel::open(pin, url, &client, platform.tags, parts)?);
    }
    fetch(&wheels, &client)?;
    let bytes =
        wheels.iter().flat_map(|wheel| &wheel.members).map(|selected| selected.member.size).sum();
    let bar = progress::bytes("extracting", bytes);
    for wheel in &wheels {
        wheel.extract(tree, &bar)?;
    }
    bar.finish_and_clear();
    if platform.linker_script {
        fs::write(tree.join("lib/libtorch.so"), "INPUT(-ltorch_cpu)\n")?;
    }
    fs::write(tree.join("build-version"), format!("{VERSION}\n"))
        .context("cannot write to the new LibTorch directory")
}

/// A selected member, its destination and its SHA-256.
struct SelectedMember {
    member: Member,
    to: String,
    sha256: String,
}

/// A wheel and its selected members.
struct Wheel {
    requirement: String,
    members: Vec<SelectedMember>,
    location: Location,
}

enum Location {
    /// The complete wheel.
    Local(PathBuf),
    /// Ranges of the wheel, each with the file it is downloaded to.
    Remote { url: String, ranges: Vec<(Range<u64>, PathBuf)> },
}

impl Wheel {
    fn open(
        pin: &Pin,
        url: Option<&str>,
        client: &Client,
        tags: &[&str],
        parts: &Path,
    ) -> Result<Self> {
        let requirement = pin.requirement();
        let complete_dir = parts.join(format!("{}-whole", &pin.sha256[..16]));
        let is_valid = |file: &Path| hash::sha256_file(file).is_ok_and(|hash| hash == pin.sha256);
        let earlier = python::only_file(&complete_dir).ok().filter(|file| is_valid(file));
        if let (None, Some(url)) = (&earlier, url.filter(|url| url.starts_with("http"))) {
            match Self::open_remote(pin, url, client, parts) {
                Ok(wheel) => return Ok(wheel),
                Err(error) => {
                    status!(
                        "cannot download ranges of {requirement}: {error:#}; downloading all of it"
                    )
                }
            }
        }
        let file = match earlier {
            Some(file) => file,
            None => {
                let _ = fs::remove_dir_all(&complete_dir);
                python::download(&requirement, None, tags, &complete_dir)?
            }
        };
        ensure!(
            is_valid(&file),
            "{requirement}: wrong sha256, the download is corrupt; run the command again"
        );
        let members = select_members(pin, &mut LocalFile::open(&file)?)?;
        Ok(Self { requirement, members, location: Location::Local(file) })
    }

    fn open_remote(pin: &Pin, url: &str, client: &Client, parts: &Path) -> Result<Self> {
        let members = select_members(pin, &mut RemoteFile::open(client, url)?)?;
        let file = |start: u64| parts.join(format!("{}-{start}", &pin.record[..16]));
        let ranges = coalesce(&members);
        let ranges = ranges.into_iter().map(|range| (range.clone(), file(range.start))).collect();
        let location = Location::Remote { url: url.to_owned(), ranges };
        Ok(Self { requirement: pin.requirement(), members, location })
    }

    fn extract(&self, tree: &Path, bar: &ProgressBar) -> Result<()> {
        let mut open: Option<(Range<u64>, BufReader<File>)> = None;
        for selected in &self.members {
            let span = &selected.member.span;
            let inside = |range: &Range<u64>| range.start <= span.start && span.end <= range.end;
            if !open.as_ref().is_some_and(|(range, _)| inside(range)) {
                let (range, path) = match &self.location {
                    Location::Local(path) => (0..u64::MAX, path),
                    Location::Remote { ranges, .. } => {
                        let range = ranges
                            .iter()
                            .find(|(range, _)| inside(range))
                            .context("a range was not downloaded")?;
                        (range.0.clone(), &range.1)
                    }
                };
                open = Some((range, BufReader::with_capacity(1 << 17, File::open(path)?)));
            }
            let Some((range, file)) = &mut open else { bail!("a range was not downloaded") };
            file.seek(SeekFrom::Start(span.start - range.start))?;
            if let Err(error) = selected.extract(file.take(span.end - span.start), tree, bar) {
                // The download is corrupt, so a retry must not resume it.
                self.discard_downloads();
                return Err(error.context(format!(
                    "{}: the download is corrupt; run the command again",
                    self.requirement
                )));
            }
        }
        Ok(())
    }

    fn discard_downloads(&self) {
        if let Location::Remote { ranges, .. } = &self.location {
            for (_, path) in ranges {
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl SelectedMember {
    fn extract(&self, span: impl Read, tree: &Path, bar: &ProgressBar) -> Result<()> {
        let path = archive::safe_path(tree, &self.to)?;
        let parent = path.parent().context("path without a parent")?;
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = HashingWriter::new(BufWriter::new(file));
        io::copy(&mut bar.wrap_read(self.member.open(span)?), &mut writer)
            .with_context(|| format!("cannot extract {}", self.member.name))?;
        let (size, sha256) = writer.finish()?;
        let is_valid = size == self.member.size && hash::hex(&sha256) == self.sha256;
        ensure!(is_valid, "{} does not match the wheel's RECORD", self.member.name);
        #[cfg(unix)]
        if self.member.mode & 0o100 != 0 {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}

/// Downloads the ranges of all wheels, with one progress bar.
fn fetch(wheels: &[Wheel], client: &Client) -> Result<()> {
    let remote = wheels.iter().filter_map(|wheel| match &wheel.location {
        Location::Remote { url, ranges } => Some((url, ranges)),
        Location::Local(_) => None,
    });
    let all: Vec<_> =
        remote.flat_map(|(url, ranges)| ranges.iter().map(move |range| (url, range))).collect();
    let total: u64 = all.iter().map(|(_, (range, _))| range.end - range.start).sum();
    let have: u64 =
        all.iter().filter_map(|(_, (_, path))| Some(fs::metadata(path).ok()?.len())).sum();
    if total == 0 {
        return Ok(());
    }
    let already = if have > 0 {
        format!(", {} of it already downloaded", progress::format_bytes(have))
    } else {
        String::new()
    };
    status!("downloading {}{already}", progress::format_bytes(total));
    let bar = progress::bytes("downloading", total);
    bar.set_position(have);
    bar.reset_eta();
    let mut before = 0;
    for (url, (range, path)) in all {
        client.download(url, path, Some(range.clone()), &mut |have, _| {
            bar.set_position(before + have)
        })?;
        before += range.end - range.start;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Selects the members of a pin. Checks `RECORD` against the pin; the members are checked against
/// `RECORD` when they are extracted.
fn select_members(pin: &Pin, source: &mut dyn zip::ReadRange) -> Result<Vec<SelectedMember>> {
    let directory = zip::directory(source)?;
    let is_record = |member: &&Member| {
        member.name.ends_with(".dist-info/RECORD") && member.name.matches('/').count() == 1
    };
    let record = directory.iter().find(is_record).context("the wheel contains no RECORD")?;
    let compressed = source.read_range(record.span.clone())?;
    let mut text = Vec::new();
    record.open(compressed.as_slice())?.read_to_end(&mut text)?;
    ensure!(hash::sha256(&text) == pin.record, "the wheel's RECORD does not match the pin");
    let hashes = parse_record(std::str::from_utf8(&text)?);
    let mut selected = Vec::new();
    for member in directory {
        if let Some(to) = pin.destination(&member.name).filter(|_| !member.name.ends_with('/')) {
            let sha256 = hashes
                .get(member.name.as_str())
                .with_context(|| format!("RECORD does not list {}", member.name))?;
            selected.push(SelectedMember { sha256: sha256.clone(), member, to });
        }
    }
    for (from, _) in pin.take {
        ensure!(
            selected.iter().any(|selected| selected.member.name.starts_with(from)),
            "the wheel contains no {from}"
        );
    }
    Ok(selected)
}

/// Parses lines `PATH,sha256=HASH,SIZE` with the hash in URL-safe Base64; returns hexadecimal
/// SHA-256 by path.
fn parse_record(text: &str) -> HashMap<&str, String> {
    text.lines().filter_map(parse_record_line).collect()
}

fn parse_record_line(line: &str) -> Option<(&str, String)> {
    let mut fields = line.rsplitn(3, ',');
    let (_size, hash, path) = (fields.next()?, fields.next()?, fields.next()?);
    let base64 = hash.strip_prefix("sha256=")?.trim_end_matches('=');
    Some((path.trim_matches('"'), hash::hex(&URL_SAFE_NO_PAD.decode(base64).ok()?)))
}

/// Merges members that lie close together into ranges: fewer requests at the cost of some bytes.
fn coalesce(members: &[SelectedMember]) -> Vec<Range<u64>> {
    const GAP: u64 = 256 << 10;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for span in members.iter().map(|selected| &selected.member.span) {
        match ranges.last_mut() {
            Some(range) if span.start <= range.end + GAP => range.end = span.end,
            _ => ranges.push(span.clone()),
        }
    }
    ranges
}

/// [`zip::ReadRange`] of a file on a server.
struct RemoteFile<'c> {
    client: &'c Client,
    url: &'c str,
    len: u64,
}

impl<'c> RemoteFile<'c> {
    fn open(client: &'c Client, url: &'c str) -> Result<Self> {
        Ok(Self { client, url, len: client.size(url)? })
    }
}

impl zip::ReadRange for RemoteFile<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_range(&mut self, range: Range<u64>) -> Result<Vec<u8>> {
        self.client.read(self.url, range)
    }
}

#[cfg(test)]
#[path = "wheels_tests.rs"]
mod tests;
