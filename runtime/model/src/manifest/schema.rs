//! The manifest's JSON Schema, for editors. Written by hand beside the parser; a test holds the two together.

use serde_json::{Value, json};

use crate::limits;
use crate::name::NAME_BYTES_MAX;

/// The JSON Schema (draft 2020-12) of a Swarm manifest.
#[must_use]
pub fn json_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "skep Swarm manifest",
        "type": "object",
        "required": ["name", "bees"],
        "additionalProperties": false,
        "properties": {
            "name": described("The Swarm's name.", &label()),
            "description": { "type": "string", "maxLength": limits::DESCRIPTION_BYTES_MAX },
            "bees": {
                "type": "array",
                "minItems": 1,
                "maxItems": limits::STAGES_MAX,
                "items": { "$ref": "#/$defs/bee" },
            },
        },
        "$defs": {
            "bee": bee(),
            "input": input(),
            "condition": condition(),
            "scalar": { "type": ["string", "number", "boolean", "null"] },
            "label": label(),
            "duration": duration(),
            "size": size(),
        },
    })
}

fn label() -> Value {
    json!({ "type": "string", "maxLength": NAME_BYTES_MAX, "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$" })
}

fn described(text: &str, schema: &Value) -> Value {
    let mut schema = schema.clone();
    schema["description"] = json!(text);
    schema
}

fn duration() -> Value {
    json!({
        "description": "`500ms`, `30s`, `2m`, `1h`, `30d`, or milliseconds.",
        "oneOf": [
            { "type": "string", "pattern": "^[0-9]+ *(ms|s|m|h|d)$" },
            { "type": "integer", "minimum": 1 },
        ],
    })
}

fn size() -> Value {
    json!({
        "description": "`64MiB`, `512KiB`, `1GiB`, or bytes.",
        "oneOf": [
            { "type": "string", "pattern": "^[0-9]+ *(B|[kK]B|MB|GB|TB|KiB|MiB|GiB|TiB)$" },
            { "type": "integer", "minimum": 1 },
        ],
    })
}

fn bound(messages_min: u64, messages_max: u64) -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "messages": { "type": "integer", "minimum": messages_min, "maximum": messages_max },
            "bytes": { "$ref": "#/$defs/size" },
        },
    })
}

/// Refused by the parser in this version; an editor marks it too.
fn later() -> Value {
    json!({ "not": {}, "description": "Not available in this version." })
}

/// The fields of what is built in.
fn builtin() -> Value {
    json!({
        "type": {
            "enum": ["model", "batch", "respond", "weighted-average", "weighted-average-ensemble"],
            "description": "Instead of `module`: what is built in.",
        },
        "model": {
            "type": "string",
            "description": "A built-in stage that calls this model: `digits`, `digits:v1`, `digits@sha256:…`.",
        },
        "size": {
            "type": "integer",
            "minimum": 1,
            "maximum": limits::GATHER_SIZE_MAX,
            "description": "Of `type: batch`: how many messages become one.",
        },
        "wait": described("Of `type: batch`: how long the first waits for the last.", &json!({ "$ref": "#/$defs/duration" })),
        "weights": {
            "type": "object",
            "additionalProperties": { "type": "number", "minimum": 0.001, "maximum": 1000 },
            "description": "Of `type: weighted-average`: what each side of the join weighs; one where it is not said.",
        },
    })
}

/// What a Bee says of the end of its stream.
fn ends() -> Value {
    described(
        "`true`: each key that has state is told when all that the Bee reads from has ended. A list: the stream begins here, and ends when each \
         of these keys has said so. Needs `key` and `state`.",
        &json!({
            "oneOf": [
                { "type": "boolean" },
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": limits::END_KEYS_MAX,
                    "uniqueItems": true,
                    "items": { "type": "string", "minLength": 1, "maxLength": limits::KEY_BYTES_MAX },
                },
            ],
        }),
    )
}

fn bee() -> Value {
    let mut bee = bee_of_module();
    if let (Some(fields), Value::Object(more)) = (bee["properties"].as_object_mut(), builtin()) {
        fields.extend(more);
        fields.insert("ends".to_owned(), ends());
    }
    bee
}

fn bee_of_module() -> Value {
    let label = json!({ "$ref": "#/$defs/label" });
    json!({
        "type": "object",
        "required": ["name", "input"],
        "oneOf": [
            { "required": ["module"], "properties": { "type": false, "model": false } },
            { "anyOf": [{ "required": ["type"] }, { "required": ["model"] }], "properties": { "module": false } },
        ],
        "additionalProperties": false,
        "dependentRequired": { "order": ["key"] },
        "if": { "properties": { "state": { "not": { "const": false } } }, "required": ["state"] },
        "then": { "required": ["key"] },
        "properties": {
            "name": label,
            "module": {
                "type": "string",
                "description": "NAME, NAME:TAG or NAME@sha256:DIGEST; in `skep up` also a path to a component.",
            },
            "bee": described("The Bee's name in the module; by default `name`.", &label),
            "input": {
                "oneOf": [
                    { "$ref": "#/$defs/input" },
                    { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/input" } },
                ],
            },
            "key": {
                "type": "string",
                "description": "`message`, `header:NAME` or `json:/pointer`: messages of one key keep their order.",
                "pattern": "^(message|header:.+|json:/.*)$",
            },
            "state": {
                "description": "Grants state and timers. Needs `key`.",
                "oneOf": [
                    { "type": "boolean" },
                    {
                        "type": "object",
                        "additionalProperties": false,
                        "dependentRequired": { "refresh": ["ttl"] },
                        "properties": {
                            "ttl": described("A value goes so long after it was refreshed.", &json!({ "$ref": "#/$defs/duration" })),
                            "refresh": {
                                "enum": ["write", "read"],
                                "description": "What refreshes a value: a write of it, or each input of its key.",
                            },
                            "keys": { "type": "integer", "minimum": 1, "maximum": limits::STATE_KEYS_MAX },
                            "bytes": { "$ref": "#/$defs/size" },
                        },
                    },
                ],
            },
            "order": {
                "enum": ["hold", "relaxed"],
                "description": "Whether later messages of a key wait behind one that is retried.",
            },
            "retry": {
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "attempts": { "type": "integer", "minimum": 1, "maximum": limits::ATTEMPTS_MAX },
                    "crashes": { "type": "integer", "minimum": 1, "maximum": limits::CRASHES_MAX },
                    "budget": {
                        "type": "object",
                        "description": "How many of its inputs of the last 10 s a stage may try again, in percent, and how many a second in any case.",
                        "required": ["percent"],
                        "additionalProperties": false,
                        "properties": {
                            "percent": { "type": "integer", "minimum": 0, "maximum": limits::RETRY_BUDGET_PERCENT_MAX },
                            "per_second": { "type": "integer", "minimum": 0, "maximum": limits::RETRY_BUDGET_PER_SECOND_MAX },
                        },
                    },
                    "backoff": {
                        "type": "object",
                        "additionalProperties": false,
                        "properties": {
                            "first": { "$ref": "#/$defs/duration" },
                            "max": { "$ref": "#/$defs/duration" },
                        },
                    },
                },
            },
            "timeout": described("CPU and wall time of one batch.", &json!({ "$ref": "#/$defs/duration" })),
            "batch": bound(1, u64::from(limits::BATCH_MESSAGES_MAX)),
            "partitions": { "type": "integer", "minimum": 1, "maximum": limits::PARTITIONS_MAX },
            "concurrency": { "type": "integer", "minimum": 1, "maximum": limits::CONCURRENCY_MAX },
            "inbox": bound(limits::INBOX_MESSAGES_MIN, limits::INBOX_MESSAGES_MAX),
            "dead_letters": bound(1, limits::DEAD_LETTERS_MAX),
            "instances": {
                "oneOf": [
                    { "enum": ["fresh", "pooled"] },
                    {
                        "type": "object",
                        "required": ["pooled"],
                        "additionalProperties": false,
                        "properties": {
                            "pooled": {
                                "type": "object",
                                "additionalProperties": false,
                                "properties": {
                                    "calls": { "type": "integer", "minimum": 1, "maximum": limits::POOLED_CALLS_MAX },
                                    "age": { "$ref": "#/$defs/duration" },
                                },
                            },
                        },
                    },
                ],
            },
            "memory": { "$ref": "#/$defs/size" },
            "config": {
                "type": "object",
                "maxProperties": limits::CONFIG_ENTRIES_MAX,
                "additionalProperties": { "type": "string" },
            },
            "secrets": described(
                "Secrets of the tenant that the Bee may read.",
                &json!({
                    "type": "array",
                    "maxItems": limits::SECRETS_PER_STAGE_MAX,
                    "uniqueItems": true,
                    "items": { "$ref": "#/$defs/label" },
                }),
            ),
            "http": described(
                "Where the Bee may send HTTP requests: `api.example.com` (https), `https://*.example.org:8443`, `http://10.0.0.7:9000`.",
                &json!({
                    "type": "array",
                    "maxItems": limits::HTTP_GRANTS_MAX,
                    "uniqueItems": true,
                    "items": { "type": "string" },
                }),
            ),
            "models": described(
                "Models of the tenant that the Bee may call: `digits` (its tag `latest`), `digits:v1`, `digits@sha256:…`.",
                &json!({
                    "type": "array",
                    "maxItems": limits::MODELS_PER_STAGE_MAX,
                    "uniqueItems": true,
                    "items": { "type": "string" },
                }),
            ),
            "clock": { "enum": ["recorded", "real"] },
            "place": place(),
            "exit": described(
                "A message for which it holds answers its caller as it is, and goes no further.",
                &json!({ "$ref": "#/$defs/condition" }),
            ),
            "skip": described(
                "A message for which it holds passes this Bee by, as it is.",
                &json!({ "$ref": "#/$defs/condition" }),
            ),
            "dirs": later(),
            "was": later(),
        },
    })
}

fn input() -> Value {
    let label = json!({ "$ref": "#/$defs/label" });
    json!({
        "type": "object",
        "additionalProperties": false,
        "oneOf": [
            { "required": ["gateway"] },
            { "required": ["bee"] },
            { "required": ["name"] },
            { "required": ["stack"] },
            { "required": ["join"] },
        ],
        "dependentRequired": {
            "type": ["name"],
            "by": ["join"],
            "within": ["join"],
            "missing": ["join"],
            "pending": ["join"],
        },
        "properties": {
            "gateway": described("A subject that clients call.", &label),
            "bee": described("A Bee of this Swarm.", &label),
            "output": described("Only what that Bee publishes to this named output.", &label),
            "loop": {
                "type": "integer",
                "minimum": 1,
                "maximum": limits::LOOP_LAPS_MAX,
                "description": "This input closes a circle: how often a message, and what comes of it, may go this way.",
            },
            "name": described("A Bee or, when no Bee has the name, a gateway.", &label),
            "type": { "enum": ["gateway", "bee"] },
            "stack": {
                "description": "Several sources; fires for each message as it arrives.",
                "type": "array",
                "minItems": 1,
                "items": { "oneOf": [{ "$ref": "#/$defs/label" }, { "$ref": "#/$defs/input" }] },
            },
            "join": {
                "description": "Waits for one message of each; the Bee gets them together.",
                "type": "array",
                "minItems": 2,
                "maxItems": limits::JOIN_SIDES_MAX,
                "items": { "oneOf": [{ "$ref": "#/$defs/label" }, { "$ref": "#/$defs/input" }] },
            },
            "by": {
                "type": "string",
                "description": "What tells that messages belong together: `origin` (they come of one message at a Gateway), `message`, \
                    `header:NAME` or `json:/pointer`.",
                "pattern": "^(origin|message|header:.+|json:/.*)$",
            },
            "within": described("How long the first waits for the last.", &json!({ "$ref": "#/$defs/duration" })),
            "missing": {
                "enum": ["fail", "partial", "drop"],
                "description": "What becomes of the others when one is missing.",
            },
            "pending": { "type": "integer", "minimum": 1, "maximum": limits::JOIN_PENDING_MAX },
            "when": described("Take only messages for which it holds.", &json!({ "$ref": "#/$defs/condition" })),
            "choose": described(
                "As `when`, but of all inputs of this source that choose, the first alone takes a message.",
                &json!({ "$ref": "#/$defs/condition" }),
            ),
            "otherwise": { "const": true, "description": "Take what no input of this source with a condition took." },
        },
        "not": { "anyOf": [
            { "required": ["when", "choose"] },
            { "required": ["when", "otherwise"] },
            { "required": ["choose", "otherwise"] },
        ] },
    })
}

fn condition() -> Value {
    let scalar = json!({ "$ref": "#/$defs/scalar" });
    let several = json!({ "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/condition" } });
    json!({
        "type": "object",
        "additionalProperties": false,
        "oneOf": [
            { "required": ["header"] },
            { "required": ["json"] },
            { "required": ["all"] },
            { "required": ["any"] },
            { "required": ["not"] },
        ],
        "properties": {
            "header": { "type": "string", "minLength": 1, "maxLength": limits::HEADER_NAME_BYTES_MAX },
            "json": { "type": "string", "pattern": "^/", "maxLength": limits::JSON_POINTER_BYTES_MAX },
            "exists": { "type": "boolean" },
            "is": scalar,
            "in": { "type": "array", "minItems": 1, "items": scalar },
            "starts_with": { "type": "string" },
            "above": { "type": "number" },
            "at_least": { "type": "number" },
            "below": { "type": "number" },
            "at_most": { "type": "number" },
            "all": several,
            "any": several,
            "not": { "$ref": "#/$defs/condition" },
        },
    })
}

fn place() -> Value {
    json!({
        "type": "object",
        "description": "The Bee runs on each edge of the tenant that has the label, and not here.",
        "required": ["label"],
        "additionalProperties": false,
        "properties": {
            "label": { "type": "string", "description": "`KEY=VALUE`, as edges are enrolled with.", "pattern": "^[a-z0-9-]+=[a-z0-9-]+$" },
            "outbox": described("What may wait there for a Bee at the hub that reads it.", &json!({ "$ref": "#/$defs/size" })),
            "when_full": {
                "enum": ["refuse", "drop-oldest"],
                "description": "Whether then the Bee waits, or the oldest go, counted.",
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::fields::{self, Shape};
    use super::*;

    #[test]
    fn the_schema_has_the_fields_that_the_parser_reads_and_no_others() {
        let schema = json_schema();
        let cases: [(&str, &Shape); 13] = [
            ("", &fields::SWARM),
            ("/$defs/bee", &fields::BEE),
            ("/$defs/input", &fields::INPUT),
            ("/$defs/condition", &fields::CONDITION),
            ("/$defs/bee/properties/retry", &fields::RETRY),
            ("/$defs/bee/properties/retry/properties/backoff", &fields::BACKOFF),
            ("/$defs/bee/properties/retry/properties/budget", &fields::BUDGET),
            ("/$defs/bee/properties/place", &fields::PLACE),
            ("/$defs/bee/properties/batch", &fields::BATCH),
            ("/$defs/bee/properties/inbox", &fields::BOUND),
            ("/$defs/bee/properties/dead_letters", &fields::BOUND),
            ("/$defs/bee/properties/instances/oneOf/1", &fields::INSTANCES),
            (
                "/$defs/bee/properties/instances/oneOf/1/properties/pooled",
                &fields::POOLED,
            ),
        ];
        for (at, shape) in cases {
            let object = schema.pointer(at).unwrap_or_else(|| panic!("{at}"));
            let mut published: Vec<&str> = object["properties"]
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            let mut read = shape.fields.to_vec();
            published.sort_unstable();
            read.sort_unstable();
            assert_eq!(published, read, "{at}");
            assert_eq!(object["additionalProperties"], json!(false), "{at}");
        }
    }
}
