//! Which fields exist where. The parser reads through these tables and the JSON Schema is tested against them.

/// The fields of one kind of mapping.
pub(super) struct Shape {
    /// As messages call the mapping.
    pub what: &'static str,
    pub fields: &'static [&'static str],
}

pub(super) const SWARM: Shape = Shape {
    what: "a manifest",
    fields: &["name", "description", "bees"],
};

pub(super) const BEE: Shape = Shape {
    what: "a Bee",
    fields: &[
        "name",
        "module",
        "bee",
        "model",
        "type",
        "size",
        "wait",
        "weights",
        "input",
        "key",
        "state",
        "order",
        "retry",
        "timeout",
        "batch",
        "partitions",
        "concurrency",
        "inbox",
        "dead_letters",
        "instances",
        "memory",
        "config",
        "secrets",
        "http",
        "models",
        "clock",
        "ends",
        "place",
        "exit",
        "skip",
        "dirs",
        "was",
    ],
};

/// Known, so that a manifest of a later version gets a better answer than "unknown field"; refused, so that nobody believes in
/// a grant that does not exist.
pub(super) const LATER: &[&str] = &["dirs", "was"];

pub(super) const PLACE: Shape = Shape {
    what: "`place`",
    fields: &["label", "outbox", "when_full"],
};
pub(super) const STATE: Shape = Shape {
    what: "`state`",
    fields: &["ttl", "refresh", "keys", "bytes"],
};
pub(super) const INPUT: Shape = Shape {
    what: "an input",
    fields: &[
        "gateway",
        "bee",
        "output",
        "loop",
        "name",
        "type",
        "stack",
        "join",
        "by",
        "within",
        "missing",
        "pending",
        "when",
        "choose",
        "otherwise",
    ],
};
pub(super) const CONDITION: Shape = Shape {
    what: "a condition",
    fields: &[
        "header",
        "json",
        "exists",
        "is",
        "in",
        "starts_with",
        "above",
        "at_least",
        "below",
        "at_most",
        "all",
        "any",
        "not",
    ],
};
pub(super) const RETRY: Shape = Shape {
    what: "`retry`",
    fields: &["attempts", "backoff", "crashes", "budget"],
};
pub(super) const BUDGET: Shape = Shape {
    what: "`budget`",
    fields: &["percent", "per_second"],
};
pub(super) const BACKOFF: Shape = Shape {
    what: "`backoff`",
    fields: &["first", "max"],
};
pub(super) const BATCH: Shape = Shape {
    what: "`batch`",
    fields: &["messages", "bytes"],
};
pub(super) const BOUND: Shape = Shape {
    what: "a bound",
    fields: &["messages", "bytes"],
};
pub(super) const INSTANCES: Shape = Shape {
    what: "`instances`",
    fields: &["pooled"],
};
pub(super) const POOLED: Shape = Shape {
    what: "`pooled`",
    fields: &["calls", "age"],
};
