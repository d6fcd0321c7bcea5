//! Keyed state.

use std::collections::BTreeMap;

use super::actors::{Reason, World, put};
use super::{Harness, Stop, Verdict, holds, same};
use crate::StatePut;

pub(super) async fn state_moves_with_the_commit(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let spec = world.spec("a", 1);
    world.words(&spec, Some("k"), &["1", "2"]).await?;
    let mut owner = world.own(&spec, 0).await?;
    let fetched = owner.fetch(1).await?;
    holds!(
        fetched.state.get("k").is_some_and(|s| s.is_empty()),
        "no state at first"
    );
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit.state = vec![put("k", "a", "1"), put("k", "b", ""), put("k", "a", "2")];
    owner.must(commit).await?;
    let fetched = owner.fetch(1).await?;
    same!(fetched.state["k"]["a"], b"2"[..], "the last write wins");
    same!(fetched.state["k"]["b"], b""[..], "an empty value is a value");
    let mut want = owner.want(1);
    want.state = false;
    holds!(
        owner.backend.fetch(&owner.lease, want).await.why()?.state.is_empty(),
        "only when wanted"
    );
    drop(owner);
    if world.harness.reopen(Stop::Clean).await {
        let state = world.backend().state(&spec.id, "k").await.why()?;
        same!((state.len(), &state["a"][..]), (2, &b"2"[..]), "after reopening");
    }
    Ok(())
}

pub(super) async fn state_bytes_end_a_batch(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    let mut owner = world.own(&spec, 0).await?;
    let mut commit = world.commit(&owner);
    commit.state = vec![
        put("k", "n", "123456789"),
        put("l", "n", "123456789"),
        put("m", "n", "1"),
    ];
    owner.must(commit).await?;
    for (key, word) in [("k", "1"), ("k", "2"), ("l", "3"), ("l", "4"), ("m", "5"), ("k", "6")] {
        world.words(&spec, Some(key), &[word]).await?;
    }
    for (bytes, given) in [(0, 2), (1, 2), (10, 2), (11, 4), (20, 4), (21, 6)] {
        let mut want = owner.want(10);
        want.state_bytes = bytes;
        let fetched = owner.backend.fetch(&owner.lease, want).await.why()?;
        same!(
            fetched.messages.len(),
            given,
            format!("messages for {bytes} bytes of state")
        );
        for unread in &fetched.messages {
            let key = unread.message.key.as_deref().unwrap_or_default();
            holds!(
                fetched.state.get(key).is_some_and(|values| values.len() == 1),
                format!("the state of each message's key, {bytes} bytes")
            );
        }
    }
    Ok(())
}

pub(super) async fn a_key_s_state_is_its_own(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (a, b) = (world.spec("a", 1), world.spec("b", 1));
    let mut owner = world.own(&a, 0).await?;
    let mut commit = world.commit(&owner);
    // Keys that would be one if key and name were joined without care.
    commit.state = vec![
        put("k", "x/y", "1"),
        put("k/x", "y", "2"),
        put("", "z", "3"),
        put("K", "x/y", "4"),
    ];
    owner.must(commit).await?;
    for (key, name, value) in [("k", "x/y", "1"), ("k/x", "y", "2"), ("", "z", "3"), ("K", "x/y", "4")] {
        let state = world.backend().state(&a.id, key).await.why()?;
        same!(state.len(), 1, format!("key `{key}`"));
        same!(state[name], value.as_bytes(), format!("key `{key}`"));
    }
    holds!(
        world.backend().state(&b.id, "k").await.why()?.is_empty(),
        "another stage's"
    );
    same!(world.backend().state_size(&a.id).await.why()?.keys, 4, "counted");
    Ok(())
}

pub(super) async fn state_is_deleted(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    let mut owner = world.own(&spec, 0).await?;
    let mut commit = world.commit(&owner);
    commit.state = vec![put("k", "a", "1"), put("k", "b", "2")];
    owner.must(commit).await?;
    let mut commit = world.commit(&owner);
    let delete = |name: &str| StatePut {
        key: "k".to_owned(),
        name: name.to_owned(),
        value: None,
    };
    commit.state = vec![delete("a"), delete("never")];
    owner.must(commit).await?;
    let state = world.backend().state(&spec.id, "k").await.why()?;
    same!(state.keys().collect::<Vec<_>>(), ["b"], "one left");
    let mut commit = world.commit(&owner);
    commit.state = vec![delete("b")];
    owner.must(commit).await?;
    same!(world.backend().state_size(&spec.id).await.why()?.keys, 0, "none left");
    Ok(())
}

pub(super) async fn state_is_counted(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let spec = world.spec("a", 1);
    let mut owner = world.own(&spec, 0).await?;
    let large = "x".repeat(skep_model::limits::STATE_INLINE_BYTES_MAX + 1);
    let delete = |key: &str, name: &str| StatePut {
        key: key.to_owned(),
        name: name.to_owned(),
        value: None,
    };
    // Each step on the one before it: what is there, what is not, what the owner knows whole and what it does not, small and large.
    let n = large.len() as u64;
    let steps = [
        (vec![put("k", "a", "123"), put("k", "b", "")], (1, 6)),
        (vec![put("k", "a", "1"), put("ké", "a", "1")], (2, 9)),
        (
            vec![delete("k", "a"), put("k", "c", "12"), delete("none", "a")],
            (2, 10),
        ),
        (
            vec![put("k", "b", &large), put("k", "b", &large), put("l", "a", "1")],
            (3, 13 + n),
        ),
        (vec![put("k", "c", ""), put("k", "d", "1")], (3, 13 + n)),
        (vec![delete("k", "b"), delete("k", "never")], (3, 12)),
        (vec![delete("k", "c"), delete("k", "d"), delete("l", "a")], (1, 5)),
        (vec![put("k", "a", "1"), delete("k", "a")], (1, 5)),
        (vec![delete("ké", "a")], (0, 0)),
        (vec![put("m", "a", "1")], (1, 3)),
    ];
    for (at, (state, (keys, bytes))) in steps.into_iter().enumerate() {
        // So that some of what a step writes was read before, as a Bee's is.
        if at % 2 == 0 {
            for put in &state {
                world.words(&spec, Some(&put.key), &["1"]).await?;
            }
        }
        let fetched = owner.fetch(100).await?;
        let mut commit = world.consuming(&owner, &fetched, fetched.messages.len());
        commit.state = state;
        owner.must(commit).await?;
        let size = world.backend().state_size(&spec.id).await.why()?;
        same!((size.keys, size.bytes), (keys, bytes), format!("after step {at}"));
        same!(
            owner.fetch(1).await?.state_size,
            size,
            format!("a fetch says so too, step {at}")
        );
    }
    drop(owner);
    if world.harness.reopen(Stop::Clean).await {
        let size = world.backend().state_size(&spec.id).await.why()?;
        same!((size.keys, size.bytes), (1, 3), "after reopening");
    }
    Ok(())
}

pub(super) async fn state_is_paged(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let (spec, other) = (world.spec("a", 1), world.spec("b", 1));
    holds!(
        world.backend().state_page(&spec.id, "").await.why()?.keys.is_empty(),
        "none at first"
    );
    let mut expected = BTreeMap::new();
    let mut owner = world.own(&spec, 0).await?;
    let large = "x".repeat(3 * skep_model::limits::STATE_INLINE_BYTES_MAX);
    for slice in 0..4 {
        let mut commit = world.commit(&owner);
        for n in 0..200 {
            let key = format!("key/{slice}/{n}");
            let value = if n % 50 == 7 { large.as_str() } else { "v" };
            commit.state.extend([put(&key, "a", value), put(&key, "", "")]);
            expected.insert(key, (value.len(), 2));
        }
        owner.must(commit).await?;
    }
    drop(owner);
    let mut owner = world.own(&other, 0).await?;
    let mut commit = world.commit(&owner);
    commit.state = vec![put("another's", "a", "1")];
    owner.must(commit).await?;
    drop(owner);
    for reopened in [false, true] {
        let mut found = BTreeMap::new();
        let (mut after, mut pages) = (String::new(), 0);
        loop {
            let page = world.backend().state_page(&spec.id, &after).await.why()?;
            found.extend(
                page.keys
                    .into_iter()
                    .map(|(key, values)| (key, (values["a"].len(), values.len()))),
            );
            pages += 1;
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        same!(found, expected, format!("every key, reopened: {reopened}"));
        holds!(pages > 1, "in several pages");
        if !world.harness.reopen(Stop::Clean).await {
            break;
        }
    }
    Ok(())
}
