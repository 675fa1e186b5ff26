//! Shards that are compressed as a whole. Nothing in them can be reached but from the front, so they are
//! unpacked once, into the cache.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use crate::blob::{Blob, Cursor};
use crate::cache::Cache;
use crate::places::Shard;
use crate::{Error, Result};

/// What is in a shard, unpacked.
pub(crate) fn unpacked(shard: &Shard, packed: &Arc<Blob>, cache: &Cache) -> Result<File> {
    let key = format!("{} {} {} {:?}", shard.place, shard.bytes, shard.stamp, shard.tag);
    cache.file(&key, |out| {
        let bound = cache.bound();
        let packed = BufReader::with_capacity(1 << 16, Cursor::new(packed, 0));
        let mut unpacked = MultiGzDecoder::new(packed).take(bound + 1);
        let mut out = BufWriter::with_capacity(1 << 16, Watched { out, failed: false });
        let copied = io::copy(&mut unpacked, &mut out).and_then(|len| out.flush().map(|()| len));
        match copied {
            Ok(len) if len > bound => {
                let remedy = "allow more by cache_bytes, or pack it as .tar or .jsonl";
                let reason = format!("unpacks to more than the cache's {bound} bytes: {remedy}");
                Err(Error::shard(&shard.name, reason))
            }
            Ok(_) => Ok(()),
            Err(error) if out.get_ref().failed => Err(Error::io(cache.folder(), error)),
            Err(error) => Err(Error::shard(&shard.name, format!("cannot be unpacked: {error}"))),
        }
    })
}

/// Tells whose fault an error is.
struct Watched<W> {
    out: W,
    failed: bool,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).inspect_err(|_| self.failed = true)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().inspect_err(|_| self.failed = true)
    }
}
