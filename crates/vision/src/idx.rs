//! IDX files, the format of MNIST and its successors.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use data2vec_core::{Error, Result};
use flate2::read::MultiGzDecoder;

use crate::pixels::Pixels;

/// Largest number of values in a file; the header can claim any size.
const MAX_BYTES: u64 = 1 << 36;
/// Largest gzip ratio. Images compress 3 to 10 times; a file beyond this is a decompression bomb.
const MAX_RATIO: u64 = 200;

/// Grayscale images of one size, with labels if there is a file of labels.
#[derive(Debug)]
pub(crate) struct Idx {
    pub(crate) path: PathBuf,
    rows: usize,
    columns: usize,
    values: Vec<u8>,
    labels: Option<Vec<u8>>,
}

/// Returns the file of training images in a directory, or its only file of images; `None` if there
/// is none.
pub(crate) fn find(folder: &Path) -> Result<Option<PathBuf>> {
    let mut found = image_files(folder)?;
    let train = found.iter().position(|path| name(path).starts_with("train"));
    match (train, found.len()) {
        (Some(at), _) => Ok(Some(found.swap_remove(at))),
        (None, 0) => Ok(None),
        (None, 1) => Ok(found.pop()),
        (None, n) => {
            Err(Error::file(folder, format!("contains {n} IDX files of images; pass one of them")))
        }
    }
}

/// Returns the validation images next to the training images: the only other file of images in the
/// directory, if it has labels.
pub(crate) fn find_validation(train: &Path) -> Result<Option<PathBuf>> {
    let Some(folder) = train.parent() else { return Ok(None) };
    let others: Vec<PathBuf> =
        image_files(folder)?.into_iter().filter(|path| path != train).collect();
    let [other] = others.as_slice() else { return Ok(None) };
    Ok(labels_path(other).is_some().then(|| other.clone()))
}

/// Returns the files of images in a directory, sorted.
fn image_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_idx(path) && name(path).contains("images"))
        .collect();
    found.sort();
    Ok(found)
}

/// Returns true if the file name is that of an IDX file.
pub(crate) fn is_idx(path: &Path) -> bool {
    let name = name(path);
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.ends_with("-ubyte") || name.ends_with(".idx") || name.ends_with(".idx3")
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

impl Idx {
    /// Reads the images at `path`, and the labels from the file of the matching name next to it.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let (size, values) = read(path, 3)?;
        let labels = match labels_path(path) {
            Some(path) => Some(read(&path, 1).and_then(|(labels, values)| {
                if labels != size[..1] {
                    let reason = format!("{} labels for {} images", labels[0], size[0]);
                    return Err(Error::file(&path, reason));
                }
                Ok(values)
            })?),
            None => None,
        };
        Ok(Self { path: path.to_owned(), rows: size[1], columns: size[2], values, labels })
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len() / (self.rows * self.columns)
    }

    pub(crate) fn image(&self, index: usize) -> Result<Pixels> {
        let size = self.rows * self.columns;
        let values = self.values[index * size..(index + 1) * size].to_vec();
        Pixels::new(self.columns, self.rows, 1, values)
    }

    pub(crate) fn label(&self, index: usize) -> Option<usize> {
        self.labels.as_ref().map(|labels| usize::from(labels[index]))
    }

    /// Returns the number of classes: the largest label plus 1.
    pub(crate) fn classes(&self) -> usize {
        let largest = self.labels.as_ref().and_then(|labels| labels.iter().max());
        largest.map_or(0, |&label| usize::from(label) + 1)
    }
}

/// Returns the file of labels of a file of images, e.g. `train-labels-idx1-ubyte` of
/// `train-images-idx3-ubyte`, gzipped or not.
fn labels_path(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    let labels = name.replace("images", "labels").replace("idx3", "idx1");
    let plain = labels.strip_suffix(".gz").unwrap_or(&labels);
    let candidates = [plain.to_owned(), format!("{plain}.gz")];
    let candidates = candidates.iter().filter(|candidate| *candidate != name);
    candidates.map(|name| images.with_file_name(name)).find(|path| path.is_file())
}

/// Reads an IDX file of bytes, gzipped or not: returns its size and its values.
fn read(path: &Path, dimensions: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let io = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::file(path, "ends early"),
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            Error::file(path, format!("invalid gzip: {e}"))
        }
        _ => Error::io(path, e),
    };
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let stored = file.get_ref().metadata().map_err(io)?.len();
    let mut magic = [0; 2];
    file.read_exact(&mut magic).map_err(io)?;
    file.rewind().map_err(io)?;
    let gzipped = magic == [0x1f, 0x8b];
    let mut reader: Box<dyn Read> = match gzipped {
        true => Box::new(MultiGzDecoder::new(file)),
        false => Box::new(file),
    };

    let mut head = [0; 4];
    reader.read_exact(&mut head).map_err(io)?;
    // Two zeros, the data type (8: unsigned byte), the number of dimensions.
    if head[..3] != [0, 0, 8] || usize::from(head[3]) != dimensions {
        let reason = format!(
            "is not an IDX file of bytes in {dimensions} dimensions (starts with {head:02x?})"
        );
        return Err(Error::file(path, reason));
    }
    let mut size = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        let mut number = [0; 4];
        reader.read_exact(&mut number).map_err(io)?;
        size.push(u32::from_be_bytes(number) as usize);
    }
    let total = size.iter().try_fold(1_u64, |all, &n| all.checked_mul(n as u64));
    let total = match total {
        Some(0) => {
            return Err(Error::file(path, format!("is empty: the header gives size {size:?}")));
        }
        Some(total) if total <= MAX_BYTES => total,
        _ => {
            return Err(Error::file(
                path,
                format!("the header gives an impossible size, {size:?}"),
            ));
        }
    };
    if gzipped && total > stored.saturating_mul(MAX_RATIO).max(1 << 24) {
        let reason =
            format!("the header gives size {size:?}, more than {MAX_RATIO} times the file's size");
        return Err(Error::file(path, reason));
    }
    let mut values = Vec::new();
    // One extra byte detects a file that is too long without decompressing all of it.
    reader.take(total + 1).read_to_end(&mut values).map_err(io)?;
    if values.len() as u64 != total {
        let how = if (values.len() as u64) < total { "ends early" } else { "is too long" };
        return Err(Error::file(path, format!("{how}: the header gives size {size:?}")));
    }
    Ok((size, values))
}
