//! Gzip-compressed shards. They allow no random access, so each is unpacked once into the cache.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use flate2::bufread::MultiGzDecoder;

use crate::cache::Cache;
use crate::shard::Shard;
use crate::{Error, Result};

/// Returns the uncompressed content of a shard, whose bytes are `packed`, as a cached file.
pub(crate) fn unpack(shard: &Shard, packed: impl Read, cache: &Cache) -> Result<File> {
    let key = format!("{} {} {} {:?}", shard.location, shard.bytes, shard.stamp, shard.tag);
    cache.file(&key, |out| {
        let capacity = cache.capacity();
        let packed = BufReader::with_capacity(1 << 16, packed);
        let mut unpacked = MultiGzDecoder::new(packed).take(capacity + 1);
        let mut out = BufWriter::with_capacity(1 << 16, WriteErrors { out, failed: false });
        let copied = io::copy(&mut unpacked, &mut out).and_then(|len| out.flush().map(|()| len));
        match copied {
            Ok(len) if len > capacity => {
                let remedy = "increase cache_bytes, or store it uncompressed as .tar or .jsonl";
                let reason = format!("unpacks to more than the cache's {capacity} bytes; {remedy}");
                Err(Error::shard(&shard.name, reason))
            }
            Ok(_) => Ok(()),
            Err(error) if out.get_ref().failed => Err(Error::io(cache.folder(), error)),
            Err(error) => Err(Error::shard(&shard.name, format!("cannot be unpacked: {error}"))),
        }
    })
}

/// Records whether writing failed, to tell cache errors from errors of the shard.
struct WriteErrors<W> {
    out: W,
    failed: bool,
}

impl<W: Write> Write for WriteErrors<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).inspect_err(|_| self.failed = true)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().inspect_err(|_| self.failed = true)
    }
}
