//! Which shards there are in a store.

use futures_util::TryStreamExt;
use object_store::{ObjectMeta, ObjectStoreExt, ObjectStoreScheme};

use super::{Place, Stores};
use crate::braces::matches;
use crate::places::{Format, Shard};
use crate::{Error, Result};

/// A list of shards may be this long.
const LONGEST_LIST: u64 = 1 << 26;

impl Stores {
    /// Adds the shards at a URL: one, those of a folder, or those whose names have stars.
    pub fn list(&self, place: &str, found: &mut Vec<Shard>) -> Result<()> {
        let failed = |reason| Error::shard(place, reason);
        let at = self.place(place).map_err(failed)?;
        let name = at.path.filename().unwrap_or_default().to_owned();
        let stars = name.contains(['*', '?']);
        if !stars && Format::of(&name).is_some() {
            let (store, path) = (at.store.clone(), at.path.clone());
            let head = self.attempt(move || {
                let (store, path) = (store.clone(), path.clone());
                async move { store.head(&path).await }
            });
            found.push(shard(&at, &head.map_err(failed)?, &name).map_err(failed)?);
            return Ok(());
        }
        if at.scheme == ObjectStoreScheme::Http {
            let remedy = "name each, by {000..017} or in a .list file";
            return Err(failed(format!("a web server does not tell what shards it has: {remedy}")));
        }
        let folder = match stars {
            true => at.path.parts().take(at.path.parts().count() - 1).collect(),
            false => at.path.clone(),
        };
        let (store, prefix) = (at.store.clone(), folder.clone());
        let all = self.attempt(move || {
            let (store, prefix) = (store.clone(), prefix.clone());
            async move { store.list(Some(&prefix)).try_collect::<Vec<ObjectMeta>>().await }
        });
        let mut all = all.map_err(failed)?;
        all.sort_by(|a, b| a.location.cmp(&b.location));
        for meta in &all {
            let below = meta.location.as_ref().strip_prefix(folder.as_ref()).unwrap_or_default();
            let below = below.trim_start_matches('/');
            let fits = match stars {
                true => !below.contains('/') && matches(&name, below),
                false => Format::of(below).is_some(),
            };
            if fits {
                found.push(shard(&at, meta, below).map_err(failed)?);
            }
        }
        Ok(())
    }

    /// The text at a URL.
    pub fn text(&self, place: &str) -> Result<String> {
        let failed = |reason| Error::shard(place, reason);
        let at = self.place(place).map_err(failed)?;
        let read = self.attempt(move || {
            let (store, path) = (at.store.clone(), at.path.clone());
            async move {
                let answer = store.get(&path).await?;
                match answer.meta.size <= LONGEST_LIST {
                    true => answer.bytes().await.map(Some),
                    false => Ok(None),
                }
            }
        });
        let bytes = read.map_err(failed)?.ok_or_else(|| failed("is too long for a list".into()))?;
        String::from_utf8(bytes.into()).map_err(|_| failed("is no text".into()))
    }
}

/// A shard of that name, as the store tells of it.
fn shard(at: &Place, meta: &ObjectMeta, name: &str) -> std::result::Result<Shard, String> {
    let (format, gzip) = Format::of(name)
        .ok_or_else(|| format!("{name} is no shard: their names end in {}", Format::KNOWN))?;
    let mut url = at.url.clone();
    // Azure's and S3's https:// have the bucket before the path.
    let whole = url.path().trim_end_matches('/').to_owned();
    let bucket = whole.strip_suffix(at.path.as_ref()).unwrap_or("/");
    url.set_path(&format!("{bucket}{}", meta.location));
    let (place, tag) = (url.to_string(), meta.e_tag.clone());
    let stamp = meta.last_modified.timestamp_millis().to_string();
    Ok(Shard { name: name.into(), place, format, gzip, bytes: meta.size, stamp, tag })
}
