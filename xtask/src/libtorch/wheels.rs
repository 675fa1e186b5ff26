//! A LibTorch for the CPU out of the wheels of the Python package index.
//!
//! The Linux wheels of torch are built for CUDA and weigh some 500 MB. Without its CUDA libraries torch still needs two small
//! ones of CUDA's own, which lie in two other wheels. A wheel is a ZIP archive: of each, only the directory and the members
//! wanted are read. What proves them is each wheel's own `RECORD`, a list of the SHA-256 of every file, whose SHA-256 in
//! turn is pinned in `pins.rs`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;

use super::VERSION;
use super::pins::{Pin, Platform};
use crate::hash::{self, HashingWriter};
use crate::http::Client;
use crate::zip::{self, LocalFile, Member};
use crate::{archive, progress, python};

/// Where pip would get the platform's wheels from.
pub fn locate(platform: &Platform) -> Result<Vec<python::Wheel>> {
    let requirements: Vec<String> = platform.wheels.iter().map(Pin::requirement).collect();
    python::locate(&requirements, platform.tags)
}

/// Unpacks LibTorch into `tree`. What was downloaded so far is kept in `parts`.
pub fn install(
    platform: &Platform,
    located: &[python::Wheel],
    tree: &Path,
    parts: &Path,
) -> Result<()> {
    let certificates: Vec<PathBuf> = python::pip_certificates().into_iter().collect();
    let client = Client::new(&certificates);
    let mut wheels = Vec::new();
    for pin in platform.wheels {
        let package = pin.requirement.split('=').next().unwrap_or_default();
        let wheel = located.iter().find(|wheel| wheel.name == package);
        let other =
            wheel.and_then(|wheel| wheel.sha256.as_ref()).filter(|sha256| *sha256 != pin.sha256);
        ensure!(
            other.is_none(),
            "pip offers another {package} than the one pinned: is the index a mirror that rebuilds packages?"
        );
        let url = wheel.map(|wheel| wheel.url.as_str());
        wheels.push(Wheel::open(pin, url, &client, platform.tags, parts)?);
    }
    fetch(&wheels, &client)?;
    let bytes =
        wheels.iter().flat_map(|wheel| &wheel.members).map(|wanted| wanted.member.size).sum();
    let bar = progress::bytes("unpacking", bytes);
    for wheel in &wheels {
        wheel.unpack(tree, &bar)?;
    }
    bar.finish_and_clear();
    if platform.linker_script {
        fs::write(tree.join("lib/libtorch.so"), "INPUT(-ltorch_cpu)\n")?;
    }
    fs::write(tree.join("build-version"), format!("{VERSION}\n"))
        .context("cannot write into the new LibTorch folder")
}

/// A member wanted, where it goes, and its SHA-256.
struct Wanted {
    member: Member,
    to: String,
    sha256: String,
}

/// A wheel whose directory was read.
struct Wheel {
    requirement: String,
    members: Vec<Wanted>,
    place: Place,
}

enum Place {
    /// The whole file.
    Local(PathBuf),
    /// Runs of members, each with the file that holds it once it is fetched.
    Remote { url: String, runs: Vec<(Range<u64>, PathBuf)> },
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
        let whole = parts.join(format!("{}-whole", &pin.sha256[..16]));
        let is_right = |file: &Path| hash::sha256_file(file).is_ok_and(|hash| hash == pin.sha256);
        let earlier = python::only_file(&whole).ok().filter(|file| is_right(file));
        if let (None, Some(url)) = (&earlier, url.filter(|url| url.starts_with("http"))) {
            match Self::open_remote(pin, url, client, parts) {
                Ok(wheel) => return Ok(wheel),
                Err(error) => {
                    tell!("cannot read parts of {requirement} ({error:#}): pip downloads all of it")
                }
            }
        }
        let file = match earlier {
            Some(file) => file,
            None => {
                let _ = fs::remove_dir_all(&whole);
                python::download(&requirement, None, tags, &whole)?
            }
        };
        ensure!(
            is_right(&file),
            "{requirement} came damaged, its sha256 is wrong: run the command again"
        );
        let members = choose(pin, &mut LocalFile::open(&file)?)?;
        Ok(Self { requirement, members, place: Place::Local(file) })
    }

    fn open_remote(pin: &Pin, url: &str, client: &Client, parts: &Path) -> Result<Self> {
        let members = choose(pin, &mut RemoteFile::open(client, url)?)?;
        let file = |start: u64| parts.join(format!("{}-{start}", &pin.record[..16]));
        let runs = runs(&members).into_iter().map(|run| (run.clone(), file(run.start))).collect();
        let place = Place::Remote { url: url.to_owned(), runs };
        Ok(Self { requirement: pin.requirement(), members, place })
    }

    fn unpack(&self, tree: &Path, bar: &ProgressBar) -> Result<()> {
        let mut open: Option<(Range<u64>, BufReader<File>)> = None;
        for wanted in &self.members {
            let span = &wanted.member.span;
            let inside = |run: &Range<u64>| run.start <= span.start && span.end <= run.end;
            if !open.as_ref().is_some_and(|(run, _)| inside(run)) {
                let (run, path) = match &self.place {
                    Place::Local(path) => (0..u64::MAX, path),
                    Place::Remote { runs, .. } => {
                        let run = runs
                            .iter()
                            .find(|(run, _)| inside(run))
                            .context("a part was not fetched")?;
                        (run.0.clone(), &run.1)
                    }
                };
                open = Some((run, BufReader::with_capacity(1 << 17, File::open(path)?)));
            }
            let Some((run, file)) = &mut open else { bail!("a part was not fetched") };
            file.seek(SeekFrom::Start(span.start - run.start))?;
            if let Err(error) = wanted.unpack(file.take(span.end - span.start), tree, bar) {
                // What was fetched is wrong, so going on from it would fail for ever.
                self.forget();
                return Err(error
                    .context(format!("{} came damaged: run the command again", self.requirement)));
            }
        }
        Ok(())
    }

    fn forget(&self) {
        if let Place::Remote { runs, .. } = &self.place {
            for (_, path) in runs {
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl Wanted {
    fn unpack(&self, span: impl Read, tree: &Path, bar: &ProgressBar) -> Result<()> {
        let path = archive::safe_path(tree, &self.to)?;
        let parent = path.parent().context("no folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = HashingWriter::new(BufWriter::new(file));
        io::copy(&mut bar.wrap_read(self.member.open(span)?), &mut writer)
            .with_context(|| format!("cannot unpack {}", self.member.name))?;
        let (size, sha256) = writer.finish()?;
        let right = size == self.member.size && hash::hex(&sha256) == self.sha256;
        ensure!(right, "{} is not what the wheel's RECORD says", self.member.name);
        #[cfg(unix)]
        if self.member.mode & 0o100 != 0 {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}

/// Downloads the runs of all wheels, one bar for all.
fn fetch(wheels: &[Wheel], client: &Client) -> Result<()> {
    let remote = wheels.iter().filter_map(|wheel| match &wheel.place {
        Place::Remote { url, runs } => Some((url, runs)),
        Place::Local(_) => None,
    });
    let all: Vec<_> =
        remote.flat_map(|(url, runs)| runs.iter().map(move |run| (url, run))).collect();
    let total: u64 = all.iter().map(|(_, (run, _))| run.end - run.start).sum();
    let there: u64 =
        all.iter().filter_map(|(_, (_, path))| Some(fs::metadata(path).ok()?.len())).sum();
    if total == 0 {
        return Ok(());
    }
    let rest = if there > 0 {
        format!(", {} of it are there already", progress::human(there))
    } else {
        String::new()
    };
    tell!("downloading {}{rest}", progress::human(total));
    let bar = progress::bytes("downloading", total);
    bar.set_position(there);
    bar.reset_eta();
    let mut before = 0;
    for (url, (run, path)) in all {
        client.download(url, path, Some(run.clone()), &mut |have, _| {
            bar.set_position(before + have)
        })?;
        before += run.end - run.start;
    }
    bar.finish_and_clear();
    Ok(())
}

/// The members that a pin takes, proved by the wheel's `RECORD`, and that in turn by the pin.
fn choose(pin: &Pin, source: &mut dyn zip::Source) -> Result<Vec<Wanted>> {
    let directory = zip::directory(source)?;
    let is_record = |member: &&Member| {
        member.name.ends_with(".dist-info/RECORD") && member.name.matches('/').count() == 1
    };
    let record = directory.iter().find(is_record).context("the wheel has no RECORD")?;
    let packed = source.read(record.span.clone())?;
    let mut text = Vec::new();
    record.open(packed.as_slice())?.read_to_end(&mut text)?;
    ensure!(hash::sha256(&text) == pin.record, "the wheel's RECORD is not the one pinned");
    let hashes = parse_record(std::str::from_utf8(&text)?);
    let mut chosen = Vec::new();
    for member in directory {
        if let Some(to) = pin.destination(&member.name).filter(|_| !member.name.ends_with('/')) {
            let sha256 = hashes
                .get(member.name.as_str())
                .with_context(|| format!("RECORD has no {}", member.name))?;
            chosen.push(Wanted { sha256: sha256.clone(), member, to });
        }
    }
    for (from, _) in pin.take {
        ensure!(
            chosen.iter().any(|wanted| wanted.member.name.starts_with(from)),
            "the wheel has no {from}"
        );
    }
    Ok(chosen)
}

/// Lines `PATH,sha256=HASH,SIZE`, the hash in URL-safe Base64, to SHA-256 in hexadecimal by path.
fn parse_record(text: &str) -> HashMap<&str, String> {
    text.lines().filter_map(parse_record_line).collect()
}

fn parse_record_line(line: &str) -> Option<(&str, String)> {
    let mut fields = line.rsplitn(3, ',');
    let (_size, hash, path) = (fields.next()?, fields.next()?, fields.next()?);
    Some((path.trim_matches('"'), hash::hex(&base64(hash.strip_prefix("sha256=")?)?)))
}

/// URL-safe, without padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

/// Few requests rather than few bytes: members that lie close together are fetched in one run.
fn runs(members: &[Wanted]) -> Vec<Range<u64>> {
    const GAP: u64 = 256 << 10;
    let mut runs: Vec<Range<u64>> = Vec::new();
    for span in members.iter().map(|wanted| &wanted.member.span) {
        match runs.last_mut() {
            Some(run) if span.start <= run.end + GAP => run.end = span.end,
            _ => runs.push(span.clone()),
        }
    }
    runs
}

/// A file on a server as a source of ranges.
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

impl zip::Source for RemoteFile<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>> {
        self.client.read(self.url, range)
    }
}

#[cfg(test)]
#[path = "wheels_tests.rs"]
mod tests;
