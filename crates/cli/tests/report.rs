//! `report.html`: that all of a run is on it, that nothing in a run can break out of its place, and, with a browser
//! (`DATA2VEC_BROWSER` names a Chromium), that it is drawn.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stderr, reason = "a test that was skipped says why")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use support::*;

/// What must stay a text, wherever it stands.
const HOSTILE: &str = "</script><script>alert('x')</script><img src=x onerror=\"alert(1)\">&amp;";

/// Recordings whose names and transcripts are hostile, in a folder that is.
fn hostile(dir: &Path) -> PathBuf {
    let data = dir.join("a <b>bold</b> \"name\" & '");
    fs::create_dir_all(&data).unwrap();
    for i in 0..20 {
        // A slash ends a name.
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

/// A run of each modality, and one of speech that wrote no report.
fn runs() -> &'static Runs {
    static RUNS: OnceLock<Runs> = OnceLock::new();
    RUNS.get_or_init(|| {
        let dir = folder();
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

/// A folder `pictures` in `dir`: two classes of 20 images each.
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

/// What the page's script reads.
fn data(page: &str) -> Value {
    let after = page.split("<script id=\"data\" type=\"application/json\">").nth(1).unwrap();
    serde_json::from_str(after.split("</script>").next().unwrap()).unwrap()
}

/// Every number that `metrics.jsonl` tells is a point of some curve.
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
            let is_it =
                |&(at, y): &(u64, f64)| at == step && (y - value).abs() <= 1e-5 * value.abs();
            assert!(points.iter().any(is_it), "{key} of {line} is in no curve");
        }
    }
}

/// Nothing is fetched, and nothing of the run is taken for a part of the page.
fn assert_contained(page: &str) {
    let addresses = page.matches("://").count();
    assert_eq!(addresses, page.matches("http://www.w3.org/2000/svg").count(), "an address");
    assert_eq!(page.matches("<script").count(), 2, "data, and what draws them");
    assert_eq!(page.matches("</script>").count(), 2);
    for element in ["<link", "<iframe", "<object", "@import", "url(http", "<b>bold", "<i>"] {
        let allowed = usize::from(element == "<link"); // an icon that is empty
        assert!(page.matches(element).count() <= allowed, "{element}");
    }
    assert!(!page.contains("<img src=x"), "a hostile name got through");
    let pictures = page.matches("src=\"").count() + page.matches("<image").count();
    let held = page.matches("=\"data:image/png;base64,").count();
    assert_eq!(pictures, held, "each picture is in the page");
    assert!(page.len() < 3 << 20, "{} bytes", page.len());
}

#[test]
fn a_page_has_all_of_its_run_and_nothing_else() {
    let runs = runs();
    for name in ["speech", "vision", "nlp"] {
        let page = runs.page(name);
        assert_contained(&page);
        assert_all_curves(&page, &runs.path(name));
        for part in [
            "How it learns",
            "id=\"verdict\"",
            "Effective rank of the blocks",
            "Clipped steps",
            "Explained variance",
            "near 0: collapse",
            "What the mask hides",
            "Nearest neighbours",
            "Where it comes from",
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
        "and so is the folder"
    );
    assert!(runs.page("nlp").contains("class=\"hid\""), "hidden tokens are marked");
    assert!(
        !runs.path("silent").join("report.html").exists()
            && !runs.path("silent").join("examples.json").exists()
    );
}

#[test]
fn masks_and_features_are_those_of_the_model() {
    let runs = runs();
    let examples = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(runs.path(name).join("examples.json")).unwrap())
            .unwrap()
    };
    for (name, share) in [("speech", 0.5), ("vision", 0.7), ("nlp", 0.48)] {
        let all = examples(name);
        let shown = all["gallery"]["shown"].as_array().unwrap().clone();
        assert!(!shown.is_empty() && all["step"] == 12, "{name}");
        let mut hidden = Vec::new();
        for one in &shown {
            let tokens: u64 =
                one["grid"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
            assert_eq!(one["colours"].as_array().unwrap().len() as u64, tokens, "{name}");
            let masks = one["masks"].as_array().unwrap();
            assert_eq!(masks.len(), 2, "{name}: as many as copies");
            for mask in masks {
                let mask = mask.as_str().unwrap();
                assert_eq!(mask.len() as u64, tokens, "{name}");
                hidden.push(mask.matches('#').count() as f64 / tokens as f64);
            }
        }
        let mean = hidden.iter().sum::<f64>() / hidden.len() as f64;
        assert!((mean - share).abs() < 0.15, "{name}: {mean} hidden");
    }
    let label =
        |all: &Value| all["gallery"]["shown"][0]["card"]["label"].as_str().map(str::to_owned);
    assert_eq!(label(&examples("speech")).as_deref(), Some(HOSTILE));
}

#[test]
fn a_report_changes_nothing_and_can_be_made_later() {
    let runs = runs();
    assert_same(&runs.path("speech"), &runs.path("silent"));
    let later = runs.path("later");
    copy_folder(&runs.path("silent"), &later);
    succeed(program(&["report"]).arg(&later));
    let examples = |name: &str| fs::read(runs.path(name).join("examples.json")).unwrap();
    assert!(
        examples("later") == examples("speech"),
        "the exported encoder is the one that was trained"
    );
    assert_contained(&runs.page("later"));
    // And once more from what is kept, without the data.
    let out = runs.path("elsewhere.html");
    let record = later.join("run.json");
    let text = fs::read_to_string(&record).unwrap().replace("bold", "gone");
    fs::write(&record, text).unwrap();
    succeed(program(&["report"]).arg(&later).arg("--out").arg(&out));
    assert!(fs::read_to_string(&out).unwrap().contains("Nearest neighbours"));
}

#[test]
fn several_runs_are_compared() {
    let runs = runs();
    let out = runs.path("compare.html");
    let both = [runs.path("speech"), runs.path("vision")];
    succeed(program(&["report"]).args(&both).arg("--out").arg(&out));
    let page = fs::read_to_string(&out).unwrap();
    assert_contained(&page);
    for part in [
        "Where they end",
        "What differs",
        "features.conv_layers",
        "held_out/explained",
        "2 runs side by side",
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
    assert!(fs::read_to_string(&out).unwrap().contains("the recipes are the same"));
    fail(program(&["report"]).args(&both), &["--out compare.html"]);
    fail(program(&["report"]).arg(runs.dir.path()), &["is no run", "recipe.toml"]);
}

/// The page in a browser whose window is `width` wide: what it becomes, and what is logged.
fn open(browser: &Path, page: &Path, width: u32, is_dark: bool) -> (String, String) {
    let profile = folder();
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
fn a_browser_draws_all_and_complains_of_nothing() {
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
        // A colon and the like would not survive in an address.
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
