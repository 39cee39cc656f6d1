//! Compiled kernels on disk, so that only the first run on a machine waits for a compiler.
//!
//! An entry is named after everything that went into it: source, options, compiler version, architecture. It
//! is written to a temporary file and renamed, so a reader never sees half of it, and it carries a
//! checksum: what cannot be read or does not match is compiled again. Without a cache folder everything
//! works, and compiles each time.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The user's cache folder, if the environment names one.
fn folder() -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let caches = set("XDG_CACHE_HOME")
        .or_else(|| set("LOCALAPPDATA"))
        .or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("candle-sampler"))
}

/// The compiled code for `key`: from disk, or from `compile`.
pub(super) fn get_or_compile<E>(
    key: &str,
    compile: impl FnOnce() -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    get_or_compile_in(folder(), key, compile)
}

fn get_or_compile_in<E>(
    folder: Option<PathBuf>,
    key: &str,
    compile: impl FnOnce() -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let Some(folder) = folder else {
        return compile();
    };
    let path = folder.join(format!("{:016x}{:016x}.bin", hash(key), hash((key, 1))));
    if let Some(code) = std::fs::read(&path).ok().and_then(unseal) {
        return Ok(code);
    }
    let code = compile()?;
    // A cache that cannot be written is no error.
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&temporary, seal(&code)))
        .and_then(|()| std::fs::rename(&temporary, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    Ok(code)
}

fn seal(code: &[u8]) -> Vec<u8> {
    [&hash(code).to_le_bytes(), code].concat()
}

fn unseal(file: Vec<u8>) -> Option<Vec<u8>> {
    let (sum, code) = file.split_first_chunk()?;
    (hash(code) == u64::from_le_bytes(*sum)).then(|| code.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(folder: &std::path::Path, key: &str, fresh: &[u8]) -> (Vec<u8>, bool) {
        let mut compiled = false;
        let code = get_or_compile_in(Some(folder.to_owned()), key, || {
            compiled = true;
            Ok::<_, ()>(fresh.to_vec())
        });
        (code.unwrap(), compiled)
    }

    #[test]
    fn entries_are_kept_and_damaged_ones_rebuilt() {
        let folder =
            std::env::temp_dir().join(format!("candle-sampler-cache-{}", std::process::id()));
        assert_eq!(get(&folder, "a", b"one"), (b"one".to_vec(), true));
        assert_eq!(get(&folder, "a", b"two"), (b"one".to_vec(), false));
        assert_eq!(get(&folder, "b", b"two"), (b"two".to_vec(), true));
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        }
        assert_eq!(get(&folder, "a", b"new"), (b"new".to_vec(), true));
        assert_eq!(get(&folder, "a", b"newer"), (b"new".to_vec(), false));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn no_folder_is_no_error() {
        let compile = || Ok::<_, ()>(vec![1]);
        assert_eq!(get_or_compile_in(None, "a", compile), Ok(vec![1]));
        let file = std::env::temp_dir().join(format!("candle-sampler-file-{}", std::process::id()));
        std::fs::write(&file, "not a folder").unwrap();
        assert_eq!(
            get_or_compile_in(Some(file.join("x")), "a", compile),
            Ok(vec![1])
        );
        std::fs::remove_file(file).unwrap();
    }
}
