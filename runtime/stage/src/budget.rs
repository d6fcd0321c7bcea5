//! Retry budgets: how much of a stage's work may be retries.
//!
//! A failure that hits every message, a service that is away, makes of each input as many as its attempts allow, just when the stage is
//! slowest. With a budget retries are at most a share of what came lately, beside a few that are always allowed, so that a quiet stage
//! tries again as well. As Finagle and Linkerd have it. It is kept in memory, by each node for the partitions that it owns.

use skep_model::limits::RETRY_BUDGET_SECONDS;
use skep_model::swarm::RetryBudget;

const SECONDS: usize = RETRY_BUDGET_SECONDS as usize;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Second {
    at: u64,
    inputs: u64,
    retries: u64,
}

/// What a stage was given and tried again in the last seconds.
#[derive(Debug, Default)]
pub struct Budget {
    seconds: [Second; SECONDS],
}

impl Budget {
    /// How many more may be tried again at this moment.
    #[must_use]
    pub fn left(&self, rule: RetryBudget, now_ms: u64) -> u64 {
        let now = now_ms / 1_000;
        // A clock that steps back forgets nothing.
        let lately = self
            .seconds
            .iter()
            .filter(|s| now.saturating_sub(s.at) < RETRY_BUDGET_SECONDS);
        let (inputs, retries) = lately.fold((0u64, 0u64), |(i, r), s| (i + s.inputs, r + s.retries));
        let share = inputs.saturating_mul(rule.percent.into()) / 100;
        (share + u64::from(rule.per_second) * RETRY_BUDGET_SECONDS).saturating_sub(retries)
    }

    /// `inputs`: those that came for the first time.
    pub fn note(&mut self, now_ms: u64, inputs: u64, retries: u64) {
        let at = now_ms / 1_000;
        let second = &mut self.seconds[usize::try_from(at % RETRY_BUDGET_SECONDS).unwrap_or(0)];
        if second.at != at {
            *second = Second {
                at,
                ..Second::default()
            };
        }
        second.inputs = second.inputs.saturating_add(inputs);
        second.retries = second.retries.saturating_add(retries);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: RetryBudget = RetryBudget {
        percent: 20,
        per_second: 1,
    };

    #[test]
    fn a_share_of_what_came_lately_and_some_in_any_case() {
        let mut budget = Budget::default();
        assert_eq!(budget.left(RULE, 50_000), 10);
        budget.note(50_000, 100, 25);
        assert_eq!(budget.left(RULE, 59_999), 5);
        budget.note(55_000, 0, 5);
        assert_eq!(budget.left(RULE, 55_000), 0);
        // What came ten seconds ago counts no more; what was tried again since does.
        assert_eq!(budget.left(RULE, 60_000), 5);
        assert_eq!(budget.left(RULE, 65_000), 10);
    }

    proptest! {
        /// Against a list of all that ever happened.
        #[test]
        fn it_is_what_a_list_of_everything_says(
            rule in (0u32..300, 0u32..5),
            events in proptest::collection::vec((0u64..4_000, 0u64..50, 0u64..50), 0..60),
        ) {
            let rule = RetryBudget { percent: rule.0, per_second: rule.1 };
            let (mut budget, mut all, mut now) = (Budget::default(), Vec::<(u64, u64, u64)>::new(), 1_000_000u64);
            for (later, inputs, wanted) in events {
                now += later;
                let lately: Vec<&(u64, u64, u64)> = all.iter().filter(|(at, ..)| now / 1_000 - at / 1_000 < 10).collect();
                let inputs_lately: u64 = lately.iter().map(|(_, inputs, _)| inputs).sum();
                let retries: u64 = lately.iter().map(|(.., retries)| retries).sum();
                let allowed = inputs_lately * u64::from(rule.percent) / 100 + u64::from(rule.per_second) * 10;
                prop_assert_eq!(budget.left(rule, now), allowed.saturating_sub(retries));
                let retried = wanted.min(budget.left(rule, now));
                budget.note(now, inputs, retried);
                all.push((now, inputs, retried));
            }
        }
    }
}
