//! YAML text to a tree in which every node knows its place.
//!
//! Built from the parser's events rather than by a ready-made loader, for three reasons: duplicate keys must be seen, not merged;
//! aliases must be counted before they are expanded; and neither depth nor size may be the text's to choose.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::mistake::{Mistake, quoted};
use crate::limits;

/// A place in the text, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub place: Place,
    /// Characters from the start of the text: where the node's own text begins and ends.
    pub span: (usize, usize),
    pub data: Data,
}

#[derive(Debug, Clone)]
pub(super) enum Data {
    Nothing,
    Bool(bool),
    /// With the text as written.
    Int(i128, String),
    Float(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// What it is, as a message says it.
    pub fn kind(&self) -> String {
        match &self.data {
            Data::Nothing => "nothing".to_owned(),
            Data::Bool(b) => format!("`{b}` (true or false)"),
            Data::Int(_, text) => format!("the number {}", quoted(text)),
            Data::Float(text) => format!("the fraction {}", quoted(text)),
            Data::Text(text) => format!("text {}", quoted(text)),
            Data::List(_) => "a list".to_owned(),
            Data::Map(_) => "a mapping".to_owned(),
        }
    }

    /// A scalar's text as written, for a hint that quotes it.
    pub fn written(&self) -> Option<String> {
        match &self.data {
            Data::Bool(b) => Some(b.to_string()),
            Data::Int(_, text) | Data::Float(text) | Data::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn count(&self) -> usize {
        1 + match &self.data {
            Data::List(items) => items.iter().map(Node::count).sum(),
            Data::Map(pairs) => pairs.iter().map(|(k, v)| k.count() + v.count()).sum(),
            _ => 0,
        }
    }

    fn depth(&self) -> usize {
        match &self.data {
            Data::List(items) => 1 + items.iter().map(Node::depth).max().unwrap_or(0),
            Data::Map(pairs) => 1 + pairs.iter().map(|(k, v)| k.depth().max(v.depth())).max().unwrap_or(0),
            _ => 0,
        }
    }
}

/// A list or mapping that is not finished.
struct Open {
    place: Place,
    from: usize,
    anchor: usize,
    data: OpenData,
}

enum OpenData {
    List(Vec<Node>),
    Map(Vec<(Node, Node)>, Option<Node>),
}

/// A finished node under an anchor, with the size that each alias of it adds.
struct Anchored {
    node: Node,
    count: usize,
    depth: usize,
}

/// Parses one document.
///
/// # Errors
/// One mistake: text that is not YAML cannot be read past its first error.
pub(super) fn read(text: &str) -> Result<Node, Mistake> {
    if text.len() > limits::MANIFEST_BYTES_MAX {
        let place = Place { line: 1, column: 1 };
        let message = format!(
            "a manifest has at most {} bytes, this one has {}",
            limits::MANIFEST_BYTES_MAX,
            text.len()
        );
        return Err(at(place, message, None));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, Anchored> = HashMap::new();
    let mut root: Option<Node> = None;
    let mut nodes = 0_usize;

    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| {
            let mark = e.marker();
            let place = Place {
                line: mark.line().max(1),
                column: mark.col() + 1,
            };
            at(
                place,
                format!("not YAML: {}", e.info()),
                Some("check indentation, quotes and brackets".to_owned()),
            )
        })?;
        let place = Place {
            line: span.start.line().max(1),
            column: span.start.col() + 1,
        };
        let finished = match event {
            Event::Scalar(value, style, anchor, tag) => {
                let data = scalar(&value, style, tag.as_deref()).map_err(|m| at(place, m, None))?;
                Some((
                    Node {
                        place,
                        span: (span.start.index(), span.end.index()),
                        data,
                    },
                    anchor,
                ))
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(tag.as_deref(), "seq", place)?;
                open.push(Open {
                    place,
                    from: span.start.index(),
                    anchor,
                    data: OpenData::List(Vec::new()),
                });
                None
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(tag.as_deref(), "map", place)?;
                open.push(Open {
                    place,
                    from: span.start.index(),
                    anchor,
                    data: OpenData::Map(Vec::new(), None),
                });
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(|o| close(o, span)),
            Event::Alias(id) => {
                let Some(anchored) = anchors.get(&id) else {
                    return Err(at(place, "an alias inside its own anchor".to_owned(), None));
                };
                nodes += anchored.count;
                if nodes > limits::MANIFEST_NODES_MAX || open.len() + anchored.depth > limits::MANIFEST_DEPTH_MAX {
                    return Err(too_large(place));
                }
                // Its own place stays inside; a mistake about the whole is at the alias.
                let mut node = anchored.node.clone();
                node.place = place;
                node.span = (span.start.index(), span.end.index());
                Some((node, 0))
            }
            Event::DocumentStart(_) if root.is_some() => {
                return Err(at(
                    place,
                    "a second document".to_owned(),
                    Some("one manifest a file".to_owned()),
                ));
            }
            _ => None,
        };
        nodes += 1;
        if nodes > limits::MANIFEST_NODES_MAX || open.len() > limits::MANIFEST_DEPTH_MAX {
            return Err(too_large(place));
        }
        let Some((node, anchor)) = finished else { continue };
        if anchor != 0 {
            anchors.insert(
                anchor,
                Anchored {
                    count: node.count(),
                    depth: node.depth(),
                    node: node.clone(),
                },
            );
            nodes += node.count();
        }
        match open.last_mut().map(|o| &mut o.data) {
            Some(OpenData::List(items)) => items.push(node),
            Some(OpenData::Map(pairs, key)) => match key.take() {
                Some(key) => pairs.push((key, node)),
                None => *key = Some(node),
            },
            None => root = Some(node),
        }
    }
    root.ok_or_else(|| {
        at(
            Place { line: 1, column: 1 },
            "the manifest is empty".to_owned(),
            Some("give `name` and `bees`".to_owned()),
        )
    })
}

fn close(open: Open, span: Span) -> (Node, usize) {
    let data = match open.data {
        OpenData::List(items) => Data::List(items),
        OpenData::Map(pairs, _) => Data::Map(pairs),
    };
    (
        Node {
            place: open.place,
            span: (open.from, span.end.index()),
            data,
        },
        open.anchor,
    )
}

fn at(place: Place, message: String, hint: Option<String>) -> Mistake {
    Mistake {
        line: place.line,
        column: place.column,
        path: String::new(),
        message,
        hint,
    }
}

fn too_large(place: Place) -> Mistake {
    let message = format!(
        "too large: at most {} nodes (aliases expanded), {} deep",
        limits::MANIFEST_NODES_MAX,
        limits::MANIFEST_DEPTH_MAX
    );
    at(place, message, None)
}

fn refuse_tag(tag: Option<&Tag>, fits: &str, place: Place) -> Result<(), Mistake> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == fits) => Err(at(
            place,
            format!("the tag {} is not known here", quoted(&tag.to_string())),
            Some("leave it out".to_owned()),
        )),
        _ => Ok(()),
    }
}

/// The core schema of YAML 1.2: `no` is text, `0o7` a number.
fn scalar(value: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Data, String> {
    let plain = style == ScalarStyle::Plain;
    match tag {
        None if plain => Ok(resolve(value)),
        None => Ok(Data::Text(value.to_owned())),
        Some(tag) => {
            let data = match tag.suffix.as_str() {
                "str" => Data::Text(value.to_owned()),
                _ => resolve(value),
            };
            let fits = tag.is_yaml_core_schema()
                && matches!(
                    (tag.suffix.as_str(), &data),
                    ("str", _)
                        | ("int", Data::Int(..))
                        | ("float", Data::Int(..) | Data::Float(_))
                        | ("bool", Data::Bool(_))
                        | ("null", Data::Nothing)
                );
            if fits {
                Ok(data)
            } else {
                Err(format!(
                    "the tag {} does not fit {}",
                    quoted(&tag.to_string()),
                    quoted(value)
                ))
            }
        }
    }
}

fn resolve(value: &str) -> Data {
    let whole = |digits: &str, radix| {
        (!digits.is_empty())
            .then(|| i128::from_str_radix(digits, radix).ok())
            .flatten()
    };
    match value {
        "" | "~" | "null" | "Null" | "NULL" => return Data::Nothing,
        "true" | "True" | "TRUE" => return Data::Bool(true),
        "false" | "False" | "FALSE" => return Data::Bool(false),
        _ => {}
    }
    let unsigned = value.strip_prefix(['-', '+']).unwrap_or(value);
    let int = match value.get(..2) {
        Some("0x") if !value[2..].starts_with(['+', '-']) => whole(&value[2..], 16),
        Some("0o") if !value[2..].starts_with(['+', '-']) => whole(&value[2..], 8),
        _ if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) => whole(value, 10),
        _ => None,
    };
    if let Some(int) = int {
        return Data::Int(int, value.to_owned());
    }
    let like_a_number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    let named = matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN");
    if named || (like_a_number && value.parse::<f64>().is_ok()) {
        return Data::Float(value.to_owned());
    }
    Data::Text(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_those_of_the_core_schema() {
        for (text, kind) in [
            ("no", "text `no`"),
            ("1e3", "the fraction `1e3`"),
            ("0x1F", "the number `0x1F`"),
            ("-7", "the number `-7`"),
            ("'7'", "text `7`"),
            ("!!str 7", "text `7`"),
            ("~", "nothing"),
            ("True", "`true` (true or false)"),
            ("1.2.3", "text `1.2.3`"),
            ("30s", "text `30s`"),
            ("é", "text `é`"),
        ] {
            assert_eq!(read(text).unwrap().kind(), kind, "{text}");
        }
    }

    #[test]
    fn bombs_stop_at_a_bound() {
        let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (from, to) in "abcdefgh".chars().zip("bcdefghi".chars()) {
            laughs += &format!("{to}: &{to} [{}]\n", vec![format!("*{from}"); 9].join(", "));
        }
        let deep = "[".repeat(10_000);
        for bomb in [laughs, deep, "- ".repeat(5_000), format!("[{}]", "x,".repeat(200_000))] {
            let mistake = read(&bomb).unwrap_err();
            assert!(
                mistake.message.contains("too large") || mistake.message.contains("not YAML"),
                "{mistake}"
            );
        }
        assert!(
            read(&"#".repeat(limits::MANIFEST_BYTES_MAX + 1))
                .unwrap_err()
                .message
                .contains("1048576")
        );
    }

    #[test]
    fn aliases_stand_for_what_they_name_and_never_for_themselves() {
        let node = read("a: &x {k: 1}\nb: *x\n").unwrap();
        let Data::Map(pairs) = &node.data else {
            panic!("{node:?}")
        };
        assert!(matches!(&pairs[1].1.data, Data::Map(inner) if inner.len() == 1));
        assert_eq!(pairs[1].1.place, Place { line: 2, column: 4 });
        assert!(read("a: &x [*x]").is_err());
        assert!(read("a: *nobody").is_err());
    }
}
