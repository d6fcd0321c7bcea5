//! What bad manifests are told, word for word, in `mistakes.txt`: each with line, column and remedy.
//!
//! `SKEP_GOLDEN=write` writes the answers anew; look at the difference before you commit it.

use skep_model::manifest;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mistakes.txt");

#[test]
fn bad_manifests_are_told_the_place_and_the_remedy() {
    let text = std::fs::read_to_string(FILE).unwrap();
    let (mut new, mut alone, mut several) = (String::new(), 0, 0);
    for case in text.split("=== ").skip(1) {
        let (title, rest) = case.split_once('\n').unwrap();
        let (yaml, _) = rest.split_once("---\n").unwrap();
        let mistakes = manifest::parse(yaml).expect_err(title);
        for mistake in &mistakes.0 {
            assert!(mistake.line > 0 && mistake.column > 0, "{title}: {mistake}");
            // Bounds and choices are their own remedy.
            let says = ["out of bounds: ", "expected `", "visible ASCII"];
            let remedy = mistake.hint.is_some() || says.iter().any(|part| mistake.message.contains(part));
            assert!(remedy, "{title}: no remedy: {mistake}");
        }
        if mistakes.0.len() == 1 {
            alone += 1;
        } else {
            several += 1;
        }
        new += &format!("=== {title}\n{yaml}---\n{mistakes}\n\n");
    }
    assert!(
        alone >= 40 && several >= 2,
        "{alone} with one mistake, {several} with several"
    );
    if std::env::var("SKEP_GOLDEN").as_deref() == Ok("write") {
        std::fs::write(FILE, &new).unwrap();
        return;
    }
    for (new, old) in new.split("=== ").zip(text.split("=== ")) {
        assert_eq!(new.trim_end(), old.trim_end());
    }
}
