//! Conversion between file paths and the keys and fields of tar shards.

/// Returns the tar shard key of the file at `path`, whose name must end in a dot and `field`.
///
/// `path` is relative, with `/` as separator. Since a key ends at the first dot, other dots of the
/// file name are escaped as `%2E`, and `%` as `%25`. Returns `None` if the name does not end in the
/// field or the key would be empty.
pub fn key_of(path: &str, field: &str) -> Option<String> {
    let stem = path.strip_suffix(field)?.strip_suffix('.')?;
    let base = stem.rfind('/').map_or(0, |slash| slash + 1);
    let name = stem[base..].replace('%', "%25").replace('.', "%2E");
    (!name.is_empty()).then(|| format!("{}{name}", &stem[..base]))
}

/// Returns the file path of a field of the example `key`: the inverse of [`key_of`].
pub(crate) fn path_of(key: &str, field: &str) -> String {
    let key = key.trim_start_matches("./");
    let base = key.rfind('/').map_or(0, |slash| slash + 1);
    let name = key[base..].replace("%2E", ".").replace("%25", "%");
    format!("{}{name}.{field}", &key[..base])
}

/// Compares paths in the order of a directory walk that sorts names.
pub(crate) fn compare_paths(one: &str, other: &str) -> std::cmp::Ordering {
    one.split('/').cmp(other.split('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn key_escapes_dots_and_percent_signs() {
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
        fn path_round_trips_through_key(path in "[a-z./%25E2]{0,8}[a-z%][a-z.%25E]{0,8}", field in "[a-z]{1,4}(\\.gz)?") {
            prop_assume!(!path.starts_with("./") && !path.contains("//"));
            let path = format!("{path}.{field}");
            let key = key_of(&path, &field).expect("a valid path");
            prop_assert!(!key.rsplit('/').next().expect("a file name").contains('.'));
            prop_assert_eq!(path_of(&key, &field), path);
        }
    }

    #[test]
    fn paths_compare_in_directory_walk_order() {
        let mut paths = ["a-b/1", "a/2", "a.txt", "b", "a/10"];
        paths.sort_by(|a, b| compare_paths(a, b));
        // The directory `a` sorts by its own name.
        assert_eq!(paths, ["a/10", "a/2", "a-b/1", "a.txt", "b"]);
    }
}
