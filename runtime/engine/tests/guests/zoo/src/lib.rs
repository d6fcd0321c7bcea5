//! One Bee for each thing that the engine promises to survive or to keep. Written against the bare WIT, as any toolchain may.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

wit_bindgen::generate!({ path: "../../../../../proto/wit", world: "module", generate_all });

use exports::skep::bee::handler::{Bee, Guest};
use skep::bee::types::{Disposition, Emit, Failure, Input, Message, Outcome};
use skep::bee::{reply, state, step, timers};
use wasi::logging::logging::{Level, log};

struct Zoo;
export!(Zoo);

const BEES: &[&str] = &[
    "echo",
    "nop",
    "panic",
    "loop",
    "sleep",
    "bomb",
    "recurse",
    "exit",
    "stderr-flood",
    "log-flood",
    "huge-output",
    "many-outcomes",
    "wide-outputs",
    "few",
    "extra",
    "state",
    "no-step",
    "abandon",
    "write-then-fail",
    "begin-down",
    "begin-far",
    "timer",
    "reply",
    "config",
    "log",
    "clock",
    "random",
    "static",
    "env",
    "files",
    "big-random",
    "handles",
    "dispositions",
    "quota",
    "hoard",
    "host-panic",
    "abandon-other",
    "named",
];

/// How often this instance was asked for its Bees.
static NAMED: AtomicU32 = AtomicU32::new(0);

impl Guest for Zoo {
    fn bees() -> Vec<Bee> {
        NAMED.fetch_add(1, Ordering::Relaxed);
        getrandom(&mut [0u8; 16]);
        println!("naming");
        if wasi::config::store::get("sour").unwrap().is_some() {
            panic!("asked again");
        }
        BEES.iter()
            .map(|name| Bee {
                name: (*name).to_owned(),
            })
            .collect()
    }

    fn process(bee: String, inputs: Vec<Input>) -> Vec<Outcome> {
        match bee.as_str() {
            // One outcome too few or too many, whatever came in.
            "few" => return inputs.iter().skip(1).map(|_| done()).collect(),
            "extra" => return inputs.iter().map(|_| done()).chain([done()]).collect(),
            "nop" => return inputs.iter().map(|_| done()).collect(),
            "no-step" => {
                return inputs
                    .iter()
                    .map(|_| respond(format!("{:?}", state::get("n"))))
                    .collect();
            }
            "begin-down" => {
                step::begin(1);
                step::begin(0);
            }
            "begin-far" => step::begin(u32::MAX),
            _ => {}
        }
        inputs
            .into_iter()
            .enumerate()
            .map(|(index, input)| {
                step::begin(index as u32);
                one(&bee, index as u32, input)
            })
            .collect()
    }
}

fn one(bee: &str, index: u32, input: Input) -> Outcome {
    match bee {
        "echo" => match input {
            Input::One(m) => Outcome {
                publish: vec![Emit {
                    to: None,
                    key: m.key,
                    headers: m.headers,
                    payload: m.payload.clone(),
                }],
                respond: vec![m.payload],
                disposition: Disposition::Done,
            },
            Input::Timer(due) => respond(format!("{} {} {} {}", due.key, due.name, due.at_ms, due.attempt)),
            Input::Joined(parts) => respond(format!("{}", parts.len())),
        },
        "panic" => panic!("the hive is on fire: {}", text(&input)),
        "loop" => loop {
            std::hint::black_box(0);
        },
        "sleep" => {
            std::thread::sleep(Duration::from_secs(3_600));
            done()
        }
        "bomb" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(std::hint::black_box(vec![1u8; 1 << 20]));
            }
        }
        "recurse" => respond(deeper(0).to_string()),
        "exit" => std::process::exit(3),
        "stderr-flood" => {
            let line = "x".repeat(1 << 10);
            for _ in 0..10_000 {
                eprintln!("{line}");
            }
            panic!("after the flood");
        }
        "log-flood" => {
            for i in 0..5_000 {
                log(Level::Info, "flood", &format!("line {i} \x1b[31m{}", "y".repeat(100)));
            }
            done()
        }
        // The guest's memory is bounded, what it returns is not: the same mebibyte a thousand times.
        "huge-output" => Outcome {
            publish: Vec::new(),
            respond: vec![vec![7u8; 64 << 20]],
            disposition: Disposition::Done,
        },
        "many-outcomes" => Outcome {
            publish: Vec::new(),
            respond: vec![Vec::new(); 2_000_000],
            disposition: Disposition::Done,
        },
        "wide-outputs" => Outcome {
            publish: (0..10_001)
                .map(|_| Emit {
                    to: None,
                    key: None,
                    headers: Vec::new(),
                    payload: Vec::new(),
                })
                .collect(),
            respond: Vec::new(),
            disposition: Disposition::Done,
        },
        "state" => {
            let seen = match state::get("n") {
                Ok(Some(v)) => String::from_utf8(v).unwrap(),
                Ok(None) => "none".to_owned(),
                Err(e) => return respond(format!("{e:?}")),
            };
            match text(&input).as_str() {
                "delete" => state::delete("n").unwrap(),
                value => state::put("n", value.as_bytes()).unwrap(),
            }
            let now = state::get("n").unwrap().map(|v| String::from_utf8(v).unwrap());
            respond(format!("{seen} -> {}", now.unwrap_or_else(|| "none".to_owned())))
        }
        "abandon" => {
            state::put("n", text(&input).as_bytes()).unwrap();
            timers::set("wake", 5).unwrap();
            if text(&input) == "bad" {
                step::abandon(index);
                return Outcome {
                    disposition: Disposition::Fail(Failure {
                        reason: "bad".into(),
                        detail: "abandoned".into(),
                    }),
                    ..done()
                };
            }
            done()
        }
        "abandon-other" => {
            step::abandon(index + 1);
            done()
        }
        "write-then-fail" => {
            state::put("n", b"1").unwrap();
            Outcome {
                disposition: Disposition::RetryAfter(10),
                ..done()
            }
        }
        "quota" => {
            let long = "n".repeat(1_000);
            let mut said = vec![
                format!("{:?}", state::put(&long, b"v")),
                format!("{:?}", state::put("n", &vec![0; (256 << 10) + 1])),
                format!("{:?}", timers::set(&long, 1)),
            ];
            let full = (0..2_000)
                .map(|i| state::put(&format!("n{i}"), b"v"))
                .position(|r| r.is_err());
            said.push(format!("{full:?}"));
            let full = (0..2_000)
                .map(|i| timers::set(&format!("t{i}"), 1))
                .position(|r| r.is_err());
            said.push(format!("{full:?}"));
            respond(said.join("; "))
        }
        // The host panics, if it is one that a test has prepared.
        "host-panic" => {
            let _ = state::put("n", b"before");
            let _ = wasi::config::store::get("planted: panic");
            respond("nothing is planted".into())
        }
        // Keeps as many values of 256 KiB as it may, beside those that are there.
        "hoard" => {
            let value = vec![0; 256 << 10];
            let kept = (0..3).map(|i| state::put(&format!("{index}-{i}"), &value));
            let kept: Vec<_> = kept.map(|r| r.map_err(|e| format!("{e:?}"))).collect();
            let shrunk = state::put("old", b"");
            let read = state::get("old").unwrap().unwrap().len();
            respond(format!("{kept:?}; {shrunk:?}; {read}"))
        }
        "timer" => {
            timers::set("wake", 1_000).unwrap();
            timers::set("wake", 2_000).unwrap();
            timers::cancel("old").unwrap();
            done()
        }
        "reply" => respond(format!("{:?}", reply::part(b"part"))),
        "config" => respond(format!(
            "{:?} {:?} {}",
            wasi::config::store::get("colour"),
            wasi::config::store::get("none"),
            wasi::config::store::get_all().unwrap().len()
        )),
        "log" => {
            log(Level::Warn, "ctx", "tab\there\nand \x1b[31mred");
            println!("to stdout");
            eprint!("no newline");
            done()
        }
        "clock" => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
            respond(now.to_string())
        }
        "random" => {
            // Two maps have two seeds; the keys come from the host's random numbers.
            let mut bytes = [0u8; 16];
            getrandom(&mut bytes);
            respond(bytes.iter().map(|b| format!("{b:02x}")).collect())
        }
        "static" => {
            static CALLS: AtomicU32 = AtomicU32::new(0);
            respond(CALLS.fetch_add(1, Ordering::Relaxed).to_string())
        }
        "named" => respond(NAMED.load(Ordering::Relaxed).to_string()),
        "env" => respond(format!("{} {}", std::env::vars().count(), std::env::args().count())),
        "files" => respond(format!(
            "{} {} {}",
            std::fs::read_dir("/").is_err(),
            std::fs::write("x", "y").is_err(),
            std::net::TcpStream::connect("127.0.0.1:1").is_err()
        )),
        "big-random" => {
            let mut bytes = vec![0u8; 8 << 20];
            getrandom(&mut bytes);
            done()
        }
        "handles" => {
            let mut all = Vec::new();
            loop {
                all.push(raw::subscribe());
            }
        }
        "dispositions" => Outcome {
            disposition: match text(&input).as_str() {
                "retry" => Disposition::RetryAfter(250),
                "reject" => Disposition::Reject("no".into()),
                "fail" => Disposition::Fail(Failure {
                    reason: "r".into(),
                    detail: "d".into(),
                }),
                _ => Disposition::Done,
            },
            publish: vec![Emit {
                to: Some("side".into()),
                key: Some("k".into()),
                headers: vec![("h".into(), "v".into())],
                payload: vec![1],
            }],
            respond: Vec::new(),
        },
        other => respond(format!("no Bee {other}")),
    }
}

fn text(input: &Input) -> String {
    match input {
        Input::One(Message { payload, .. }) => String::from_utf8_lossy(payload).into_owned(),
        Input::Timer(due) => due.name.clone(),
        Input::Joined(_) => String::new(),
    }
}

fn done() -> Outcome {
    Outcome {
        publish: Vec::new(),
        respond: Vec::new(),
        disposition: Disposition::Done,
    }
}

fn respond(text: String) -> Outcome {
    Outcome {
        respond: vec![text.into_bytes()],
        ..done()
    }
}

#[expect(unconditional_recursion, reason = "the point of the Bee")]
fn deeper(n: u64) -> u64 {
    let pad = std::hint::black_box([n; 64]);
    deeper(n + 1) + pad[3]
}

fn getrandom(out: &mut [u8]) {
    let bytes = raw::random(out.len() as u64);
    out.copy_from_slice(&bytes);
}

mod raw {
    //! The WASI calls that std offers no stable way to.
    mod bindings {
        wit_bindgen::generate!({
            inline: "
                package zoo:raw;
                world raw {
                    import wasi:random/random@0.2.0;
                    import wasi:clocks/monotonic-clock@0.2.0;
                }
            ",
            path: "../wit",
            generate_all,
        });
    }

    pub fn random(len: u64) -> Vec<u8> {
        bindings::wasi::random::random::get_random_bytes(len)
    }

    pub fn subscribe() -> bindings::wasi::io::poll::Pollable {
        bindings::wasi::clocks::monotonic_clock::subscribe_duration(3_600_000_000_000)
    }
}
