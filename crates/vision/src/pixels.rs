//! Decoded images, and decoding of image files.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, ErrorKind, Seek};
use std::path::Path;

use data2vec_core::{Error, Result, guarded};
use image::codecs::png::PngEncoder;
use image::error::UnsupportedErrorKind;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageError, ImageFormat,
    ImageReader, Limits,
};

/// File extensions of supported image formats, lowercase.
pub const EXTENSIONS: [&str; 8] = ["bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"];
/// Largest number of pixels that is decoded; a small file can claim any size.
pub const MAX_PIXELS: u64 = 100_000_000;
/// Largest number of bytes that a decoder may allocate.
const MAX_ALLOC: u64 = 1 << 30;

/// A decoded image: 8 bits per channel, 1 (grayscale) or 3 (RGB) interleaved channels, rows from
/// top to bottom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) channels: usize,
    pub(crate) values: Vec<u8>,
}

impl Pixels {
    /// Creates an image of `width` × `height` from `values`, row by row.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if the number of values does not match, or `channels` is neither 1
    /// nor 3.
    pub fn new(width: usize, height: usize, channels: usize, values: Vec<u8>) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
        if ![1, 3].contains(&channels) || values.is_empty() || expected != Some(values.len()) {
            return Err(Error::Input(format!(
                "{} values do not match an image of {width} × {height} with {channels} channels (1 or 3)",
                values.len()
            )));
        }
        Ok(Self { width, height, channels, values })
    }

    /// Reads an image file: JPEG, PNG, WebP, GIF, BMP or TIFF, detected by content.
    ///
    /// Reads the first image of the file, rounds 16 bits to 8, drops transparency, and ignores EXIF
    /// orientation.
    ///
    /// # Errors
    /// Returns [`Error::Io`] or [`Error::File`] if the file cannot be read, is corrupt, is of
    /// another format, or has more than [`MAX_PIXELS`] pixels.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Checked before opening, because opening a pipe without a writer blocks.
        let meta = path.metadata().map_err(|e| Error::io(path, e))?;
        if !meta.is_file() {
            let what = if meta.is_dir() { "a directory" } else { "not a regular file" };
            return Err(Error::file(path, format!("is {what}; expected an image file")));
        }
        if meta.len() == 0 {
            return Err(Error::file(path, "is empty (0 bytes)"));
        }
        guarded(path, || {
            let file = File::open(path).map_err(|e| Error::io(path, e))?;
            decode(BufReader::new(file), path)
        })
    }

    /// Reads an image file from memory; errors call it `name`.
    ///
    /// # Errors
    /// Returns the errors of [`read`](Self::read).
    pub fn read_from(bytes: &[u8], name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        if bytes.is_empty() {
            return Err(Error::file(name, "is empty (0 bytes)"));
        }
        guarded(name, || decode(Cursor::new(bytes), name))
    }

    /// Encodes the image as PNG.
    pub(crate) fn to_png(&self) -> Result<Vec<u8>> {
        let color =
            if self.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let [width, height] = [self.width, self.height].map(|side| side as u32);
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(&self.values, width, height, color).map_err(
            |error| {
                Error::Input(format!("encoding {width} × {height} pixels as PNG failed: {error}"))
            },
        )?;
        Ok(bytes)
    }

    /// Returns the width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Returns the number of channels, 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Returns the values row by row, with interleaved channels.
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// Converts to 1 or 3 channels: repeats gray, or weights RGB by ITU-R 601.
    ///
    /// # Errors
    /// Returns [`Error::Input`] if `channels` is neither 1 nor 3.
    pub fn with_channels(self, channels: usize) -> Result<Self> {
        let values = match (self.channels, channels) {
            (from, to) if from == to => return Ok(self),
            (1, 3) => self.values.iter().flat_map(|&gray| [gray; 3]).collect(),
            (3, 1) => self.values.chunks_exact(3).map(luma).collect(),
            _ => {
                let reason = format!("images must have 1 or 3 channels, not {channels}");
                return Err(Error::Input(reason));
            }
        };
        Ok(Self { channels, values, ..self })
    }
}

/// Returns the gray of an RGB pixel, in PIL's fixed-point arithmetic.
pub(crate) fn luma(rgb: &[u8]) -> u8 {
    let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
    ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
}

fn decode(file: impl BufRead + Seek, path: &Path) -> Result<Pixels> {
    let io = |e| Error::io(path, e);
    let reader = ImageReader::new(file).with_guessed_format().map_err(io)?;
    if reader.format() != Some(ImageFormat::Jpeg) {
        return decode_from(reader, path);
    }
    let mut bytes = Vec::new();
    reader.into_inner().read_to_end(&mut bytes).map_err(io)?;
    // The decoder would fill the missing rows of a truncated JPEG with gray.
    if !is_complete_jpeg(&bytes) {
        return Err(Error::file(path, "broken image: the JPEG is cut off before its end"));
    }
    decode_from(ImageReader::with_format(Cursor::new(bytes), ImageFormat::Jpeg), path)
}

/// Decodes the image of `reader`, the file at `path`.
fn decode_from(mut reader: ImageReader<impl BufRead + Seek>, path: &Path) -> Result<Pixels> {
    let broken = |error: ImageError| match error {
        ImageError::IoError(source) if source.kind() != ErrorKind::UnexpectedEof => {
            Error::io(path, source)
        }
        ImageError::Unsupported(e) if matches!(e.kind(), UnsupportedErrorKind::Format(_)) => {
            let formats = "JPEG, PNG, WebP, GIF, BMP, TIFF";
            Error::file(path, format!("is not an image of a supported format ({formats})"))
        }
        ImageError::Unsupported(error) => {
            let reason = first_line(&error.to_string()).to_owned();
            Error::file(path, format!("{reason}; convert it to 8 bits, grey or RGB"))
        }
        ImageError::Limits(_) => {
            Error::file(path, format!("needs more than {MAX_ALLOC} bytes to decode"))
        }
        error => Error::file(path, format!("broken image: {}", first_line(&error.to_string()))),
    };
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_ALLOC);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MAX_PIXELS || decoder.total_bytes() > MAX_ALLOC {
        let reason = format!("has {width} × {height} pixels; the limit is {MAX_PIXELS}");
        return Err(Error::file(path, reason));
    }
    let image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    let (channels, values) = match image {
        DynamicImage::ImageLuma8(image) => (1, image.into_raw()),
        image if !image.color().has_color() => (1, image.into_luma8().into_raw()),
        image => (3, image.into_rgb8().into_raw()),
    };
    Pixels::new(width as usize, height as usize, channels, values)
}

/// Returns true if the JPEG has its end marker.
///
/// Walks marker by marker, because a thumbnail in a header has an end marker of its own.
fn is_complete_jpeg(bytes: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&[mark, kind]) = bytes.get(at..at + 2) {
        at += match (mark, kind) {
            (0xff, 0xd9) => return true,
            // Markers without data: stuffed zeros, restarts, start of image.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => 2,
            (0xff, 0xff) => 1, // fill byte
            (0xff, _) => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
            _ => 1,
        };
    }
    false
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
