//! The suite as it stands, and with each guard taken away.

use skep_topic::conformance::{self, Harness};

use crate::harness::{OnDisk, OnMemory};

fn assert_sound(broken: &[(&str, String)]) {
    let told: Vec<String> = broken.iter().map(|(rule, why)| format!("{rule}: {why}")).collect();
    assert!(broken.is_empty(), "{}", told.join("\n"));
}

#[tokio::test]
async fn memory_keeps_every_rule() {
    let broken = conformance::run(async || Box::new(OnMemory::new(1)) as Box<dyn Harness>).await;
    assert_sound(&broken);
}

#[tokio::test]
async fn embedded_keeps_every_rule() {
    let broken = conformance::run(async || Box::new(OnDisk::new(1)) as Box<dyn Harness>).await;
    assert_sound(&broken);
}
