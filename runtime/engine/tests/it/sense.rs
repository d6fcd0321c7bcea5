use std::time::{SystemTime, UNIX_EPOCH};

use skep_engine::BeeSettings;
use skep_model::swarm::GuestClock;

use crate::zoo::{answers, batch, bee, due, message, plain};

#[tokio::test]
async fn the_clock_shows_when_the_input_was_accepted() {
    let inputs = vec![message(1, ""), message(9, ""), due(2, "k", "t", 4_000)];
    let clock = bee("clock", plain()).await;
    assert_eq!(
        answers(clock.process(batch(inputs)).await),
        ["1700000000001", "1700000000009", "4000"]
    );
}

#[tokio::test]
async fn random_numbers_are_the_same_at_each_attempt_and_differ_by_input() {
    let random = bee("random", plain()).await;
    let first = answers(random.process(batch(vec![message(1, ""), message(2, "")])).await);
    assert_ne!(first[0], first[1]);
    // Alone, in another instance, after other inputs: the uid decides.
    assert_eq!(answers(random.process(batch(vec![message(2, "")])).await), first[1..]);
    let other_stage = BeeSettings {
        stage_digest: skep_model::id::Digest::of(b"other"),
        ..plain()
    };
    let shadow = bee("random", other_stage).await;
    assert_eq!(answers(shadow.process(batch(vec![message(1, "")])).await), first[..1]);
}

#[tokio::test]
async fn a_stage_may_ask_for_the_real_thing() {
    let real = BeeSettings {
        clock: GuestClock::Real,
        ..plain()
    };
    let random = bee("random", real.clone()).await;
    let one = answers(random.process(batch(vec![message(1, "")])).await);
    assert_ne!(one, answers(random.process(batch(vec![message(1, "")])).await));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let told: u128 = answers(bee("clock", real).await.process(batch(vec![message(1, "")])).await)[0]
        .parse()
        .unwrap();
    assert!(told.abs_diff(now) < 60_000, "{told} {now}");
}
