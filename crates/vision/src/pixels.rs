//! Pixels of an image, from a file of any common format.

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

/// Names that image files end in.
pub const EXTENSIONS: [&str; 8] = ["bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"];
/// Pixels of the largest image that is decoded: a small file can claim any number.
pub const MAX_PIXELS: u64 = 100_000_000;
/// Bytes that a decoder may ask for, for such an image.
const MAX_ALLOC: u64 = 1 << 30;

/// An image in memory: rows from the top, 8 bits for each of 1 (grey) or 3 (red, green, blue)
/// channels, channels side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) channels: usize,
    pub(crate) values: Vec<u8>,
}

impl Pixels {
    /// An image of `width` × `height` from its `values`, row by row.
    ///
    /// # Errors
    /// [`Error::Input`] if the numbers do not go together, or there are not 1 or 3 channels.
    pub fn new(width: usize, height: usize, channels: usize, values: Vec<u8>) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
        if ![1, 3].contains(&channels) || values.is_empty() || expected != Some(values.len()) {
            return Err(Error::Input(format!(
                "{} values are no image of {width} × {height} with {channels} channels (1 or 3)",
                values.len()
            )));
        }
        Ok(Self { width, height, channels, values })
    }

    /// Reads an image file: JPEG, PNG, WebP, GIF, BMP or TIFF, told by its content. Of several images
    /// in a file, the first; 16 bits are rounded to 8; transparency is dropped; a rotation that a
    /// camera noted is not applied.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if it cannot be read, is broken, is of another format, or has
    /// more than [`MAX_PIXELS`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Asked before it is opened: a pipe that nobody writes to would be waited for.
        let meta = path.metadata().map_err(|e| Error::io(path, e))?;
        if !meta.is_file() {
            let what = if meta.is_dir() { "a folder" } else { "no file" };
            return Err(Error::file(path, format!("is {what}, not an image")));
        }
        if meta.len() == 0 {
            return Err(Error::file(path, "is empty (0 bytes)"));
        }
        guarded(path, || {
            let file = File::open(path).map_err(|e| Error::io(path, e))?;
            decode(BufReader::new(file), path)
        })
    }

    /// As [`read`](Self::read), from memory; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_from(bytes: &[u8], name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        if bytes.is_empty() {
            return Err(Error::file(name, "is empty (0 bytes)"));
        }
        guarded(name, || decode(Cursor::new(bytes), name))
    }

    /// The image as a PNG.
    pub(crate) fn to_png(&self) -> Result<Vec<u8>> {
        let color =
            if self.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let [width, height] = [self.width, self.height].map(|side| side as u32);
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes)
            .write_image(&self.values, width, height, color)
            .map_err(|error| Error::Input(format!("no PNG of {width} × {height}: {error}")))?;
        Ok(bytes)
    }

    /// Pixels of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Row by row, channels side by side.
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// The same with 1 or 3 channels: grey is repeated, colours are weighed as in ITU-R 601.
    ///
    /// # Errors
    /// [`Error::Input`] for another number of channels.
    pub fn with_channels(self, channels: usize) -> Result<Self> {
        let values = match (self.channels, channels) {
            (from, to) if from == to => return Ok(self),
            (1, 3) => self.values.iter().flat_map(|&grey| [grey; 3]).collect(),
            (3, 1) => self.values.chunks_exact(3).map(luma).collect(),
            _ => {
                let reason = format!("images have 1 or 3 channels, not {channels}");
                return Err(Error::Input(reason));
            }
        };
        Ok(Self { channels, values, ..self })
    }
}

/// Brightness of red, green and blue, in PIL's integers.
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
    // The decoder would fill up with grey what is missing.
    if !is_whole_jpeg(&bytes) {
        return Err(Error::file(path, "broken image: a JPEG that is cut off before its end"));
    }
    decode_from(ImageReader::with_format(Cursor::new(bytes), ImageFormat::Jpeg), path)
}

/// What `reader` reads of the file `path`.
fn decode_from(mut reader: ImageReader<impl BufRead + Seek>, path: &Path) -> Result<Pixels> {
    let broken = |error: ImageError| match error {
        ImageError::IoError(source) if source.kind() != ErrorKind::UnexpectedEof => {
            Error::io(path, source)
        }
        ImageError::Unsupported(e) if matches!(e.kind(), UnsupportedErrorKind::Format(_)) => {
            let known = "JPEG, PNG, WebP, GIF, BMP, TIFF";
            Error::file(path, format!("is no image of a known kind ({known})"))
        }
        ImageError::Unsupported(error) => {
            let reason = first_line(&error.to_string()).to_owned();
            Error::file(path, format!("{reason}; convert it to 8 bits, grey or RGB"))
        }
        ImageError::Limits(_) => {
            Error::file(path, format!("takes more than {MAX_ALLOC} bytes to decode"))
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
        let reason = format!("{width} × {height} pixels; up to {MAX_PIXELS} are decoded");
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

/// Whether the end marker is there. It is looked for marker by marker: what stands in a header, such
/// as a small picture of the picture, has ends of its own.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&[mark, kind]) = bytes.get(at..at + 2) {
        at += match (mark, kind) {
            (0xff, 0xd9) => return true,
            // No data follow: a zero that belongs to the pixels, restarts, the start; filling.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => 2,
            (0xff, 0xff) => 1,
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
