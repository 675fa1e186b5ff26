//! Encodes previews as `data:` URLs.

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use data2vec_core::{Preview, Raster};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::imageops::{self, FilterType as Sampling};
use image::{ExtendedColorType, GrayImage, ImageEncoder, RgbImage};

use crate::report::previews::Picture;

/// Maximum width and height of thumbnails in pixels.
const SMALL: [usize; 2] = [200, 96];
/// Maximum width and height of full-size previews in pixels.
const LARGE: [usize; 2] = [2_000, 256];
/// Maximum number of text pieces in thumbnails.
const MAX_PIECES: usize = 48;

/// Encodes a full-size preview.
///
/// # Errors
/// If the raster is invalid.
pub fn large(preview: &Preview) -> Result<Picture> {
    match preview {
        Preview::Raster(raster) => fitted(raster, LARGE),
        Preview::Pieces(pieces) => Ok(Picture::Text(pieces.clone())),
    }
}

/// Encodes a thumbnail.
///
/// # Errors
/// If the raster is invalid.
pub fn small(preview: &Preview) -> Result<Picture> {
    match preview {
        Preview::Raster(raster) => fitted(raster, SMALL),
        Preview::Pieces(pieces) => {
            let mut first = pieces[..pieces.len().min(MAX_PIECES)].to_vec();
            if first.len() < pieces.len() {
                first.push(" …".into());
            }
            Ok(Picture::Text(first))
        }
    }
}

/// Encodes `height` × `width` colours as a PNG in a `data:` URL.
///
/// # Errors
/// If the number of colours is not `height` × `width`.
pub fn colour_grid(colours: &[[u8; 3]], [height, width]: [usize; 2]) -> Result<String> {
    png(&colours.concat(), width, height, 3)
}

/// Scales a raster down to a maximum width and height. Keeps the aspect ratio of photographs, but
/// not of drawings such as spectrograms.
fn fitted(raster: &Raster, [max_width, max_height]: [usize; 2]) -> Result<Picture> {
    let &Raster { width, height, channels, is_drawing, .. } = raster;
    let mut values = raster.values.clone();
    let scale = |n: usize, max: usize| (max as f64 / n as f64).min(1.0);
    let (mut x, mut y) = (scale(width, max_width), scale(height, max_height));
    if !is_drawing {
        (x, y) = (x.min(y), x.min(y));
    }
    let scaled = |n: usize, by: f64| ((n as f64 * by).round() as usize).max(1);
    let [w, h] = [scaled(width, x), scaled(height, y)];
    if [w, h] != [width, height] {
        let [from, to] = [[width, height], [w, h]].map(|side| side.map(|n| n as u32));
        let invalid = || {
            anyhow::anyhow!(
                "invalid preview: {} values for {width} × {height} pixels",
                raster.values.len()
            )
        };
        values = match channels {
            1 => {
                let image = GrayImage::from_raw(from[0], from[1], values).ok_or_else(invalid)?;
                imageops::resize(&image, to[0], to[1], Sampling::Triangle).into_raw()
            }
            _ => {
                let image = RgbImage::from_raw(from[0], from[1], values).ok_or_else(invalid)?;
                imageops::resize(&image, to[0], to[1], Sampling::Triangle).into_raw()
            }
        };
    }
    let url = png(&values, w, h, channels)?;
    Ok(Picture::Raster { url, width: w, height: h, is_drawing })
}

fn png(values: &[u8], width: usize, height: usize, channels: usize) -> Result<String> {
    let color = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive)
        .write_image(values, width as u32, height as u32, color)?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_small_pictures_and_shrinks_large_ones() {
        let raster = |width: usize, height, is_drawing| {
            let values = (0..width * height * 3).map(|i| (i % 251) as u8).collect();
            Preview::Raster(Raster { width, height, channels: 3, values, is_drawing })
        };
        let read = |picture: Picture| {
            let Picture::Raster { url, .. } = picture else { panic!("not a picture") };
            let bytes = url.strip_prefix("data:image/png;base64,").expect("a PNG");
            image::load_from_memory(&STANDARD.decode(bytes).expect("base64")).expect("a picture")
        };
        let same = read(large(&raster(20, 10, false)).expect("a picture")).into_rgb8().into_raw();
        assert_eq!(same, (0..600).map(|i| (i % 251) as u8).collect::<Vec<_>>());
        let size = |picture| {
            let image = read(picture);
            (image.width(), image.height())
        };
        assert_eq!(size(small(&raster(400, 192, false)).expect("a picture")), (200, 96));
        assert_eq!(size(small(&raster(400, 80, true)).expect("a picture")), (200, 80));
    }
}
