//! Which tokens of a cache are in which block.

use data2vec_core::{
    Result,
    random::{Purpose, seed_for},
};

use crate::{
    cache::{Cache, Document},
    dataset::{Packing, TextDataConfig},
};

/// Long documents are held out by stretches of so many blocks.
const STRETCH: u64 = 64;

/// The blocks of a corpus, or of a side of it.
#[derive(Debug)]
pub(crate) enum Blocks {
    /// Stretches of the cache that are read as one: place in the whole, start and length in the cache.
    Stream { stretches: Vec<(u64, u64, u64)>, total: u64 },
    /// Start and length of each.
    Single(Vec<(u64, u32)>),
}

/// Documents, long ones in several, of whole blocks each.
pub(crate) fn stretches(documents: &[Document], config: &TextDataConfig) -> Vec<Document> {
    let long = STRETCH * (config.block as u64 - 1);
    let mut stretches = Vec::with_capacity(documents.len());
    for &Document { start, len, key } in documents {
        // The lone `</s>` after a document belongs to a stream alone.
        let len = if config.packing == Packing::Stream { len } else { len - 1 };
        let count = len.div_ceil(long).max(1);
        for i in 0..count {
            stretches.push(Document {
                start: start + i * long,
                len: (len - i * long).min(long),
                key: if i == 0 { key } else { seed_for(key, Purpose::Split, &[i]) },
            });
        }
    }
    stretches
}

impl Blocks {
    /// `end`: id of `</s>`.
    pub fn new(
        stretches: &[Document],
        cache: &Cache,
        end: i64,
        config: &TextDataConfig,
    ) -> Result<Self> {
        let room = config.block as u64 - 1;
        let mut blocks = Vec::new();
        match config.packing {
            Packing::Stream => {
                let mut total = 0;
                let mut place = |d: &Document| {
                    total += d.len;
                    (total - d.len, d.start, d.len)
                };
                let stretches = stretches.iter().map(&mut place).collect();
                return Ok(Self::Stream { stretches, total });
            }
            Packing::Document => {
                for &Document { start, len, .. } in stretches {
                    let block = |at: u64| (start + at, (len - at).min(room) as u32);
                    blocks.extend((0..len).step_by(room as usize).map(block));
                }
            }
            Packing::Lines => {
                for &Document { start, len, .. } in stretches {
                    let ids = cache.read(start, len as usize)?;
                    let (mut from, mut to) = (0, 0);
                    for line in ids.split_inclusive(|&id| id == end) {
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

    /// Where in the cache the tokens of a block are, `room` tokens at most.
    pub fn places(&self, index: usize, room: u64) -> Vec<(u64, usize)> {
        let (stretches, total) = match self {
            Self::Single(blocks) => return vec![(blocks[index].0, blocks[index].1 as usize)],
            Self::Stream { stretches, total } => (stretches, *total),
        };
        let (mut at, end) = (index as u64 * room, total.min((index as u64 + 1) * room));
        let mut places = Vec::new();
        let first = stretches.partition_point(|&(place, _, _)| place <= at) - 1;
        for &(place, start, len) in &stretches[first..] {
            if at >= end {
                break;
            }
            let take = end.min(place + len) - at;
            places.push((start + (at - place), take as usize));
            at += take;
        }
        places
    }
}
