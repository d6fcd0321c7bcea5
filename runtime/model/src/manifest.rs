//! YAML (of which JSON is a part) to a [`Swarm`]. Every mistake is reported at once, each with its line and column.

mod bee;
mod builtin;
mod condition;
mod fields;
mod graph;
mod join;
mod mistake;
mod node;
mod placed;
mod reader;
mod schema;
#[cfg(test)]
mod tests;
pub mod units;

pub use mistake::{Mistake, Mistakes};
pub use schema::json_schema;

use crate::limits;
use crate::name::{BeeName, ModuleRef};
use crate::swarm::Swarm;
use bee::{Context, Draft};
use node::{Data, Node};
use reader::{Report, Value};

/// What is known of modules when a manifest is read: the catalog's view, for the Beekeeper.
pub trait Modules {
    /// The Bees of a module, `None` when there is no such module.
    fn bees(&self, module: &ModuleRef) -> Option<Vec<BeeName>>;
    /// All that a manifest may name, as it would name them: for "did you mean".
    fn names(&self) -> Vec<String>;
}

/// Whether `module` may be a path to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModulePaths {
    Refused,
    Allowed,
}

/// Reads a manifest without looking at modules.
///
/// # Errors
/// All mistakes of the manifest, in order of place.
pub fn parse(text: &str) -> Result<Swarm, Mistakes> {
    read(
        text,
        &Context {
            paths: ModulePaths::Refused,
            modules: None,
        },
    )
}

/// Reads a manifest in which `module` may also be a path to a local file, as `skep up` takes it.
///
/// # Errors
/// All mistakes of the manifest, in order of place.
pub fn parse_local(text: &str) -> Result<Swarm, Mistakes> {
    read(
        text,
        &Context {
            paths: ModulePaths::Allowed,
            modules: None,
        },
    )
}

/// Reads a manifest and checks that the modules and Bees which it names exist.
///
/// # Errors
/// All mistakes of the manifest, in order of place.
pub fn parse_with(text: &str, modules: &dyn Modules) -> Result<Swarm, Mistakes> {
    read(
        text,
        &Context {
            paths: ModulePaths::Refused,
            modules: Some(modules),
        },
    )
}

/// Rewrites what `module` says in each Bee, and nothing else: comments and layout stay. `None` leaves one as it is.
///
/// # Errors
/// The first error when the text is not YAML; other mistakes are [`parse`]'s to report.
pub fn replace_modules(text: &str, mut new: impl FnMut(&str) -> Option<String>) -> Result<String, Mistakes> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = node::read(text).map_err(|m| Mistakes(vec![m]))?;
    let mut edits: Vec<((usize, usize), String)> = Vec::new();
    let under = |node: &Node, field: &str| -> Vec<Node> {
        let Data::Map(pairs) = &node.data else {
            return Vec::new();
        };
        pairs
            .iter()
            .filter(|(k, _)| matches!(&k.data, Data::Text(t) if t == field))
            .map(|(_, v)| v.clone())
            .collect()
    };
    for bees in under(&root, "bees") {
        let Data::List(items) = bees.data else { continue };
        for module in items.iter().flat_map(|bee| under(bee, "module")) {
            if let Data::Text(old) = &module.data
                && let Some(new) = new(old)
            {
                // A double-quoted YAML scalar takes JSON's escapes.
                edits.push((module.span, serde_json::Value::String(new).to_string()));
            }
        }
    }
    edits.sort();
    edits.dedup();
    // Spans count characters.
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for ((from, to), new) in edits {
        if from < done || to > chars.len() {
            continue;
        }
        out.extend(&chars[done..from]);
        out += &new;
        done = to;
    }
    out.extend(&chars[done..]);
    Ok(out)
}

fn read(text: &str, context: &Context<'_>) -> Result<Swarm, Mistakes> {
    let root = node::read(text).map_err(|m| Mistakes(vec![m]))?;
    let report = Report::default();
    let swarm = swarm(
        &Value {
            report: &report,
            node: &root,
            path: String::new(),
        },
        context,
    );
    let mistakes = report.into_list();
    match swarm {
        Some(swarm) if mistakes.is_empty() => Ok(swarm),
        _ => Err(Mistakes::sorted(mistakes)),
    }
}

fn swarm(root: &Value<'_>, context: &Context<'_>) -> Option<Swarm> {
    let fields = root.fields(&fields::SWARM)?;
    let name = fields
        .required("name", "the Swarm's name, like `name: hello-world`")
        .and_then(Value::name);
    if let Some((value, text)) = fields.get("description").and_then(|v| Some((v, v.text()?)))
        && text.len() > limits::DESCRIPTION_BYTES_MAX
    {
        let message = format!(
            "a description has at most {} bytes, this one has {}",
            limits::DESCRIPTION_BYTES_MAX,
            text.len()
        );
        value.mistake(message, None);
    }
    let list = fields.required("bees", "a Swarm has at least one Bee")?;
    let items = list.list()?;
    if items.is_empty() {
        list.mistake(
            "a Swarm has at least one Bee",
            Some("add `- name: …`, `module: …`, `input: …`"),
        );
    }
    if items.len() > limits::STAGES_MAX {
        list.mistake(
            format!(
                "a Swarm has at most {} Bees, this one has {}",
                limits::STAGES_MAX,
                items.len()
            ),
            None,
        );
    }
    let drafts: Vec<Draft<'_>> = items
        .iter()
        .take(limits::STAGES_MAX)
        .filter_map(|item| bee::read(item, context))
        .collect();
    let inputs = graph::resolve(&drafts, root.report);
    placed::check(&drafts, &inputs, root.report);
    let stages = drafts
        .into_iter()
        .zip(inputs)
        .map(|(draft, inputs)| draft.stage.map(|stage| crate::swarm::Stage { inputs, ..stage }))
        .collect::<Option<Vec<_>>>()?;
    Some(Swarm { name: name?, stages })
}
