//! The settings' file. What is said of it names line and key, and no value that may be secret.

use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

pub(super) fn read(path: &Path, warnings: &mut Vec<String>) -> Result<Layer, Wrong> {
    use std::io::Read as _;
    let name = path.display();
    let unreadable = |e: std::io::Error| Wrong {
        what: format!("cannot read the settings in {name}: {e}"),
        remedy: "look at --config and SKEP_CONFIG".to_owned(),
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    let mut text = String::new();
    let limit = CONFIG_FILE_BYTES_MAX as u64;
    file.take(limit + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > limit {
        return wrong(
            format!("{name} is larger than {limit} bytes"),
            "is it a file of settings?",
        );
    }
    let layer = parse(&text, &name.to_string())?;
    let secret = layer.backend.as_ref().is_some_and(|Hidden(url)| has_password(url));
    if secret && mode & 0o077 != 0 {
        warnings.push(format!(
            "{name} holds a password and others may read it: chmod 600 {name}"
        ));
    }
    Ok(layer)
}

pub(super) fn parse(text: &str, name: &str) -> Result<Layer, Wrong> {
    let at = |span: Option<Range<usize>>| match span {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            format!("{name}:{line}:{column}")
        }
        None => name.to_owned(),
    };
    let see = || "the keys are the flags of `skep serve --help`, such as backend = \"redis://host:6379\"".to_owned();
    // The library shows the line, which may be the one with the password: only its message is taken.
    let said = |e: &toml::de::Error| Wrong {
        what: format!("{}: {}", at(e.span()), masked(e.message())),
        remedy: see(),
    };
    let keys: toml::Table = toml::from_str(text).map_err(|e| said(&e))?;
    if let Some(key) = keys.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(Wrong {
            what: format!("{name}: `{}` is no setting", key.escape_debug()),
            remedy: instead(key, &KEYS, ""),
        });
    }
    toml::from_str(text).map_err(|e| said(&e))
}

/// A value of the wrong type is repeated by the library, in quotes.
fn masked(message: &str) -> String {
    let words = message.split(' ').map(|word| {
        if word.contains("://") {
            without_password(word)
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}
