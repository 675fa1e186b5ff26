//! Lists the shards of a store.

use futures_util::TryStreamExt;
use object_store::{ObjectMeta, ObjectStoreExt, ObjectStoreScheme};

use super::{StoreLocation, Stores};
use crate::braces::matches;
use crate::shard::{Format, Shard};
use crate::{Error, Result};

/// Maximum size of a list file.
const MAX_LIST_BYTES: u64 = 1 << 26;

impl Stores {
    /// Adds the shards at a URL: one shard, a directory, or a glob in the last path component.
    pub fn list(&self, url: &str, found: &mut Vec<Shard>) -> Result<()> {
        let failed = |reason| Error::shard(url, reason);
        let location = self.locate(url).map_err(failed)?;
        let name = location.path.filename().unwrap_or_default().to_owned();
        let is_glob = name.contains(['*', '?']);
        if !is_glob && Format::of(&name).is_some() {
            let (store, path) = (location.store.clone(), location.path.clone());
            let head = self.with_retries(move || {
                let (store, path) = (store.clone(), path.clone());
                async move { store.head(&path).await }
            });
            found.push(shard(&location, &head.map_err(failed)?, &name).map_err(failed)?);
            return Ok(());
        }
        if location.scheme == ObjectStoreScheme::Http {
            let remedy = "name each shard, with a pattern such as {000..017} or in a .list file";
            return Err(failed(format!("web servers cannot list shards; {remedy}")));
        }
        let folder = match is_glob {
            true => location.path.parts().take(location.path.parts().count() - 1).collect(),
            false => location.path.clone(),
        };
        let (store, prefix) = (location.store.clone(), folder.clone());
        let all = self.with_retries(move || {
            let (store, prefix) = (store.clone(), prefix.clone());
            async move { store.list(Some(&prefix)).try_collect::<Vec<ObjectMeta>>().await }
        });
        let mut all = all.map_err(failed)?;
        all.sort_by(|a, b| a.location.cmp(&b.location));
        for meta in &all {
            let below = meta.location.as_ref().strip_prefix(folder.as_ref()).unwrap_or_default();
            let below = below.trim_start_matches('/');
            let fits = match is_glob {
                true => !below.contains('/') && matches(&name, below),
                false => Format::of(below).is_some(),
            };
            if fits {
                found.push(shard(&location, meta, below).map_err(failed)?);
            }
        }
        Ok(())
    }

    /// Downloads a text file.
    pub fn text(&self, url: &str) -> Result<String> {
        let failed = |reason| Error::shard(url, reason);
        let location = self.locate(url).map_err(failed)?;
        let read = self.with_retries(move || {
            let (store, path) = (location.store.clone(), location.path.clone());
            async move {
                let response = store.get(&path).await?;
                match response.meta.size <= MAX_LIST_BYTES {
                    true => response.bytes().await.map(Some),
                    false => Ok(None),
                }
            }
        });
        let bytes = read
            .map_err(failed)?
            .ok_or_else(|| failed("is too large for a list of shards".into()))?;
        String::from_utf8(bytes.into()).map_err(|_| failed("is not valid UTF-8".into()))
    }
}

/// Returns the shard `name` from its object metadata.
fn shard(
    location: &StoreLocation,
    meta: &ObjectMeta,
    name: &str,
) -> std::result::Result<Shard, String> {
    let (format, gzip) = Format::of(name)
        .ok_or_else(|| format!("{name} is not a shard; their names end in {}", Format::SUFFIXES))?;
    let mut url = location.url.clone();
    // https:// URLs of Azure and S3 have the bucket before the object's path.
    let full_path = url.path().trim_end_matches('/').to_owned();
    let bucket = full_path.strip_suffix(location.path.as_ref()).unwrap_or("/");
    url.set_path(&format!("{bucket}{}", meta.location));
    let (location, tag) = (url.to_string(), meta.e_tag.clone());
    let stamp = meta.last_modified.timestamp_millis().to_string();
    Ok(Shard { name: name.into(), location, format, gzip, bytes: meta.size, stamp, tag })
}
