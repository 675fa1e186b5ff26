//! `cargo xtask doctor`: what this machine has and what it lacks.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::data::{self, catalog::Catalog};
use crate::progress::human;
use crate::{disk, libtorch, python};

/// Prints a line for each thing; true when nothing required is missing.
pub fn run(root: &Path) -> Result<bool> {
    let mut doctor = Doctor { healthy: true };
    doctor.program("Rust", "rustc", &["--version"], "install it with rustup");
    doctor.program("Cargo", "cargo", &["--version"], "install it with rustup");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| String::from("c++"));
    doctor.program(
        "C++ compiler",
        &compiler,
        &["--version"],
        "install one, on Debian: apt-get install g++",
    );
    doctor.libtorch(root);
    // Needed to install LibTorch and for some data sets, not to train.
    doctor.optional("Python", python::PYTHON, &["--version"], python::PIP_HINT);
    doctor.optional("pip", python::PYTHON, &["-m", "pip", "--version"], python::PIP_HINT);
    doctor.optional(
        "apt-get (data sets)",
        "apt-get",
        &["--version"],
        "sets from Debian packages need it",
    );
    doctor.optional("npm (data sets)", "npm", &["--version"], "state-of-the-union needs it");
    doctor.gpu(root);
    match disk::free(root) {
        Some(free) if free < 5_000_000_000 => {
            doctor.line(Mark::Hint, "Disk", &format!("only {} free", human(free)))
        }
        Some(free) => doctor.line(Mark::Good, "Disk", &format!("{} free", human(free))),
        None => doctor.line(Mark::Hint, "Disk", "the system does not tell what is free"),
    }
    let catalog = Catalog::read(root)?;
    let there = |set: &&data::catalog::DataSet| data::is_complete(&data::dir(root, &set.name), set);
    let names: Vec<&str> = catalog.set.iter().filter(there).map(|set| set.name.as_str()).collect();
    match names.as_slice() {
        [] => doctor.line(
            Mark::Hint,
            "Data sets",
            "none yet: `cargo xtask data --list`; train fetches its default",
        ),
        names => doctor.line(Mark::Good, "Data sets", &names.join(", ")),
    }
    Ok(doctor.healthy)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Good,
    Hint,
    Missing,
}

struct Doctor {
    healthy: bool,
}

impl Doctor {
    fn line(&mut self, mark: Mark, what: &str, text: &str) {
        self.healthy &= mark != Mark::Missing;
        let mark = match mark {
            Mark::Good => "ok",
            Mark::Hint => "-",
            Mark::Missing => "MISSING",
        };
        out!("{mark:<8} {what:<20} {text}");
    }

    fn program(&mut self, what: &str, program: &str, args: &[&str], advice: &str) {
        match first_line(program, args) {
            Some(line) => self.line(Mark::Good, what, &line),
            None => self.line(Mark::Missing, what, advice),
        }
    }

    fn optional(&mut self, what: &str, program: &str, args: &[&str], advice: &str) {
        match first_line(program, args) {
            Some(line) => self.line(Mark::Good, what, &line),
            None => self.line(Mark::Hint, what, advice),
        }
    }

    fn libtorch(&mut self, root: &Path) {
        match libtorch::find(root, None) {
            Ok(Some(libtorch)) => self.line(Mark::Good, "LibTorch", &libtorch::describe(&libtorch)),
            Ok(None) => self.line(Mark::Missing, "LibTorch", "`cargo xtask libtorch` installs it"),
            Err(error) => self.line(Mark::Missing, "LibTorch", &format!("{error:#}")),
        }
    }

    fn gpu(&mut self, root: &Path) {
        let gpu = first_line("nvidia-smi", &["-L"]).filter(|_| libtorch::has_gpu());
        let cuda =
            libtorch::find(root, None).ok().flatten().is_some_and(|libtorch| libtorch.has_cuda());
        match (gpu, cuda) {
            (Some(gpu), true) => self.line(Mark::Good, "GPU", &gpu),
            (Some(gpu), false) => {
                self.line(
                    Mark::Hint,
                    "GPU",
                    &format!("{gpu}; to use it: `cargo xtask libtorch --cuda`"),
                );
            }
            (None, _) if libtorch::has_gpu() => {
                self.line(Mark::Hint, "GPU", "there is one, but nvidia-smi does not run")
            }
            (None, _) => self.line(Mark::Hint, "GPU", "no NVIDIA GPU: training runs on the CPU"),
        }
    }
}

fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.lines().next().unwrap_or_default().trim().to_owned())
}
