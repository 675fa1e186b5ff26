//! `report.html`: shows all of a run, escapes its texts, and renders in a browser if
//! `DATA2VEC_BROWSER` names a Chromium.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stderr, reason = "a skipped test prints the reason")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use support::*;

/// Text that a report must escape.
const HOSTILE: &str = "</script><script>alert('x')</script><img src=x onerror=\"alert(1)\">&amp;";

/// Writes recordings with hostile names and transcripts to a directory with a hostile name.
fn hostile(dir: &Path) -> PathBuf {
    let data = dir.join("a <b>bold</b> \"name\" & '");
    fs::create_dir_all(&data).unwrap();
    for i in 0..20 {
        // A file name has no slash.
        let name = format!("{i:02} {}", HOSTILE.replace('/', ""));
        fs::write(data.join(format!("{name}.wav")), wav(&sound(1.0 + 0.05 * i as f64, i))).unwrap();
        fs::write(data.join(format!("{name}.txt")), HOSTILE).unwrap();
    }
    data
}

struct Runs {
    dir: tempfile::TempDir,
}

impl Runs {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn page(&self, name: &str) -> String {
        fs::read_to_string(self.path(name).join("report.html")).unwrap()
    }
}

/// Returns a run of each modality, and one of speech without a report.
fn runs() -> &'static Runs {
    static RUNS: OnceLock<Runs> = OnceLock::new();
    RUNS.get_or_init(|| {
        let dir = temp_dir();
        let sounds = hostile(dir.path());
        let images = pictures(dir.path());
        let texts = texts(dir.path());
        let odd = format!("{}.txt", HOSTILE.replace('/', ""));
        fs::copy(texts.join("00.txt"), texts.join(odd)).unwrap();
        succeed(&mut pretrain(&sounds, &dir.path().join("speech"), &[]));
        succeed(pretrain(&sounds, &dir.path().join("silent"), &[]).arg("--no-report"));
        succeed(&mut pretrain_images(&images, &dir.path().join("vision"), &[]));
        succeed(&mut pretrain_texts(&texts, &dir.path().join("nlp"), &[]));
        Runs { dir }
    })
}

/// Writes two classes of 20 images each to a directory `pictures` in `dir`.
fn pictures(dir: &Path) -> PathBuf {
    let data = dir.join("pictures");
    for (class, level) in [("bright", 180_u8), ("dark <i>", 20)] {
        fs::create_dir_all(data.join(class)).unwrap();
        for i in 0..20_u8 {
            let picture = bmp(|at| level.wrapping_add(at.wrapping_mul(i) % 50));
            fs::write(data.join(class).join(format!("{i:02}.bmp")), picture).unwrap();
        }
    }
    data
}

/// Returns the data that the page's script reads.
fn data(page: &str) -> Value {
    let after = page.split("<script id=\"data\" type=\"application/json\">").nth(1).unwrap();
    serde_json::from_str(after.split("</script>").next().unwrap()).unwrap()
}

/// Asserts that every number of `metrics.jsonl` is a point of some curve.
fn assert_all_curves(page: &str, run: &Path) {
    let data = data(page);
    let panels = data["panels"].as_array().unwrap();
    let series = panels.iter().flat_map(|panel| panel["series"].as_array().unwrap());
    let points: Vec<(u64, f64)> = series
        .flat_map(|series| series["points"].as_array().unwrap())
        .map(|point| (point[0].as_u64().unwrap(), point[1].as_f64().unwrap()))
        .collect();
    for line in metrics(run) {
        let (fields, step) = (line.as_object().unwrap(), line["step"].as_u64().unwrap());
        let inner = fields.values().filter_map(Value::as_object).flatten();
        let own = fields.iter().filter(|(key, _)| !["kind", "step", "k"].contains(&key.as_str()));
        for (key, value) in own.chain(inner) {
            let Some(value) = value.as_f64() else { continue };
            let matches =
                |&(at, y): &(u64, f64)| at == step && (y - value).abs() <= 1e-5 * value.abs();
            assert!(points.iter().any(matches), "{key} of {line} is in no curve");
        }
    }
}

/// Asserts that the page fetches nothing, and that texts of the run are escaped.
fn assert_contained(page: &str) {
    let addresses = page.matches("://").count();
    assert_eq!(
        addresses,
        page.matches("http://www.w3.org/2000/svg").count(),
        "an external address"
    );
    assert_eq!(page.matches("<script").count(), 2, "data and code");
    assert_eq!(page.matches("</script>").count(), 2);
    for element in ["<link", "<iframe", "<object", "@import", "url(http", "<b>bold", "<i>"] {
        let allowed = usize::from(element == "<link"); // an empty icon
        assert!(page.matches(element).count() <= allowed, "{element}");
    }
    assert!(!page.contains("<img src=x"), "a hostile name got through");
    let pictures = page.matches("src=\"").count() + page.matches("<image").count();
    let embedded = page.matches("=\"data:image/png;base64,").count();
    assert_eq!(pictures, embedded, "all pictures are embedded");
    assert!(page.len() < 3 << 20, "{} bytes", page.len());
}

#[test]
fn report_shows_all_metrics_and_is_self_contained() {
    let runs = runs();
    for name in ["speech", "vision", "nlp"] {
        let page = runs.page(name);
        assert_contained(&page);
        assert_all_curves(&page, &runs.path(name));
        for part in [
            "Standard deviation of targets",
            "id=\"verdict\"",
            "Effective rank of the blocks",
            "Clipped steps",
            "Explained variance",
            "near 0: collapse",
            "Masks and features",
            "Nearest neighbours",
            "Provenance",
            "class=\"shade\"",
            "weight_decay",
            "libtorch",
        ] {
            let is_there = page.contains(part) || (name == "nlp" && part == "class=\"shade\"");
            assert!(is_there, "{name}: no {part}");
        }
    }
    let speech = runs.page("speech");
    assert!(speech.contains("&lt;script&gt;alert"), "names and transcripts are shown");
    assert!(
        speech.contains("a &lt;b&gt;bold&lt;/b&gt; &quot;name&quot; &amp; '"),
        "and so is the directory"
    );
    assert!(runs.page("nlp").contains("class=\"masked\""), "masked tokens are marked");
    assert!(
        !runs.path("silent").join("report.html").exists()
            && !runs.path("silent").join("examples.json").exists()
    );
}

#[test]
fn report_shows_masks_and_features_of_the_model() {
    let runs = runs();
    let examples = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(runs.path(name).join("examples.json")).unwrap())
            .unwrap()
    };
    for (name, share) in [("speech", 0.5), ("vision", 0.7), ("nlp", 0.48)] {
        let all = examples(name);
        let shown = all["gallery"]["shown"].as_array().unwrap().clone();
        assert!(!shown.is_empty() && all["step"] == 12, "{name}");
        let mut masked = Vec::new();
        for one in &shown {
            let tokens: u64 =
                one["grid"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
            assert_eq!(one["colours"].as_array().unwrap().len() as u64, tokens, "{name}");
            let masks = one["masks"].as_array().unwrap();
            assert_eq!(masks.len(), 2, "{name}: one per copy");
            for mask in masks {
                let mask = mask.as_str().unwrap();
                assert_eq!(mask.len() as u64, tokens, "{name}");
                masked.push(mask.matches('#').count() as f64 / tokens as f64);
            }
        }
        let mean = masked.iter().sum::<f64>() / masked.len() as f64;
        assert!((mean - share).abs() < 0.15, "{name}: {mean} masked");
    }
    let label =
        |all: &Value| all["gallery"]["shown"][0]["card"]["label"].as_str().map(str::to_owned);
    assert_eq!(label(&examples("speech")).as_deref(), Some(HOSTILE));
}

#[test]
fn report_changes_nothing_and_can_be_written_later() {
    let runs = runs();
    assert_same(&runs.path("speech"), &runs.path("silent"));
    let later = runs.path("later");
    copy_dir(&runs.path("silent"), &later);
    succeed(program(&["report"]).arg(&later));
    let examples = |name: &str| fs::read(runs.path(name).join("examples.json")).unwrap();
    assert!(examples("later") == examples("speech"), "the exported encoder is the trained one");
    assert_contained(&runs.page("later"));
    // Again from the stored examples, without the data.
    let out = runs.path("elsewhere.html");
    let record = later.join("run.json");
    let text = fs::read_to_string(&record).unwrap().replace("bold", "gone");
    fs::write(&record, text).unwrap();
    succeed(program(&["report"]).arg(&later).arg("--out").arg(&out));
    assert!(fs::read_to_string(&out).unwrap().contains("Nearest neighbours"));
}

#[test]
fn compares_several_runs() {
    let runs = runs();
    let out = runs.path("compare.html");
    let both = [runs.path("speech"), runs.path("vision")];
    succeed(program(&["report"]).args(&both).arg("--out").arg(&out));
    let page = fs::read_to_string(&out).unwrap();
    assert_contained(&page);
    for part in [
        "Final metrics",
        "Differences",
        "features.conv_layers",
        "held_out/explained_variance",
        "Comparison of 2 runs",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    let data = data(&page);
    let panels = data["panels"].as_array().unwrap();
    assert!(
        panels.iter().all(|panel| panel["series"].as_array().unwrap().len() == 2),
        "{panels:?}"
    );
    for run in &both {
        assert_all_curves(&page, run);
    }
    let same = [runs.path("speech"), runs.path("silent")];
    succeed(program(&["report"]).args(&same).arg("--out").arg(&out));
    assert!(fs::read_to_string(&out).unwrap().contains("The recipes are the same"));
    fail(program(&["report"]).args(&both), &["--out compare.html"]);
    fail(program(&["report"]).arg(runs.dir.path()), &["not a run directory", "recipe.toml"]);
}

/// Opens a page in a browser window of this width. Returns its DOM and its log.
fn open(browser: &Path, page: &Path, width: u32, is_dark: bool) -> (String, String) {
    let profile = temp_dir();
    let mut command = Command::new(browser);
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--enable-logging=stderr",
            "--log-level=0",
            "--virtual-time-budget=4000",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={width},900"))
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!is_dark)))
        .arg(format!("file://{}", page.display()))
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = output(&mut command);
    assert!(output.status.success(), "{}", stderr(&output));
    (stdout(&output), stderr(&output))
}

#[test]
fn browser_draws_everything_without_errors() {
    let Some(browser) = std::env::var_os("DATA2VEC_BROWSER").map(PathBuf::from) else {
        eprintln!("skipped: DATA2VEC_BROWSER names no Chromium");
        return;
    };
    let runs = runs();
    let compared = runs.path("drawn.html");
    let both = [runs.path("speech"), runs.path("vision")];
    succeed(program(&["report"]).args(&both).arg("--out").arg(&compared));
    let pages = ["speech", "vision", "nlp"].map(|name| runs.path(name).join("report.html"));
    for page in pages.iter().chain([&compared]) {
        // Some characters of the path are not valid in an address.
        let copy = runs.path("page.html");
        fs::copy(page, &copy).unwrap();
        let panels =
            data(&fs::read_to_string(&copy).unwrap())["panels"].as_array().unwrap().clone();
        let curves: usize =
            panels.iter().map(|panel| panel["series"].as_array().unwrap().len()).sum();
        for (width, is_dark) in [(1280, false), (1280, true), (390, false), (390, true)] {
            let (dom, log) = open(&browser, &copy, width, is_dark);
            let what = format!("{} at {width}", page.display());
            let check = dom.split("data-check=\"").nth(1).and_then(|rest| rest.split('"').next());
            assert_eq!(check, Some("good"), "{what}: {log}");
            assert_eq!(dom.matches("class=\"line s").count(), curves, "{what}");
            assert!(!log.contains("CONSOLE"), "{what}: {log}");
        }
    }
}
