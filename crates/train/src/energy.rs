//! Measures the energy of Intel and AMD processors on Linux (RAPL).

use std::fs;
use std::path::{Path, PathBuf};

/// Energy that the processors of this machine have used since [`Energy::start`].
pub struct Energy {
    packages: Vec<Package>,
    joules: f64,
}

/// The energy counter of a processor in microjoules. It wraps at `max`.
struct Package {
    counter: PathBuf,
    last: u64,
    max: u64,
}

impl Energy {
    /// Starts measuring all processors whose counters this user may read.
    pub fn start() -> Self {
        Self::start_in(Path::new("/sys/class/powercap"))
    }

    fn start_in(dir: &Path) -> Self {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let packages = entries.filter_map(|entry| package(&entry.path())).collect();
        Self { packages, joules: 0.0 }
    }

    /// Returns the joules since the start, or `None` without readable counters. Must be called
    /// before a counter wraps, which takes minutes at least.
    pub fn joules(&mut self) -> Option<f64> {
        for package in &mut self.packages {
            let Some(now) = number(&package.counter) else { continue };
            let since = match now >= package.last {
                true => now - package.last,
                false => package.max.saturating_sub(package.last) + now,
            };
            self.joules += since as f64 / 1e6;
            package.last = now;
        }
        (!self.packages.is_empty()).then_some(self.joules)
    }
}

/// Opens the counter in the directory `dir`, `intel-rapl:N` (on AMD too), if it is of a processor.
/// Parts of a processor have two colons in their names; `psys` includes the processors.
fn package(dir: &Path) -> Option<Package> {
    let name = dir.file_name()?.to_str()?.strip_prefix("intel-rapl:")?;
    let kind = fs::read_to_string(dir.join("name")).ok()?;
    if name.contains(':') || !kind.starts_with("package") {
        return None;
    }
    let counter = dir.join("energy_uj");
    let (last, max) = (number(&counter)?, number(&dir.join("max_energy_range_uj"))?);
    Some(Package { counter, last, max })
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_processors_and_handles_wrapped_counters() {
        let dir = tempfile::tempdir().expect("a directory");
        let set = |name: &str, kind: &str, counter: u64| {
            let package = dir.path().join(name);
            fs::create_dir_all(&package).expect("space");
            for (file, text) in [
                ("name", format!("{kind}\n")),
                ("energy_uj", format!("{counter}\n")),
                ("max_energy_range_uj", "10000000\n".into()),
            ] {
                fs::write(package.join(file), text).expect("space");
            }
        };
        let all = |counters: [u64; 4]| {
            set("intel-rapl:0", "package-0", counters[0]);
            set("intel-rapl:1", "package-1", counters[1]);
            set("intel-rapl:0:0", "core", counters[2]);
            set("intel-rapl:2", "psys", counters[3]);
        };
        assert_eq!(Energy::start_in(dir.path()).joules(), None);
        assert_eq!(Energy::start_in(&dir.path().join("none")).joules(), None);
        all([1_000_000, 9_000_000, 5, 5]);
        let mut energy = Energy::start_in(dir.path());
        assert_eq!(energy.joules(), Some(0.0));
        all([3_000_000, 500_000, 9, 9]);
        assert_eq!(energy.joules(), Some(2.0 + 1.5));
        fs::remove_dir_all(dir.path().join("intel-rapl:1")).expect("a directory");
        set("intel-rapl:0", "package-0", 4_000_000);
        assert_eq!(energy.joules(), Some(4.5));
    }
}
