//! Files that a command names: `-` is stdin, and what is wrong with one has the same exit code everywhere.

use std::io::Read as _;
use std::path::Path;

use super::failure::{Exit, Failure, Outcome};

#[must_use]
pub fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// The name of a file as messages have it.
#[must_use]
pub fn name(file: &Path) -> String {
    if is_stdin(file) {
        "stdin".to_owned()
    } else {
        file.display().to_string()
    }
}

/// At most `max` bytes, and one more to see that there are more.
pub fn read(file: &Path, max: usize) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    let bound = max as u64 + 1;
    let read = if is_stdin(file) {
        std::io::stdin().lock().take(bound).read_to_end(&mut bytes)
    } else {
        open(file)?.take(bound).read_to_end(&mut bytes)
    };
    read.map_err(|e| unreadable(file, &e))?;
    Ok(bytes)
}

/// Opens a file, which a folder is not.
pub fn open(file: &Path) -> Outcome<std::fs::File> {
    let open = || {
        let opened = std::fs::File::open(file)?;
        if opened.metadata()?.is_dir() {
            return Err(std::io::ErrorKind::IsADirectory.into());
        }
        Ok(opened)
    };
    open().map_err(|e| unreadable(file, &e))
}

pub fn unreadable(file: &Path, e: &std::io::Error) -> Failure {
    let name = name(file);
    match e.kind() {
        std::io::ErrorKind::NotFound => Failure::new(Exit::NotFound, format!("there is no file {name}")),
        std::io::ErrorKind::IsADirectory => {
            Failure::new(Exit::Refused, format!("{name} is a folder")).remedy("name a file in it")
        }
        _ => Failure::new(Exit::Failed, format!("cannot read {name}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_has_one_exit_code() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), 1).unwrap_err().exit, Exit::Refused);
        let file = dir.path().join("a");
        let missing = read(&file, 1).unwrap_err();
        assert_eq!(missing.exit, Exit::NotFound);
        assert!(missing.message.contains("/a"), "{missing}");
        std::fs::write(&file, "abc").unwrap();
        assert_eq!(read(&file, 1).unwrap(), b"ab");
        assert_eq!(read(&file, 3).unwrap(), b"abc");
        let denied = unreadable(&file, &std::io::ErrorKind::PermissionDenied.into());
        assert_eq!(denied.exit, Exit::Failed);
    }
}
