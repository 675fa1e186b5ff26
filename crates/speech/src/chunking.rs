//! Splits long recordings into overlapping chunks for inference.

use std::ops::Range;

use crate::audio::SAMPLE_RATE;
use crate::config::WaveEncoderConfig;

/// Length of a chunk in seconds: the memory of attention grows with its square.
const CHUNK_SECONDS: usize = 30;
/// Overlap of consecutive chunks in seconds. The outputs of each are used up to its middle.
const OVERLAP_SECONDS: usize = 4;

/// Chunk and overlap in samples, multiples of the encoder's hop so that the frames of all chunks
/// lie on one grid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunking {
    hop: usize,
    chunk: usize,
    overlap: usize,
}

/// A range of samples, and those of its frames that are used.
#[derive(Debug, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) samples: Range<usize>,
    pub(crate) frames: Range<usize>,
}

impl Chunking {
    pub(crate) fn new(features: &WaveEncoderConfig) -> Self {
        let hop = features.hop() as usize;
        // An even number of hops, so that the middle of the overlap is a multiple of the hop.
        let samples = |seconds: usize| (seconds * SAMPLE_RATE as usize).next_multiple_of(2 * hop);
        Self { hop, chunk: samples(CHUNK_SECONDS), overlap: samples(OVERLAP_SECONDS) }
    }

    /// Returns the chunks of a recording of `len` samples. Their used frames cover each frame of the
    /// recording exactly once.
    pub(crate) fn split(&self, len: usize) -> Vec<Chunk> {
        let step = self.chunk - self.overlap;
        let margin = self.overlap / 2 / self.hop;
        // The last chunk may be short, but is longer than the overlap.
        let count = len.saturating_sub(self.overlap).div_ceil(step).max(1);
        let chunk = |i: usize| {
            let start = i * step;
            let (first, last) = (i == 0, i + 1 == count);
            let end_frame = if last { usize::MAX } else { step / self.hop + margin };
            Chunk {
                samples: start..if last { len } else { start + self.chunk },
                frames: if first { 0 } else { margin }..end_frame,
            }
        };
        (0..count).map(chunk).collect()
    }

    /// Returns true if a recording of `len` samples fits into one chunk.
    pub(crate) fn is_single(&self, len: usize) -> bool {
        len <= self.chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_each_frame_once() {
        let chunking = Chunking { hop: 320, chunk: 9_600, overlap: 1_280 };
        assert_eq!(chunking.split(9_600).len(), 1);
        assert_eq!(chunking.split(0), [Chunk { samples: 0..0, frames: 0..usize::MAX }]);
        for len in [9_601, 10_000, 17_920, 17_921, 100_000] {
            let chunks = chunking.split(len);
            assert!(!chunking.is_single(len) && chunks.len() > 1, "{len}: {chunks:?}");
            let lengths = || chunks.iter().map(|chunk| chunk.samples.len());
            assert!(lengths().all(|len| len > 1_280 && len <= 9_600), "{len}: {chunks:?}");
            let mut next = 0; // frame of the recording
            for chunk in &chunks {
                let offset = chunk.samples.start / 320;
                assert_eq!((chunk.samples.start % 320, offset + chunk.frames.start), (0, next));
                next = offset.saturating_add(chunk.frames.end);
            }
            assert_eq!((chunks[0].frames.start, chunks[chunks.len() - 1].samples.end), (0, len));
        }
        assert_eq!(
            chunking.split(10_000),
            [
                Chunk { samples: 0..9_600, frames: 0..28 },
                Chunk { samples: 8_320..10_000, frames: 2..usize::MAX }
            ]
        );
    }
}
