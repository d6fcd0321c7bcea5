use std::sync::Arc;

use skep_model::step::{Disposition, Due, Emit, Joined, LogLevel, Outcome, StateWrite, TimerWrite, TrapKind};
use skep_model::tensor::{Port, Signature, Tensor, TensorType};

use super::super::codec::written;
use super::*;
use crate::egress::DialCause;

fn read<T: Wire>(bytes: Vec<u8>) -> T {
    Reader::new(bytes.into(), 1 << 20).whole().unwrap()
}

fn message(key: Option<&str>) -> Message {
    Message {
        uid: Uid([3; 16]),
        key: key.map(str::to_owned),
        headers: vec![("a".to_owned(), "ü".to_owned())],
        payload: Bytes::from_static(b"\x00payload"),
        accepted_ms: 17,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    }
}

#[derive(Debug)]
struct Nobody;

impl skep_model::part::Parts for Nobody {
    fn part(&self, _: usize, _: Bytes) -> std::pin::Pin<Box<dyn Future<Output = Result<(), NoPart>> + Send + '_>> {
        Box::pin(std::future::ready(Err(NoPart::NoCaller)))
    }
}

#[test]
fn a_call_arrives_as_it_was_and_takes_no_more_than_was_reckoned() {
    let due = Due {
        uid: Uid([4; 16]),
        key: "k".to_owned(),
        name: "tick".to_owned(),
        at_ms: 5,
        attempt: 2,
    };
    let joined = Joined {
        uid: Uid([5; 16]),
        parts: vec![
            ("left".to_owned(), message(Some("x"))),
            ("right".to_owned(), message(None)),
        ],
        attempt: 1,
    };
    let batch = Batch {
        inputs: vec![
            Input::Message {
                message: message(Some("k")),
                attempt: 3,
            },
            Input::Timer(due),
            Input::Joined(joined),
        ],
        state: [("k".to_owned(), [("n".to_owned(), Bytes::from_static(b"v"))].into())].into(),
        room: StateRoom { keys: 1, bytes: 2 },
        parts: Some(Arc::new(Nobody)),
    };
    let call = CallOut {
        bee: 9,
        secrets: &[("token", Some(b"abc")), ("gone", None)],
        batch: &batch,
    };
    let bytes = written(&call);
    assert!(bytes.len() <= call.size(), "{} {}", bytes.len(), call.size());
    let ToGuest::Call(came) = read(bytes) else { panic!() };
    assert_eq!((came.bee, came.parts), (9, true));
    assert_eq!(came.batch.inputs, batch.inputs);
    assert_eq!(came.batch.state, batch.state);
    assert_eq!(came.batch.room, batch.room);
    assert_eq!(came.secrets["token"], Some(b"abc".to_vec()));
    assert_eq!(came.secrets["gone"], None);
}

#[test]
fn answers_and_asks_arrive_as_they_were() {
    let step = Step {
        outcome: Outcome {
            publish: vec![Emit {
                to: Some("out".to_owned()),
                key: None,
                headers: vec![("h".to_owned(), "v".to_owned())],
                payload: Bytes::from_static(b"p"),
            }],
            respond: vec![Bytes::from_static(b"r")],
            disposition: Disposition::Fail {
                reason: "a".to_owned(),
                detail: "b".to_owned(),
            },
        },
        state: vec![StateWrite {
            name: "n".to_owned(),
            value: None,
        }],
        timers: vec![TimerWrite {
            name: "t".to_owned(),
            at_ms: Some(1),
        }],
    };
    let done = Done {
        result: Ok(vec![step.clone()]),
        log: vec![LogLine {
            level: LogLevel::Critical,
            context: "c".to_owned(),
            text: "t".to_owned(),
            input: Some(0),
        }],
    };
    let ToHost::Done(came) = read(written(&ToHost::Done(Box::new(done)))) else {
        panic!()
    };
    assert_eq!(came.result, Ok(vec![step]));
    assert_eq!(came.log[0].level, LogLevel::Critical);

    let tensor = Tensor::from_f32(vec![2, 1], &[1.0, 2.0]).unwrap();
    let ask = Ask::Predict {
        name: "m".parse().unwrap(),
        digest: Digest([1; 32]),
        inputs: vec![("x".to_owned(), tensor.clone())],
        within_ms: Some(5),
    };
    let ToHost::Ask(7, Ask::Predict { inputs, .. }) = read(written(&ToHost::Ask(7, ask))) else {
        panic!()
    };
    assert_eq!(inputs[0].1, tensor);
    let version = ModelVersion {
        name: "m".parse().unwrap(),
        digest: Digest([1; 32]),
        tags: vec!["latest".to_owned()],
        signature: Signature {
            inputs: vec![Port {
                name: "x".to_owned(),
                kind: TensorType::Fp32,
                shape: vec![None, Some(1)],
            }],
            outputs: Vec::new(),
        },
    };
    let answer = ToGuest::Answer(1, Answer::Found(Ok(version.clone())));
    let ToGuest::Answer(1, Answer::Found(found)) = read(written(&answer)) else {
        panic!()
    };
    assert_eq!(found, Ok(version));
    let told = Told {
        module: Digest([2; 32]),
        name: "bee".parse().unwrap(),
        memory_bytes: 1,
        cpu_ms: 2,
        wall_ms: 3,
        keyed: true,
        state: false,
        config: [("a".to_owned(), "b".to_owned())].into(),
        real_clock: true,
        pooled: Some((4, 5)),
        stage_digest: Digest([6; 32]),
        http: Some(vec!["https://api.example.com:8443".parse().unwrap()]),
        models: Some(vec!["m:v1".parse().unwrap()]),
    };
    let ToGuest::Bee(came) = read(written(&ToGuest::Bee(Box::new(told.clone())))) else {
        panic!()
    };
    assert_eq!(*came, told);
}

#[test]
fn every_value_of_a_list_has_its_number() {
    fn all<T: Wire + PartialEq + std::fmt::Debug>(values: &[T]) {
        for value in values {
            assert_eq!(read::<T>(written(value)), *value);
        }
        let past = Bytes::from(vec![u8::try_from(values.len()).unwrap()]);
        assert!(Reader::new(past, 0).whole::<T>().is_err());
    }
    use LogLevel as L;
    all(&[L::Trace, L::Debug, L::Info, L::Warn, L::Error, L::Critical]);
    use TrapKind as T;
    all(&[
        T::Host,
        T::Trap,
        T::CpuTime,
        T::WallTime,
        T::Memory,
        T::Output,
        T::Contract,
    ]);
    all(&[Scheme::Http, Scheme::Https]);
    use DialCause as D;
    all(&[
        D::Other,
        D::Dns,
        D::NoAddress,
        D::Prohibited,
        D::Refused,
        D::TimedOut,
        D::Unreachable,
        D::BadHost,
        D::Certificate,
        D::Tls,
        D::Denied,
        D::Crowded,
        D::Configuration,
    ]);
    use skep_model::error::ErrorKind as E;
    all(&[
        E::Internal,
        E::Invalid,
        E::NotFound,
        E::Conflict,
        E::Overloaded,
        E::DeadlineExceeded,
        E::Unavailable,
        E::Rejected,
        E::Failed,
        E::Unauthenticated,
        E::Forbidden,
    ]);
    // Both say that a message was not run, which only its owner knows.
    assert_eq!(written(&T::Crash), written(&T::Host));
    assert_eq!(written(&T::Interrupted), written(&T::Host));
}
