//! Decoding, resampling and light against what Pillow makes of the same images
//! (`fixtures/make.py`), and files that are no use.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use data2vec_core::Error;
use data2vec_vision::{Crop, Light, Pixels};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(name: &str) -> Pixels {
    Pixels::read(fixture(name)).unwrap()
}

/// Mean and largest difference of two images' values, in steps of 1/255.
#[track_caller]
fn difference(a: &Pixels, b: &Pixels) -> (f64, u8) {
    assert_eq!((a.width(), a.height(), a.channels()), (b.width(), b.height(), b.channels()));
    let each = a.values().iter().zip(b.values()).map(|(a, b)| a.abs_diff(*b));
    let (sum, most) = each.fold((0.0, 0), |(sum, most), d| (sum + f64::from(d), most.max(d)));
    (sum / a.values().len() as f64, most)
}

#[test]
fn resampling_is_pillow_s() {
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
fn the_same_size_is_the_same_image() {
    let image = read("source.png");
    let whole = Crop { top: 0, left: 0, height: 47, width: 61 };
    assert_eq!(image.resized(whole, 47, 61), image);
}

#[test]
fn grey_and_light_are_pillow_s() {
    assert_eq!(read("source.png").with_channels(1).unwrap(), read("grey.png"));
    for (name, light) in [
        ("brightness", Light::Brightness),
        ("contrast", Light::Contrast),
        ("saturation", Light::Saturation),
    ] {
        for factor in ["0.63", "1.37"] {
            let mut ours = read("small.png");
            ours.enhance(light, factor.parse().unwrap());
            let expected = read(&format!("{name}-{factor}.png"));
            assert_eq!(difference(&ours, &expected), (0.0, 0), "{name} {factor}");
        }
    }
}

#[test]
fn every_format_is_read() {
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
fn grey_has_one_channel_whatever_its_depth() {
    let expected = read("small.png").with_channels(1).unwrap();
    assert_eq!(difference(&read("grey16.png"), &expected), (0.0, 0));
    let jpeg = read("grey.jpg");
    assert_eq!(jpeg.channels(), 1);
    assert!(difference(&jpeg, &expected).0 < 6.0);
    let colour = jpeg.clone().with_channels(3).unwrap();
    assert!(colour.values().chunks(3).zip(jpeg.values()).all(|(rgb, grey)| rgb == [*grey; 3]));
}

#[test]
fn one_pixel_is_an_image() {
    let image = read("one.png");
    let whole = Crop { top: 0, left: 0, height: 1, width: 1 };
    let large = image.resized(whole, 8, 8);
    assert!(large.values().chunks(3).all(|pixel| pixel == image.values()));
}

#[track_caller]
fn refused(path: &Path, said: &str) {
    let error = Pixels::read(path).unwrap_err().to_string();
    assert!(error.contains(said) && error.contains(path.to_str().unwrap()), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn unusable_files_are_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let png = fs::read(fixture("source.png")).unwrap();
    let jpeg = fs::read(fixture("rgb.jpg")).unwrap();
    refused(&write("empty.png", b""), "is empty (0 bytes)");
    refused(&write("text.png", b"this is not an image at all"), "no image of a known kind");
    refused(&write("text.xyz", b"this is not an image at all"), "no image of a known kind");
    refused(&write("cut.png", &png[..png.len() / 2]), "broken image");
    refused(&write("cut.jpg", &jpeg[..40]), "broken image");
    // All pixels' data but the last are there.
    refused(&write("end.jpg", &jpeg[..jpeg.len() - 2]), "cut off before its end");
    refused(dir.path(), "is a folder");
    let gone = dir.path().join("gone.png");
    assert!(matches!(Pixels::read(gone), Err(Error::Io { .. })));
}

#[test]
fn a_wrong_name_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("really-a-png.jpg");
    fs::copy(fixture("small.png"), &path).unwrap();
    assert_eq!(Pixels::read(path).unwrap(), read("small.png"));
}

#[test]
fn bombs_are_refused_before_memory_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    // A bitmap's header that claims 30,000 × 30,000 pixels, and nothing behind it.
    let mut bmp = fs::read(fixture("rgb.bmp")).unwrap();
    bmp[18..22].copy_from_slice(&30_000_i32.to_le_bytes());
    bmp[22..26].copy_from_slice(&30_000_i32.to_le_bytes());
    let path = dir.path().join("bomb.bmp");
    fs::write(&path, bmp).unwrap();
    refused(&path, "30000 × 30000 pixels");
}

#[test]
fn impossible_pixels_are_an_error() {
    for (width, height, channels, values) in
        [(2, 2, 3, 11), (0, 4, 1, 0), (2, 2, 2, 8), (usize::MAX, 2, 1, 4)]
    {
        assert!(Pixels::new(width, height, channels, vec![0; values]).is_err());
    }
    assert!(Pixels::new(2, 1, 1, vec![1, 2]).unwrap().with_channels(4).is_err());
}
