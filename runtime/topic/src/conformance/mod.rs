//! The suite that every backend runs: one rule a function, each on a fresh store.
//!
//! A rule answers with the reason why it is broken rather than by panicking, so that a run with a guard taken away can show that
//! the suite notices. Random histories ([`histories`]) complement the direct rules.

pub mod actors;
pub mod backups;
mod beats;
pub mod histories;
mod inbox;
mod keys;
mod lifecycle;
mod parking;
mod refusals;
mod repeats;
mod rescale;
mod room;

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;

use crate::Backend;

/// `Err` says what is broken.
pub type Verdict = Result<(), String>;

/// How a store stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Closed in order.
    Clean,
    /// As kill -9.
    Kill,
}

/// One store under test.
#[async_trait]
pub trait Harness: Send + Sync {
    fn backend(&self) -> Arc<dyn Backend>;

    /// Moves the store's clock.
    async fn advance(&self, ms: u64);

    /// Stops the store and opens it again on what it kept. Returns false where a backend has no such thing.
    async fn reopen(&mut self, stop: Stop) -> bool;
}

/// A future of a rule's verdict.
pub type Judged = Pin<Box<dyn Future<Output = Verdict>>>;

/// A named rule.
#[derive(Clone, Copy)]
pub struct Rule {
    pub name: &'static str,
    pub judge: fn(Box<dyn Harness>) -> Judged,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! rules {
    ($($module:ident: $($name:ident),+ $(,)?;)+) => {
        /// Every rule.
        pub const RULES: &[Rule] = &[$($(Rule {
            name: concat!(stringify!($module), "::", stringify!($name)),
            judge: |harness| Box::pin($module::$name(harness)),
        }),+),+];
    };
}

rules! {
    inbox: order_and_cursor_inside_a_frame, bytes_end_a_batch_and_one_message_is_always_given, keys_go_to_their_partition,
        loose_messages_go_where_the_inbox_is_shortest, outputs_reach_the_next_stage, an_appended_message_is_seen_at_once,
        every_field_of_a_message_survives, bells_ring;
    refusals: fenced_by_token, stale_by_base, stale_by_seq, stale_by_cursor, done_when_repeated, input_gone_for_an_entry,
        input_gone_for_a_timer, input_gone_for_a_retry, input_gone_before_its_time, a_span_must_end_where_it_says,
        too_large_is_refused, a_fetch_proves_its_base;
    room: a_full_inbox_refuses_and_writes_nothing, a_full_dead_letter_topic_refuses, doors_stop_before_stages,
        bytes_count_too, the_room_bell_rings_under_half, parking_never_fails;
    repeats: a_key_is_remembered, a_finished_key_answers_with_its_reply, keys_expire, one_call_refused_leaves_the_others,
        sessions_skip_repeats_and_refuse_gaps, replies_reach_their_waiters;
    parking: a_lane_waits_in_order, a_failing_retry_keeps_its_place, the_next_falls_due_when_the_first_leaves,
        timers_wait_while_their_key_is_parked, a_failed_timer_is_parked_and_retried, timers_fire_replace_and_cancel,
        dead_letters_are_kept_listed_and_discarded, a_dead_letter_comes_back_once;
    keys: state_moves_with_the_commit, state_bytes_end_a_batch, a_key_s_state_is_its_own, state_is_deleted, state_is_counted, state_is_paged;
    lifecycle: a_lease_is_exclusive_and_ends_by_the_store_s_clock, release_is_clean, the_catalog_compares_and_sets,
        a_catalog_write_names_what_it_was_decided_on,
        a_removed_swarm_is_gone, a_removed_topic_begins_anew, a_removed_stage_takes_nothing_from_late_writers,
        removed_stages_are_bounded, a_clean_reopen_keeps_everything,
        a_kill_keeps_what_was_promised_and_counts_unclean, attempt_marks_count_in_a_row_and_outlive_a_kill, status_counts,
        a_look_is_of_one_moment;
    rescale: keys_keep_their_order_while_messages_flow, nothing_behind_a_seal_is_given_early, a_rescale_is_told, calls_made_for_different_numbers_go_by_the_store_s,
        timers_go_with_their_keys, what_waits_goes_to_its_new_partition, a_copy_goes_on_with_it;
    backups: every_piece_comes_back, a_life_with_rows_is_not_imported, what_is_imported_is_set_aside_until_it_is_used,
        an_export_is_one_moment;
    beats: nodes_are_seen_while_they_beat, beats_are_bounded, catalog_writes_are_told;
}

/// Runs every rule on a fresh store each; returns those that are broken, with the reason.
pub async fn run<F>(mut fresh: impl FnMut() -> F) -> Vec<(&'static str, String)>
where
    F: Future<Output = Box<dyn Harness>>,
{
    let mut broken = Vec::new();
    for rule in RULES {
        if let Err(why) = (rule.judge)(fresh().await).await {
            broken.push((rule.name, why));
        }
    }
    broken
}

macro_rules! same {
    ($left:expr, $right:expr, $what:expr) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            return Err(format!("line {}: {}: {left:?} is not {right:?}", line!(), $what));
        }
    }};
}

macro_rules! holds {
    ($cond:expr, $what:expr) => {
        if !$cond {
            return Err(format!("line {}: {}", line!(), $what));
        }
    };
}

macro_rules! refused {
    ($result:expr, $pattern:pat, $what:expr) => {
        match $result {
            Err($pattern) => {}
            other => return Err(format!("line {}: {}: got {other:?}", line!(), $what)),
        }
    };
}

pub(crate) use {holds, refused, same};
