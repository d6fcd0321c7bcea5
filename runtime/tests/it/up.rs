//! The developer's loop: `skep new`, `skep up`, an edit, and the next answer is the new one.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::node::{SKEP, SOON, connect, request, response};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_of_a_new_project_is_live_in_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let new = Command::new(SKEP)
        .args(["new", "greeter"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(new.status.success(), "{}", String::from_utf8_lossy(&new.stderr));
    let project = dir.path().join("greeter");
    let mut up = Command::new(SKEP)
        .args(["up", ".", "--listen", "127.0.0.1:0"])
        .current_dir(&project)
        .env_remove("SKEP_NODE")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // What `up` does is progress, not output.
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(up.stderr.take().unwrap());
    let (tell, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    // The first build compiles the SDK.
    let until = Instant::now() + 5 * SOON;
    let url = loop {
        let line = lines
            .recv_timeout(until - Instant::now())
            .expect("`up` says how to call the Swarm");
        if line.contains("call it")
            && let Some(at) = line.find("http://127.0.0.1:")
        {
            let url: String = line[at..].chars().take_while(|c| !c.is_whitespace()).collect();
            break url.split("/v1/").next().unwrap_or(&url).to_owned();
        }
    };
    let mut gateway = skep_proto::v1::gateway_client::GatewayClient::new(connect(&url).await);
    let before = response(&request(&mut gateway, "greeter", r#"{"name": "Bee"}"#).await.unwrap());
    assert!(before.contains("Hello Bee"), "{before}");

    let source = project.join("src/lib.rs");
    let text = std::fs::read_to_string(&source).unwrap();
    assert!(text.contains("Hello"), "the template greets");
    std::fs::write(&source, text.replace("Hello", "Welcome")).unwrap();
    let edited = Instant::now();
    loop {
        let now = response(&request(&mut gateway, "greeter", r#"{"name": "Bee"}"#).await.unwrap());
        if now.contains("Welcome Bee") {
            break;
        }
        assert!(
            now.contains("Hello Bee"),
            "the old version serves until the new one does: {now}"
        );
        assert!(edited.elapsed() < SOON, "the edit is not live");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // So is an edit of what it depends on by path, outside of its folder.
    let words = dir.path().join("words");
    std::fs::create_dir_all(words.join("src")).unwrap();
    std::fs::write(
        words.join("Cargo.toml"),
        "[package]\nname = \"words\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n",
    )
    .unwrap();
    let greeting = |word: &str| format!("pub const GREETING: &str = \"{word}\";\n");
    std::fs::write(words.join("src/lib.rs"), greeting("Salve")).unwrap();
    let cargo = std::fs::read_to_string(project.join("Cargo.toml")).unwrap();
    let cargo = cargo.replace("[dependencies]\n", "[dependencies]\nwords = { path = \"../words\" }\n");
    assert!(cargo.contains("../words"), "{cargo}");
    std::fs::write(project.join("Cargo.toml"), cargo).unwrap();
    let text = std::fs::read_to_string(&source).unwrap();
    let from_words = text.replace("\"Welcome {name}\"", "\"{} {name}\", words::GREETING");
    assert!(from_words != text, "{text}");
    std::fs::write(&source, &from_words).unwrap();
    for (word, edit) in [("Salve", false), ("Ave", true)] {
        if edit {
            std::fs::write(words.join("src/lib.rs"), greeting(word)).unwrap();
        }
        let edited = Instant::now();
        loop {
            let now = response(&request(&mut gateway, "greeter", r#"{"name": "Bee"}"#).await.unwrap());
            if now.contains(&format!("{word} Bee")) {
                break;
            }
            assert!(edited.elapsed() < SOON, "the edit to `{word}` is not live: {now}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // A build that fails leaves what runs.
    std::fs::write(&source, "this is not Rust").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let still = response(&request(&mut gateway, "greeter", r#"{"name": "Bee"}"#).await.unwrap());
    assert!(still.contains("Ave Bee"), "{still}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&up), rustix::process::Signal::INT).unwrap();
    let until = Instant::now() + SOON;
    while up.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            let _ = up.kill();
            panic!("`up` did not stop on SIGINT");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
