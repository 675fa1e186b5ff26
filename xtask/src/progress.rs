//! Progress bars and human-readable sizes.

use indicatif::{ProgressBar, ProgressStyle};

/// Creates a progress bar that counts bytes. Draws nothing unless standard error is a terminal.
pub fn bytes(label: &str, total: u64) -> ProgressBar {
    let template = "{msg:>28} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(label.to_owned())
}

/// Formats a size in decimal units: `1.5 GB`, `23 MB`, `9 kB`.
pub fn format_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", (bytes + 500) / 1_000),
        1_000_000..1_000_000_000 => format!("{} MB", (bytes + 500_000) / 1_000_000),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
