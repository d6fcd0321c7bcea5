//! A Swarm's manifest, and the rewriting of its modules.

use std::collections::HashSet;

use skep_model::Bytes;
use skep_model::condition::Facts;
use skep_model::drawing;
use skep_model::limits::PARTITIONS_MAX;
use skep_model::manifest::{self, Mistakes};
use skep_model::permission;
use skep_model::swarm::Swarm;

pub fn run(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let rewritten = manifest::replace_modules(text, |_| None);
    if let Ok(same) = &rewritten {
        // What was to stay stays, but for a mark of the byte order.
        assert_eq!(same, text.strip_prefix('\u{feff}').unwrap_or(text));
    }
    let stored = manifest::parse(text);
    let swarm = match manifest::parse_local(text) {
        Ok(swarm) => swarm,
        Err(mistakes) => {
            assert!(stored.is_err(), "a local manifest may have more, and not less");
            told(&mistakes, text);
            return false;
        }
    };
    match &stored {
        Ok(stored) => assert_eq!(stored, &swarm, "paths are all that a local manifest may have more"),
        Err(mistakes) => told(mistakes, text),
    }
    assert!(rewritten.is_ok(), "a good manifest that cannot be rewritten");
    good(&swarm, text);
    // As the catalog keeps it.
    let record = serde_json::to_vec(&swarm).expect("a Swarm is JSON");
    assert_eq!(
        serde_json::from_slice::<Swarm>(&record).expect("what was written is read"),
        swarm
    );
    assert!(permission::gained(&swarm, &swarm).is_empty());
    let _ = drawing::draw(&swarm, drawing::Picture::Mermaid);
    let named = manifest::replace_modules(text, |_| Some("m@other".to_owned()));
    let again = manifest::replace_modules(text, |_| Some("other:v1".to_owned())).expect("it was rewritten before");
    let again = manifest::parse(&again).expect("another module, all else as it was");
    assert!(named.is_ok() && again.stages.len() == swarm.stages.len());
    true
}

fn told(mistakes: &Mistakes, text: &str) {
    assert!(!mistakes.0.is_empty(), "refused, and no mistake is told");
    // YAML ends a line by a carriage return too; and what is missing at the end is told as of the line behind the last.
    let lines = text.matches(['\n', '\r']).count() + 2;
    for mistake in &mistakes.0 {
        assert!(mistake.line <= lines, "a mistake beyond the end: {mistake:?}");
    }
}

fn good(swarm: &Swarm, text: &str) {
    assert!(!swarm.stages.is_empty());
    let names: HashSet<&str> = swarm.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names.len(), swarm.stages.len(), "two stages of one name");
    for stage in &swarm.stages {
        assert!(!stage.state || stage.key.is_some(), "state without a key");
        assert!(stage.partitions <= PARTITIONS_MAX);
        // Conditions are asked of what anybody sends.
        for condition in [&stage.exit, &stage.skip].into_iter().flatten() {
            let payload = Bytes::copy_from_slice(text.as_bytes());
            let _ = condition.holds(&Facts::new(&[("a".to_owned(), text.to_owned())], &payload));
        }
    }
}
