use proptest::prelude::*;

use super::*;
use crate::condition::Take;
use crate::swarm::{Ends, GuestClock, InputSource, Instances, Keep, KeySource, Order, Refresh, StageInput, Ttl};

const HELLO: &str = "\
name: hello-world
bees:
  - name: hello
    module: hello            # name[:tag] or name@sha256:…
    bee: hello
    input: { gateway: hello-world }
  - name: goodbye
    module: hello
    bee: goodbye
    input: { bee: hello }
";

const FULL: &str = "\
name: full
description: every field
bees:
  - name: a
    module: m:v1
    input: { gateway: in }
    retry: &retry { attempts: 3, backoff: { first: 50ms, max: 2s } }
    timeout: 500
    batch: { messages: 10, bytes: 1MiB }
    concurrency: 2
    instances: { pooled: { calls: 9, age: 30s } }
  - name: b
    module: m
    bee: other
    input:
      - { bee: a, output: loud }
      - { type: gateway, name: side }
      - { name: a }
    key: json:/customer/id
    state: true
    order: relaxed
    retry: *retry
    partitions: 16
    inbox: { messages: 1000, bytes: 8MiB }
    dead_letters: { messages: 5, bytes: 2MiB }
    memory: 64MiB
    config: { lang: en, level: '3' }
    secrets: [token, api-key]
    http: [api.example.com, 'https://*.example.org:8443', 'http://127.0.0.1:9000']
    models: [digits, fraud:v2]
    clock: real
  - name: c
    module: m
    input: { stack: [a, b] }
    key: header:user-id
    state: { ttl: 30d, refresh: read, keys: 7, bytes: 1GiB }
    instances: pooled
";

fn lines(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(swarm) => panic!("accepted: {swarm:?}"),
        Err(mistakes) => mistakes.to_string().lines().map(str::to_owned).collect(),
    }
}

/// One Bee with more fields; the first of them stands on line 6.
fn with(extra: &str) -> String {
    format!("name: s\nbees:\n  - name: a\n    module: m\n    input: {{ gateway: g }}\n{extra}")
}

#[test]
fn the_example_reads_as_it_looks() {
    let swarm = parse(HELLO).unwrap();
    assert_eq!(swarm.name.as_str(), "hello-world");
    assert_eq!(
        swarm.stages[1].inputs,
        [StageInput {
            laps: None,
            source: InputSource::Bee {
                stage: "hello".parse().unwrap(),
                output: None
            },
            take: Take::All,
        }]
    );
    assert_eq!(swarm.stages[0].timeout_ms, 30_000);
    assert!(swarm.pure(&"hello-world".parse().unwrap()));
    let asks = parse(&with("    http: [a.com]\n")).unwrap();
    assert!(
        !asks.pure(&"g".parse().unwrap()),
        "whoever is asked would be asked again"
    );
}

#[test]
fn every_field_arrives() {
    let swarm = parse(FULL).unwrap_or_else(|e| panic!("{e}"));
    let [a, b, c] = swarm.stages.as_slice() else { panic!() };
    assert_eq!((a.retry.attempts, a.retry.first_ms, a.retry.max_ms), (3, 50, 2_000));
    assert_eq!(
        (a.timeout_ms, a.batch.messages, a.batch.bytes, a.concurrency),
        (500, 10, 1 << 20, 2)
    );
    assert_eq!(a.instances, Instances::Pooled { calls: 9, age_s: 30 });
    assert_eq!((b.retry, b.bee.as_str(), b.partitions), (a.retry, "other", 16));
    assert_eq!(b.key, Some(KeySource::Json("/customer/id".into())));
    assert_eq!(
        (b.state, b.order, b.clock, b.memory_bytes),
        (true, Order::Relaxed, GuestClock::Real, 64 << 20)
    );
    assert_eq!(
        (b.inbox.messages, b.inbox.bytes, b.dead_letters.messages),
        (1_000, 8 << 20, 5)
    );
    assert_eq!(b.config["level"], "3");
    let secrets: Vec<&str> = b.secrets.iter().map(crate::name::SecretName::as_str).collect();
    assert_eq!(secrets, ["api-key", "token"]);
    let models: Vec<String> = b.models.iter().map(ToString::to_string).collect();
    assert_eq!(models, ["digits:latest", "fraud:v2"]);
    let http: Vec<String> = b.http.iter().map(ToString::to_string).collect();
    assert_eq!(
        http,
        [
            "http://127.0.0.1:9000",
            "https://api.example.com",
            "https://*.example.org:8443"
        ]
    );
    assert_eq!(b.inputs.len(), 3);
    assert_eq!(b.inputs[1].source, InputSource::Gateway("side".parse().unwrap()));
    assert_eq!(c.key, Some(KeySource::Header("user-id".into())));
    assert_eq!(c.inputs.len(), 2);
    let ttl = Some(Ttl {
        ms: 30 * 24 * 3_600_000,
        refresh: Refresh::Read,
    });
    let bytes = 1 << 30;
    assert_eq!((c.state, c.keep), (true, Keep { ttl, keys: 7, bytes }));
    assert_eq!(b.keep, Keep::default());
}

#[test]
fn json_is_yaml() {
    let json = r#"{"name": "s", "bees": [{"name": "a", "module": "m", "input": {"gateway": "g"}}]}"#;
    assert_eq!(parse(json).unwrap().stages.len(), 1);
}

#[test]
fn merge_keys_share_settings() {
    let text =
        "name: s\nbees:\n  - &a { name: a, module: m, input: { gateway: g }, timeout: 5s }\n  - { <<: *a, name: b }\n";
    let swarm = parse(text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        (swarm.stages[1].name.as_str(), swarm.stages[1].timeout_ms),
        ("b", 5_000)
    );
}

#[test]
fn all_mistakes_come_at_once_in_order_of_place() {
    let text = "\
nmae: x
name: Hello_World
bees:
  - name: a
    modul: m
    input: { bee: b }
  - name: b
    module: m
    input: [{ bee: a }, { bee: zzz }]
    partitions: many
  - name: b
    module: ../m.wasm
    input: { gateway: g, bee: a }
    timeout: 2 years
";
    assert_eq!(
        lines(text),
        [
            "swarm.yaml:1:1: nmae: unknown field; did you mean `name`?",
            "swarm.yaml:2:7: name: `Hello_World` is not a name: use a-z, 0-9 and `-`, first and last a letter or digit; write `hello-world`",
            "swarm.yaml:5:5: bees[0].modul: unknown field; did you mean `module`?",
            "swarm.yaml:9:20: bees[1].input[0].bee: a cycle: a → b → a; take one of these inputs away, or mark it: `loop: 5` lets a message go round five times",
            "swarm.yaml:9:32: bees[1].input[1].bee: unknown Bee `zzz`; this Swarm has: a, b, b",
            "swarm.yaml:10:17: bees[1].partitions: expected a whole number, found text `many`; 1 to 256",
            "swarm.yaml:11:11: bees[2].name: a second Bee named `b`; the first is bees[1] at 7:11; give each Bee of a Swarm its own name",
            "swarm.yaml:12:13: bees[2].module: `../m.wasm` is a path; push the module with `skep push FILE --name NAME` and write its name, or use `skep up`",
            "swarm.yaml:13:12: bees[2].input: both `gateway` and `bee`; give one; several sources are a list of inputs",
            "swarm.yaml:14:14: bees[2].timeout: expected a duration, found text `2 years`; write `500ms`, `30s`, `2m`, `1h`, `30d` or milliseconds as a whole number",
        ]
    );
}

#[test]
fn single_mistakes_name_place_and_remedy() {
    for (extra, expected) in [
        ("    state: true\n", "6:12: bees[0].state: state needs a key"),
        ("    state: yes\n", "expected true or false, found text `yes`"),
        ("    order: hold\n", "order means nothing without a key"),
        ("    key: messag\n", "did you mean `message`?"),
        ("    key: json:customer\n", "not a JSON pointer"),
        ("    key: 'header:'\n", "not a header's name"),
        (
            "    key: 7\n",
            "expected text, found the number `7`; put it in quotes: \"7\"",
        ),
        (
            "    partitions: 257\n",
            "6:17: bees[0].partitions: `257` is out of bounds: 1 to 256",
        ),
        ("    partitions: 0\n", "1 to 256"),
        (
            "    partitions: 99999999999999999999999999999999999999999999\n",
            "1 to 256",
        ),
        ("    timeout: 2h\n", "`2h` is out of bounds: 1ms to 1h"),
        ("    timeout: -5\n", "out of bounds"),
        (
            "    retry: { attempts: 0 }\n",
            "bees[0].retry.attempts: `0` is out of bounds: 1 to 1000",
        ),
        (
            "    retry: { backoff: { first: 5s, max: 1s } }\n",
            "`first` (5s) is longer than `max` (1s)",
        ),
        ("    retry: 3\n", "expected a mapping, found the number `3`"),
        ("    batch: { bytes: 1GiB }\n", "out of bounds: 512KiB to 16MiB"),
        ("    memory: lots\n", "expected a size, found text `lots`"),
        ("    memory: 2GiB\n", "1MiB to 1GiB"),
        (
            "    instances: warm\n",
            "expected `fresh` or `pooled`, found text `warm`",
        ),
        ("    instances: { pooled: { calls: 0 } }\n", "1 to 1000000"),
        (
            "    config: { port: 8080 }\n",
            "expected text, found the number `8080`; put it in quotes: \"8080\"",
        ),
        (
            "    secrets: api-key\n",
            "expected a list of names; write `secrets: [NAME]`",
        ),
        ("    secrets: [API_KEY]\n", "write `api-key`"),
        ("    secrets: [a, a]\n", "bees[0].secrets[1]: named twice"),
        ("    secrets: [7]\n", "expected text"),
        ("    clock: reel\n", "did you mean `real`?"),
        (
            "    http: example.org\n",
            "bees[0].http: expected a list of hosts; write `http: [api.example.com]`",
        ),
        (
            "    http: [2130706433x, a.com/b]\n",
            "bees[0].http[1]: write a host and perhaps a port",
        ),
        ("    http: [127.1]\n", "expected text"),
        (
            "    models: digits\n",
            "bees[0].models: expected a list of models; write `models: [NAME]`",
        ),
        (
            "    models: [digits, 'digits:latest']\n",
            "bees[0].models[1]: digits:latest is listed twice",
        ),
        ("    models: [Digits]\n", "write `digits`, `digits:v1`"),
        ("    models: [7]\n", "expected text"),
        ("    http: ['127.1']\n", "write an address as 192.0.2.1"),
        (
            "    http: [a.com, 'https://a.com:443']\n",
            "https://a.com is listed twice",
        ),
        (
            "    dirs: [example]\n",
            "6:5: bees[0].dirs: not available in this version",
        ),
        ("    was: old\n", "not available in this version"),
        ("    name: b\n", "bees[0].name: given twice, first at 3:5"),
        ("    7: b\n", "a field's name must be text"),
        ("    \"a\\e[2J\": b\n", "a\\u{1b}[2J: unknown field"),
        ("  - 7\n", "bees[1]: expected a mapping, found the number `7`"),
        (
            "  - { name: b, module: m, input: { bee: aa } }\n",
            "unknown Bee `aa`; did you mean `a`?",
        ),
        ("  - { name: b, module: m, input: { bee: b } }\n", "a cycle: b → b"),
        ("  - { name: b, module: m }\n", "bees[1]: no input reaches this Bee"),
        ("  - { name: b, module: m, input: [] }\n", "no input reaches this Bee"),
        (
            "  - { name: b, module: m, input: a }\n",
            "write `{ gateway: a }` or `{ bee: a }`",
        ),
        ("  - { name: b, module: m, input: { join: [a] } }\n", "a join of one"),
        ("  - { name: b, module: m, input: { output: x } }\n", "names no source"),
        (
            "  - { name: b, module: m, input: { gateway: g, output: x } }\n",
            "only a Bee has named outputs",
        ),
        ("  - { name: b, module: m, input: { type: bee } }\n", "names no source"),
        (
            "  - { name: b, module: m, input: { type: bee, name: c } }\n",
            "unknown Bee `c`",
        ),
        (
            "  - { name: b, module: m, input: [{ bee: a }, { bee: a }] }\n",
            "the same input is listed twice",
        ),
        (
            "  - { name: b, module: 'm@sha256:12', input: { bee: a } }\n",
            "does not name a module",
        ),
        (
            "  - { name: b, module: 'm:', input: { bee: a } }\n",
            "does not name a module",
        ),
    ] {
        let lines = lines(&with(extra));
        assert_eq!(lines.len(), 1, "{extra}: {lines:#?}");
        assert!(lines[0].contains(expected), "{extra}: {}", lines[0]);
    }
}

#[test]
fn whole_texts_that_are_no_manifest() {
    for (text, expected) in [
        ("", "the manifest is empty"),
        ("# only a comment\n", "the manifest is empty"),
        ("- a\n", "expected a mapping, found a list"),
        ("name: s\n", "`bees` is missing"),
        ("name: s\nbees: []\n", "a Swarm has at least one Bee"),
        ("name: s\nbees: {}\n", "expected a list, found a mapping"),
        ("name: [\n", "not YAML"),
        ("name: s\n---\nname: t\n", "a second document"),
        ("name: !foo s\nbees: []\n", "the tag"),
        ("name: {]\n", "not YAML"),
    ] {
        let lines = lines(text);
        assert!(lines[0].contains(expected), "{text:?}: {lines:#?}");
    }
}

#[test]
fn no_flood_of_mistakes() {
    let fields: String = (0..500).map(|i| format!("    zz{i}: 1\n")).collect();
    let lines = lines(&with(&fields));
    assert_eq!(lines.len(), limits::MISTAKES_MAX);
    assert!(
        lines.last().unwrap().contains("401 more mistakes"),
        "{:?}",
        lines.last()
    );
}

#[test]
fn local_paths_are_for_up_only_and_can_be_replaced() {
    let text = HELLO.replace("module: hello  ", "module: ./é.wasm");
    assert!(parse(&text).is_err());
    assert_eq!(parse_local(&text).unwrap().stages[0].module, "./é.wasm");
    let replaced = replace_modules(&text, |m| m.ends_with(".wasm").then(|| "e".to_owned())).unwrap();
    assert_eq!(parse(&replaced).unwrap().stages[0].module, "e");
    assert!(replaced.contains("# name[:tag]"), "comments stay");
    assert_eq!(replaced, text.replace("./é.wasm", "\"e\""));
}

struct Catalog;

impl Modules for Catalog {
    fn bees(&self, module: &ModuleRef) -> Option<Vec<BeeName>> {
        (module.name.as_str() == "hello").then(|| vec!["hello".parse().unwrap(), "goodbye".parse().unwrap()])
    }

    fn names(&self) -> Vec<String> {
        vec!["hello".to_owned()]
    }
}

#[test]
fn unknown_modules_and_bees_stand_among_the_other_mistakes() {
    assert!(parse_with(HELLO, &Catalog).is_ok());
    let text = HELLO
        .replace("bee: goodbye", "bee: godbye")
        .replacen("module: hello ", "module: helo ", 1)
        + "extra: 1\n";
    let mistakes = parse_with(&text, &Catalog).unwrap_err().in_file("my.yaml").to_string();
    let lines: Vec<&str> = mistakes.lines().collect();
    assert_eq!(lines.len(), 3, "{mistakes}");
    assert!(
        lines[0].starts_with("my.yaml:4:13: bees[0].module: unknown module `helo`; did you mean `hello`?"),
        "{mistakes}"
    );
    assert!(
        lines[1].contains("9:10: bees[1].bee: the module has no Bee `godbye`; did you mean `goodbye`?"),
        "{mistakes}"
    );
}

#[test]
fn a_long_chain_and_many_bees_do_not_recurse() {
    let mut text = "name: s\nbees:\n  - { name: b0, module: m, input: { gateway: g } }\n".to_owned();
    for i in 1..limits::STAGES_MAX {
        text += &format!("  - {{ name: b{i}, module: m, input: {{ bee: b{} }} }}\n", i - 1);
    }
    assert_eq!(parse(&text).unwrap().stages.len(), limits::STAGES_MAX);
    text += "  - { name: more, module: m, input: { gateway: g } }\n";
    assert!(lines(&text)[0].contains("at most 256 Bees"));
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn yaml_like_text_never_panics(text in "[a-c:&*<!|>{}\\[\\], \n\t'\"#~-]{0,120}") {
        let _ = parse(&text);
        let _ = replace_modules(&text, |_| Some("x".to_owned()));
    }

    #[test]
    fn mutated_manifests_never_panic_and_places_are_inside(
        at in 0..FULL.len(), gone in 0_usize..12, new in "[a-z:&*{}\\[\\], \n\t'\"#~0-9é-]{0,6}",
    ) {
        let end = (at + gone).min(FULL.len());
        prop_assume!(FULL.is_char_boundary(at) && FULL.is_char_boundary(end));
        let text = format!("{}{new}{}", &FULL[..at], &FULL[end..]);
        if let Err(mistakes) = parse(&text) {
            prop_assert!(!mistakes.0.is_empty());
            for m in &mistakes.0 {
                prop_assert!(m.line >= 1 && m.column >= 1 && m.line <= text.lines().count() + 1, "{m}");
            }
        }
        let _ = replace_modules(&text, |_| Some("x".to_owned()));
    }
}

const BRANCHES: &str = "\
name: s
bees:
  - { name: score, module: m, input: { gateway: g, when: { header: kind, in: [card, cash] } } }
  - { name: high, module: m, input: { bee: score, choose: { json: /score, above: 0.8 } } }
  - { name: mid, module: m, input: { bee: score, choose: { json: /score, at_least: 0.5 } } }
  - { name: rest, module: m, input: { bee: score, otherwise: true } }
  - { name: audit, module: m, input: { bee: score }, skip: { not: { any: [{ json: /audit, exists: true }, { header: audit, is: null }] } } }
  - { name: last, module: m, input: { bee: audit }, exit: { all: [{ json: /n, is: 5, below: 9 }, { header: h, starts_with: x }] } }
";

#[test]
fn conditions_arrive_and_each_reader_gets_what_is_its_own() {
    use crate::condition::Facts;
    let swarm = parse(BRANCHES).unwrap_or_else(|e| panic!("{e}"));
    let text = serde_json::to_string(&swarm).unwrap();
    assert_eq!(serde_json::from_str::<crate::swarm::Swarm>(&text).unwrap(), swarm);
    let readers = swarm.readers(&"score".parse().unwrap());
    let takers = |payload: &str| -> Vec<String> {
        let payload = crate::Bytes::copy_from_slice(payload.as_bytes());
        let facts = Facts::new(&[], &payload);
        let takes = |r: &&crate::swarm::Reader| r.when.as_ref().is_none_or(|w| w.holds(&facts));
        readers.iter().filter(takes).map(|r| r.stage.to_string()).collect()
    };
    assert_eq!(takers(r#"{"score": 0.9}"#), ["high", "audit"]);
    assert_eq!(takers(r#"{"score": 0.5}"#), ["mid", "audit"]);
    assert_eq!(takers(r#"{"score": 0.1}"#), ["rest", "audit"]);
    assert_eq!(takers("no JSON"), ["rest", "audit"]);
    assert!(swarm.door(&swarm.stages[0]).is_some());
    assert!(swarm.door(&swarm.stages[1]).is_none());
    // Kept as pairs and triples: a record from before conditions reads as it did.
    let pairs = serde_json::to_value(&readers).unwrap();
    assert_eq!(pairs[3], serde_json::json!([null, "audit"]));
    assert_eq!(
        serde_json::from_value::<Vec<crate::swarm::Reader>>(pairs).unwrap(),
        readers
    );
}

#[test]
fn a_record_from_before_conditions_reads_as_every_message() {
    let old = r#"[{"gateway":"g"},{"bee":{"stage":"a","output":null}}]"#;
    let inputs: Vec<crate::swarm::StageInput> = serde_json::from_str(old).unwrap();
    assert!(inputs.iter().all(|i| i.take.is_all()));
    assert_eq!(serde_json::to_string(&inputs).unwrap(), old);
}

/// One mistake each: where it is, and what is said of it.
#[test]
fn mistakes_in_conditions_are_named_in_their_place() {
    let cases = [
        ("when: 5", "expected a mapping"),
        ("when: { header: h }", "no test of the header"),
        ("when: { is: 5 }", "says nothing of what it looks at"),
        ("when: { header: h, json: /a, is: 5 }", "both `header` and `json`"),
        ("when: { json: a, is: 5 }", "is not a JSON pointer"),
        ("when: { json: /a~2, is: 5 }", "is not a JSON pointer"),
        ("when: { header: 'a b', is: 5 }", "is not a header's name"),
        ("when: { json: /a, abov: 5 }", "did you mean `above`?"),
        ("when: { json: /a, above: high }", "expected a number"),
        ("when: { json: /a, above: .inf }", "is not a number that JSON can hold"),
        (
            "when: { json: /a, is: [1] }",
            "expected text, a number, true, false or null",
        ),
        ("when: { json: /a, in: [] }", "an empty list"),
        ("when: { json: /a, in: 5 }", "expected a list"),
        ("when: { json: /a, exists: 1 }", "expected true or false"),
        ("when: { json: /a, starts_with: 5 }", "put it in quotes"),
        ("when: { all: [] }", "an empty list of conditions"),
        ("when: { any: [{ header: h, is: 1 }], is: 5 }", "`is` tests one field"),
        ("when: { not: [{ header: h, is: 1 }] }", "expected a mapping"),
        (
            "when: { header: h, is: 1 }, choose: { header: h, is: 1 }",
            "both `when` and `choose`",
        ),
        (
            "when: { header: h, is: 1 }, otherwise: true",
            "both `when` and `otherwise`",
        ),
        ("otherwise: true", "no input of gateway `g` has a condition"),
        ("otherwise: false", "either true or not there"),
        (
            "when: { not: { not: { not: { not: { not: { not: { not: { not: { header: h, is: 1 } } } } } } } } }",
            "more than 8 deep",
        ),
    ];
    for (extra, said) in cases {
        let text = format!("name: s\nbees:\n  - name: a\n    module: m\n    input: {{ gateway: g, {extra} }}\n");
        let lines = lines(&text);
        assert!(lines.iter().any(|l| l.contains(said)), "{extra}: {lines:?}");
        assert!(
            lines.iter().all(|l| l.contains("5:") || !l.contains(said)),
            "{extra}: {lines:?}"
        );
    }
    let many = (0..70).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    assert!(lines(&with(&format!("    skip: {{ json: /a, in: [{many}] }}\n")))[0].contains("more than 64 tests"));
    let two_doors = "name: s\nbees:\n  - name: a\n    module: m\n    input:\n      - { gateway: g, when: { header: h, is: 1 } }\n      - { gateway: i }\n";
    assert!(lines(two_doors)[0].contains("a condition on one of several subjects"));
    let stacked = "name: s\nbees:\n  - { name: a, module: m, input: { gateway: g } }\n  - { name: b, module: m, input: { stack: [a], when: { header: h, is: 1 } } }\n";
    assert!(lines(stacked)[0].contains("a condition on `stack`"));
    let twice = "name: s\nbees:\n  - { name: a, module: m, input: { gateway: g } }\n  - name: b\n    module: m\n    input:\n      - { bee: a }\n      - { bee: a, when: { header: h, is: 1 } }\n";
    assert!(lines(twice)[0].contains("`any: [...]` joins conditions"));
}

#[test]
fn a_loop_says_how_often_and_leaves_the_rest_without_circles() {
    let text = "
name: refine
bees:
  - name: draft
    module: m
    input:
      - { gateway: tasks }
      - { bee: judge, output: poor, when: { json: /again, is: true }, loop: 5 }
      - { name: draft, output: self, loop: 1000 }
  - { name: judge, module: m, input: { bee: draft } }
";
    let swarm = parse(text).unwrap();
    assert!(swarm.loops());
    let laps: Vec<_> = swarm.stages[0].inputs.iter().map(|i| i.laps).collect();
    assert_eq!(laps, [None, Some(5), Some(1_000)]);
    let readers = swarm.readers(&"judge".parse().unwrap());
    assert_eq!((readers[0].laps, readers[0].when.is_some()), (Some(5), true));
    // As the catalog keeps both.
    let stored = serde_json::to_string(&(&swarm, &readers)).unwrap();
    assert!(stored.contains(r#""loop":5"#), "{stored}");
    let read: (Swarm, Vec<crate::swarm::Reader>) = serde_json::from_str(&stored).unwrap();
    assert_eq!(read, (swarm.clone(), readers));
    assert_eq!(swarm.reachable(&"tasks".parse().unwrap()).len(), 2);
    assert_eq!(
        swarm.stages[0].inputs[1].shown("."),
        "bee judge.poor when json:/again is true loop 5"
    );
    let mut wider = swarm.clone();
    wider.stages[0].inputs[1].laps = Some(6);
    let changes = crate::diff::changes(Some(&swarm), &wider);
    assert_eq!(changes.len(), 1);
    assert!(changes[0].before.contains("loop 5") && changes[0].after.contains("loop 6"));
}

#[test]
fn what_is_built_in_needs_no_module() {
    let text = "\
name: ensemble
bees:
  - { name: tree, model: tree, input: { gateway: scores } }
  - { name: net, type: model, model: net:v2, input: { gateway: scores } }
  - { name: mean, type: weighted-average-ensemble, weights: { tree: 2, net: 0.5 }, input: { join: [tree, net] } }
  - { name: gather, type: batch, size: 10, wait: 2s, input: { bee: mean } }
  - { name: answer, type: respond, input: { bee: mean } }
";
    let swarm = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let modules: Vec<&str> = swarm.stages.iter().map(|stage| stage.module.as_str()).collect();
    assert_eq!(
        modules,
        [
            "built-in model tree:latest",
            "built-in model net:v2",
            "built-in weighted average with net 0.5, tree 2",
            "built-in batch of 10 within 2s",
            "built-in respond"
        ]
    );
    assert!(
        swarm
            .stages
            .iter()
            .all(|stage| stage.module.parse::<crate::name::ModuleRef>().is_err())
    );
    assert_eq!(swarm.stages[0].models.first().unwrap().to_string(), "tree:latest");
    let gather = &swarm.stages[3];
    assert_eq!(
        (gather.key.clone(), gather.state),
        (Some(crate::swarm::KeySource::All), true)
    );
    let json = serde_json::to_string(&swarm).unwrap();
    assert_eq!(serde_json::from_str::<crate::swarm::Swarm>(&json).unwrap(), swarm);
}

#[test]
fn mistakes_of_what_is_built_in_are_told() {
    let head = "name: w\nbees:\n  - { name: a, model: a, input: { gateway: g } }\n  - { name: b, model: b, input: { gateway: g } }\n";
    for (bee, says) in [
        ("type: python, module: m, input: { bee: a }", "name the Bee's module"),
        ("type: respnd, input: { bee: a }", "did you mean `respond`?"),
        ("type: model, input: { bee: a }", "which model it calls"),
        ("model: A, input: { bee: a }", "write `digits`"),
        (
            "model: m, module: m, input: { bee: a }",
            "`module` beside a built-in type",
        ),
        ("model: m, size: 3, input: { bee: a }", "`size` goes with `type: batch`"),
        ("model: m, key: message, input: { bee: a }", "keeps nothing by key"),
        ("model: m, input: { join: [a, b] }", "one message at a time"),
        ("type: batch, input: { bee: a }", "how many messages"),
        ("type: batch, size: 0, input: { bee: a }", "out of bounds"),
        (
            "type: batch, size: 5, wait: never, input: { bee: a }",
            "expected a duration",
        ),
        ("type: weighted-average, input: { bee: a }", "sides of a join"),
        (
            "type: weighted-average, weights: { c: 1 }, input: { join: [a, b] }",
            "`c` is no side",
        ),
        (
            "type: weighted-average, weights: { a: 0 }, input: { join: [a, b] }",
            "expected a weight",
        ),
        (
            "type: weighted-average, weights: { a: 0.12345 }, input: { join: [a, b] }",
            "expected a weight",
        ),
        (
            "type: weighted-average, weights: { a: heavy }, input: { join: [a, b] }",
            "expected a weight",
        ),
        (
            "type: respond, secrets: [s], input: { bee: a }",
            "`secrets` beside a built-in type",
        ),
        (
            "module: m, weights: { a: 1 }, input: { bee: a }",
            "goes with a built-in `type`",
        ),
    ] {
        let told = parse(&format!("{head}  - {{ name: x, {bee} }}\n"))
            .unwrap_err()
            .to_string();
        assert!(told.contains(says), "{bee}: {told}");
    }
}

#[test]
fn what_a_manifest_says_of_an_end() {
    let swarm = parse(
        "name: s\nbees:\n  - { name: a, module: m, input: { gateway: g }, key: message, state: true, ends: [eu, \"\\u0000\", 'us east'] }\n  \
         - { name: b, module: m, input: { bee: a }, key: message, state: true, ends: true }\n  - { name: c, module: m, input: [{ bee: b }, { gateway: h }], key: message, state: true, ends: false }\n",
    )
    .unwrap();
    let keys: std::collections::BTreeSet<String> = ["\0", "eu", "us east"].map(str::to_owned).into();
    let says: Vec<Option<Ends>> = swarm.stages.iter().map(|stage| stage.ends.clone()).collect();
    assert_eq!(says, [Some(Ends::Keys(keys)), Some(Ends::Told), None]);
    assert!(swarm.bounded() && swarm.ends());
    let json = serde_json::to_string(&swarm).unwrap();
    assert_eq!(serde_json::from_str::<crate::swarm::Swarm>(&json).unwrap(), swarm);
    let kept = "key: message, state: true,";
    for (bee, says) in [
        ("input: { bee: a }, ends: true", "`ends` needs a key and state"),
        (
            "input: { bee: a }, key: message, ends: [x]",
            "`ends` needs a key and state",
        ),
        (
            &format!("input: {{ bee: a }}, {kept} ends: soon"),
            "expected true or false",
        ),
        (
            &format!("input: {{ bee: a }}, {kept} ends: []"),
            "0 keys say the end: 1 to 10000 can",
        ),
        (&format!("input: {{ bee: a }}, {kept} ends: [x, y, x]"), "named twice"),
        (
            &format!("input: {{ bee: a }}, {kept} ends: ['']"),
            "a key has 1 to 1024 bytes",
        ),
        (
            &format!("input: {{ bee: a }}, {kept} ends: [{}]", "x".repeat(1_025)),
            "this one 1025",
        ),
        (&format!("input: {{ bee: a }}, {kept} ends: [7]"), "expected text"),
        (
            &format!("input: {{ gateway: h }}, {kept} ends: true"),
            "behind a gateway",
        ),
        (
            "input: { bee: a }, key: message, state: { ttl: 30d }, ends: true",
            "beside `ttl`",
        ),
        ("input: { join: [a, b] }, ends: true", "`ends` where no Bee keeps"),
        (
            &format!("input: [{{ bee: b }}, {{ bee: x, output: again, loop: 3 }}], {kept} ends: true"),
            "in a circle",
        ),
    ] {
        let head = "name: w\nbees:\n  - { name: a, module: m, input: { gateway: g } }\n  - { name: b, module: m, input: { gateway: g } }\n";
        let told = parse(&format!("{head}  - {{ name: x, module: m, {bee} }}\n"))
            .unwrap_err()
            .to_string();
        assert!(told.contains(says), "{bee}: {told}");
    }
    let many: Vec<String> = (0..=limits::END_KEYS_MAX)
        .map(|n| n.to_string())
        .map(|n| format!("'{n}'"))
        .collect();
    let told = parse(&with(&format!(
        "    key: message\n    state: true\n    ends: [{}]\n",
        many.join(", ")
    )))
    .unwrap_err()
    .to_string();
    assert!(told.contains("10001 keys say the end"), "{told}");
}
