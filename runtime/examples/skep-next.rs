//! The build after this one, for tests of upgrades: one level higher, with one thing more that a manifest may say.

use skep_node::level::{Build, Feature};

/// Stands for whatever the next release brings.
const FEATURES: &[Feature] = &[Feature {
    name: "more than 32 partitions",
    level: 3,
    used: |swarm| swarm.stages.iter().any(|stage| stage.partitions > 32),
}];

fn main() -> std::process::ExitCode {
    if let Err(why) = Build::pretend("next", FEATURES) {
        eprintln!("error: {why}");
        return std::process::ExitCode::FAILURE;
    }
    skep_node::cli::main()
}
