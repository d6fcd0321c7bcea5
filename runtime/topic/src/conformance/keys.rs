//! Keyed state.

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
    same!(world.backend().keys(&a.id).await.why()?, 4, "counted");
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
    same!(world.backend().keys(&spec.id).await.why()?, 0, "none left");
    Ok(())
}
