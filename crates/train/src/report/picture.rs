//! Pictures as URLs that hold them.

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::imageops::{self, FilterType as Sampling};
use image::{ExtendedColorType, GrayImage, ImageEncoder, RgbImage};

use crate::modality::{Portrait, Raster};
use crate::page::exhibits::Picture;

/// Sides of pictures that stand in line with others, in pixels; larger ones are made smaller.
const SMALL: [usize; 2] = [200, 96];
/// Sides of those that stand alone.
const LARGE: [usize; 2] = [2_000, 256];
/// Pieces of text in line with others.
const PIECES: usize = 48;

/// A portrait that stands alone.
pub fn large(portrait: &Portrait) -> Result<Picture> {
    match portrait {
        Portrait::Raster(raster) => fitted(raster, LARGE),
        Portrait::Text(pieces) => Ok(Picture::Text(pieces.clone())),
    }
}

/// A portrait in line with others.
pub fn small(portrait: &Portrait) -> Result<Picture> {
    match portrait {
        Portrait::Raster(raster) => fitted(raster, SMALL),
        Portrait::Text(pieces) => {
            let mut few = pieces[..pieces.len().min(PIECES)].to_vec();
            if few.len() < pieces.len() {
                few.push(" …".into());
            }
            Ok(Picture::Text(few))
        }
    }
}

/// Colours as a picture of `height` × `width`.
pub fn of_colours(colours: &[[u8; 3]], [height, width]: [usize; 2]) -> Result<String> {
    png(&colours.concat(), width, height, 3)
}

fn fitted(raster: &Raster, [most_wide, most_high]: [usize; 2]) -> Result<Picture> {
    let &Raster { width, height, channels, is_drawing, .. } = raster;
    let mut values = raster.values.clone();
    // Time may be squeezed, a photograph may not.
    let squeeze = |n: usize, most: usize| (most as f64 / n as f64).min(1.0);
    let (mut x, mut y) = (squeeze(width, most_wide), squeeze(height, most_high));
    if !is_drawing {
        (x, y) = (x.min(y), x.min(y));
    }
    let scaled = |n: usize, by: f64| ((n as f64 * by).round() as usize).max(1);
    let [w, h] = [scaled(width, x), scaled(height, y)];
    if [w, h] != [width, height] {
        let [from, to] = [[width, height], [w, h]].map(|side| side.map(|n| n as u32));
        let broken = || {
            anyhow::anyhow!("{} values are no picture of {width} × {height}", raster.values.len())
        };
        values = match channels {
            1 => {
                let image = GrayImage::from_raw(from[0], from[1], values).ok_or_else(broken)?;
                imageops::resize(&image, to[0], to[1], Sampling::Triangle).into_raw()
            }
            _ => {
                let image = RgbImage::from_raw(from[0], from[1], values).ok_or_else(broken)?;
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
    fn pictures_survive_and_large_ones_shrink() {
        let raster = |width: usize, height, is_drawing| {
            let values = (0..width * height * 3).map(|i| (i % 251) as u8).collect();
            Portrait::Raster(Raster { width, height, channels: 3, values, is_drawing })
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
