//! `extract` for each modality, with encoders that the program trained.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use ndarray::Array2;
use ndarray_npy::read_npy;
use support::*;

#[test]
fn extracts_from_audio_images_and_texts() {
    let dir = temp_dir();
    let dir = dir.path();
    let fixtures = repository().join("data/fixtures");
    let (sweep, words) = (fixtures.join("sweep.flac"), fixtures.join("README.md"));
    let picture = image("rgb.jpg");
    let encoder = |name: &str| dir.join(name).join("encoder");
    let short = ["train.steps=3"];
    succeed(&mut pretrain(&corpus(dir), &dir.join("speech"), &short));
    succeed(&mut pretrain_texts(&texts(dir), &dir.join("nlp"), &short));
    let one = ["train.steps=3", "train.held_out=0"];
    succeed(&mut pretrain_images(&picture, &dir.join("vision"), &one));

    let files = [("speech", &sweep, 32), ("vision", &picture, 16), ("nlp", &words, 16)];
    for (name, file, dim) in files {
        let out = dir.join(format!("{name}.npy"));
        succeed(&mut extract(&encoder(name), &[file], &out));
        let features: Array2<f32> = read_npy(&out).unwrap();
        assert!(features.nrows() > 1 && features.ncols() == dim, "{name}: {:?}", features.dim());
        assert!(features.iter().all(|x| x.is_finite()), "{name}");
        let first = features.row(0);
        assert!(features.rows().into_iter().any(|row| row != first), "{name}: all rows are equal");
    }
    // bf16 gives nearly the same features.
    let (full, half) = (dir.join("speech.npy"), dir.join("half.npy"));
    let mut command = extract(&encoder("speech"), &[&sweep], &half);
    succeed(command.args(["--precision", "bf16"]));
    let [full, half]: [Array2<f32>; 2] = [full, half].map(|path| read_npy(path).unwrap());
    let error = (&full - &half).iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    assert!(error > 0.0 && error < 0.1, "{error}");
    // Files of another modality.
    fail(&mut extract(&encoder("speech"), &[&picture], &dir.join("x.npy")), &["rgb.jpg"]);
    fail(
        &mut extract(&encoder("vision"), &[&sweep], &dir.join("x.npy")),
        &["not an image of a supported format"],
    );
    fail(&mut extract(&encoder("nlp"), &[&picture], &dir.join("x.npy")), &["rgb.jpg", "not UTF-8"]);
}
