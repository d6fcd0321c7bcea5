//! Bees that call models, well and badly, through both interfaces. Written against the bare WIT, as any toolchain may.
//!
//! A message says in lines what to ask: the model's name, then for each input its name, type, dimensions (commas between; `-`: none) and bytes
//! in hexadecimal, or `*N` for N zeros. An answer has the outputs in the same form, or `error KIND TEXT`.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

wit_bindgen::generate!({ path: "../../../../../proto/wit", world: "module", generate_all });

mod standard {
    wit_bindgen::generate!({ path: "../../../../../proto/wit", world: "wasi:nn/ml@0.2.0-rc-2024-10-28", generate_all });
}

use exports::skep::bee::handler::{Bee, Guest};
use skep::bee::models::{self, Tensor as OwnTensor};
use skep::bee::step;
use skep::bee::types::{Disposition, Input, Outcome};
use standard::wasi::nn::errors::Error;
use standard::wasi::nn::graph::{ExecutionTarget, Graph, GraphEncoding, load, load_by_name};
use standard::wasi::nn::inference::GraphExecutionContext;
use standard::wasi::nn::tensor::{Tensor, TensorType};

struct Predictor;
export!(Predictor);

const BEES: &[&str] = &[
    "own",
    "describe",
    "standard",
    "load",
    "keep",
    "hoard",
    "churn",
    "graphs",
    "early",
    "abandoned",
    "forever",
    "compute",
    "largest",
    "refused",
    "infer",
];

#[derive(Default)]
struct Kept {
    /// What models said before anybody called.
    early: Vec<String>,
    context: Option<GraphExecutionContext>,
    tensors: Vec<Tensor>,
    graphs: Vec<Graph>,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

impl Guest for Predictor {
    fn bees() -> Vec<Bee> {
        let said = [own("iris"), ask_standard("iris")].join(" | ");
        KEPT.with_borrow_mut(|kept| kept.early.push(said));
        BEES.iter()
            .map(|name| Bee {
                name: (*name).to_owned(),
            })
            .collect()
    }

    fn process(bee: String, inputs: Vec<Input>) -> Vec<Outcome> {
        if bee == "early" {
            let said = own("iris");
            return inputs
                .iter()
                .map(|_| respond(KEPT.with_borrow(|kept| format!("{:?} {said}", kept.early))))
                .collect();
        }
        inputs
            .into_iter()
            .enumerate()
            .map(|(index, input)| {
                let index = index as u32;
                step::begin(index);
                let Input::One(message) = input else {
                    return respond(String::new());
                };
                if bee == "infer" {
                    return respond(infer(&message.payload));
                }
                respond(one(&bee, index, &String::from_utf8(message.payload).unwrap()))
            })
            .collect()
    }
}

fn respond(text: String) -> Outcome {
    Outcome {
        publish: vec![],
        respond: vec![text.into_bytes()],
        disposition: Disposition::Done,
    }
}

fn one(bee: &str, index: u32, asked: &str) -> String {
    match bee {
        "own" => own(asked),
        "standard" => ask_standard(asked),
        "describe" => match models::describe(asked) {
            Ok(signature) => format!("{:?} {:?}", signature.inputs, signature.outputs),
            Err(error) => format!("error {:?} {}", error.kind, error.text),
        },
        "load" => {
            let model = vec![0u8; asked.parse().unwrap()];
            let loaded = load(&[model], GraphEncoding::Onnx, ExecutionTarget::Cpu);
            loaded.map_or_else(told, |_| String::from("loaded"))
        }
        // A context from an earlier call of the instance, and what is asked for now.
        "keep" => {
            let (name, inputs) = parse(asked);
            KEPT.with_borrow_mut(|kept| {
                let context = match kept.context.take() {
                    Some(context) => Ok((context, "kept")),
                    None => load_by_name(name)
                        .and_then(|g| g.init_execution_context())
                        .map(|context| (context, "new")),
                };
                let (context, how) = match context {
                    Ok(found) => found,
                    Err(error) => return told(error),
                };
                let answer = compute(&context, inputs);
                kept.context = Some(context);
                format!("{how}\n{answer}")
            })
        }
        // Tensors of so many bytes, held until there is no more room.
        "hoard" => KEPT.with_borrow_mut(|kept| {
            let (count, bytes) = asked.split_once(' ').unwrap();
            for _ in 0..count.parse::<usize>().unwrap() {
                let data = vec![0u8; bytes.parse().unwrap()];
                kept.tensors
                    .push(Tensor::new(&[data.len() as u32], TensorType::U8, &data));
            }
            format!("holds {}", kept.tensors.len())
        }),
        "churn" => {
            let (count, bytes) = asked.split_once(' ').unwrap();
            for _ in 0..count.parse::<usize>().unwrap() {
                let data = vec![1u8; bytes.parse().unwrap()];
                let tensor = Tensor::new(&[data.len() as u32], TensorType::U8, &data);
                assert!(
                    tensor.data() == data
                        && tensor.dimensions() == [data.len() as u32]
                        && tensor.ty() == TensorType::U8
                );
            }
            String::from("done")
        }
        "graphs" => KEPT.with_borrow_mut(|kept| {
            for _ in 0..asked.parse::<usize>().unwrap() {
                kept.graphs
                    .push(load_by_name("iris").unwrap_or_else(|error| panic!("{}", error.data())));
            }
            format!("holds {}", kept.graphs.len())
        }),
        "abandoned" => {
            step::abandon(index);
            own(asked)
        }
        "forever" => loop {
            own(asked);
        },
        // Computes for a while itself, by the clock, after it has asked.
        "compute" => {
            let (asked, ms) = asked.rsplit_once(' ').unwrap();
            let said = own(asked);
            let until = Instant::now() + Duration::from_millis(ms.parse().unwrap());
            while Instant::now() < until {}
            said
        }
        "largest" => {
            let bytes: usize = asked.parse().unwrap();
            let tensor = OwnTensor {
                kind: String::from("UINT8"),
                shape: vec![bytes as u64],
                data: vec![0; bytes],
            };
            shown(models::predict("echo", &[(String::from("x"), tensor)]).map(|outputs| {
                outputs
                    .into_iter()
                    .map(|(name, t)| format!("{name} {} {:?} {}", t.kind, t.shape, t.data.len()))
                    .collect()
            }))
        }
        // What the node refuses, many times: refusals are held too.
        "refused" => {
            for _ in 0..asked.parse::<usize>().unwrap() {
                drop(load_by_name("nobody"));
            }
            String::from("done")
        }
        other => panic!("no Bee {other}"),
    }
}

/// As the Bee of this name in the bench's module, through `wasi:nn`: the graph is loaded once, as is usual there.
fn infer(payload: &[u8]) -> String {
    let (count, data) = payload.split_first_chunk().unwrap();
    let context = load_by_name("digits").and_then(|graph| graph.init_execution_context());
    let context = context.unwrap_or_else(|error| panic!("{}", error.data()));
    let mut labels = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let image = Tensor::new(&[data.len() as u32 / 3136, 784], TensorType::Fp32, data);
        let outputs = context.compute(vec![(String::from("image"), image)]);
        let outputs = outputs.unwrap_or_else(|error| panic!("{}", error.data()));
        let (_, label) = outputs.iter().find(|(name, _)| name == "label").unwrap();
        labels = label
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|chunk| i64::from_le_bytes(*chunk))
            .collect();
    }
    format!("{labels:?}")
}

struct Given {
    name: String,
    kind: String,
    shape: Vec<u64>,
    data: Vec<u8>,
}

fn parse(asked: &str) -> (&str, Vec<Given>) {
    let mut lines = asked.lines();
    let name = lines.next().unwrap_or_default();
    let inputs = lines.map(|line| {
        let mut fields = line.split(' ');
        let mut field = || fields.next().unwrap_or_default();
        let (name, kind, dims, hex) = (field(), field(), field(), field());
        let data = match hex.strip_prefix('*') {
            Some(zeros) => vec![0; zeros.parse().unwrap()],
            None => (0..hex.len() / 2)
                .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
                .collect(),
        };
        Given {
            name: name.to_owned(),
            kind: kind.to_owned(),
            shape: if dims == "-" {
                Vec::new()
            } else {
                dims.split(',').map(|dim| dim.parse().unwrap()).collect()
            },
            data,
        }
    });
    (name, inputs.collect())
}

fn line(name: &str, kind: &str, shape: &[u64], data: &[u8]) -> String {
    let dims: Vec<String> = shape.iter().map(u64::to_string).collect();
    let mut line = format!("{name} {kind} {} ", dims.join(","));
    for byte in data {
        write!(line, "{byte:02x}").unwrap();
    }
    line
}

fn shown(answer: Result<Vec<String>, models::Error>) -> String {
    answer.map_or_else(
        |error| format!("error {:?} {}", error.kind, error.text),
        |lines| lines.join("\n"),
    )
}

fn own(asked: &str) -> String {
    let (name, inputs) = parse(asked);
    let inputs: Vec<_> = inputs
        .into_iter()
        .map(
            |Given {
                 name,
                 kind,
                 shape,
                 data,
             }| (name, OwnTensor { kind, shape, data }),
        )
        .collect();
    let outputs = models::predict(name, &inputs);
    shown(outputs.map(|outputs| {
        outputs
            .iter()
            .map(|(name, t)| line(name, &t.kind, &t.shape, &t.data))
            .collect()
    }))
}

fn told(error: Error) -> String {
    format!("error {:?} {}", error.code(), error.data())
}

const TYPES: [(&str, TensorType); 7] = [
    ("FP16", TensorType::Fp16),
    ("FP32", TensorType::Fp32),
    ("FP64", TensorType::Fp64),
    ("BF16", TensorType::Bf16),
    ("UINT8", TensorType::U8),
    ("INT32", TensorType::I32),
    ("INT64", TensorType::I64),
];

fn ask_standard(asked: &str) -> String {
    let (name, inputs) = parse(asked);
    match load_by_name(name).and_then(|graph| graph.init_execution_context()) {
        Ok(context) => compute(&context, inputs),
        Err(error) => told(error),
    }
}

fn compute(context: &GraphExecutionContext, inputs: Vec<Given>) -> String {
    let inputs = inputs
        .into_iter()
        .map(|given| {
            let ty = TYPES.iter().find(|(name, _)| *name == given.kind).unwrap().1;
            let dims: Vec<u32> = given.shape.iter().map(|dim| *dim as u32).collect();
            (given.name, Tensor::new(&dims, ty, &given.data))
        })
        .collect();
    match context.compute(inputs) {
        Ok(outputs) => {
            let lines: Vec<String> = outputs
                .iter()
                .map(|(name, tensor)| {
                    let kind = TYPES.iter().find(|(_, ty)| *ty == tensor.ty()).unwrap().0;
                    let shape: Vec<u64> = tensor.dimensions().into_iter().map(u64::from).collect();
                    line(name, kind, &shape, &tensor.data())
                })
                .collect();
            lines.join("\n")
        }
        Err(error) => told(error),
    }
}
