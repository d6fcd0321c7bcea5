//! Settings that cannot be: refused at start, with the remedy and without the password.

use std::process::{Command, Output};

use crate::node::SKEP;

fn serve(args: &[&str], env: &[(&str, &str)]) -> (Output, String) {
    let mut command = Command::new(SKEP);
    command.arg("serve").args(args).env_remove("SKEP_DATA");
    command.envs(env.iter().copied());
    let told = command.output().unwrap();
    let text = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
    assert!(!text.contains("hush"), "{text}");
    (told, text)
}

#[test]
fn settings_that_cannot_be_are_refused_without_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let file = dir.path().join("skep.toml");
    std::fs::write(&file, "bakend = \"redis://:hush@h\"\n").unwrap();
    let file = file.to_str().unwrap();
    for (args, env, says) in [
        (&[][..], &[][..], "no data folder"),
        (&["--data", data, "--backend", "reddis://:hush@h"], &[], "is no backend"),
        (
            &["--data", data],
            &[("SKEP_BACKEND", "http://:hush@h")],
            "is no backend",
        ),
        (&["--data", data], &[("SKEP_GATE", "wait:1")], "the backend is embedded"),
        (&["--data", data, "--roles", "gatway"], &[], "did you mean `gateway`?"),
        (&["--config", file], &[], "did you mean `backend`?"),
        (&["--config", "/nowhere.toml"], &[], "/nowhere.toml"),
        (
            &["--data", data, "--artifacts", "s3://id:hush@bucket"],
            &[],
            "AWS_SECRET_ACCESS_KEY",
        ),
        (
            &["--data", data, "--nonsense"],
            &[("SKEP_BACKEND", "redis://:hush@h")],
            "--nonsense",
        ),
    ] {
        let (told, text) = serve(args, env);
        assert_eq!(told.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(says), "{args:?} {env:?}: {text}");
    }
    // The environment of who asks for help may hold it too.
    let (told, text) = serve(&["--help"], &[("SKEP_BACKEND", "redis://:hush@h")]);
    assert!(told.status.success() && text.contains("SKEP_BACKEND"), "{text}");
}
