//! What an apply would change, and what it refuses.

use std::collections::BTreeMap;

use crate::manifest::units::{show_duration, show_size};
use crate::name::SecretName;
use crate::swarm::{Ends, GuestClock, Instances, Keep, KeySource, Order, Stage, Swarm};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    Add,
    Remove,
    Change,
}

/// One line of a diff. Text is empty where there is nothing to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub kind: ChangeKind,
    /// `swarm hello`, `stage count`, `stage count: batch.messages`.
    pub what: String,
    pub before: String,
    pub after: String,
}

/// What applying `after` over `before` changes, in manifest order, removals last. Empty: nothing.
#[must_use]
pub fn changes(before: Option<&Swarm>, after: &Swarm) -> Vec<Change> {
    let mut out = Vec::new();
    let line = |kind, what: String, before: String, after: String| Change {
        kind,
        what,
        before,
        after,
    };
    let Some(before) = before else {
        out.push(line(
            ChangeKind::Add,
            format!("swarm {}", after.name),
            String::new(),
            String::new(),
        ));
        out.extend(
            after
                .stages
                .iter()
                .map(|s| line(ChangeKind::Add, format!("stage {}", s.name), String::new(), source(s))),
        );
        return out;
    };
    for stage in &after.stages {
        let Some(old) = before.stage(&stage.name) else {
            out.push(line(
                ChangeKind::Add,
                format!("stage {}", stage.name),
                String::new(),
                source(stage),
            ));
            continue;
        };
        let (old, new) = (settings(old), settings(stage));
        let mut fields: Vec<&String> = old.keys().chain(new.keys()).collect();
        fields.sort();
        fields.dedup();
        for field in fields {
            let what = format!("stage {}: {field}", stage.name);
            match (old.get(field), new.get(field)) {
                (Some(a), Some(b)) if a != b => out.push(line(ChangeKind::Change, what, a.clone(), b.clone())),
                (Some(a), None) => out.push(line(ChangeKind::Remove, what, a.clone(), String::new())),
                (None, Some(b)) => out.push(line(ChangeKind::Add, what, String::new(), b.clone())),
                _ => {}
            }
        }
    }
    for stage in before.stages.iter().filter(|s| after.stage(&s.name).is_none()) {
        out.push(line(
            ChangeKind::Remove,
            format!("stage {}", stage.name),
            source(stage),
            String::new(),
        ));
    }
    out
}

/// Why a stage may not take over the topic that `old` left: partitions and key decide where each message lies. With `rescale` the
/// number of partitions may change.
#[must_use]
pub fn misplaced(old: &Stage, new: &Stage, rescale: bool) -> Vec<String> {
    let mut out = Vec::new();
    if old.partitions != new.partitions && !rescale {
        out.push(format!(
            "stage `{}`: changing `partitions` from {} to {} needs --rescale: keys then move to other partitions while messages \
             flow, in order and with their state",
            new.name, old.partitions, new.partitions
        ));
    }
    if old.join.is_some() != new.join.is_some() {
        out.push(format!(
            "stage `{}`: a Bee {} a join, and what waits there would be lost; give the stage a new name, or remove it in one apply and \
             add it in another once it is drained",
            new.name,
            if new.join.is_some() { "becomes" } else { "is no more" }
        ));
    } else if old.place.as_ref().map(|p| &p.label) != new.place.as_ref().map(|p| &p.label) {
        let at = |stage: &Stage| match &stage.place {
            None => "the hub".to_owned(),
            Some(place) => format!("edges with {}", place.label),
        };
        out.push(format!(
            "stage `{}`: moving it from {} to {} would leave its inbox and state behind; give the stage a new name, or remove it in one apply and \
             add it in another once it is drained",
            new.name,
            at(old),
            at(new)
        ));
    } else if old.key != new.key {
        out.push(format!(
            "stage `{}`: changing `key` from {} to {} would part keys from their order and state; keep it, give the stage a new name, \
             or remove it in one apply (with --discard-state if it has any) and add it in another once it is drained",
            new.name,
            key(old.key.as_ref()),
            key(new.key.as_ref())
        ));
    }
    out
}

/// Why `after` may not be applied over `before`; empty when it may. Each names the remedy.
///
/// `state` may be turned on and off where the key stays: what was kept stays in its place, unreachable while it is off.
#[must_use]
pub fn refusals(before: &Swarm, after: &Swarm, rescale: bool) -> Vec<String> {
    let mut out: Vec<String> = after
        .stages
        .iter()
        .filter_map(|stage| Some(misplaced(before.stage(&stage.name)?, stage, rescale)))
        .flatten()
        .collect();
    let added: Vec<&Stage> = after
        .stages
        .iter()
        .filter(|s| before.stage(&s.name).is_none())
        .collect();
    for gone in before
        .stages
        .iter()
        .filter(|s| s.state && after.stage(&s.name).is_none())
    {
        if let Some(new) = added.iter().find(|s| s.bee == gone.bee).or(added.first()) {
            out.push(format!(
                "stage `{}` has state and goes while `{}` comes: renaming a stage with its state is not available in this \
                 version; keep the name `{}`, or drop its state by removing it in one apply with --discard-state and adding `{}` in the \
                 next",
                gone.name, new.name, gone.name, new.name
            ));
        }
    }
    out
}

fn source(stage: &Stage) -> String {
    match stage.builtin {
        Some(_) => stage.module.clone(),
        None => format!("{} of module {}", stage.bee, stage.module),
    }
}

fn key(key: Option<&KeySource>) -> String {
    match key {
        None => "none".to_owned(),
        Some(KeySource::Message) => "message".to_owned(),
        Some(KeySource::Origin) => "origin".to_owned(),
        Some(KeySource::All) => "all".to_owned(),
        Some(KeySource::Header(name)) => format!("header:{name}"),
        Some(KeySource::Json(pointer)) => format!("json:{pointer}"),
    }
}

/// Every field of a stage as the manifest would say it. Destructured, so that a new field cannot be forgotten here.
fn settings(stage: &Stage) -> BTreeMap<String, String> {
    let Stage {
        name: _,
        module,
        bee,
        inputs,
        key: stage_key,
        state,
        keep,
        order,
        retry,
        timeout_ms,
        batch,
        partitions,
        concurrency,
        inbox,
        dead_letters,
        instances,
        memory_bytes,
        config,
        secrets,
        http,
        models,
        clock,
        exit,
        skip,
        join,
        ends,
        place,
        // Said by `module`.
        builtin: _,
    } = stage;
    let mut inputs: Vec<String> = inputs.iter().map(|i| i.shown(" output ")).collect();
    inputs.sort();
    let mut out: BTreeMap<String, String> = [
        ("module", module.clone()),
        ("bee", bee.to_string()),
        ("input", inputs.join(", ")),
        ("key", key(stage_key.as_ref())),
        ("state", state.to_string()),
        (
            "order",
            match order {
                Order::Hold => "hold",
                Order::Relaxed => "relaxed",
            }
            .to_owned(),
        ),
        ("retry.attempts", retry.attempts.to_string()),
        ("retry.crashes", retry.crashes.to_string()),
        ("retry.backoff.first", show_duration(retry.first_ms)),
        ("retry.backoff.max", show_duration(retry.max_ms)),
        ("timeout", show_duration(*timeout_ms)),
        ("batch.messages", batch.messages.to_string()),
        ("batch.bytes", show_size(batch.bytes)),
        ("partitions", partitions.to_string()),
        ("concurrency", concurrency.to_string()),
        ("inbox.messages", inbox.messages.to_string()),
        ("inbox.bytes", show_size(inbox.bytes)),
        ("dead_letters.messages", dead_letters.messages.to_string()),
        ("dead_letters.bytes", show_size(dead_letters.bytes)),
        (
            "instances",
            match instances {
                Instances::Fresh => "fresh".to_owned(),
                Instances::Pooled { calls, age_s } => {
                    format!("pooled, {calls} calls, {}", show_duration(u64::from(*age_s) * 1_000))
                }
            },
        ),
        ("memory", show_size(*memory_bytes)),
        (
            "clock",
            match clock {
                GuestClock::Recorded => "recorded",
                GuestClock::Real => "real",
            }
            .to_owned(),
        ),
    ]
    .into_iter()
    .map(|(field, value)| (field.to_owned(), value))
    .collect();
    if let Some(budget) = retry.budget {
        out.insert("retry.budget.percent".to_owned(), budget.percent.to_string());
        out.insert("retry.budget.per_second".to_owned(), budget.per_second.to_string());
    }
    for (field, condition) in [("exit", exit), ("skip", skip)] {
        if let Some(condition) = condition {
            out.insert(field.to_owned(), condition.to_string());
        }
    }
    if let Some(ttl) = keep.ttl {
        out.insert("state.ttl".to_owned(), show_duration(ttl.ms));
        out.insert("state.refresh".to_owned(), ttl.refresh.as_str().to_owned());
    }
    // Only where it is not what every stage may keep.
    let all = Keep::default();
    if keep.keys != all.keys {
        out.insert("state.keys".to_owned(), keep.keys.to_string());
    }
    if keep.bytes != all.bytes {
        out.insert("state.bytes".to_owned(), show_size(keep.bytes));
    }
    if let Some(join) = join {
        out.insert("join.within".to_owned(), show_duration(join.within_ms));
        out.insert("join.missing".to_owned(), join.missing.as_str().to_owned());
        out.insert("join.pending".to_owned(), join.pending.to_string());
    }
    match ends {
        None => {}
        Some(Ends::Told) => {
            out.insert("ends".to_owned(), "true".to_owned());
        }
        Some(Ends::Keys(keys)) => {
            let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
            out.insert("ends".to_owned(), keys.join(", "));
        }
    }
    if let Some(place) = place {
        out.insert("place.label".to_owned(), place.label.to_string());
        out.insert("place.outbox".to_owned(), show_size(place.outbox_bytes));
        out.insert("place.when_full".to_owned(), place.when_full.as_str().to_owned());
    }
    if !secrets.is_empty() {
        let names: Vec<&str> = secrets.iter().map(SecretName::as_str).collect();
        out.insert("secrets".to_owned(), names.join(", "));
    }
    if !http.is_empty() {
        let hosts: Vec<String> = http.iter().map(ToString::to_string).collect();
        out.insert("http".to_owned(), hosts.join(", "));
    }
    if !models.is_empty() {
        let names: Vec<String> = models.iter().map(ToString::to_string).collect();
        out.insert("models".to_owned(), names.join(", "));
    }
    out.extend(
        config
            .iter()
            .map(|(name, value)| (format!("config.{name}"), value.clone())),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    fn counting(extra: &str) -> Swarm {
        let text = format!(
            "name: words\nbees:\n  - name: split\n    module: words\n    input: {{ gateway: text }}\n  - name: count\n    \
             module: words\n    input: {{ bee: split }}\n    key: message\n    state: true\n{extra}"
        );
        parse(&text).unwrap_or_else(|e| panic!("{e}"))
    }

    fn shown(before: Option<&Swarm>, after: &Swarm) -> Vec<String> {
        let sign = |kind| match kind {
            ChangeKind::Add => '+',
            ChangeKind::Remove => '-',
            ChangeKind::Change => '~',
        };
        changes(before, after)
            .iter()
            .map(|c| format!("{} {} [{}|{}]", sign(c.kind), c.what, c.before, c.after))
            .collect()
    }

    #[test]
    fn a_diff_names_stages_and_fields() {
        let before = counting("");
        assert_eq!(
            shown(None, &before),
            [
                "+ swarm words [|]",
                "+ stage split [|split of module words]",
                "+ stage count [|count of module words]"
            ]
        );
        assert!(changes(Some(&before), &before).is_empty());
        let after = counting("    batch: { messages: 7 }\n    config: { lang: en }\n    timeout: 2m\n");
        assert_eq!(
            shown(Some(&before), &after),
            [
                "~ stage count: batch.messages [256|7]",
                "+ stage count: config.lang [|en]",
                "~ stage count: timeout [30s|2m]"
            ]
        );
        let mut smaller = before.clone();
        smaller.stages.truncate(1);
        assert_eq!(
            shown(Some(&before), &smaller),
            ["- stage count [count of module words|]"]
        );
        assert!(refusals(&before, &smaller, false).is_empty());
    }

    #[test]
    fn what_would_lose_or_misplace_state_is_refused_with_the_remedy() {
        let before = counting("");
        let moved = refusals(&before, &counting("    partitions: 8\n"), false);
        assert_eq!(moved.len(), 1);
        assert!(
            moved[0].contains("`partitions` from 4 to 8 needs --rescale"),
            "{}",
            moved[0]
        );
        let mut rekeyed = before.clone();
        rekeyed.stages[1].key = Some(KeySource::Json("/word".into()));
        assert!(refusals(&before, &rekeyed, false)[0].contains("`key` from message to json:/word"));
        let mut renamed = before.clone();
        renamed.stages[1].name = "tally".parse().unwrap();
        assert!(refusals(&before, &renamed, false)[0].contains("keep the name `count`"));
        // Also where there is no key: what lies in a partition that is gone would never be read.
        let mut wider = before.clone();
        wider.stages[0].partitions = 9;
        assert!(refusals(&before, &wider, false)[0].contains("stage `split`: changing `partitions`"));
        let mut stateless = before.clone();
        stateless.stages[1].state = false;
        assert!(refusals(&before, &stateless, false).is_empty() && refusals(&stateless, &before, false).is_empty());
    }
}
