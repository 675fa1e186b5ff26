//! Measures how costs scale with the number of examples: building and opening the index, looking up
//! and reading an example, memory, and index size.
//!
//! cargo run --release -p data2vec-source --example scale -- [EXAMPLES…]
//!
//! Uses JSON lines, since a tar file takes at least 1 kB. Each size is measured in its own process.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use data2vec_source::{Source, SourceConfig, Value};

/// Examples per shard.
const SHARD: usize = 100_000;
/// Number of examples looked up and read.
const LOOKUPS: usize = 100_000;

#[expect(clippy::print_stdout, reason = "prints a table")]
fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, folder, count] = &args[..]
        && mode == "measure"
    {
        return measure(Path::new(folder), count.parse()?);
    }
    let mut sizes: Vec<usize> = args.iter().map(|size| size.parse()).collect::<Result<_, _>>()?;
    if sizes.is_empty() {
        sizes = (3..=7).map(|power| 10_usize.pow(power)).collect();
    }
    println!(
        "|  examples | index, B each | build, s | open, ms | find, µs | read, µs | memory, MB |"
    );
    println!(
        "|----------:|--------------:|---------:|---------:|---------:|---------:|-----------:|"
    );
    for count in sizes {
        let folder = tempfile::tempdir()?;
        let shards = folder.path().join("shards");
        fs::create_dir(&shards)?;
        for first in (0..count).step_by(SHARD) {
            let file = File::create(shards.join(format!("{:05}.jsonl", first / SHARD)))?;
            let mut out = BufWriter::new(file);
            for number in first..count.min(first + SHARD) {
                writeln!(out, "{{\"text\":\"a sentence, of which this is number {number}\"}}")?;
            }
            out.flush()?;
        }
        let folder = folder.path().to_str().ok_or("the temporary directory's path is not UTF-8")?;
        for _ in ["builds the index", "opens it"] {
            let mut program = Command::new(std::env::current_exe()?);
            let status = program.args(["measure", folder, &count.to_string()]).status()?;
            if !status.success() {
                return Err(format!("measuring {count} examples failed").into());
            }
        }
    }
    Ok(())
}

/// Opens the shards; if the index already exists, measures lookups and reads too.
#[expect(clippy::print_stdout, reason = "prints a table")]
fn measure(folder: &Path, count: usize) -> Result<(), Box<dyn Error>> {
    let shards = vec![folder.join("shards").to_string_lossy().into_owned()];
    let config = SourceConfig { shards, ..SourceConfig::default() };
    let (cache, build_time) = (folder.join("cache"), folder.join("seconds"));
    let before = resident()?;
    let started = Instant::now();
    let source = Source::open(&config, &cache, &mut |_| ())?;
    let opened = started.elapsed().as_secs_f64();
    if !build_time.exists() {
        return Ok(fs::write(build_time, opened.to_string())?);
    }
    let built: f64 = fs::read_to_string(build_time)?.parse()?;
    // A scattered order, as in a shuffled epoch.
    let order = (0..LOOKUPS).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) % source.len());
    let started = Instant::now();
    for index in order.clone() {
        assert_eq!(source.fields(index)?.len(), 1);
    }
    let find = started.elapsed().as_secs_f64() / LOOKUPS as f64;
    let started = Instant::now();
    for index in order {
        let example = source.read(index)?;
        let text = example.get("text").and_then(Value::text).unwrap_or_default();
        assert!(text.ends_with(&format!(" {index}")), "{text} is not number {index}");
    }
    let read = started.elapsed().as_secs_f64() / LOOKUPS as f64;
    let memory = resident()?.saturating_sub(before) as f64 / 1e6;
    let index = fs::read_dir(cache)?.filter_map(|file| file.ok()?.metadata().ok()).map(|m| m.len());
    let bytes = index.max().unwrap_or(0) as f64 / count as f64;
    println!(
        "| {count:>9} | {bytes:>13.1} | {built:>8.2} | {:>8.2} | {:>8.2} | {:>8.2} | {memory:>10.1} |",
        1e3 * opened,
        1e6 * find,
        1e6 * read
    );
    Ok(())
}

/// Returns the resident memory in bytes; 0 if the system does not report it.
fn resident() -> Result<u64, Box<dyn Error>> {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return Ok(0) };
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    let number = line.split_whitespace().next().unwrap_or("0");
    Ok(number.parse::<u64>()? * 1024)
}
