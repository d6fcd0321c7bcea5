//! `new`: a Bee project to start from.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use skep_model::name::ModuleName;

use super::args;
use super::failure::{Exit, Failure, Outcome};
use super::output::Printer;

/// What is written, from `samples/template`.
const FILES: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("../../../samples/template/Cargo.toml.tmpl")),
    ("README.md", include_str!("../../../samples/template/README.md.tmpl")),
    (".gitignore", include_str!("../../../samples/template/gitignore.tmpl")),
    ("src/lib.rs", include_str!("../../../samples/template/src/lib.rs.tmpl")),
    ("swarm.yaml", include_str!("../../../samples/template/swarm.yaml.tmpl")),
];

/// The SDK's sources where this program was built; used while they are there, as the SDK is not published yet.
const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk-rust/bee");

pub fn run(args: args::New, out: Printer) -> Outcome {
    args.name.parse::<ModuleName>().map_err(|e| {
        Failure::new(Exit::Refused, e.to_string())
            .remedy("the name serves as package, module, Swarm and subject, like `my-bee`")
    })?;
    if args.name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(
            Failure::new(Exit::Refused, format!("cargo takes no package named `{}`", args.name))
                .remedy("begin with a letter"),
        );
    }
    let dir = args.path.unwrap_or_else(|| PathBuf::from(&args.name));
    let written = write(&dir, &args.name)?;
    if out.json() {
        return out.document(&json!({ "name": args.name, "path": dir, "files": written }));
    }
    out.line(&format!("wrote {}: {}", dir.display(), written.join(", ")))?;
    out.line(&format!("next:  skep up {}", dir.display()))
}

fn write(dir: &Path, name: &str) -> Outcome<Vec<&'static str>> {
    if let Some((taken, _)) = FILES.iter().find(|(file, _)| dir.join(file).exists()) {
        return Err(Failure::new(
            Exit::Conflict,
            format!("{} is there already: nothing was written", dir.join(taken).display()),
        )
        .remedy("choose another folder with --path DIR"));
    }
    let cannot =
        |path: &Path, e: std::io::Error| Failure::new(Exit::Failed, format!("cannot write {}: {e}", path.display()));
    for (file, template) in FILES {
        let path = dir.join(file);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| cannot(parent, e))?;
        }
        let text = template.replace("{{name}}", name).replace("{{sdk}}", &sdk());
        // Not over a file that somebody else wrote since.
        let created = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
        created
            .and_then(|mut f| f.write_all(text.as_bytes()))
            .map_err(|e| cannot(&path, e))?;
    }
    Ok(FILES.iter().map(|(file, _)| *file).collect())
}

/// The right side of the dependency on `skep-bee`.
fn sdk() -> String {
    match Path::new(SDK).canonicalize() {
        Ok(path) => format!("{{ path = {} }}", json!(path.to_string_lossy())),
        Err(_) => json!(env!("CARGO_PKG_VERSION")).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_written_once_and_never_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("my-bee");
        assert_eq!(write(&at, "my-bee").unwrap().len(), FILES.len());
        for (file, _) in FILES {
            let text = std::fs::read_to_string(at.join(file)).unwrap();
            assert!(
                !text.contains("{{name}}") && !text.contains("{{sdk}}"),
                "{file}: {text}"
            );
        }
        let manifest = std::fs::read_to_string(at.join("swarm.yaml")).unwrap();
        assert_eq!(skep_model::manifest::parse(&manifest).unwrap().name.as_str(), "my-bee");
        assert_eq!(write(&at, "other").unwrap_err().exit, Exit::Conflict);
    }
}
