//! Date and processor of a measurement.

use std::process::{Command, Stdio};

/// Returns the current date in UTC, as `2026-01-31`.
pub fn today() -> String {
    jiff::Timestamp::now().strftime("%F").to_string()
}

/// Returns the name of the processor, or the architecture if unknown.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let from_sysctl = || {
        let mut command = Command::new("sysctl");
        command.args(["-n", "machdep.cpu.brand_string"]).stderr(Stdio::null());
        let output = command.output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        (!name.trim().is_empty()).then(|| name.trim().to_owned())
    };
    parse_cpu_name(&info).or_else(from_sysctl).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Parses the name from `/proc/cpuinfo`.
fn parse_cpu_name(info: &str) -> Option<String> {
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_date() {
        let today = today();
        let digits: Vec<usize> = today.split('-').map(str::len).collect();
        assert_eq!(digits, [4, 2, 2], "{today}");
    }

    #[test]
    fn parses_cpuinfo() {
        let info = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n";
        assert_eq!(parse_cpu_name(info).as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(parse_cpu_name("processor : 0"), None);
    }
}
