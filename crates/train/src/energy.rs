//! What the processors of this machine take, as Linux tells for Intel's and AMD's (RAPL).

use std::fs;
use std::path::{Path, PathBuf};

/// Energy since the start.
pub struct Energy {
    packages: Vec<Package>,
    joules: f64,
}

/// A processor's counter of microjoules, which begins anew at its end.
struct Package {
    counter: PathBuf,
    last: u64,
    end: u64,
}

impl Energy {
    /// Of all processors, if the system lets this user read their counters.
    pub fn of_this_machine() -> Self {
        Self::below(Path::new("/sys/class/powercap"))
    }

    fn below(folder: &Path) -> Self {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let packages = entries.filter_map(|entry| package(&entry.path())).collect();
        Self { packages, joules: 0.0 }
    }

    /// Joules since the start; `None` where nobody tells. A counter must be looked at before it has gone
    /// round once, which takes minutes at least.
    pub fn look(&mut self) -> Option<f64> {
        for package in &mut self.packages {
            let Some(now) = number(&package.counter) else { continue };
            let since = match now >= package.last {
                true => now - package.last,
                false => package.end.saturating_sub(package.last) + now,
            };
            self.joules += since as f64 / 1e6;
            package.last = now;
        }
        (!self.packages.is_empty()).then_some(self.joules)
    }
}

/// `intel-rapl:N`, on AMD's as well, if it is a processor: parts of one have two colons, and `psys` holds
/// everything once more.
fn package(folder: &Path) -> Option<Package> {
    let name = folder.file_name()?.to_str()?.strip_prefix("intel-rapl:")?;
    let kind = fs::read_to_string(folder.join("name")).ok()?;
    if name.contains(':') || !kind.starts_with("package") {
        return None;
    }
    let counter = folder.join("energy_uj");
    let (last, end) = (number(&counter)?, number(&folder.join("max_energy_range_uj"))?);
    Some(Package { counter, last, end })
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_added_up_and_their_counters_go_round() {
        let dir = tempfile::tempdir().expect("a folder");
        let set = |name: &str, kind: &str, counter: u64| {
            let folder = dir.path().join(name);
            fs::create_dir_all(&folder).expect("space");
            for (file, text) in [
                ("name", format!("{kind}\n")),
                ("energy_uj", format!("{counter}\n")),
                ("max_energy_range_uj", "10000000\n".into()),
            ] {
                fs::write(folder.join(file), text).expect("space");
            }
        };
        let all = |counters: [u64; 4]| {
            set("intel-rapl:0", "package-0", counters[0]);
            set("intel-rapl:1", "package-1", counters[1]);
            set("intel-rapl:0:0", "core", counters[2]);
            set("intel-rapl:2", "psys", counters[3]);
        };
        assert_eq!(Energy::below(dir.path()).look(), None);
        assert_eq!(Energy::below(&dir.path().join("none")).look(), None);
        all([1_000_000, 9_000_000, 5, 5]);
        let mut energy = Energy::below(dir.path());
        assert_eq!(energy.look(), Some(0.0));
        all([3_000_000, 500_000, 9, 9]);
        assert_eq!(energy.look(), Some(2.0 + 1.5));
        fs::remove_dir_all(dir.path().join("intel-rapl:1")).expect("a folder");
        set("intel-rapl:0", "package-0", 4_000_000);
        assert_eq!(energy.look(), Some(4.5));
    }
}
