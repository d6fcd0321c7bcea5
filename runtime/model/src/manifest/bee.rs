//! Reading one entry of `bees`.

use std::collections::{BTreeMap, BTreeSet};

use super::fields::{BACKOFF, BATCH, BEE, BOUND, BUDGET, INPUT, INSTANCES, LATER, POOLED, RETRY, STATE, Shape};
use super::mistake::{did_you_mean, nearest, quoted};
use super::node::{Data, Place};
use super::reader::{Fields, Value};
use super::{ModulePaths, Modules, condition, join};
use crate::condition::Take;
use crate::egress::HttpGrant;
use crate::limits;
use crate::name::{BeeName, ModelRef, ModuleRef, OutputName, SecretName, StageName, Subject};
use crate::swarm::{
    BatchPolicy, Bound, Builtin, Ends, GuestClock, Instances, Join, Keep, KeySource, Order, Refresh, RetryBudget,
    RetryPolicy, Stage, Ttl,
};

/// A Bee as far as it could be read. What was wrong is reported already and `None` here, so that the graph is still checked.
pub(super) struct Draft<'a> {
    /// The name as written, also when it is not a good one: references to it are no further mistake.
    pub label: Option<&'a str>,
    pub place: Place,
    pub path: String,
    pub inputs: Vec<Input<'a>>,
    /// Its inputs are the sides of a join.
    pub joins: bool,
    /// Everything but the inputs.
    pub stage: Option<Stage>,
}

pub(super) struct Input<'a> {
    pub value: Value<'a>,
    pub source: Source<'a>,
    pub take: Take,
    /// It says that it closes a circle: where, and how often one may go this way, if that could be read.
    pub laps: Option<(Value<'a>, Option<u32>)>,
}

pub(super) enum Source<'a> {
    Gateway(Subject),
    Bee {
        label: &'a str,
        output: Option<OutputName>,
    },
    /// `{ name: x }`: a Bee or, when no Bee has the name, a gateway.
    Either(&'a str),
}

pub(super) struct Context<'m> {
    pub paths: ModulePaths,
    pub modules: Option<&'m dyn Modules>,
}

pub(super) fn read<'a>(value: &Value<'a>, context: &Context<'_>) -> Option<Draft<'a>> {
    let fields = value.fields(&BEE)?;
    for later in LATER {
        if fields.get(later).is_some() {
            let path = format!("{}.{later}", value.path);
            let hint = Some("leave it out".to_owned());
            value
                .report
                .add(fields.place(later), &path, "not available in this version", hint);
        }
    }
    let name_value = fields.required("name", "every Bee has a name of its own in the Swarm");
    let label = name_value.and_then(|v| match &v.node.data {
        Data::Text(text) => Some(text.as_str()),
        _ => None,
    });
    let name: Option<StageName> = name_value.and_then(Value::name);
    let builtin = super::builtin::is(&fields);
    if !builtin {
        super::builtin::none(&fields);
    }
    let (module, known_bees) = match builtin {
        true => (None, None),
        false => module(&fields, context),
    };
    let bee = match (fields.get("bee"), &name) {
        (Some(v), _) => v.name::<BeeName>(),
        // The same grammar: cannot fail.
        (None, Some(name)) => name.as_str().parse().ok(),
        (None, None) => None,
    };
    if let (Some(bee), Some(known)) = (&bee, known_bees)
        && !known.contains(bee)
        && let Some(at) = fields.get("bee").or(fields.get("module"))
    {
        let list = known.iter().map(BeeName::as_str);
        let hint = did_you_mean(bee.as_str(), list.clone())
            .unwrap_or_else(|| format!("it has: {}", list.collect::<Vec<_>>().join(", ")));
        at.mistake(format!("the module has no Bee `{bee}`"), Some(&hint));
    }
    let hint = "give `input: { gateway: … }` or `input: { bee: … }`";
    let (inputs, joined) = fields
        .required_or("input", "no input reaches this Bee", hint)
        .map(inputs)
        .unwrap_or_default();
    if joined.is_some() {
        join::alone(&fields);
    }
    let joins = joined.is_some();
    let builtin = builtin.then(|| super::builtin::read(&fields, &inputs, joins));
    let own_key = fields.get("key").and_then(key);
    let keyed = fields.get("key").is_some() || joins;
    let (state, keep) = fields.get("state").map(state).unwrap_or_default();
    if state
        && !keyed
        && let Some(v) = fields.get("state")
    {
        v.mistake(
            "state needs a key",
            Some("add `key: message`, `key: header:NAME` or `key: json:/pointer`"),
        );
    }
    if !keyed && let Some(v) = fields.get("order") {
        v.mistake(
            "order means nothing without a key",
            Some("add `key: …` or leave `order` out"),
        );
    }
    // Each is read whatever the others said, so that one look shows every mistake.
    let order = fields
        .get("order")
        .and_then(|v| v.choice(&[("hold", Order::Hold), ("relaxed", Order::Relaxed)]));
    let clock = fields
        .get("clock")
        .and_then(|v| v.choice(&[("recorded", GuestClock::Recorded), ("real", GuestClock::Real)]));
    let retry = fields.get("retry").and_then(retry).unwrap_or_default();
    let timeout_ms = fields
        .get("timeout")
        .and_then(|v| v.duration(1..=limits::STAGE_TIMEOUT_MS_MAX));
    let batch = fields.get("batch").and_then(batch).unwrap_or_default();
    let partitions = fields
        .get("partitions")
        .and_then(|v| v.int(1..=u64::from(limits::PARTITIONS_MAX)));
    let concurrency = fields
        .get("concurrency")
        .and_then(|v| v.int(1..=u64::from(limits::CONCURRENCY_MAX)));
    let inbox = bound(
        fields.get("inbox"),
        Bound {
            messages: limits::INBOX_MESSAGES_DEFAULT,
            bytes: limits::INBOX_BYTES_DEFAULT,
        },
        Bound {
            messages: limits::INBOX_MESSAGES_MIN,
            bytes: limits::INBOX_BYTES_MIN,
        },
        Bound {
            messages: limits::INBOX_MESSAGES_MAX,
            bytes: limits::INBOX_BYTES_MAX,
        },
    );
    let dead_letters = bound(
        fields.get("dead_letters"),
        Bound {
            messages: limits::DEAD_LETTERS_DEFAULT,
            bytes: limits::DEAD_LETTER_BYTES_DEFAULT,
        },
        Bound {
            messages: 1,
            bytes: limits::EFFECTS_BYTES_MAX as u64,
        },
        Bound {
            messages: limits::DEAD_LETTERS_MAX,
            bytes: limits::DEAD_LETTER_BYTES_MAX,
        },
    );
    let instances = fields.get("instances").and_then(instances).unwrap_or_default();
    let memory = limits::MEMORY_BYTES_MIN as u64..=limits::MEMORY_BYTES_MAX as u64;
    let memory_bytes = fields.get("memory").and_then(|v| v.size(memory));
    let config = fields.get("config").and_then(config).unwrap_or_default();
    let secrets = fields.get("secrets").map(secrets).unwrap_or_default();
    let http = fields.get("http").map(http).unwrap_or_default();
    let models = fields.get("models").map(models).unwrap_or_default();
    let ends = fields.get("ends").and_then(ends);
    if let (Some(_), Some(v)) = (&ends, fields.get("ends")) {
        let kept = state && fields.get("key").is_some();
        let wrong = if joins || builtin.is_some() {
            Some(("`ends` where no Bee keeps anything by a key of its own", "leave it out"))
        } else if !kept {
            Some(("`ends` needs a key and state", "add `key: …` and `state: true`"))
        } else if keep.ttl.is_some() {
            Some((
                "`ends` beside `ttl`: what goes by its age has no end to wait for",
                "leave one of them out",
            ))
        } else {
            None
        };
        if let Some((message, hint)) = wrong {
            v.mistake(message, Some(hint));
        }
        let gateway = |input: &Input<'_>| matches!(input.source, Source::Gateway(_));
        if ends == Some(Ends::Told) && inputs.iter().any(gateway) {
            v.mistake(
                "`ends: true` behind a gateway, which has no end",
                Some("list the keys that say so: `ends: [KEY, …]`; or leave it out"),
            );
        }
        if ends == Some(Ends::Told) && inputs.iter().any(|input| input.laps.is_some()) {
            v.mistake(
                "`ends: true` in a circle, which has no end",
                Some("leave it out, or tell the end to a Bee outside of the circle"),
            );
        }
    }
    let placed = fields.get("place").and_then(super::placed::read);
    let exit = fields.get("exit").and_then(condition::read);
    let skip = fields.get("skip").and_then(condition::read);

    let (key, join): (_, Option<Join>) = match joined {
        Some((by, join)) => (Some(by), Some(join)),
        None => (own_key, None),
    };
    let gathers = matches!(builtin, Some(Some(Builtin::Batch { .. })));
    let key = key.or_else(|| gathers.then_some(KeySource::All));
    let state = state || joins || gathers;
    let stage = || {
        let builtin = match builtin {
            Some(read) => Some(read?),
            None => None,
        };
        let models = builtin.as_ref().map_or(models, super::builtin::models);
        Some(Stage {
            name: name?,
            module: match &builtin {
                Some(builtin) => builtin.to_string(),
                None => module?,
            },
            bee: bee?,
            inputs: Vec::new(),
            key,
            state,
            keep,
            order: order.unwrap_or_default(),
            retry,
            timeout_ms: timeout_ms.unwrap_or(limits::STAGE_TIMEOUT_MS_DEFAULT),
            batch,
            partitions: partitions.unwrap_or(limits::PARTITIONS_DEFAULT_EMBEDDED),
            concurrency: concurrency.unwrap_or(limits::CONCURRENCY_DEFAULT),
            inbox,
            dead_letters,
            instances,
            memory_bytes: memory_bytes.unwrap_or(limits::MEMORY_BYTES_DEFAULT as u64),
            config,
            secrets,
            http,
            models,
            clock: clock.unwrap_or_default(),
            exit,
            skip,
            join,
            place: placed,
            builtin,
            ends,
        })
    };
    let place = name_value.map_or(value.node.place, |v| v.node.place);
    Some(Draft {
        label,
        place,
        path: value.path.clone(),
        inputs,
        joins,
        stage: stage(),
    })
}

/// Whether a module is named by a path rather than by name.
pub(super) fn is_path(module: &str) -> bool {
    module.contains(['/', '\\']) || module.ends_with(".wasm") || module.ends_with(".wat")
}

/// The module as written and, where that can be known, its Bees.
fn module(fields: &Fields<'_>, context: &Context<'_>) -> (Option<String>, Option<Vec<BeeName>>) {
    let Some(value) = fields.required("module", "write `module: NAME`, `NAME:TAG` or `NAME@sha256:DIGEST`") else {
        return (None, None);
    };
    let Some(text) = value.text() else { return (None, None) };
    if is_path(text) {
        return match context.paths {
            ModulePaths::Allowed => (Some(text.to_owned()), None),
            ModulePaths::Refused => {
                let hint = "push the module with `skep push FILE --name NAME` and write its name, or use `skep up`";
                value.mistake(format!("{} is a path", quoted(text)), Some(hint));
                (None, None)
            }
        };
    }
    let Ok(reference) = text.parse::<ModuleRef>() else {
        let hint = "use NAME, NAME:TAG or NAME@sha256:DIGEST";
        value.mistake(format!("{} does not name a module", quoted(text)), Some(hint));
        return (None, None);
    };
    let Some(modules) = context.modules else {
        return (Some(text.to_owned()), None);
    };
    let bees = modules.bees(&reference);
    if bees.is_none() {
        let names = modules.names();
        let near = nearest(text, names.iter().map(String::as_str));
        let hint = near.map_or_else(
            || format!("push it first: `skep push FILE --name {}`", reference.name),
            |near| {
                format!(
                    "did you mean `{near}`? or push it first: `skep push FILE --name {}`",
                    reference.name
                )
            },
        );
        value.mistake(format!("unknown module {}", quoted(text)), Some(&hint));
    }
    (Some(text.to_owned()), bees)
}

/// The sources and, where they are the sides of a join, how it joins.
type Inputs<'a> = (Vec<Input<'a>>, Option<(KeySource, Join)>);

fn inputs<'a>(value: &Value<'a>) -> Inputs<'a> {
    let mut out = Vec::new();
    let mut joined = None;
    match &value.node.data {
        Data::List(items) if items.is_empty() => {
            value.mistake(
                "no input reaches this Bee",
                Some("list at least one `{ gateway: … }` or `{ bee: … }`"),
            );
        }
        Data::List(items) => {
            let items = value.items(items);
            for item in &items {
                match join::of(item) {
                    Some(_) if items.len() > 1 => item.mistake(
                        "a join beside other inputs",
                        Some("a join is a Bee's only input: give what does not wait a Bee of its own"),
                    ),
                    Some(fields) => joined = Some(join::read(&fields, &mut out)),
                    None => input(item, &mut out),
                }
            }
        }
        _ => match join::of(value) {
            Some(fields) => joined = Some(join::read(&fields, &mut out)),
            None => input(value, &mut out),
        },
    }
    if out.len() > limits::STAGE_INPUTS_MAX {
        value.mistake(
            format!(
                "a Bee has at most {} inputs, this one has {}",
                limits::STAGE_INPUTS_MAX,
                out.len()
            ),
            None,
        );
        out.truncate(limits::STAGE_INPUTS_MAX);
    }
    (out, joined)
}

pub(super) fn input<'a>(value: &Value<'a>, out: &mut Vec<Input<'a>>) {
    if let Data::Text(text) = &value.node.data {
        let text = super::mistake::shown(text);
        let hint = format!("write `{{ gateway: {text} }}` or `{{ bee: {text} }}`");
        value.mistake(format!("expected a mapping, found text `{text}`"), Some(&hint));
        return;
    }
    let Some(fields) = value.fields(&INPUT) else { return };
    let forms: Vec<&str> = fields
        .names()
        .filter(|n| ["gateway", "bee", "name", "stack"].contains(n))
        .collect();
    for name in join::FIELDS {
        if let Some(of_join) = fields.get(name) {
            of_join.mistake(format!("`{name}` without a join"), Some("it goes with `join: [...]`"));
        }
    }
    match forms.as_slice() {
        [] => return value.mistake("names no source", Some("give `gateway: SUBJECT` or `bee: NAME`")),
        [_] => {}
        [first, second, ..] => {
            let hint = "give one; several sources are a list of inputs";
            return value.mistake(format!("both `{first}` and `{second}`"), Some(hint));
        }
    }
    let kind = match (fields.get("type"), fields.get("name")) {
        (Some(kind), Some(_)) => match kind.choice(&[("gateway", "gateway"), ("bee", "bee")]) {
            Some(kind) => kind,
            None => return,
        },
        (Some(kind), None) => {
            return kind.mistake("`type` goes with `name`", Some("write `{ type: bee, name: NAME }`"));
        }
        (None, _) => forms[0],
    };
    let output = match fields.get("output") {
        Some(v) if !matches!(kind, "bee" | "name") => {
            return v.mistake("only a Bee has named outputs", Some("use it with `bee: NAME`"));
        }
        Some(v) => match v.name::<OutputName>() {
            Some(output) => Some(output),
            None => return,
        },
        None => None,
    };
    let take = condition::take(&fields);
    let laps = fields
        .get("loop")
        .map(|v| (v.clone(), v.int(1..=u64::from(limits::LOOP_LAPS_MAX))));
    if let Some(v) = fields.get("loop")
        && !matches!(kind, "bee" | "name")
    {
        v.mistake(
            format!("`loop` on a {kind}"),
            Some("it goes with the `bee: NAME` that closes the circle"),
        );
    }
    if kind == "stack" && !take.is_all() {
        return value.mistake(
            "a condition on `stack`",
            Some("write the sources as a list of inputs, each with its own condition"),
        );
    }
    let at = |field: &str| fields.get(field).or(fields.get("name"));
    match kind {
        "gateway" => {
            if let Some((v, subject)) = at("gateway").and_then(|v| Some((v, v.name::<Subject>()?))) {
                out.push(Input {
                    value: v.clone(),
                    source: Source::Gateway(subject),
                    take,
                    laps: None,
                });
            }
        }
        "bee" => {
            if let Some((v, label)) = at("bee").and_then(|v| Some((v, v.text()?))) {
                out.push(Input {
                    value: v.clone(),
                    source: Source::Bee { label, output },
                    take,
                    laps,
                });
            }
        }
        "name" => {
            if let Some((v, label)) = at("name").and_then(|v| Some((v, v.text()?))) {
                let source = if output.is_some() {
                    Source::Bee { label, output }
                } else {
                    Source::Either(label)
                };
                out.push(Input {
                    value: v.clone(),
                    source,
                    take,
                    laps,
                });
            }
        }
        "stack" => stack(&fields, out),
        _ => {}
    }
}

/// `stack: [a, b]`: fires for each message of the listed Bees as it arrives, which is what several inputs do.
fn stack<'a>(fields: &Fields<'a>, out: &mut Vec<Input<'a>>) {
    let Some(items) = fields.get("stack").and_then(Value::list) else {
        return;
    };
    if items.is_empty() {
        fields
            .of
            .mistake("no input reaches this Bee", Some("list at least one Bee in `stack`"));
    }
    for item in items {
        match &item.node.data {
            Data::Map(_) => input(&item, out),
            _ => {
                if let Some(label) = item.text() {
                    out.push(Input {
                        value: item.clone(),
                        source: Source::Either(label),
                        take: Take::All,
                        laps: None,
                    });
                }
            }
        }
    }
}

pub(super) fn key(value: &Value<'_>) -> Option<KeySource> {
    const FORMS: &str = "write `message`, `header:NAME` or `json:/pointer`";
    let text = value.text()?;
    if text == "message" {
        return Some(KeySource::Message);
    }
    if let Some(name) = text.strip_prefix("header:") {
        return header_name(value, name).map(KeySource::Header);
    }
    if let Some(pointer) = text.strip_prefix("json:") {
        return json_pointer(value, pointer).map(KeySource::Json);
    }
    let hint = did_you_mean(text, ["message"].into_iter()).unwrap_or_else(|| FORMS.to_owned());
    value.mistake(format!("{} is not a source of keys", quoted(text)), Some(&hint));
    None
}

pub(super) fn header_name(value: &Value<'_>, name: &str) -> Option<String> {
    let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
    if good && name.len() <= limits::HEADER_NAME_BYTES_MAX {
        return Some(name.to_owned());
    }
    let max = limits::HEADER_NAME_BYTES_MAX;
    value.mistake(
        format!(
            "{} is not a header's name: 1 to {max} visible ASCII characters",
            quoted(name)
        ),
        None,
    );
    None
}

pub(super) fn json_pointer(value: &Value<'_>, pointer: &str) -> Option<String> {
    let escapes = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if pointer.starts_with('/') && escapes && pointer.len() <= limits::JSON_POINTER_BYTES_MAX {
        return Some(pointer.to_owned());
    }
    let message = format!("{} is not a JSON pointer (RFC 6901)", quoted(pointer));
    value.mistake(
        message,
        Some("it looks like `/customer/id`, with `~` written `~0` and `/` in a name `~1`"),
    );
    None
}

/// Whether there is state, and what of it is kept.
fn state(value: &Value<'_>) -> (bool, Keep) {
    let mut keep = Keep::default();
    if !matches!(value.node.data, Data::Map(_)) {
        return (value.bool().unwrap_or(false), keep);
    }
    let Some(fields) = value.fields(&STATE) else {
        return (true, keep);
    };
    let ms = fields
        .get("ttl")
        .and_then(|v| v.duration(limits::STATE_TTL_MS_MIN..=limits::STATE_TTL_MS_MAX));
    let refresh = fields.get("refresh").map(|v| {
        if fields.get("ttl").is_none() {
            v.mistake(
                "`refresh` without `ttl`",
                Some("it says what makes a value young again: add `ttl: 30d`"),
            );
        }
        v.choice(&[("write", Refresh::Write), ("read", Refresh::Read)])
    });
    let refresh = refresh.flatten().unwrap_or_default();
    keep.ttl = ms.map(|ms| Ttl { ms, refresh });
    if let Some(keys) = fields.get("keys").and_then(|v| v.int(1..=limits::STATE_KEYS_MAX)) {
        keep.keys = keys;
    }
    if let Some(bytes) = fields
        .get("bytes")
        .and_then(|v| v.size(limits::STATE_BYTES_MIN..=limits::STATE_BYTES_MAX))
    {
        keep.bytes = bytes;
    }
    (true, keep)
}

/// `true`, or the keys that say it.
fn ends(value: &Value<'_>) -> Option<Ends> {
    let Data::List(items) = &value.node.data else {
        return value.bool()?.then_some(Ends::Told);
    };
    let mut keys = BTreeSet::new();
    for item in value.items(items) {
        let Some(text) = item.text() else { continue };
        if text.is_empty() || text.len() > limits::KEY_BYTES_MAX {
            item.mistake(
                format!(
                    "a key has 1 to {} bytes, this one {}",
                    limits::KEY_BYTES_MAX,
                    text.len()
                ),
                None,
            );
        } else if !keys.insert(text.to_owned()) {
            item.mistake("named twice", Some("leave one out"));
        }
    }
    if items.is_empty() || items.len() > limits::END_KEYS_MAX {
        value.mistake(
            format!("{} keys say the end: 1 to {} can", items.len(), limits::END_KEYS_MAX),
            Some("list those by which the stream ends, or leave `ends` out"),
        );
    }
    Some(Ends::Keys(keys))
}

fn retry(value: &Value<'_>) -> Option<RetryPolicy> {
    let fields = value.fields(&RETRY)?;
    let mut policy = RetryPolicy::default();
    if let Some(attempts) = fields
        .get("attempts")
        .and_then(|v| v.int(1..=u64::from(limits::ATTEMPTS_MAX)))
    {
        policy.attempts = attempts;
    }
    if let Some(crashes) = fields
        .get("crashes")
        .and_then(|v| v.int(1..=u64::from(limits::CRASHES_MAX)))
    {
        policy.crashes = crashes;
    }
    policy.budget = fields.get("budget").and_then(budget);
    if let Some(backoff) = fields.get("backoff").and_then(|v| v.fields(&BACKOFF)) {
        let range = 1..=limits::RETRY_AFTER_MS_MAX;
        let first = backoff.get("first").and_then(|v| v.duration(range.clone()));
        let max = backoff.get("max").and_then(|v| v.duration(range));
        policy.first_ms = first.unwrap_or(policy.first_ms);
        // A first wait above the default of `max` means to wait that long each time.
        policy.max_ms = max.unwrap_or(policy.max_ms.max(policy.first_ms));
        if policy.first_ms > policy.max_ms {
            let message = format!(
                "`first` ({}) is longer than `max` ({})",
                super::units::show_duration(policy.first_ms),
                super::units::show_duration(policy.max_ms)
            );
            backoff
                .of
                .mistake(message, Some("the wait doubles from `first` up to `max`"));
        }
    }
    Some(policy)
}

fn budget(value: &Value<'_>) -> Option<RetryBudget> {
    let fields = value.fields(&BUDGET)?;
    let percent = fields
        .required("percent", "how many of its inputs a stage may try again: `percent: 20`")?
        .int(0..=u64::from(limits::RETRY_BUDGET_PERCENT_MAX));
    let per_second = match fields.get("per_second") {
        Some(v) => v.int(0..=u64::from(limits::RETRY_BUDGET_PER_SECOND_MAX)),
        None => Some(limits::RETRY_BUDGET_PER_SECOND_DEFAULT),
    };
    let (percent, per_second) = (percent?, per_second?);
    if percent == 0 && per_second == 0 {
        value.mistake("a budget that allows no retry", Some("write `attempts: 1` instead"));
        return None;
    }
    Some(RetryBudget { percent, per_second })
}

fn batch(value: &Value<'_>) -> Option<BatchPolicy> {
    let fields = value.fields(&BATCH)?;
    let mut policy = BatchPolicy::default();
    if let Some(messages) = fields
        .get("messages")
        .and_then(|v| v.int(1..=u64::from(limits::BATCH_MESSAGES_MAX)))
    {
        policy.messages = messages;
    }
    if let Some(bytes) = fields
        .get("bytes")
        .and_then(|v| v.size(limits::BATCH_BYTES_MIN..=limits::BATCH_BYTES_MAX))
    {
        policy.bytes = bytes;
    }
    Some(policy)
}

fn bound(value: Option<&Value<'_>>, default: Bound, least: Bound, most: Bound) -> Bound {
    let mut bound = default;
    let Some(fields) = value.and_then(|v| v.fields(&BOUND)) else {
        return bound;
    };
    if let Some(messages) = fields
        .get("messages")
        .and_then(|v| v.int(least.messages..=most.messages))
    {
        bound.messages = messages;
    }
    if let Some(bytes) = fields.get("bytes").and_then(|v| v.size(least.bytes..=most.bytes)) {
        bound.bytes = bytes;
    }
    bound
}

fn instances(value: &Value<'_>) -> Option<Instances> {
    let pooled = Instances::Pooled {
        calls: limits::POOLED_CALLS_DEFAULT,
        age_s: limits::POOLED_AGE_S_DEFAULT,
    };
    if !matches!(value.node.data, Data::Map(_)) {
        return value.choice(&[("fresh", Instances::Fresh), ("pooled", pooled)]);
    }
    let of: &'static Shape = &INSTANCES;
    let fields = value.fields(of)?;
    let pool = fields
        .required("pooled", "write `fresh`, `pooled` or `{ pooled: { calls, age } }`")?
        .fields(&POOLED)?;
    let calls = pool
        .get("calls")
        .and_then(|v| v.int(1..=u64::from(limits::POOLED_CALLS_MAX)));
    let age_ms = pool
        .get("age")
        .and_then(|v| v.duration(1_000..=u64::from(limits::POOLED_AGE_S_MAX) * 1_000));
    Some(Instances::Pooled {
        calls: calls.unwrap_or(limits::POOLED_CALLS_DEFAULT),
        age_s: age_ms.map_or(limits::POOLED_AGE_S_DEFAULT, |ms| {
            u32::try_from(ms / 1_000).unwrap_or(u32::MAX)
        }),
    })
}

fn config(value: &Value<'_>) -> Option<BTreeMap<String, String>> {
    let pairs = value.pairs()?;
    let mut out = BTreeMap::new();
    let mut bytes = 0;
    for (name, _, v) in &pairs {
        if let Some(text) = v.text() {
            bytes += name.len() + text.len();
            out.insert((*name).to_owned(), text.to_owned());
        }
    }
    if pairs.len() > limits::CONFIG_ENTRIES_MAX || bytes > limits::CONFIG_BYTES_MAX {
        let message = format!(
            "{} entries with {bytes} bytes are too much: at most {} and {} bytes",
            pairs.len(),
            limits::CONFIG_ENTRIES_MAX,
            limits::CONFIG_BYTES_MAX
        );
        value.mistake(message, None);
    }
    Some(out)
}

fn http(value: &Value<'_>) -> BTreeSet<HttpGrant> {
    let mut out = BTreeSet::new();
    let Data::List(items) = &value.node.data else {
        value.mistake("expected a list of hosts", Some("write `http: [api.example.com]`"));
        return out;
    };
    for item in value.items(items) {
        let Some(text) = item.text() else { continue };
        match text.parse::<HttpGrant>() {
            Ok(grant) if !out.insert(grant.clone()) => {
                item.mistake(format!("{grant} is listed twice"), Some("leave one out"))
            }
            Ok(_) => {}
            Err(e) => item.mistake(
                e.to_string(),
                Some("write `api.example.com`, `https://*.example.org:8443` or `http://10.0.0.7:9000`"),
            ),
        }
    }
    if items.len() > limits::HTTP_GRANTS_MAX {
        let message = format!(
            "{} hosts are too many: at most {}",
            items.len(),
            limits::HTTP_GRANTS_MAX
        );
        value.mistake(message, None);
    }
    out
}

/// Whether there are such models the node says, at apply.
fn models(value: &Value<'_>) -> BTreeSet<ModelRef> {
    let mut out = BTreeSet::new();
    let Data::List(items) = &value.node.data else {
        value.mistake("expected a list of models", Some("write `models: [NAME]`"));
        return out;
    };
    for item in value.items(items) {
        let Some(text) = item.text() else { continue };
        match text.parse::<ModelRef>() {
            Ok(model) if !out.insert(model.clone()) => {
                item.mistake(format!("{model} is listed twice"), Some("leave one out"));
            }
            Ok(_) => {}
            Err(e) => item.mistake(
                e.to_string(),
                Some("write `digits`, `digits:v1` or `digits@sha256:DIGEST`"),
            ),
        }
    }
    if items.len() > limits::MODELS_PER_STAGE_MAX {
        let message = format!(
            "{} models are too many: at most {}",
            items.len(),
            limits::MODELS_PER_STAGE_MAX
        );
        value.mistake(message, None);
    }
    out
}

fn secrets(value: &Value<'_>) -> BTreeSet<SecretName> {
    let mut out = BTreeSet::new();
    let Data::List(items) = &value.node.data else {
        value.mistake("expected a list of names", Some("write `secrets: [NAME]`"));
        return out;
    };
    for item in value.items(items) {
        if let Some(name) = item.name::<SecretName>()
            && !out.insert(name)
        {
            item.mistake("named twice", Some("leave one out"));
        }
    }
    if items.len() > limits::SECRETS_PER_STAGE_MAX {
        let message = format!(
            "{} secrets are too many: at most {}",
            items.len(),
            limits::SECRETS_PER_STAGE_MAX
        );
        value.mistake(message, None);
    }
    out
}
