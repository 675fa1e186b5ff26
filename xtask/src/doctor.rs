//! `cargo xtask doctor`: checks this machine for required and optional programs.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::data::{self, catalog::Catalog};
use crate::progress::format_bytes;
use crate::{disk, libtorch, python};

/// Prints one line per check; returns whether everything required is present.
pub fn run(root: &Path) -> Result<bool> {
    let mut doctor = Doctor { healthy: true };
    doctor.required("Rust", "rustc", &["--version"], "install with rustup");
    doctor.required("Cargo", "cargo", &["--version"], "install with rustup");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| String::from("c++"));
    doctor.required(
        "C++ compiler",
        &compiler,
        &["--version"],
        "install one; on Debian: apt-get install g++",
    );
    doctor.libtorch(root);
    // Needed to install LibTorch and some data sets, not to train.
    doctor.optional("Python", python::PYTHON, &["--version"], python::PIP_HINT);
    doctor.optional("pip", python::PYTHON, &["-m", "pip", "--version"], python::PIP_HINT);
    doctor.optional(
        "apt-get (data sets)",
        "apt-get",
        &["--version"],
        "not installed; needed for data sets from Debian packages",
    );
    doctor.optional(
        "npm (data sets)",
        "npm",
        &["--version"],
        "not installed; needed for state-of-the-union",
    );
    doctor.gpu(root);
    match disk::free(root) {
        Some(free) if free < 5_000_000_000 => {
            doctor.line(Status::Hint, "Disk", &format!("only {} free", format_bytes(free)))
        }
        Some(free) => doctor.line(Status::Ok, "Disk", &format!("{} free", format_bytes(free))),
        None => doctor.line(Status::Hint, "Disk", "free space unknown"),
    }
    let catalog = Catalog::read(root)?;
    let is_fetched =
        |set: &&data::catalog::DataSet| data::is_complete(&data::dir(root, &set.name), set);
    let names: Vec<&str> =
        catalog.set.iter().filter(is_fetched).map(|set| set.name.as_str()).collect();
    match names.as_slice() {
        [] => doctor.line(
            Status::Hint,
            "Data sets",
            "none fetched; `cargo xtask data` lists them, train fetches its default",
        ),
        names => doctor.line(Status::Ok, "Data sets", &names.join(", ")),
    }
    Ok(doctor.healthy)
}

/// Result of a check.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    Hint,
    Missing,
}

/// Prints checks, and remembers whether all required ones passed.
struct Doctor {
    healthy: bool,
}

impl Doctor {
    fn line(&mut self, status: Status, what: &str, text: &str) {
        self.healthy &= status != Status::Missing;
        let status = match status {
            Status::Ok => "ok",
            Status::Hint => "-",
            Status::Missing => "MISSING",
        };
        out!("{status:<8} {what:<20} {text}");
    }

    fn required(&mut self, what: &str, program: &str, args: &[&str], advice: &str) {
        match first_line(program, args) {
            Some(line) => self.line(Status::Ok, what, &line),
            None => self.line(Status::Missing, what, advice),
        }
    }

    fn optional(&mut self, what: &str, program: &str, args: &[&str], advice: &str) {
        match first_line(program, args) {
            Some(line) => self.line(Status::Ok, what, &line),
            None => self.line(Status::Hint, what, advice),
        }
    }

    fn libtorch(&mut self, root: &Path) {
        match libtorch::find(root, None) {
            Ok(Some(libtorch)) => self.line(Status::Ok, "LibTorch", &libtorch::describe(&libtorch)),
            Ok(None) => {
                self.line(Status::Missing, "LibTorch", "run `cargo xtask libtorch` to install it")
            }
            Err(error) => self.line(Status::Missing, "LibTorch", &format!("{error:#}")),
        }
    }

    fn gpu(&mut self, root: &Path) {
        let gpu = first_line("nvidia-smi", &["-L"]).filter(|_| libtorch::has_gpu());
        let cuda =
            libtorch::find(root, None).ok().flatten().is_some_and(|libtorch| libtorch.has_cuda());
        match (gpu, cuda) {
            (Some(gpu), true) => self.line(Status::Ok, "GPU", &gpu),
            (Some(gpu), false) => {
                self.line(
                    Status::Hint,
                    "GPU",
                    &format!("{gpu}; run `cargo xtask libtorch --cuda` to use it"),
                );
            }
            (None, _) if libtorch::has_gpu() => {
                self.line(Status::Hint, "GPU", "NVIDIA GPU found, but nvidia-smi fails")
            }
            (None, _) => self.line(Status::Hint, "GPU", "no NVIDIA GPU; training uses the CPU"),
        }
    }
}

/// Returns the first line that a program prints, if it succeeds.
fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.lines().next().unwrap_or_default().trim().to_owned())
}
