//! Where to compute.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use data2vec_core::Precision;
use tch::{Cuda, Device, Kind, Tensor};

/// Where a trained model computes, and in what.
#[derive(clap::Args)]
pub struct Place {
    /// cpu, cuda or cuda:N; without it: a GPU if there is one
    #[arg(long)]
    device: Option<String>,
    /// What matrix products are computed in: bf16 is faster on CPUs and GPUs that know it, and rounds
    #[arg(long, default_value = "f32", value_parser = precisions())]
    pub precision: Precision,
}

impl Place {
    /// See [`choose`].
    pub fn device(&self) -> Result<Device> {
        choose(self.device.as_deref())
    }
}

fn precisions() -> impl TypedValueParser<Value = Precision> {
    let precision = |name: String| match name.as_str() {
        "bf16" => Precision::Bf16,
        _ => Precision::F32,
    };
    PossibleValuesParser::new(["f32", "bf16"]).map(precision)
}

/// The device called `asked`, or the best there is. Never another than was asked for.
pub fn choose(asked: Option<&str>) -> Result<Device> {
    let wanted = match asked {
        None => None,
        Some("cpu") => return Ok(Device::Cpu),
        Some("cuda") => Some(0),
        Some(name) => match name.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(n) => Some(n),
            None => bail!("--device {name}: not one of cpu, cuda, cuda:N"),
        },
    };
    let usable = usable(wanted.unwrap_or(0));
    match (wanted, usable) {
        (_, Ok(device)) => Ok(device),
        (Some(n), Err(reason)) => bail!("--device cuda:{n}: {reason}"),
        (None, Err(reason)) => {
            // A GPU that is there but out of order is worth a word; none at all is not.
            if std::path::Path::new("/dev/nvidia0").exists() {
                crate::report::note(format!("there is a GPU, but {reason}; computing on the CPU"));
            }
            Ok(Device::Cpu)
        }
    }
}

/// The same for process number `local` of this machine: each has a GPU of its own, and all compute on GPUs if
/// one of them does.
pub fn choose_for(asked: Option<&str>, local: usize) -> Result<Device> {
    match asked {
        Some("cuda") => choose(Some(&format!("cuda:{local}"))),
        None if usable(0).is_ok() => choose(Some(&format!("cuda:{local}"))),
        asked => choose(asked),
    }
}

/// CUDA device `n`, after trying it: it can be listed and still refuse every allocation.
fn usable(n: usize) -> Result<Device, String> {
    let lib = libtorch_folder().ok_or("LibTorch's folder is not known")?;
    if !data2vec_torch_ext::load_cuda(&lib)? {
        return Err(format!(
            "LibTorch in {} has no CUDA; `cargo xtask libtorch --cuda` installs one that has",
            lib.display()
        ));
    }
    if !Cuda::is_available() {
        return Err("LibTorch finds no CUDA device".into());
    }
    if n as i64 >= Cuda::device_count() {
        return Err(format!("there are {} CUDA devices", Cuda::device_count()));
    }
    let device = Device::Cuda(n);
    match Tensor::f_zeros([1], (Kind::Float, device)) {
        Ok(_) => Ok(device),
        Err(e) => {
            Err(format!("it refuses work: {}", e.to_string().lines().next().unwrap_or_default()))
        }
    }
}

/// The folder of the `libtorch_cpu` that this process runs on.
fn libtorch_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    let path = &line[line.find('/')?..];
    PathBuf::from(path).parent().map(PathBuf::from)
}

/// What to call `device`.
pub fn name(device: Device) -> String {
    match device {
        Device::Cpu => format!("the CPU ({} threads)", tch::get_num_threads()),
        Device::Cuda(n) => format!("CUDA device {n}"),
        other => format!("{other:?}"),
    }
}

/// What the system calls the processor, and for a GPU the graphics cards of NVIDIA's that it knows.
pub fn hardware(device: Device) -> Vec<String> {
    let value = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix(':'));
        line.map(|name| name.trim().to_owned())
    };
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let mut names: Vec<String> =
        value(&read("/proc/cpuinfo".into()), "model name").into_iter().collect();
    if device.is_cuda() {
        let cards = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
        let mut cards: Vec<PathBuf> = cards.map(|card| card.path().join("information")).collect();
        cards.sort();
        names.extend(cards.into_iter().filter_map(|card| value(&read(card), "Model")));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for() {
        assert_eq!(choose(Some("cpu")).expect("always there"), Device::Cpu);
        assert!(choose(Some("gpu")).unwrap_err().to_string().contains("cuda:N"));
        assert!(choose(Some("cuda:99")).unwrap_err().to_string().contains("cuda:99"));
        assert!(libtorch_folder().is_some());
    }
}
