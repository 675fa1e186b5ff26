//! Packing: which tokens of the cache belong to which block.

use data2vec_core::Result;
use data2vec_core::random::{Purpose, seed_for};

use crate::cache::{Cache, Document};
use crate::config::{Packing, TextDataConfig};

/// Documents of more blocks than this are split into parts, each held out or not on its own.
const MAX_BLOCKS: u64 = 64;

/// The blocks of a corpus, or of one side of a split.
#[derive(Debug)]
pub(crate) enum Blocks {
    /// One stream of tokens, cut into blocks.
    Stream {
        /// Parts of the cache that form the stream: (start in the stream, start in the cache,
        /// length).
        parts: Vec<(u64, u64, u64)>,
        /// Length of the stream.
        total: u64,
    },
    /// (Start in the cache, length) of each block.
    Single(Vec<(u64, u32)>),
}

/// Splits long documents into parts of a whole number of blocks.
pub(crate) fn split_long(documents: &[Document], config: &TextDataConfig) -> Vec<Document> {
    let max_len = MAX_BLOCKS * (config.block as u64 - 1);
    let mut parts = Vec::with_capacity(documents.len());
    for &Document { start, len, key } in documents {
        // Only a stream needs the additional `</s>` at the end of a document.
        let len = if config.packing == Packing::Stream { len } else { len - 1 };
        let count = len.div_ceil(max_len).max(1);
        for i in 0..count {
            parts.push(Document {
                start: start + i * max_len,
                len: (len - i * max_len).min(max_len),
                key: if i == 0 { key } else { seed_for(key, Purpose::Split, &[i]) },
            });
        }
    }
    parts
}

impl Blocks {
    /// Packs documents; `eos` is the id of `</s>`.
    pub fn new(
        documents: &[Document],
        cache: &Cache,
        eos: i64,
        config: &TextDataConfig,
    ) -> Result<Self> {
        let room = config.block as u64 - 1;
        let mut blocks = Vec::new();
        match config.packing {
            Packing::Stream => {
                let mut total = 0;
                let mut append = |d: &Document| {
                    total += d.len;
                    (total - d.len, d.start, d.len)
                };
                let parts = documents.iter().map(&mut append).collect();
                return Ok(Self::Stream { parts, total });
            }
            Packing::Document => {
                for &Document { start, len, .. } in documents {
                    let block = |at: u64| (start + at, (len - at).min(room) as u32);
                    blocks.extend((0..len).step_by(room as usize).map(block));
                }
            }
            Packing::Lines => {
                for &Document { start, len, .. } in documents {
                    let ids = cache.read(start, len as usize)?;
                    let (mut from, mut to) = (0, 0);
                    for line in ids.split_inclusive(|&id| id == eos) {
                        if to - from + line.len() as u64 > room && to > from {
                            blocks.push((start + from, (to - from) as u32));
                            from = to;
                        }
                        to += line.len() as u64;
                        while to - from > room {
                            blocks.push((start + from, room as u32));
                            from += room;
                        }
                    }
                    if to > from {
                        blocks.push((start + from, (to - from) as u32));
                    }
                }
            }
        }
        Ok(Self::Single(blocks))
    }

    /// Returns the (start, length) ranges of the cache that form a block of at most `room` tokens.
    pub fn ranges(&self, index: usize, room: u64) -> Vec<(u64, usize)> {
        let (parts, total) = match self {
            Self::Single(blocks) => return vec![(blocks[index].0, blocks[index].1 as usize)],
            Self::Stream { parts, total } => (parts, *total),
        };
        let (mut at, end) = (index as u64 * room, total.min((index as u64 + 1) * room));
        let mut ranges = Vec::new();
        let first = parts.partition_point(|&(offset, _, _)| offset <= at) - 1;
        for &(offset, start, len) in &parts[first..] {
            if at >= end {
                break;
            }
            let take = end.min(offset + len) - at;
            ranges.push((start + (at - offset), take as usize));
            at += take;
        }
        ranges
    }
}
