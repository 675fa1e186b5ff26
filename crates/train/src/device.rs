//! Devices: choosing, naming, trying.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tch::{Cuda, Device, Kind, Tensor};
use tracing::warn;

/// Returns the device called `name` (`cpu`, `cuda`, `cuda:N`), or without a name a GPU if there is
/// one. Never returns another device than the named one.
///
/// # Errors
/// If the name is unknown or the device is unusable.
pub fn choose(name: Option<&str>) -> Result<Device> {
    let wanted = match name {
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
            // Only a GPU that is there but unusable deserves a warning.
            if Path::new("/dev/nvidia0").exists() {
                warn!("there is a GPU, but {reason}; computing on the CPU");
            }
            Ok(Device::Cpu)
        }
    }
}

/// Returns the device of local rank `local_rank`: each rank has a GPU of its own, and all use GPUs
/// if one does.
///
/// # Errors
/// As [`choose`].
pub fn choose_for_rank(name: Option<&str>, local_rank: usize) -> Result<Device> {
    match name {
        Some("cuda") => choose(Some(&format!("cuda:{local_rank}"))),
        None if usable(0).is_ok() => choose(Some(&format!("cuda:{local_rank}"))),
        name => choose(name),
    }
}

/// Returns CUDA device `n` after trying it: a listed device may still refuse every allocation.
fn usable(n: usize) -> Result<Device, String> {
    let lib = libtorch_dir().ok_or("the directory of LibTorch is unknown")?;
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
            Err(format!("it is unusable: {}", e.to_string().lines().next().unwrap_or_default()))
        }
    }
}

/// Returns the directory of the `libtorch_cpu` that this process has loaded.
fn libtorch_dir() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    let path = &line[line.find('/')?..];
    PathBuf::from(path).parent().map(PathBuf::from)
}

/// Returns a readable name of `device`.
pub fn name(device: Device) -> String {
    match device {
        Device::Cpu => match tch::get_num_threads() {
            1 => "the CPU (1 thread)".into(),
            threads => format!("the CPU ({threads} threads)"),
        },
        Device::Cuda(n) => format!("CUDA device {n}"),
        other => format!("{other:?}"),
    }
}

/// Returns the names of the processor and, for a GPU, of the NVIDIA cards that the system lists.
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
    fn returns_only_the_named_device() {
        assert_eq!(choose(Some("cpu")).expect("always there"), Device::Cpu);
        assert!(choose(Some("gpu")).unwrap_err().to_string().contains("cuda:N"));
        assert!(choose(Some("cuda:99")).unwrap_err().to_string().contains("cuda:99"));
        assert!(libtorch_dir().is_some());
    }
}
