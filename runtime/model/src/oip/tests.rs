use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<Request, OipError> {
    Request::read(&Bytes::copy_from_slice(text.as_bytes()), None)
}

/// JSON, then bytes, with the length that the header has.
fn read_binary(json: &str, behind: &[u8]) -> Result<Request, OipError> {
    let body = [json.as_bytes(), behind].concat().into();
    Request::read(&body, Some(json.len()))
}

fn f32s(name: &str, shape: &[u64], values: &[f32]) -> (String, Tensor) {
    (name.to_owned(), Tensor::from_f32(shape.to_vec(), values).unwrap())
}

#[test]
fn a_request_of_json() {
    // The example of the protocol's specification, in another order of fields and with what is to be passed over.
    let request = read(
        r#" {
            "id": "42", "unknown": {"a": [1, {}]}, "parameters": {"priority": 2, "timeout": 1500, "odd": {"a": []}, "none": null},
            "inputs": [
                {"data": [[1, 2], [3, 4]], "name": "input0", "shape": [2, 2], "datatype": "UINT32", "extra": null},
                {"name": "input1", "datatype": "BOOL", "shape": [3], "parameters": {}, "data": [true, false, true]}
            ],
            "outputs": [{"name": "output0", "parameters": {"binary_data": true}}, {"name": "output1"}]
        } "#,
    )
    .unwrap();
    assert_eq!(request.id, "42");
    let names: Vec<&str> = request.inputs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["input0", "input1"]);
    assert_eq!(request.inputs[0].1.kind(), TensorType::U32);
    assert_eq!(request.inputs[0].1.shape(), [2, 2]);
    assert_eq!(request.inputs[1].1.bytes()[..], [1, 0, 1]);
    assert_eq!(request.timeout_ms().unwrap(), Some(2), "rounded up");
    let kept: Vec<&str> = request.parameters.keys().map(String::as_str).collect();
    assert_eq!(kept, ["priority", "timeout"]);
    assert!(request.binary("output0") && !request.binary("output1") && !request.binary("other"));

    let bare = read(r#"{"inputs": [], "id": null, "parameters": null, "outputs": null}"#).unwrap();
    assert_eq!(bare, Request::default());
}

#[test]
fn a_request_with_tensors_in_binary() {
    let json = r#"{"inputs":[
        {"name":"a","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}},
        {"name":"b","shape":[1],"datatype":"INT8","data":[-1]},
        {"name":"c","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":9}},
        {"name":"d","shape":[0],"datatype":"FP32","parameters":{"binary_data_size":0}}
    ],"parameters":{"binary_data_output":true},"outputs":[{"name":"y","parameters":{"binary_data":false}}]}"#;
    let behind = [&1f32.to_le_bytes()[..], &2f32.to_le_bytes(), b"\x01\0\0\0x\0\0\0\0"].concat();
    let body: Bytes = [json.as_bytes(), &behind].concat().into();
    let request = Request::read(&body, Some(json.len())).unwrap();
    assert_eq!(request.inputs[0].1.to_f32().unwrap(), [1.0, 2.0]);
    assert_eq!(request.inputs[1].1.bytes()[..], [0xff]);
    assert_eq!(request.inputs[2].1.contents().collect::<Vec<_>>(), [&b"x"[..], b""]);
    assert_eq!(request.inputs[3].1.elements(), 0);
    // No copy: the tensor lies in the body.
    assert_eq!(request.inputs[0].1.bytes().as_ptr(), body[json.len()..].as_ptr());
    assert!(request.binary_all && !request.binary("y") && request.binary("z"));
    assert!(request.parameters.is_empty());
}

#[test]
fn what_is_wrong_with_a_request_is_said() {
    let input = |fields: &str| format!(r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"FP32",{fields}}}]}}"#);
    for (text, says) in [
        (String::new(), "no JSON of an inference request"),
        ("[]".into(), "no JSON of an inference request"),
        ("{}".into(), "missing field `inputs`"),
        (r#"{"inputs":{}}"#.into(), "a list of at most"),
        (r#"{"inputs":[1]}"#.into(), "no JSON"),
        (
            r#"{"inputs":[{"shape":[1],"datatype":"FP32","data":[1]}]}"#.into(),
            "missing field `name`",
        ),
        (
            r#"{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}"#.into(),
            "missing field `shape`",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1],"data":[1]}]}"#.into(),
            "missing field `datatype`",
        ),
        (input(r#""data":[1],"name":"x""#), "duplicate field"),
        (input(r#""data":[1],"shape":[1]"#), "duplicate field"),
        (r#"{"inputs":[],"inputs":[]}"#.into(), "duplicate field"),
        (input(r#""data":[1]}],"outputs":[{"#), "missing field `name`"),
        (input(r#""parameters":{}"#), "has no `data`"),
        (input(r#""data":null"#), "has no `data`"),
        (input(r#""data":[1,2]"#), "more than 1"),
        (
            input(r#""data":[1],"parameters":{"binary_data_size":0}"#),
            "both `data` and",
        ),
        (input(r#""parameters":{"binary_data_size":4}"#), "only 0 are left"),
        (input(r#""parameters":{"binary_data_size":-1}"#), "no whole number"),
        (input(r#""parameters":{"binary_data_size":"4"}"#), "no whole number"),
        (
            input(r#""parameters":{"binary_data_size":18446744073709551615}"#),
            "no whole number",
        ),
        (
            input(r#""parameters":{"binary_data_size":9223372036854775807}"#),
            "only 0 are left",
        ),
        (input(r#""parameters":[]"#), "an object of parameters"),
        (input(r#""parameters":{"a":1,"a":2},"data":[1]"#), "twice"),
        (input(r#""data":[NaN]"#), "no JSON"),
        (
            r#"{"inputs":[{"name":"x","shape":[-1],"datatype":"FP32","data":[1]}]}"#.into(),
            "invalid value",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1.5],"datatype":"FP32","data":[1]}]}"#.into(),
            "no JSON",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1,1,1,1,1,1,1,1,1],"datatype":"FP32","data":[1]}]}"#.into(),
            "more than the 8",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[18446744073709551615,2],"datatype":"FP32","data":[1]}]}"#.into(),
            "more than 67108864 bytes",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FLOAT","data":[1]}]}"#.into(),
            "unknown tensor type \"FLOAT\"",
        ),
        (
            r#"{"inputs":[{"name":"","shape":[1],"datatype":"FP32","data":[1]}]}"#.into(),
            "name has 0 bytes",
        ),
        (
            format!(
                r#"{{"inputs":[{{"name":"{}","shape":[1],"datatype":"FP32","data":[1]}}]}}"#,
                "x".repeat(257)
            ),
            "name has 257 bytes",
        ),
        (
            format!(
                r#"{{"inputs":[{0},{0}]}}"#,
                r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1]}"#
            ),
            "\"x\" is given twice",
        ),
        (
            r#"{"inputs":[],"outputs":[{"name":"y"},{"name":"y"}]}"#.into(),
            "asked for twice",
        ),
        (
            r#"{"inputs":[],"parameters":{"binary_data_output":1}}"#.into(),
            "neither true nor false",
        ),
        (
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"binary_data":"yes"}}]}"#.into(),
            "neither true nor false",
        ),
        (format!(r#"{{"inputs":[{}1]}}"#, "1,".repeat(2_000)), "no JSON"),
        (format!(r#"{{"inputs":{}"#, "[".repeat(100_000)), "no JSON"),
        (format!(r#"{{"inputs":[],"x":{}"#, "[".repeat(100_000)), "no JSON"),
    ] {
        let error = read(&text).expect_err(&text).to_string();
        assert!(
            error.contains(says),
            "{}: {error}",
            text.chars().take(200).collect::<String>()
        );
    }
    let few = |of: &str, count: usize| {
        format!(
            r#"{{"inputs":[],"{of}":[{}]}}"#,
            vec![r#"{"name":"y"}"#; count].join(",")
        )
    };
    assert!(
        read(&few("outputs", CALL_TENSORS_MAX + 1))
            .unwrap_err()
            .to_string()
            .contains("more than the 1024")
    );
    let many: Vec<String> = (0..=CALL_PARAMETERS_MAX).map(|at| format!("\"p{at}\":1")).collect();
    let many = format!(r#"{{"inputs":[],"parameters":{{{}}}}}"#, many.join(","));
    assert!(read(&many).unwrap_err().to_string().contains("more than the 64"));
    let not_utf8 =
        Bytes::from_static(b"{\"inputs\":[{\"name\":\"\xff\",\"shape\":[1],\"datatype\":\"FP32\",\"data\":[1]}]}");
    assert!(Request::read(&not_utf8, None).is_err());
}

#[test]
fn binary_sizes_must_add_up_to_the_body() {
    let json = |sizes: &[i64]| {
        let inputs: Vec<String> = sizes
            .iter()
            .enumerate()
            .map(|(at, size)| {
                format!(
                    r#"{{"name":"x{at}","shape":[1],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}"#
                )
            })
            .collect();
        format!(r#"{{"inputs":[{}]}}"#, inputs.join(","))
    };
    assert!(read_binary(&json(&[4, 4]), &[0; 8]).is_ok());
    for (sizes, behind, says) in [
        (&[4, 4][..], 7, "only 3 are left"),
        (&[4, 4], 9, "1 bytes are left"),
        (&[4], 8, "4 bytes are left"),
        (&[], 4, "4 bytes are left"),
        (&[8], 8, "has 4 bytes, but 8 were given"),
        (&[3], 3, "has 4 bytes, but 3 were given"),
        (&[i64::MAX, i64::MAX], 8, "only 8 are left"),
    ] {
        let error = read_binary(&json(sizes), &vec![0; behind]).unwrap_err().to_string();
        assert!(error.contains(says), "{sizes:?}: {error}");
    }
    let text = json(&[4]);
    let body = Bytes::from(format!("{text}abcd"));
    for (length, says) in [
        (text.len() + 5, "but the body has"),
        (usize::MAX, "but the body has"),
        (text.len() + 1, "trailing characters"),
        (text.len() - 1, "EOF"),
        (0, "EOF"),
    ] {
        let error = Request::read(&body, Some(length)).unwrap_err().to_string();
        assert!(error.contains(says), "{length}: {error}");
    }
    let error = Request::read(&body, None).unwrap_err().to_string();
    assert!(error.contains("Inference-Header-Content-Length"), "{error}");
}

#[test]
fn what_would_change_the_meaning_of_a_call_is_refused() {
    for text in [
        r#"{"inputs":[],"parameters":{"sequence_id":7}}"#,
        r#"{"inputs":[],"parameters":{"sequence_id":"a"}}"#,
        r#"{"inputs":[],"parameters":{"sequence_start":true}}"#,
        r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":3}}]}"#,
        r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"shared_memory_region":"r"}}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"shared_memory_region":"r","shared_memory_byte_size":4}}]}"#,
    ] {
        assert!(matches!(read(text), Err(OipError::Unsupported(_))), "{text}");
    }
    assert!(read(r#"{"inputs":[],"parameters":{"sequence_id":0,"sequence_start":false,"priority":0}}"#).is_ok());
    for bad in ["-1", "1.5", "\"1\"", "true"] {
        let request = read(&format!(r#"{{"inputs":[],"parameters":{{"timeout":{bad}}}}}"#)).unwrap();
        assert!(request.timeout_ms().is_err(), "{bad}");
    }
    let timeout = |us: u64| {
        let request = read(&format!(r#"{{"inputs":[],"parameters":{{"timeout":{us}}}}}"#)).unwrap();
        request.timeout_ms().unwrap()
    };
    assert_eq!((timeout(0), timeout(1), timeout(1_000)), (None, Some(1), Some(1)));
    assert_eq!(timeout(u64::MAX), Some(u64::MAX.div_ceil(1_000)));
}

#[test]
fn bounds_of_bodies() {
    let large = Bytes::from(vec![b' '; CALL_JSON_BYTES_MAX + 1]);
    assert!(matches!(Request::read(&large, None), Err(OipError::TooLarge(_))));
    assert!(matches!(
        Request::read(&large, Some(large.len())),
        Err(OipError::TooLarge(_))
    ));
    assert!(matches!(
        Response::read(&large, Some(large.len())),
        Err(OipError::TooLarge(_))
    ));
    assert!(Response::read(&large, None).is_err());
    let larger = Bytes::from(vec![b' '; CALL_BYTES_MAX + 1]);
    assert!(matches!(Request::read(&larger, Some(2)), Err(OipError::TooLarge(_))));
    assert!(matches!(Response::read(&larger, None), Err(OipError::TooLarge(_))));
    let tensor = Tensor::new(TensorType::U8, vec![6 << 20], vec![200; 6 << 20].into()).unwrap();
    let response = Response {
        outputs: vec![("y".into(), tensor)],
        ..Response::default()
    };
    assert!(matches!(response.write(|_| false), Err(OipError::TooLarge(_))));
    assert!(response.write(|_| true).is_ok());
    let tensor = Tensor::new(TensorType::U8, vec![64 << 20], vec![0; 64 << 20].into()).unwrap();
    let outputs = vec![("y".into(), tensor.clone()), ("z".into(), tensor)];
    let response = Response {
        outputs,
        ..Response::default()
    };
    assert!(matches!(response.write(|_| true), Err(OipError::TooLarge(_))));
}

#[test]
fn outputs_are_selected_by_name() {
    let outputs = || {
        vec![
            f32s("a", &[1], &[1.0]),
            f32s("b", &[1], &[2.0]),
            f32s("c", &[1], &[3.0]),
        ]
    };
    let select = |names: &[&str]| {
        let wanted = names.iter().map(|name| Wanted {
            name: (*name).to_owned(),
            binary: None,
        });
        let request = Request {
            outputs: wanted.collect(),
            ..Request::default()
        };
        request.select(outputs())
    };
    assert_eq!(select(&[]).unwrap(), outputs());
    assert_eq!(
        select(&["c", "a"]).unwrap(),
        [f32s("c", &[1], &[3.0]), f32s("a", &[1], &[1.0])]
    );
    let error = select(&["b", "d"]).unwrap_err().to_string();
    assert_eq!(error, "there is no output \"d\": the outputs are a, b, c");
}

#[test]
fn a_response_ends_where_its_json_does() {
    let response = Response {
        model: "m".into(),
        version: "v1".into(),
        id: "7".into(),
        parameters: Parameters::new(),
        outputs: vec![f32s("y", &[1, 2], &[1.0, 2.0]), f32s("z", &[1], &[f32::NAN])],
    };
    let body = response.write(|name| name == "z").unwrap();
    let length = body.json_length.unwrap();
    assert_eq!(
        std::str::from_utf8(&body.bytes[..length]).unwrap(),
        concat!(
            r#"{"model_name":"m","model_version":"v1","id":"7","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[1.0,2.0]},"#,
            r#"{"name":"z","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}"#
        )
    );
    for said in [Some(length), None] {
        let read = Response::read(&body.bytes, said).unwrap();
        assert_eq!(format!("{read:?}"), format!("{response:?}"));
        assert!(read.outputs[1].1.to_f32().unwrap()[0].is_nan());
    }
    let error = response.write(|_| false).unwrap_err().to_string();
    assert!(error.starts_with("output \"z\": element 0 is NaN"), "{error}");

    let spaced = Bytes::from_static(b" {\"outputs\":[]} \n");
    assert!(Response::read(&spaced, None).is_ok() && Response::read(&spaced, Some(spaced.len())).is_ok());
    for (text, length) in [
        (&b""[..], None),
        (b"null", None),
        (b"{}", None),
        (b"{\"outputs\":[]}x", None),
        (b"{\"outputs\":[]}{}", Some(16)),
        (b"{\"outputs\":[]}", Some(15)),
        (b"{\"outputs\":[]}", Some(5)),
    ] {
        let body = Bytes::copy_from_slice(text);
        assert!(
            Response::read(&body, length).is_err(),
            "{}",
            String::from_utf8_lossy(text)
        );
    }
}

#[test]
fn requests_and_responses_are_told_from_plain_json() {
    assert!(is_request(br#" {"id":"a","inputs": [ {"name":"x"}]}"#));
    for plain in [
        &br#"{"inputs":[[1,2]]}"#[..],
        br#"{"inputs":[]}"#,
        br#"{"inputs":1}"#,
        br#"{"x":[{"inputs":[{}]}]}"#,
        br#"[{"inputs":[{}]}]"#,
        b"",
        b"{",
        b"7",
        b"\xff\xfe",
    ] {
        assert!(!is_request(plain), "{}", String::from_utf8_lossy(plain));
        assert!(!is_response(plain), "{}", String::from_utf8_lossy(plain));
    }
    assert!(is_response(br#"{"outputs":[]}"#) && is_response(b"{\"outputs\":[{}]}\x01\xff"));
    assert!(!is_response(br#"{"outputs":{"a":1}}"#) && !is_response(br#"{"outputs":[1]}"#));
}

fn any_tensors() -> impl Strategy<Value = Tensors> {
    let one = (
        0usize..TensorType::ALL.len(),
        prop::collection::vec(0u64..4, 0..3),
        any::<u64>(),
    );
    prop::collection::vec(one, 0..5).prop_map(|all| {
        let tensor = |(at, (kind, shape, seed)): (usize, (usize, Vec<u64>, u64))| {
            let kind = TensorType::ALL[kind];
            let elements: u64 = shape.iter().product();
            let bytes: Vec<u8> = match kind {
                TensorType::Bytes => (0..elements)
                    .flat_map(|at| [1, 0, 0, 0, b'a' + (seed.wrapping_add(at) % 26) as u8])
                    .collect(),
                TensorType::Bool => (0..elements).map(|at| (seed >> (at % 64) & 1) as u8).collect(),
                // Sixteenths: serde_json reads other fractions within a unit in the last place of FP64.
                TensorType::Fp64 => (0..elements)
                    .flat_map(|at| (f64::from((seed.wrapping_add(at) % 5_000) as u32) / 16.0).to_le_bytes())
                    .collect(),
                // Small patterns: no NaN among them.
                _ => (0..elements)
                    .flat_map(|at| vec![(seed.wrapping_add(at) % 50) as u8; kind.size().unwrap()])
                    .collect(),
            };
            (format!("t{at}"), Tensor::new(kind, shape, bytes.into()).unwrap())
        };
        all.into_iter().enumerate().map(tensor).collect()
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(inputs in any_tensors(), mask in any::<u8>(), all in any::<bool>(), id in "[a-z\"\\\\]{0,5}") {
        let in_binary = |name: &str| mask >> name[1..].parse::<u8>().unwrap() & 1 == 1;
        let outputs = vec![Wanted { name: "y".into(), binary: Some(!all) }, Wanted { name: "z".into(), binary: None }];
        let parameters = Parameters::from([("timeout".into(), Parameter::Int(5)), ("text".into(), Parameter::Text("x".into()))]);
        let request = Request { id: id.clone(), parameters, inputs: inputs.clone(), outputs, binary_all: all };
        let body = request.write(in_binary).unwrap();
        prop_assert_eq!(&Request::read(&body.bytes, body.json_length).unwrap(), &request);
        let response = Response { model: "m".into(), version: String::new(), id, parameters: Parameters::new(), outputs: inputs };
        let body = response.write(in_binary).unwrap();
        prop_assert_eq!(&Response::read(&body.bytes, body.json_length).unwrap(), &response);
        prop_assert_eq!(&Response::read(&body.bytes, None).unwrap(), &response);
    }

    /// Wherever a body is cut or changed, it is read otherwise or refused, and nothing panics.
    #[test]
    fn no_body_panics(inputs in any_tensors(), cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), said in 0usize..400) {
        let request = Request { inputs, ..Request::default() };
        let body = request.write(|name| name.len() % 2 == 0).unwrap();
        let mut bytes = body.bytes.to_vec();
        bytes[at.index(body.bytes.len())] = byte;
        bytes.truncate(cut.index(body.bytes.len()) + 1);
        let bytes = Bytes::from(bytes);
        for length in [body.json_length, Some(said), None] {
            let _ = Request::read(&bytes, length);
            let _ = Response::read(&bytes, length);
        }
        let _ = (is_request(&bytes), is_response(&bytes));
        if cut.index(body.bytes.len()) + 1 < body.bytes.len() {
            prop_assert!(Request::read(&body.bytes.slice(..=cut.index(body.bytes.len())), body.json_length).is_err());
        }
    }

    #[test]
    fn no_text_panics(text in "[\\[\\]{}:, 0-9.\"a-z-]{0,80}") {
        let _ = read(&text);
        let _ = read(&format!(r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"FP32",{text}}}]}}"#));
        let _ = Response::read(&Bytes::from(text), None);
    }
}
