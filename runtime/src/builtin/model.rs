//! A stage that calls a model with each message.
//!
//! A message is an inference request of the Open Inference Protocol v2 (JSON, or with binary data behind it) or plain JSON by the names of the
//! model's inputs; the answer has the same form. All messages of a batch call at once, so the model's batching puts them together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use skep_inference::limits::BATCH_ROWS_DEFAULT;
use skep_model::Bytes;
use skep_model::error::ErrorKind;
use skep_model::limits::PAYLOAD_BYTES_MAX;
use skep_model::message::Message;
use skep_model::name::ModelRef;
use skep_model::oip::{self, JSON_LENGTH_HEADER, OipError, Request, Response, plain};
use skep_model::predict::{ModelVersion, PredictError, Tensors};
use skep_model::step::{Batch, Disposition, Input, Outcome};

use super::{BuiltinBee, ended, reject};

pub(super) async fn call(stage: &BuiltinBee, model: &ModelRef, batch: &Batch) -> Vec<Outcome> {
    // One version for the batch, whatever becomes of the tag meanwhile.
    let version = stage.models.find(&stage.tenant, model).await;
    let began = Instant::now();
    let version = &version;
    let calls = batch.inputs.iter().map(|input| async move {
        match (version, input) {
            (_, Input::Timer(_) | Input::Joined(_)) => reject("a built-in model takes messages only"),
            (Err(error), _) => failed(error),
            (Ok(version), Input::Message { message, .. }) => match one(stage, version, message, began).await {
                Ok(outcome) | Err(outcome) => outcome,
            },
        }
    });
    // A list first: the compiler does not see that such a closure is good for every lifetime.
    let calls: Vec<_> = calls.collect();
    // As many as one run takes: a batch of messages may be longer, and each answer lies in memory until it was looked at.
    stream::iter(calls).buffered(BATCH_ROWS_DEFAULT).collect().await
}

/// How a call is answered: in the form that it came in.
enum Form {
    Protocol(Request),
    Plain,
}

async fn one(
    stage: &BuiltinBee,
    version: &Arc<ModelVersion>,
    message: &Message,
    began: Instant,
) -> Result<Outcome, Outcome> {
    let mut left_ms = stage.timeout_ms;
    if let Some(request) = message.request {
        left_ms = left_ms.min(request.deadline_ms.saturating_sub(stage.clock.now_ms()));
    }
    let deadline = began + Duration::from_millis(left_ms);
    let (inputs, form) = read(message, version).map_err(|e| reject(e.to_string()))?;
    let predicted = stage
        .models
        .predict(&stage.tenant, version, inputs, Some(deadline))
        .await;
    let outputs = predicted.map_err(|e| failed(&e))?;
    // Before it is written out, and while it is one message's: no message holds it.
    let bytes: usize = outputs.iter().map(|(_, tensor)| tensor.bytes().len()).sum();
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(reject(format!(
            "the model answers with {bytes} bytes, and a message has at most {PAYLOAD_BYTES_MAX}: send fewer rows, or call the model by the Open \
             Inference Protocol"
        )));
    }
    let written = write(version, outputs, form).map_err(|e| reject(e.to_string()))?;
    Ok(stage.exit.outcome(written.0, written.1))
}

fn read(message: &Message, version: &ModelVersion) -> Result<(Tensors, Form), OipError> {
    let length = message
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(JSON_LENGTH_HEADER))
        .map(|(_, value)| {
            let length = value.trim().parse::<usize>();
            length.map_err(|_| {
                OipError::Invalid(format!(
                    "the header `{JSON_LENGTH_HEADER}` is no number of bytes: {value:?}"
                ))
            })
        })
        .transpose()?;
    if length.is_some() || oip::is_request(&message.payload) {
        let mut request = Request::read(&message.payload, length)?;
        let inputs = std::mem::take(&mut request.inputs);
        return Ok((inputs, Form::Protocol(request)));
    }
    Ok((plain::read(&message.payload, &version.signature)?, Form::Plain))
}

type Written = (Vec<(String, String)>, Bytes);

fn write(version: &ModelVersion, outputs: Tensors, form: Form) -> Result<Written, OipError> {
    let request = match form {
        Form::Plain => return Ok((Vec::new(), plain::write(&outputs)?.into())),
        Form::Protocol(request) => request,
    };
    let response = Response {
        model: version.name.to_string(),
        version: version.digest.to_string(),
        id: request.id.clone(),
        outputs: request.select(outputs)?,
        ..Response::default()
    };
    let body = response.write(|output| request.binary(output))?;
    let headers = body
        .json_length
        .map(|length| (JSON_LENGTH_HEADER.to_owned(), length.to_string()));
    Ok((headers.into_iter().collect(), body.bytes))
}

/// What may go better another time is left to the stage's retries.
fn failed(error: &PredictError) -> Outcome {
    let reason = match error.kind {
        ErrorKind::Invalid => return reject(error.text.clone()),
        ErrorKind::NotFound => "no-model",
        ErrorKind::Overloaded => "model-busy",
        ErrorKind::DeadlineExceeded => "model-timeout",
        ErrorKind::Unavailable => "model-unavailable",
        _ => "model-failed",
    };
    ended(Disposition::Fail {
        reason: reason.to_owned(),
        detail: error.text.clone(),
    })
}

#[cfg(test)]
mod tests {
    use skep_model::id::{Digest, Uid};
    use skep_model::tensor::{Port, Signature, Tensor, TensorType};

    use super::*;

    fn version() -> ModelVersion {
        let port = |name: &str, kind| Port {
            name: name.into(),
            kind,
            shape: vec![None, Some(2)],
        };
        ModelVersion {
            name: "m".parse().unwrap(),
            digest: Digest::of(b"m"),
            tags: vec!["v1".into()],
            signature: Signature {
                inputs: vec![port("x", TensorType::Fp32)],
                outputs: vec![port("y", TensorType::Fp32)],
            },
        }
    }

    fn message(payload: &str, headers: &[(&str, &str)]) -> Message {
        Message {
            uid: Uid([1; 16]),
            key: None,
            headers: headers
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            accepted_ms: 1,
            request: None,
            trace: None,
            lineage: None,
            hops: Vec::new(),
        }
    }

    fn answered(payload: &str, headers: &[(&str, &str)]) -> Result<(Vec<(String, String)>, String), String> {
        let version = version();
        let (inputs, form) = read(&message(payload, headers), &version).map_err(|e| e.to_string())?;
        assert_eq!(inputs[0].1.to_f32().unwrap(), [1.0, 2.0]);
        let outputs = vec![("y".to_owned(), Tensor::from_f32(vec![1, 2], &[0.5, 1.5]).unwrap())];
        let (headers, bytes) = write(&version, outputs, form).map_err(|e| e.to_string())?;
        Ok((headers, String::from_utf8_lossy(&bytes).into_owned()))
    }

    #[test]
    fn an_answer_has_the_form_of_its_call() {
        for plain in [r#"{"x": [[1, 2]]}"#, r#"{"x": [1, 2]}"#, "[1, 2]", "[[1.0, 2.0]]"] {
            assert_eq!(
                answered(plain, &[]).unwrap(),
                (vec![], r#"{"y":[[0.5,1.5]]}"#.to_owned())
            );
        }
        let call = r#"{"id":"7","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}"#;
        let (headers, body) = answered(call, &[]).unwrap();
        assert!(headers.is_empty());
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["model_name"], "m");
        let digest = Digest::of(b"m").to_string();
        assert_eq!((&body["model_version"], &body["id"]), (&digest.into(), &"7".into()));
        assert_eq!(body["outputs"][0]["data"], serde_json::json!([0.5, 1.5]));
    }

    #[test]
    fn binary_data_goes_both_ways() {
        let json = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}],"parameters":{"binary_data_output":true}}"#;
        let mut payload = json.as_bytes().to_vec();
        payload.extend([1f32, 2.0].iter().flat_map(|v| v.to_le_bytes()));
        let mut message = message("", &[(JSON_LENGTH_HEADER, &json.len().to_string())]);
        message.payload = payload.into();
        let version = version();
        let (inputs, form) = read(&message, &version).unwrap();
        assert_eq!(inputs[0].1.to_f32().unwrap(), [1.0, 2.0]);
        let outputs = vec![("y".to_owned(), Tensor::from_f32(vec![1, 2], &[0.5, 1.5]).unwrap())];
        let (headers, bytes) = write(&version, outputs.clone(), form).unwrap();
        let length: usize = headers[0].1.parse().unwrap();
        assert_eq!(bytes.len(), length + 8);
        assert_eq!(Response::read(&bytes, Some(length)).unwrap().outputs, outputs);
        assert_eq!(Response::read(&bytes, None).unwrap().outputs, outputs);
    }

    #[test]
    fn what_is_no_call_is_told_what_would_be() {
        for (payload, says) in [
            ("", "JSON"),
            ("nonsense", "JSON"),
            ("{}", "x"),
            (r#"{"x": [1, 2, 3]}"#, "FP32 [any, 2]"),
            (r#"{"y": [1, 2]}"#, "y"),
            (
                r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1]}]}"#,
                "expected 2",
            ),
        ] {
            let told = answered(payload, &[]).unwrap_err();
            assert!(told.contains(says), "{payload}: {told}");
        }
        let told = answered("[1, 2]", &[(JSON_LENGTH_HEADER, "-1")]).unwrap_err();
        assert!(told.contains("no number of bytes"), "{told}");
    }
}
