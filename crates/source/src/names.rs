//! Paths of files as keys and fields of tar shards, and back.

/// The key under which a tar shard holds the file at `path`, a relative one with `/` in it, whose name ends
/// in a dot and `field`. Other dots of the name, which would end the key, are `%2E`, and `%` is `%25`.
/// `None` if the name is another one, or nothing is before its end.
pub fn key_of(path: &str, field: &str) -> Option<String> {
    let stem = path.strip_suffix(field)?.strip_suffix('.')?;
    let base = stem.rfind('/').map_or(0, |slash| slash + 1);
    let name = stem[base..].replace('%', "%25").replace('.', "%2E");
    (!name.is_empty()).then(|| format!("{}{name}", &stem[..base]))
}

/// The path of the file that is a field under a key.
pub(crate) fn path_of(key: &str, field: &str) -> String {
    let key = key.trim_start_matches("./");
    let base = key.rfind('/').map_or(0, |slash| slash + 1);
    let name = key[base..].replace("%2E", ".").replace("%25", "%");
    format!("{}{name}.{field}", &key[..base])
}

/// Whether one path comes before another in a folder that is walked by sorted names.
pub(crate) fn order(one: &str, other: &str) -> std::cmp::Ordering {
    one.split('/').cmp(other.split('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_have_no_dots() {
        assert_eq!(key_of("a/b.wav", "wav").as_deref(), Some("a/b"));
        assert_eq!(key_of("a.1/b.2.tar.wav", "wav").as_deref(), Some("a.1/b%2E2%2Etar"));
        assert_eq!(key_of("100%.txt.gz", "txt.gz").as_deref(), Some("100%25"));
        for (path, field) in [("a/.wav", "wav"), ("a", "wav"), ("awav", "wav"), ("a.wav", "flac")] {
            assert_eq!(key_of(path, field), None, "{path}");
        }
        assert_eq!(path_of("./a/17", "flac"), "a/17.flac");
    }

    proptest! {
        #[test]
        fn paths_come_back(path in "[a-z./%25E2]{0,8}[a-z%][a-z.%25E]{0,8}", field in "[a-z]{1,4}(\\.gz)?") {
            prop_assume!(!path.starts_with("./") && !path.contains("//"));
            let path = format!("{path}.{field}");
            let key = key_of(&path, &field).expect("a name");
            prop_assert!(!key.rsplit('/').next().expect("a part").contains('.'));
            prop_assert_eq!(path_of(&key, &field), path);
        }
    }

    #[test]
    fn the_order_is_that_of_folders() {
        let mut paths = ["a-b/1", "a/2", "a.txt", "b", "a/10"];
        paths.sort_by(|a, b| order(a, b));
        // The folder `a` stands where its name does.
        assert_eq!(paths, ["a/10", "a/2", "a-b/1", "a.txt", "b"]);
    }
}
