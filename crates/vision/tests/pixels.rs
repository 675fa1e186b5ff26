//! Decoding, resampling and enhancement against Pillow (`fixtures/make.py`), and invalid files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::Error;
use data2vec_vision::{Crop, Enhancement, Pixels};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(name: &str) -> Pixels {
    Pixels::read(fixture(name)).unwrap()
}

/// Returns mean and largest difference between the values of two images, in steps of 1/255.
#[track_caller]
fn difference(a: &Pixels, b: &Pixels) -> (f64, u8) {
    assert_eq!((a.width(), a.height(), a.channels()), (b.width(), b.height(), b.channels()));
    let each = a.values().iter().zip(b.values()).map(|(a, b)| a.abs_diff(*b));
    let (sum, most) = each.fold((0.0, 0), |(sum, most), d| (sum + f64::from(d), most.max(d)));
    (sum / a.values().len() as f64, most)
}

#[test]
fn resizing_matches_pillow() {
    // left, top, right, bottom; height, width
    for (name, [left, top, right, bottom], [height, width]) in [
        ("down", [0, 0, 61, 47], [16, 16]),
        ("crop", [7, 5, 52, 41], [20, 14]),
        ("up", [18, 8, 29, 16], [24, 24]),
        ("mixed", [3, 2, 20, 46], [13, 40]),
        ("same-width", [5, 0, 29, 47], [10, 24]),
    ] {
        let crop = Crop { top, left, height: bottom - top, width: right - left };
        for (source, expected) in
            [("source.png", format!("{name}.png")), ("grey.png", format!("{name}-grey.png"))]
        {
            let ours = read(source).resized(crop, height, width);
            assert_eq!(difference(&ours, &read(&expected)), (0.0, 0), "{expected}");
        }
    }
}

#[test]
fn resizing_to_same_size_is_identity() {
    let image = read("source.png");
    let whole = Crop { top: 0, left: 0, height: 47, width: 61 };
    assert_eq!(image.resized(whole, 47, 61), image);
}

#[test]
fn grayscale_and_enhancement_match_pillow() {
    assert_eq!(read("source.png").with_channels(1).unwrap(), read("grey.png"));
    for (name, enhancement) in [
        ("brightness", Enhancement::Brightness),
        ("contrast", Enhancement::Contrast),
        ("saturation", Enhancement::Saturation),
    ] {
        for factor in ["0.63", "1.37"] {
            let mut ours = read("small.png");
            ours.enhance(enhancement, factor.parse().unwrap());
            let expected = read(&format!("{name}-{factor}.png"));
            assert_eq!(difference(&ours, &expected), (0.0, 0), "{name} {factor}");
        }
    }
}

#[test]
fn reads_every_format() {
    let expected = read("small.png");
    for name in ["lossless.webp", "rgb.bmp", "lzw.tiff", "alpha.png"] {
        assert_eq!(read(name), expected, "{name}");
    }
    assert_eq!(read("palette.png"), read("palette-rgb.png"));
    // Of an animation, the first frame.
    assert_eq!(read("animated.gif"), read("palette-rgb.png"));
    for name in ["rgb.jpg", "progressive.jpg"] {
        let (mean, _) = difference(&read(name), &expected);
        assert!(mean < 6.0, "{name}: {mean}"); // JPEG's own loss
    }
    // Printing colours have no black of their own here, so they are the same colours.
    let (mean, _) = difference(&read("cmyk.jpg"), &expected);
    assert!(mean < 10.0, "cmyk.jpg: {mean}");
}

#[test]
fn grayscale_of_any_depth_has_one_channel() {
    let expected = read("small.png").with_channels(1).unwrap();
    assert_eq!(difference(&read("grey16.png"), &expected), (0.0, 0));
    let jpeg = read("grey.jpg");
    assert_eq!(jpeg.channels(), 1);
    assert!(difference(&jpeg, &expected).0 < 6.0);
    let colour = jpeg.clone().with_channels(3).unwrap();
    assert!(colour.values().chunks(3).zip(jpeg.values()).all(|(rgb, grey)| rgb == [*grey; 3]));
}

#[test]
fn resizes_single_pixel() {
    let image = read("one.png");
    let whole = Crop { top: 0, left: 0, height: 1, width: 1 };
    let large = image.resized(whole, 8, 8);
    assert!(large.values().chunks(3).all(|pixel| pixel == image.values()));
}

#[track_caller]
fn assert_refused(path: &Path, cause: &str) {
    let error = Pixels::read(path).unwrap_err().to_string();
    assert!(error.contains(cause) && error.contains(path.to_str().unwrap()), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn rejects_invalid_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let png = fs::read(fixture("source.png")).unwrap();
    let jpeg = fs::read(fixture("rgb.jpg")).unwrap();
    assert_refused(&write("empty.png", b""), "is empty (0 bytes)");
    assert_refused(
        &write("text.png", b"this is not an image at all"),
        "not an image of a supported format",
    );
    assert_refused(
        &write("text.xyz", b"this is not an image at all"),
        "not an image of a supported format",
    );
    assert_refused(&write("cut.png", &png[..png.len() / 2]), "broken image");
    assert_refused(&write("cut.jpg", &jpeg[..40]), "broken image");
    // Only the end marker is missing.
    assert_refused(&write("end.jpg", &jpeg[..jpeg.len() - 2]), "cut off before its end");
    assert_refused(dir.path(), "is a directory");
    let gone = dir.path().join("gone.png");
    assert!(matches!(Pixels::read(gone), Err(Error::Io { .. })));
}

#[test]
fn detects_format_by_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("really-a-png.jpg");
    fs::copy(fixture("small.png"), &path).unwrap();
    assert_eq!(Pixels::read(path).unwrap(), read("small.png"));
}

#[test]
fn rejects_decompression_bombs() {
    let dir = tempfile::tempdir().unwrap();
    // A BMP header that claims 30,000 × 30,000 pixels, without data.
    let mut bmp = fs::read(fixture("rgb.bmp")).unwrap();
    bmp[18..22].copy_from_slice(&30_000_i32.to_le_bytes());
    bmp[22..26].copy_from_slice(&30_000_i32.to_le_bytes());
    let path = dir.path().join("bomb.bmp");
    fs::write(&path, bmp).unwrap();
    assert_refused(&path, "30000 × 30000 pixels");
}

#[test]
fn rejects_mismatched_values() {
    for (width, height, channels, values) in
        [(2, 2, 3, 11), (0, 4, 1, 0), (2, 2, 2, 8), (usize::MAX, 2, 1, 4)]
    {
        assert!(Pixels::new(width, height, channels, vec![0; values]).is_err());
    }
    assert!(Pixels::new(2, 1, 1, vec![1, 2]).unwrap().with_channels(4).is_err());
}
