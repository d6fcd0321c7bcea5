use std::collections::BTreeMap;

use skep_engine::{BeeSettings, Error};
use skep_model::Bytes;
use skep_model::limits;
use skep_model::step::{Disposition, Emit, LogLevel, Outcome, Step, TrapKind};

use crate::zoo::{answers, batch, bee, due, keyed, message, module, once, plain, steps, trap};

#[tokio::test]
async fn what_goes_in_comes_out() {
    let input = keyed(7, "k", "payload");
    let processed = bee("echo", plain()).await.process(batch(vec![input])).await;
    assert!(processed.log.is_empty());
    let [step] = steps(processed).try_into().unwrap();
    assert_eq!(
        step,
        Step {
            outcome: Outcome {
                publish: vec![Emit {
                    to: None,
                    key: Some("k".into()),
                    headers: vec![("h".into(), "7".into())],
                    payload: Bytes::from("payload"),
                }],
                respond: vec![Bytes::from("payload")],
                disposition: Disposition::Done,
            },
            state: Vec::new(),
            timers: Vec::new(),
        }
    );
}

#[tokio::test]
async fn a_batch_keeps_its_order_and_mixes_messages_with_timers() {
    let echo = bee("echo", plain()).await;
    let mut inputs: Vec<_> = (0..200).map(|n| message(n, vec![n; usize::from(n) * 10])).collect();
    inputs.push(due(201, "key", "wake", 77));
    let steps = steps(echo.process(batch(inputs)).await);
    assert_eq!(steps.len(), 201);
    for (n, step) in steps[..200].iter().enumerate() {
        assert_eq!(step.outcome.respond[0], vec![n as u8; n * 10], "{n}");
    }
    assert_eq!(steps[200].outcome.respond[0], "key wake 77 2");
    assert!(echo.process(batch(Vec::new())).await.result.unwrap().is_empty());
}

#[tokio::test]
async fn every_disposition_arrives() {
    let inputs = ["done", "retry", "reject", "fail"]
        .iter()
        .map(|&t| message(1, t))
        .collect();
    let steps = steps(bee("dispositions", plain()).await.process(batch(inputs)).await);
    let found: Vec<_> = steps.iter().map(|s| s.outcome.disposition.clone()).collect();
    assert_eq!(
        found,
        [
            Disposition::Done,
            Disposition::RetryAfter(250),
            Disposition::Reject("no".into()),
            Disposition::Fail {
                reason: "r".into(),
                detail: "d".into()
            },
        ]
    );
    let emit = &steps[0].outcome.publish[0];
    assert_eq!((emit.to.as_deref(), emit.key.as_deref()), (Some("side"), Some("k")));
}

#[tokio::test]
async fn the_module_names_its_bees_and_settings_are_checked() {
    let module = module().await;
    assert!(module.bees().iter().any(|b| b.as_str() == "echo"));
    let none = module.bee(&"nobody".parse().unwrap(), plain()).err().unwrap();
    assert!(matches!(none, Error::NoSuchBee { .. }));
    assert!(none.to_string().contains("echo"), "{none}");
    for settings in [
        BeeSettings {
            memory_bytes: limits::MEMORY_BYTES_MAX + 1,
            ..plain()
        },
        BeeSettings { cpu_ms: 0, ..plain() },
        BeeSettings {
            wall_ms: limits::STAGE_TIMEOUT_MS_MAX + 1,
            ..plain()
        },
    ] {
        let error = module.bee(&"echo".parse().unwrap(), settings).err().unwrap();
        assert!(matches!(error, Error::BadSetting { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_wrong_number_of_outcomes_is_a_breach_of_contract() {
    for name in ["few", "extra"] {
        let trap = trap(once(name, plain()).await);
        assert_eq!(trap.kind, TrapKind::Contract, "{trap}");
        assert!(trap.detail.contains("outcomes for 1 inputs"), "{trap}");
    }
}

#[tokio::test]
async fn configuration_is_read_through_wasi_config() {
    let settings = BeeSettings {
        config: BTreeMap::from([("colour".into(), "amber".into()), ("x".into(), "y".into())]),
        ..plain()
    };
    let answers = answers(once("config", settings).await);
    assert_eq!(answers, ["Ok(Some(\"amber\")) Ok(None) 2"]);
}

#[tokio::test]
async fn log_lines_are_kept_in_order_and_made_safe() {
    let processed = once("log", plain()).await;
    let lines: Vec<_> = processed
        .log
        .iter()
        .map(|l| (l.level, l.context.as_str(), l.text.as_str(), l.input))
        .collect();
    assert_eq!(
        lines,
        [
            (LogLevel::Warn, "ctx", "tab\\there\\nand \\u{1b}[31mred", Some(0)),
            (LogLevel::Info, "stdout", "to stdout", Some(0)),
            (LogLevel::Warn, "stderr", "no newline", Some(0)),
        ]
    );
}

#[tokio::test]
async fn a_flood_of_log_lines_is_bounded_and_told() {
    let processed = once("log-flood", plain()).await;
    assert!(processed.result.is_ok());
    let bytes: usize = processed.log.iter().map(|l| l.text.len() + l.context.len()).sum();
    assert!(bytes <= limits::LOG_BYTES_PER_CALL_MAX + 1_024, "{bytes}");
    assert!(processed.log.len() <= limits::LOG_LINES_PER_CALL_MAX + 1);
    assert!(processed.log.last().unwrap().text.contains("were dropped"));
    assert!(processed.log.iter().all(|l| !l.text.contains('\x1b')));
}

#[tokio::test]
async fn there_is_nothing_to_see_outside() {
    assert_eq!(answers(once("env", plain()).await), ["0 0"]);
    assert_eq!(answers(once("files", plain()).await), ["true true true"]);
    assert_eq!(answers(once("reply", plain()).await), ["Err(Error::NoCaller)"]);
}

#[test]
fn a_call_may_come_from_any_runtime_and_outlive_none() {
    let build = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let echo = build().block_on(bee("echo", plain()));
    for n in 0..3 {
        let done = build().block_on(echo.process(batch(vec![message(n, "x")])));
        assert_eq!(answers(done), ["x"]);
    }
}
