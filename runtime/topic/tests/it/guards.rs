//! Each guard taken away: the suite must notice, on either backend, by the rule that is about it.

use skep_topic::conformance::{self, Harness};
use skep_topic::guard::Guard;

use crate::harness::{OnDisk, OnMemory};

async fn broken_on_memory(guard: Guard) -> Vec<&'static str> {
    let broken = conformance::run(async || {
        let on = OnMemory::new(1);
        on.memory.guards().remove(guard);
        Box::new(on) as Box<dyn Harness>
    });
    broken.await.into_iter().map(|(rule, _)| rule).collect()
}

async fn broken_on_disk(guard: Guard, rule: &str) -> Result<(), String> {
    let rule = conformance::RULES
        .iter()
        .find(|r| r.name == rule)
        .expect("a rule of that name");
    let on = OnDisk::new(1);
    on.store().guards().remove(guard);
    (rule.judge)(Box::new(on)).await
}

macro_rules! noticed {
    ($($name:ident: $guard:ident by $rule:literal),+ $(,)?) => {$(
        #[tokio::test]
        async fn $name() {
            let broken = broken_on_memory(Guard::$guard).await;
            assert!(broken.contains(&$rule), "memory: {broken:?}");
            assert!(broken_on_disk(Guard::$guard, $rule).await.is_err(), "embedded");
        }
    )+};
}

noticed! {
    without_token_the_suite_notices: Token by "refusals::fenced_by_token",
    without_base_the_suite_notices: Base by "refusals::stale_by_base",
    without_seq_the_suite_notices: Seq by "refusals::stale_by_seq",
    without_cursor_the_suite_notices: Cursor by "refusals::stale_by_cursor",
    without_entry_uid_the_suite_notices: EntryUid by "refusals::input_gone_for_an_entry",
    without_timer_uid_the_suite_notices: TimerUid by "refusals::input_gone_for_a_timer",
    without_retry_uid_the_suite_notices: RetryUid by "refusals::input_gone_for_a_retry",
    without_hold_the_suite_notices: Hold by "parking::a_lane_waits_in_order",
    without_place_the_suite_notices: InPlace by "parking::a_failing_retry_keeps_its_place",
    without_wake_the_suite_notices: Wake by "parking::the_next_falls_due_when_the_first_leaves",
    without_room_the_suite_notices: Room by "room::a_full_inbox_refuses_and_writes_nothing",
    without_dedup_the_suite_notices: Dedup by "repeats::a_key_is_remembered",
    without_seals_the_suite_notices: Seal by "rescale::nothing_behind_a_seal_is_given_early",
    without_a_full_hand_over_the_suite_notices: HandOver by "rescale::timers_go_with_their_keys",
    without_what_was_seen_the_suite_notices: Seen by "lifecycle::a_catalog_write_names_what_it_was_decided_on",
    without_letters_the_suite_notices: Letter by "parking::a_dead_letter_comes_back_once",
    without_births_the_suite_notices: Birth by "lifecycle::a_removed_stage_takes_nothing_from_late_writers",
}
