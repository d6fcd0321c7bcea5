//! The attribute and the `DevSwarm`, as a user's test sees them.

use std::time::Duration;

use skep::{DevSwarm, Emit, Failure, Message, StateError, Swarm, Timer, TimerError};

#[skep::bee]
fn say_hello(swarm: &mut Swarm, message: Message) -> skep::Result {
    let name = message.json::<serde_json::Value>()?["name"]
        .as_str()
        .unwrap_or("world")
        .to_owned();
    swarm.publish(format!("Hello {name}"));
    Ok(())
}

#[skep::bee(name = "echo")]
fn anything(swarm: &mut Swarm, message: Message) {
    swarm.respond(message);
}

#[skep::bee(timer = close)]
fn session(swarm: &mut Swarm, message: Message) -> Result<(), StateError> {
    let mut seen: Vec<String> = swarm.state().get_json("seen")?.unwrap_or_default();
    seen.push(String::from_utf8_lossy(message.payload()).into_owned());
    swarm.state().put_json("seen", &seen)?;
    if swarm.timers().after("close", Duration::from_secs(10)).is_err() {
        return Err(StateError::Unkeyed);
    }
    Ok(())
}

fn close(swarm: &mut Swarm, timer: Timer) -> skep::Result {
    let seen: Vec<String> = swarm.state().get_json("seen")?.unwrap_or_default();
    swarm.state().delete("seen")?;
    swarm.emit(
        Emit::json(&seen)?
            .key(timer.key())
            .header("due", timer.at_ms().to_string())
            .to("closed"),
    );
    Ok(())
}

#[skep::bee(batch)]
fn upper(swarm: &mut Swarm, messages: Vec<Message>) {
    for (index, message) in messages.into_iter().enumerate() {
        swarm.at(index);
        match message.text() {
            Ok(text) => swarm.publish(text.to_uppercase()),
            Err(error) => swarm.fail(error),
        }
    }
}

#[skep::bee]
fn configured(swarm: &mut Swarm, _: Message) -> skep::Result {
    let greeting = swarm.config("greeting")?.unwrap_or_else(|| "Hello".to_owned());
    swarm.reply_part(&greeting)?;
    swarm.publish_to("greetings", greeting);
    swarm.respond_json(&swarm.attempt())?;
    Ok(())
}

#[test]
fn a_bee_is_a_plain_function() {
    let mut swarm = DevSwarm::new();
    say_hello(&mut swarm, Message::new(r#"{"name":"Bee"}"#)).unwrap();
    say_hello(&mut swarm, Message::new("{}")).unwrap();
    assert_eq!(swarm.published()[0].text(), "Hello Bee");
    assert_eq!(swarm.published()[1].text(), "Hello world");
    let error = say_hello(&mut swarm, Message::new("not JSON")).unwrap_err();
    assert!(matches!(error.failure(), Failure::Reject(_)), "{error}");
}

#[test]
fn every_bee_registers_itself() {
    assert_eq!(
        DevSwarm::bees(),
        ["configured", "echo", "say-hello", "session", "upper"]
    );
    let mut swarm = DevSwarm::new();
    assert!(
        swarm
            .run("echo", vec![Message::new("a"), Message::new("b")])
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(swarm.responded().len(), 2);
    let results = swarm.run(
        "upper",
        vec![Message::new("a"), Message::new([0xff]), Message::new("b")],
    );
    assert_eq!(
        results.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [true, false, true]
    );
    assert_eq!(
        swarm.take_published().iter().map(Emit::text).collect::<Vec<_>>(),
        ["A", "B"]
    );
    swarm.run_timer("session", Timer::new("k", "close", 7)).unwrap();
    assert_eq!(swarm.take_published()[0].headers()[0].1, "7");
    let error = swarm.run_timer("echo", Timer::new("k", "close", 7)).unwrap_err();
    assert!(error.to_string().contains("timer = FUNCTION"), "{error}");
    let error = swarm.run("no-one", vec![Message::new("")]).remove(0).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("it has: configured, echo, say-hello, session, upper"),
        "{error}"
    );
}

#[test]
fn state_and_timers_belong_to_the_key() {
    let mut swarm = DevSwarm::new();
    assert_eq!(
        session(&mut swarm, Message::new("x")),
        Err(StateError::Unkeyed),
        "a plain call has no key"
    );
    for (key, text, at) in [("a", "1", 1_000), ("b", "2", 2_000), ("a", "3", 5_000)] {
        swarm
            .deliver(session, Message::new(text).with_key(key).with_accepted_ms(at))
            .unwrap();
    }
    assert_eq!(swarm.stored("a", "seen"), Some(br#"["1","3"]"#.as_slice()));
    let pending: Vec<_> = swarm
        .pending_timers()
        .iter()
        .map(|t| (t.key().to_owned(), t.at_ms()))
        .collect();
    assert_eq!(
        pending,
        [("a".to_owned(), 15_000), ("b".to_owned(), 12_000)],
        "the same name replaces"
    );

    assert_eq!(swarm.fire_until(11_999, close).unwrap(), 0);
    assert_eq!(swarm.fire_until(20_000, close).unwrap(), 2);
    let published = swarm.take_published();
    assert_eq!(published[0].message_key(), Some("b"), "the earlier one first");
    assert_eq!(published[1].text(), r#"["1","3"]"#);
    assert_eq!(published[1].output(), Some("closed"));
    assert_eq!(published[1].headers(), [("due".to_owned(), "15000".to_owned())]);
    assert_eq!(swarm.stored("a", "seen"), None);
    assert!(swarm.pending_timers().is_empty());

    let mut swarm = DevSwarm::keyed("k");
    session(&mut swarm, Message::new("x")).unwrap();
    assert_eq!(swarm.stored("k", "seen"), Some(br#"["x"]"#.as_slice()));
    swarm.timers().cancel("close").unwrap();
    assert!(swarm.pending_timers().is_empty());
}

#[test]
fn an_error_drops_what_was_done_for_its_message() {
    fn failing(swarm: &mut Swarm, _: Message) -> skep::Result {
        swarm.publish("lost");
        swarm.respond("lost");
        swarm.state().put("n", "lost")?;
        swarm.timers().set("t", 1)?;
        Err(skep::Error::retry_after(Duration::from_secs(1)))
    }
    let mut swarm = DevSwarm::new();
    swarm.store("k", "n", "kept");
    swarm.publish("kept");
    assert!(swarm.deliver(failing, Message::new("").with_key("k")).is_err());
    assert_eq!(swarm.published().len(), 1);
    assert!(swarm.responded().is_empty() && swarm.pending_timers().is_empty());
    assert_eq!(swarm.stored("k", "n"), Some(b"kept".as_slice()));

    swarm.deliver(session, Message::new("").with_key("k")).unwrap();
    let error = swarm.fire_until(u64::MAX, |swarm: &mut Swarm, _: Timer| -> skep::Result {
        swarm.publish("lost");
        Err(skep::Error::reject("no"))
    });
    assert!(error.is_err());
    assert_eq!(swarm.pending_timers().len(), 1, "a timer whose firing failed stays set");
    assert_eq!(swarm.published().len(), 1);
}

#[test]
fn numbers_and_values_of_a_type() {
    let mut swarm = DevSwarm::keyed("k");
    let mut state = swarm.state();
    assert_eq!((state.add("n", 2), state.add("n", -5)), (Ok(2), Ok(-3)));
    state.put_json("n", &i64::MAX).unwrap();
    assert!(matches!(state.add("n", 1), Err(StateError::Json { .. })));
    assert_eq!(state.get_json::<i64>("n"), Ok(Some(i64::MAX)), "nothing was written");
    let mut list = state.value::<Vec<u8>>("list");
    assert_eq!(list.get(), Ok(None));
    for n in 1..3 {
        list.update(|list| list.unwrap_or_default().into_iter().chain([n]).collect())
            .unwrap();
    }
    assert_eq!(list.get(), Ok(Some(vec![1, 2])));
    list.delete().unwrap();
    assert_eq!(list.get(), Ok(None));
    state.put("text", "no number").unwrap();
    assert!(matches!(state.add("text", 1), Err(StateError::Json { .. })));
    assert!(matches!(state.value::<u8>("text").get(), Err(StateError::Json { .. })));
}

#[test]
fn bounds_are_a_nodes() {
    let mut swarm = DevSwarm::keyed("k");
    assert_eq!(
        swarm.state().put("n", vec![0; (256 << 10) + 1]),
        Err(StateError::TooLarge(256 << 10))
    );
    assert_eq!(swarm.state().put(&"n".repeat(257), ""), Err(StateError::TooLarge(256)));
    for n in 0..1_000 {
        swarm.state().put(&n.to_string(), "").unwrap();
        swarm.timers().set(&n.to_string(), 0).unwrap();
    }
    swarm.state().put("7", "again").unwrap();
    assert_eq!(swarm.state().put("one more", ""), Err(StateError::Quota));
    assert_eq!(swarm.timers().set("one more", 0), Err(TimerError::Quota));

    // Names count as well, so sixteen of the largest values are one too many.
    let mut swarm = DevSwarm::keyed("k");
    let largest = || vec![0; 256 << 10];
    for n in 0..15 {
        swarm.state().put(&n.to_string(), largest()).unwrap();
    }
    assert_eq!(swarm.state().put("15", largest()), Err(StateError::Quota));
    swarm.state().put("14", largest()).unwrap();
    swarm.state().delete("14").unwrap();
    swarm.state().put("15", largest()).unwrap();
}

#[test]
fn configuration_attempt_and_parts() {
    let mut swarm = DevSwarm::new().with_config("greeting", "Good day");
    configured(&mut swarm, Message::new("")).unwrap();
    swarm.deliver(configured, Message::new("").with_attempt(3)).unwrap();
    assert_eq!(swarm.published()[0].text(), "Good day");
    assert_eq!(
        swarm.responded().iter().map(skep::Payload::text).collect::<Vec<_>>(),
        ["1", "3"]
    );
    assert_eq!(swarm.parts().len(), 2);
}

#[test]
fn what_one_bee_publishes_the_next_receives() {
    let mut swarm = DevSwarm::new();
    swarm.emit(Emit::new("x").key("k").header("a", "b"));
    let message = Message::from(swarm.take_published().remove(0));
    assert_eq!(
        (message.key(), message.header("A"), message.payload()),
        (Some("k"), Some("b"), b"x".as_slice())
    );
}
