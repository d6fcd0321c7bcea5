use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::sample;

fn says(bytes: &[u8]) -> String {
    inspect(bytes, &Limits::default())
        .expect_err("it must be refused")
        .to_string()
}

/// Protocol Buffers by hand: what no exporter would write.
#[derive(Default, Clone)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, number: u64, kind: u64) -> &mut Self {
        self.varint(number << 3 | kind)
    }

    fn varint(&mut self, mut value: u64) -> &mut Self {
        while value > 127 {
            self.0.push(value as u8 | 128);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.key(field, 0).varint(value);
        self
    }

    fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.key(field, 2).varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn with(self, field: u64, value: Self) -> Self {
        self.bytes(field, value.0)
    }
}

fn msg() -> Message {
    Message::default()
}

fn value(name: &str, kind: u64, dims: &[i64]) -> Message {
    let dim = |dim: &i64| {
        if *dim == -1 {
            msg().bytes(2, "n")
        } else {
            msg().number(1, *dim as u64)
        }
    };
    let shape = dims.iter().fold(msg(), |shape, each| shape.with(1, dim(each)));
    msg()
        .bytes(1, name)
        .with(2, msg().with(1, msg().number(1, kind).with(2, shape)))
}

fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> Message {
    let node = inputs.iter().fold(msg(), |node, name| node.bytes(1, name));
    outputs
        .iter()
        .fold(node, |node, name| node.bytes(2, name))
        .bytes(3, format!("the {operator}"))
        .bytes(4, operator)
}

/// FP32, `elements` of zero.
fn tensor(name: &str, dims: &[u64], bytes: usize) -> Message {
    dims.iter()
        .fold(msg(), |tensor, dim| tensor.number(1, *dim))
        .number(2, 1)
        .bytes(8, name)
        .bytes(9, vec![0; bytes])
}

fn model(graph: Message) -> Message {
    msg().number(1, 8).with(8, msg().number(2, 15)).with(7, graph)
}

fn graph() -> Message {
    msg()
        .with(11, value("x", 1, &[-1, 4]))
        .with(12, value("y", 1, &[-1, 4]))
}

fn relu() -> Message {
    model(graph().with(1, node("Relu", &["x"], &["y"])))
}

fn refused(model: Message, what: &str) {
    let got = says(&model.0);
    assert!(got.contains(what), "{got}");
}

#[test]
fn the_samples_are_described() {
    for (name, bytes) in sample::all() {
        let described = inspect(&bytes, &Limits::default()).expect(name);
        assert!(
            described.batchable && described.grows.is_none(),
            "{name}: {described:?}"
        );
        assert_eq!(described.opset, 15);
        let outputs: Vec<&str> = described
            .signature
            .outputs
            .iter()
            .map(|port| port.name.as_str())
            .collect();
        assert_eq!(outputs, ["label", "probabilities"]);
    }
    let cnn = inspect(&sample::read("digits-cnn"), &Limits::default()).unwrap();
    assert_eq!(cnn.signature.inputs[0].to_string(), "FP32 [any, 1, 28, 28]");
    assert_eq!(cnn.producer, "skep samples");
    assert_eq!(cnn.weights_bytes, 4 * (8 * 9 + 8 + 16 * 72 + 16 + 10 * 784 + 10));
    assert_eq!(cnn.nodes, 10);
}

#[test]
fn what_is_no_model_is_called_so() {
    for bytes in [
        &b""[..],
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04",
        b"{\"a\": 1}",
        b"\0asm\x01\0\0\0",
        &[0xff; 64],
    ] {
        let got = says(bytes);
        assert!(got.contains("no ONNX model"), "{bytes:?}: {got}");
    }
    assert!(inspect(&relu().0, &Limits::default()).is_ok());
    refused(msg().number(1, 8).with(8, msg().number(2, 15)), "no graph");
    refused(msg().number(1, 99).with(7, graph()), "version 99");
    let small = Limits {
        bytes: 4,
        ..Limits::default()
    };
    assert!(
        inspect(&relu().0, &small)
            .unwrap_err()
            .to_string()
            .contains("of which 4 are allowed")
    );
}

#[test]
fn a_model_that_is_cut_anywhere_is_refused() {
    for bytes in [relu().0, sample::read("iris").to_vec()] {
        // Cut between two sets of operators at its end, it is a whole model still.
        let taken = (0..bytes.len())
            .filter(|end| inspect(&bytes[..*end], &Limits::default()).is_ok())
            .count();
        assert!(taken <= 1, "{taken} of {} parts were models", bytes.len());
    }
}

#[test]
fn nothing_outside_of_the_file_is_used() {
    let stored = tensor("w", &[4], 0)
        .with(13, msg().bytes(1, "location").bytes(2, "/etc/passwd"))
        .number(14, 1);
    refused(
        model(graph().with(5, stored).with(1, node("Relu", &["x"], &["y"]))),
        "\"w\" is kept in another file",
    );
    let marked = tensor("w", &[4], 16).number(14, 1);
    let constant = msg()
        .bytes(2, "c")
        .bytes(4, "Constant")
        .with(5, msg().bytes(1, "value").with(5, marked));
    refused(
        model(graph().with(1, constant).with(1, node("Relu", &["x"], &["y"]))),
        "another file",
    );
}

#[test]
fn operators_that_are_not_onnx_are_named() {
    refused(
        model(graph().with(1, node("Evil", &["x"], &["y"]).bytes(7, "com.acme"))),
        "node \"the Evil\" uses operator \"Evil\" of \"com.acme\"",
    );
    let functions = relu().with(25, msg().bytes(1, "Evil"));
    refused(functions, "functions of its own");
    refused(
        msg().number(1, 8).with(8, msg().number(2, 99)).with(7, graph()),
        "version 99 of ai.onnx; 7 to 21",
    );
    refused(
        msg()
            .number(1, 8)
            .with(7, graph().with(1, node("Relu", &["x"], &["y"]))),
        "does not say which version",
    );
}

#[test]
fn tensors_are_what_they_say() {
    let with = |tensor: Message| model(graph().with(5, tensor).with(1, node("Add", &["x", "w"], &["y"])));
    assert_eq!(
        inspect(&with(tensor("w", &[4], 16)).0, &Limits::default())
            .unwrap()
            .weights_bytes,
        16
    );
    refused(
        with(tensor("w", &[4], 12)),
        "12 bytes, but its shape says 4 elements of 4 bytes",
    );
    refused(with(tensor("w", &[1 << 40], 16)), "larger than a whole model");
    refused(
        with(tensor("w", &[u64::MAX, u64::MAX], 16)),
        "larger than a whole model",
    );
    refused(with(tensor("w", &[1; 9], 4)), "9, of which 8");
    refused(with(tensor("w", &[4], 16).number(2, 1)), "field 2 twice");
    refused(with(msg().number(2, 14).bytes(8, "w")), "kind 14");
    refused(with(tensor("w", &[4], 16).bytes(4, [0; 16])), "shape says");
    let packed = |field, bytes: &[u8], kind| msg().number(1, 4).number(2, kind).bytes(8, "w").bytes(field, bytes);
    assert!(inspect(&with(packed(4, &[0; 16], 1)).0, &Limits::default()).is_ok());
    assert!(inspect(&with(packed(7, &[1, 2, 3, 4], 7)).0, &Limits::default()).is_ok());
    refused(with(packed(7, &[1, 2, 3], 7)), "3 elements");
    refused(with(packed(7, &[1, 2, 3, 128], 7)), "end inside one");
    refused(with(packed(4, &[0; 15], 1)), "numbers belong");
    refused(with(packed(5, &[1, 2, 3, 4], 7)), "4 elements");
}

#[test]
fn values_are_made_before_they_are_taken() {
    refused(
        model(graph().with(1, node("Relu", &["z"], &["y"]))),
        "takes \"z\", which nothing before it makes",
    );
    refused(model(graph().with(1, node("Relu", &["y"], &["y"]))), "takes \"y\"");
    refused(
        model(graph().with(1, node("Relu", &["x"], &["z"]))),
        "nothing makes its output \"y\"",
    );
    refused(
        model(graph().with(1, node("Relu", &["x"], &["x"]))),
        "two nodes make \"x\"",
    );
    refused(
        model(
            graph()
                .with(11, value("x", 1, &[4]))
                .with(1, node("Relu", &["x"], &["y"])),
        ),
        "\"x\" has no name of its own",
    );
    refused(model(msg().with(11, value("x", 1, &[4]))), "no output");
}

#[test]
fn ports_are_tensors_with_a_shape() {
    let out = |value: Message| model(msg().with(11, value.clone()).with(12, value));
    assert!(inspect(&out(value("x", 1, &[-1, 4])).0, &Limits::default()).is_ok());
    refused(out(value("x", 14, &[4])), "of a kind that is not supported");
    refused(out(value("x", 1, &[0])), "a dimension is zero");
    refused(out(value("x", 1, &[-7])), "is negative");
    refused(out(value("x", 1, &[1; 9])), "9, of which 8");
    refused(out(value("x\u{1b}[2J", 1, &[1])), "control characters");
    refused(
        out(msg().bytes(1, "x").with(2, msg().with(1, msg().number(1, 1)))),
        "says no shape",
    );
    refused(out(msg().bytes(1, "x").with(2, msg().with(4, msg()))), "zipmap");
    let twice = msg()
        .bytes(1, "x")
        .with(2, msg().with(1, msg().number(1, 1)).with(1, msg().number(1, 1)));
    refused(out(twice), "twice");
    let many = (0..65).fold(msg(), |graph, at| graph.with(11, value(&format!("x{at}"), 1, &[4])));
    refused(model(many.with(12, value("x0", 1, &[4]))), "65, of which 64");
}

#[test]
fn fields_that_come_once_come_once() {
    refused(relu().with(7, graph()), "field 7 twice");
    refused(relu().number(1, 8), "field 1 twice");
    let node = node("Relu", &["x"], &["y"]).bytes(4, "Evil");
    refused(model(graph().with(1, node)), "field 4 twice");
}

#[test]
fn depth_and_numbers_are_bounded() {
    let inner = |graph: Message| {
        msg()
            .with(12, value("x", 1, &[4]))
            .with(1, msg().bytes(4, "If").with(5, msg().with(6, graph)))
    };
    let deep = (0..9).fold(msg().with(12, value("x", 1, &[4])), |graph, _| inner(graph));
    refused(
        model(
            graph()
                .with(1, node("Relu", &["x"], &["y"]))
                .with(1, msg().bytes(4, "If").with(5, msg().with(6, deep))),
        ),
        "graphs inside each other",
    );
    // Deeper than any stack, if it were followed.
    let mut deep = msg();
    for _ in 0..2_000 {
        deep = msg().with(1, msg().bytes(4, "If").with(5, msg().with(6, deep)));
    }
    refused(model(deep), "graphs inside each other");
    let tight = Limits {
        nodes: 10,
        tensors: 3,
        attributes: 2,
        unpacked_bytes: 8 << 10,
        ..Limits::default()
    };
    let nodes = (0..11).fold(graph(), |graph, at| {
        graph.with(1, node("Relu", &["x"], &[&format!("y{at}")]))
    });
    let tensors = (0..4).fold(graph(), |graph, at| graph.with(5, tensor(&at.to_string(), &[1], 4)));
    let attributes = graph().with(
        1,
        node("Relu", &["x"], &["y"])
            .with(5, msg())
            .with(5, msg())
            .with(5, msg()),
    );
    let unpacked = graph().with(1, node("Relu", &["x"], &["y"]).with(5, msg().bytes(8, vec![1; 2_000])));
    for (graph, what) in [
        (nodes, "nodes: 11"),
        (tensors, "tensors: 4"),
        (attributes, "attributes: 3"),
        (unpacked, "when it is unpacked"),
    ] {
        let got = inspect(&model(graph).0, &tight).unwrap_err().to_string();
        assert!(got.contains(what), "{got}");
    }
    refused(
        model(graph().with(1, node("Relu", &[&"x".repeat(2_000)], &["y"]))),
        "a name of so many bytes",
    );
}

#[test]
fn who_calls_does_not_choose_how_large_a_value_is() {
    let with = |node: Message| {
        inspect(
            &model(graph().with(5, tensor("w", &[2], 8)).with(1, node)).0,
            &Limits::default(),
        )
        .unwrap()
        .grows
    };
    assert_eq!(with(node("Expand", &["x", "w"], &["y"])), None);
    assert_eq!(
        with(node("Expand", &["w", "x"], &["y"])).as_deref(),
        Some("the Expand (Expand)")
    );
    assert!(with(node("ConstantOfShape", &["x"], &["y"])).is_some());
    assert!(with(node("Resize", &["x", "", "w"], &["y"])).is_none());
    assert!(with(node("Resize", &["x", "", "x"], &["y"])).is_some());
    // What is made of constants only is one.
    let made = graph()
        .with(5, tensor("w", &[2], 8))
        .with(1, node("Cast", &["w"], &["s"]))
        .with(1, node("Tile", &["x", "s"], &["y"]));
    assert_eq!(inspect(&model(made).0, &Limits::default()).unwrap().grows, None);
}

#[test]
fn who_calls_does_not_choose_by_what_whole_numbers_are_divided() {
    let whole = |name: &str, each: i64| {
        msg()
            .number(1, 2)
            .number(2, 7)
            .bytes(8, name)
            .bytes(9, [each, 3].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>())
    };
    let with = |kind: u64, nodes: &[Message]| {
        let graph = msg()
            .with(11, value("x", kind, &[-1, 2]))
            .with(12, value("y", kind, &[-1, 2]))
            .with(5, whole("two", 2))
            .with(5, whole("none", 0))
            .with(5, whole("minus", -1))
            .with(5, tensor("half", &[2], 8));
        let graph = nodes.iter().fold(graph, |graph, node| graph.bytes(1, &node.0));
        inspect(&model(graph).0, &Limits::default()).unwrap().divides
    };
    let div = |by: &str| node("Div", &["x", by], &["y"]);
    // Fractions may be divided by anything, as is known of one side.
    for by in ["x", "half"] {
        assert_eq!(with(1, &[div(by)]), None);
    }
    assert_eq!(with(7, &[div("half")]), None);
    assert_eq!(with(7, &[div("two")]), None);
    for by in ["x", "none", "minus"] {
        assert_eq!(with(7, &[div(by)]).as_deref(), Some("the Div (Div)"), "{by}");
    }
    let cast = |to: u64| node("Cast", &["x"], &["c"]).with(5, msg().bytes(1, "to").number(3, to));
    let of_cast = || node("Mod", &["c", "c"], &["y"]);
    assert_eq!(with(7, &[cast(1), of_cast()]), None);
    assert_eq!(with(1, &[cast(7), of_cast()]).as_deref(), Some("the Mod (Mod)"));
    assert_eq!(
        with(1, &[node("Exp", &["x"], &["e"]), node("Div", &["e", "e"], &["y"])]),
        None
    );
    // Indices are whole, whatever they are of.
    assert!(with(1, &[node("ArgMax", &["x"], &["i"]), node("Div", &["i", "i"], &["y"])]).is_some());
    let constant = |each| node("Constant", &[], &["k"]).with(5, msg().bytes(1, "value").with(5, whole("", each)));
    assert_eq!(with(7, &[constant(5), div("k")]), None);
    assert!(with(7, &[constant(0), div("k")]).is_some());
}

/// Random and mutated files: always an answer, and never more memory than a small multiple of the file (see `memory`, below).
#[test]
fn no_bytes_make_it_panic() {
    let mut random = SmallRng::seed_from_u64(17);
    let mut seeds: Vec<Vec<u8>> = sample::all()
        .into_iter()
        .map(|(_, bytes)| bytes.to_vec())
        .filter(|bytes| bytes.len() < 50_000)
        .collect();
    seeds.push(relu().0);
    let mut taken = 0;
    for round in 0..120_000u32 {
        let mut bytes = if round % 8 == 0 {
            let length = random.random_range(0..200);
            (0..length).map(|_| random.random()).collect()
        } else {
            // Small ones mostly: more of each is changed, and many more rounds are had.
            let seed = if round % 64 == 1 {
                random.random_range(0..seeds.len())
            } else {
                seeds.len() - 1 - random.random_range(0..2) * 4
            };
            seeds[seed].clone()
        };
        for _ in 0..random.random_range(1..6) {
            if bytes.is_empty() {
                break;
            }
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..5) {
                0 => bytes[at] ^= 1 << random.random_range(0..8),
                1 => bytes[at] = random.random(),
                2 => bytes.truncate(at),
                3 => {
                    let end = (at + random.random_range(1..40)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = random.random_range(0..bytes.len());
                    bytes.splice(to..to, piece);
                }
                _ => bytes[at..].iter_mut().take(4).for_each(|byte| *byte = 0xff),
            }
        }
        taken += u32::from(inspect(&bytes, &Limits::default()).is_ok());
    }
    // Some changes (to a weight, to a comment) leave a model. If none did, the rounds would not reach far.
    assert!(taken > 500, "{taken} were models");
}

proptest! {
    #[test]
    fn varints_go_both_ways(value: u64) {
        let mut written = Message::default();
        written.varint(value);
        let mut found = None;
        let fields = Fields::new("it", &[]);
        fields.each(Value::Bytes(&written.0), |read| { found = Some(read); Ok(()) }).unwrap();
        prop_assert_eq!(found, Some(value));
        prop_assert_eq!(fields.numbers(Value::Bytes(&written.0), 0).unwrap(), 1);
    }
}
