//! The suite as it stands, and with each guard taken away.

use skep_topic::conformance::{self, Harness};
use skep_topic::guard::Guard;

use super::server::OnRedis;

#[tokio::test]
async fn redis_keeps_every_rule() {
    let broken = conformance::run(async || Box::new(OnRedis::new(None).await) as Box<dyn Harness>).await;
    let told: Vec<String> = broken.iter().map(|(rule, why)| format!("{rule}: {why}")).collect();
    assert!(broken.is_empty(), "{}", told.join("\n"));
}

async fn broken(guard: Guard, rule: &str) -> bool {
    let rule = conformance::RULES
        .iter()
        .find(|r| r.name == rule)
        .expect("a rule of that name");
    (rule.judge)(Box::new(OnRedis::new(Some(guard)).await)).await.is_err()
}

#[tokio::test]
async fn redis_without_a_guard_is_noticed() {
    for (guard, rule) in [
        (Guard::Token, "refusals::fenced_by_token"),
        (Guard::Base, "refusals::stale_by_base"),
        (Guard::Seq, "refusals::stale_by_seq"),
        (Guard::Cursor, "refusals::stale_by_cursor"),
        (Guard::EntryUid, "refusals::input_gone_for_an_entry"),
        (Guard::TimerUid, "refusals::input_gone_for_a_timer"),
        (Guard::RetryUid, "refusals::input_gone_for_a_retry"),
        (Guard::Hold, "parking::a_lane_waits_in_order"),
        (Guard::InPlace, "parking::a_failing_retry_keeps_its_place"),
        (Guard::Wake, "parking::the_next_falls_due_when_the_first_leaves"),
        (Guard::Room, "room::a_full_inbox_refuses_and_writes_nothing"),
        (Guard::Letter, "parking::a_dead_letter_comes_back_once"),
        (Guard::Dedup, "repeats::a_key_is_remembered"),
        (Guard::Seal, "rescale::nothing_behind_a_seal_is_given_early"),
        (Guard::Still, "backups::an_export_is_one_moment"),
        (Guard::HandOver, "rescale::timers_go_with_their_keys"),
        (Guard::Seen, "lifecycle::a_catalog_write_names_what_it_was_decided_on"),
        (
            Guard::Birth,
            "lifecycle::a_removed_stage_takes_nothing_from_late_writers",
        ),
    ] {
        assert!(broken(guard, rule).await, "nobody notices that {guard:?} is missing");
    }
}

#[tokio::test]
async fn redis_answers_as_memory_does() {
    for seed in 100..108 {
        let on = OnRedis::at(crate::harness::NOW).await;
        let mut pair = crate::differential::Pair::new(seed, Box::new(on), true);
        for _ in 0..400 {
            pair.step().await;
        }
    }
}
