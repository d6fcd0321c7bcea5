//! From Bees that were read one by one to a graph: names are unique, sources exist, nothing goes round.

use std::collections::HashMap;

use super::bee::{Draft, Source};
use super::mistake::{did_you_mean, quoted, shown};
use super::reader::Report;
use crate::condition::Take;
use crate::limits;
use crate::swarm::{InputSource, StageInput};

/// Resolves every draft's inputs. `None` stands where a mistake was reported.
pub(super) fn resolve(drafts: &[Draft<'_>], report: &Report) -> Vec<Vec<StageInput>> {
    let by_label = unique_labels(drafts, report);
    let mut resolved = Vec::new();
    let mut edges: Vec<Vec<Edge<'_, '_>>> = Vec::new();
    for draft in drafts {
        let mut inputs: Vec<StageInput> = Vec::new();
        let mut from = Vec::new();
        for input in &draft.inputs {
            let known = |label: &str| by_label.get(label).copied();
            let (label, output) = match &input.source {
                Source::Gateway(subject) => {
                    add(&mut inputs, InputSource::Gateway(subject.clone()), input);
                    continue;
                }
                Source::Either(label) if known(label).is_none() => {
                    if let Some(subject) = input.value.name() {
                        add(&mut inputs, InputSource::Gateway(subject), input);
                    }
                    continue;
                }
                Source::Either(label) => (*label, None),
                Source::Bee { label, output } => (*label, output.clone()),
            };
            let Some(source) = known(label) else {
                let hint = did_you_mean(label, by_label.keys().copied())
                    .or_else(|| listed(drafts).map(|l| format!("this Swarm has: {l}")));
                input
                    .value
                    .mistake(format!("unknown Bee {}", quoted(label)), hint.as_deref());
                continue;
            };
            from.push(Edge {
                from: source,
                at: input,
                laps: input.laps.is_some(),
            });
            // A bad name was reported where it is given.
            if let Ok(stage) = label.parse() {
                add(&mut inputs, InputSource::Bee { stage, output }, input);
            }
        }
        one_door(&inputs, draft);
        if draft.joins {
            sides_apart(&inputs, draft);
        }
        resolved.push(inputs);
        edges.push(from);
    }
    cycles(drafts, &edges);
    loops(drafts, &edges);
    otherwise_of_something(drafts, &resolved);
    resolved
}

fn add(inputs: &mut Vec<StageInput>, source: InputSource, at: &super::bee::Input<'_>) {
    if inputs.iter().any(|i| i.source == source) {
        let hint = if at.take.is_all() {
            "keep one of them: each message is read once an input"
        } else {
            "keep one of them: `any: [...]` joins conditions"
        };
        at.value.mistake("the same input is listed twice", Some(hint));
    } else {
        inputs.push(StageInput {
            source,
            take: at.take.clone(),
            laps: at.laps.as_ref().and_then(|(_, laps)| *laps),
        });
    }
}

/// The parts of a join are told apart by the Bee that published them; what a client sent has none.
fn sides_apart(inputs: &[StageInput], draft: &Draft<'_>) {
    let side = |i: &StageInput| match &i.source {
        InputSource::Gateway(_) => None,
        InputSource::Bee { stage, .. } => Some(stage.clone()),
    };
    let again = (1..inputs.len()).find(|n| inputs[..*n].iter().any(|i| side(i) == side(&inputs[*n])));
    let Some(again) = again else { return };
    let (what, hint) = match side(&inputs[again]) {
        Some(bee) => (
            format!("two sides of a join from Bee `{bee}`"),
            "a Bee is one side: publish to one output what is to be joined, or put a Bee between",
        ),
        None => (
            "two subjects in one join".to_owned(),
            "put a Bee behind one of them, and name that Bee here",
        ),
    };
    draft
        .inputs
        .get(again)
        .unwrap_or(&draft.inputs[0])
        .value
        .mistake(what, Some(hint));
}

/// A condition on a subject is judged where the message is read, and nothing tells there by which of several subjects it came.
fn one_door(inputs: &[StageInput], draft: &Draft<'_>) {
    let gateways = || inputs.iter().filter(|i| matches!(i.source, InputSource::Gateway(_)));
    if gateways().count() < 2 || gateways().all(|i| i.take.is_all()) {
        return;
    }
    if let Some(at) = draft.inputs.iter().find(|i| !i.take.is_all()) {
        at.value.mistake(
            "a condition on one of several subjects",
            Some("give each subject a Bee of its own, or put the condition on what a Bee publishes"),
        );
    }
}

/// `otherwise` means what other inputs of the same source did not take: there must be such.
fn otherwise_of_something(drafts: &[Draft<'_>], resolved: &[Vec<StageInput>]) {
    let judged = |source: &InputSource| {
        resolved
            .iter()
            .flatten()
            .any(|i| i.source == *source && matches!(i.take, Take::When(_) | Take::Choose(_)))
    };
    for (draft, inputs) in drafts.iter().zip(resolved) {
        for input in inputs
            .iter()
            .filter(|i| i.take == Take::Otherwise && !judged(&i.source))
        {
            let at = draft.inputs.iter().find(|d| d.take == Take::Otherwise);
            let Some(at) = at else { continue };
            let what = match &input.source {
                InputSource::Gateway(subject) => format!("gateway `{subject}`"),
                InputSource::Bee { stage, output: None } => format!("Bee `{stage}`"),
                InputSource::Bee {
                    stage,
                    output: Some(output),
                } => format!("output `{output}` of Bee `{stage}`"),
            };
            at.value.mistake(
                format!("`otherwise`, but no input of {what} has a condition"),
                Some("leave it out, or give another input of that source `when` or `choose`"),
            );
        }
    }
}

fn unique_labels<'a>(drafts: &[Draft<'a>], report: &Report) -> HashMap<&'a str, usize> {
    let mut by_label = HashMap::new();
    for (i, draft) in drafts.iter().enumerate() {
        let Some(label) = draft.label else { continue };
        if let Some(first) = by_label.get(label) {
            let first: &Draft<'_> = &drafts[*first];
            let message = format!(
                "a second Bee named {}; the first is {} at {}:{}",
                quoted(label),
                first.path,
                first.place.line,
                first.place.column
            );
            let hint = Some("give each Bee of a Swarm its own name".to_owned());
            report.add(draft.place, &format!("{}.name", draft.path), message, hint);
        } else {
            by_label.insert(label, i);
        }
    }
    by_label
}

fn listed(drafts: &[Draft<'_>]) -> Option<String> {
    const LISTED: usize = 8;
    let mut names: Vec<String> = drafts.iter().filter_map(|d| d.label).take(LISTED).map(shown).collect();
    if drafts.len() > LISTED {
        names.push("…".to_owned());
    }
    (!names.is_empty()).then(|| names.join(", "))
}

struct Edge<'d, 'a> {
    /// The Bee that is read from.
    from: usize,
    at: &'d super::bee::Input<'a>,
    /// It says that it closes a circle.
    laps: bool,
}

/// What says `loop` must close a circle, and a circle must be entered by something else.
fn loops(drafts: &[Draft<'_>], edges: &[Vec<Edge<'_, '_>>]) {
    let said = edges.iter().flatten().filter(|e| e.laps);
    if let Some(first_too_many) = said.clone().nth(limits::LOOPS_MAX) {
        let found = said.count();
        let most = limits::LOOPS_MAX;
        first_too_many.at.value.mistake(
            format!("{found} loops, a Swarm has at most {most}"),
            Some("let several go back to one Bee by way of one other"),
        );
    }
    for (to, inputs) in edges.iter().enumerate() {
        let doors = drafts[to].inputs.iter().filter(|i| i.laps.is_none()).count();
        let mut entered = doors > 0;
        for edge in inputs.iter().filter(|e| e.laps) {
            let Some((at, _)) = &edge.at.laps else { continue };
            let (name, from) = (label(&drafts[to]), label(&drafts[edge.from]));
            if !reaches(to, edge.from, edges) {
                at.mistake(
                    format!("`loop`, but nothing leads from {name} to {from}"),
                    Some("leave it out: this input closes no circle"),
                );
            } else if !std::mem::replace(&mut entered, true) {
                at.mistake(
                    format!("nothing reaches {name} but what went round already"),
                    Some("list where messages come from as well: `input: [{ bee: … }, { bee: …, loop: … }]`"),
                );
            }
        }
    }
}

/// Whether what comes to `from` may come to `to`.
fn reaches(from: usize, to: usize, edges: &[Vec<Edge<'_, '_>>]) -> bool {
    let mut seen = vec![false; edges.len()];
    let mut next = vec![to];
    while let Some(bee) = next.pop() {
        if bee == from {
            return true;
        }
        if !std::mem::replace(&mut seen[bee], true) {
            next.extend(edges[bee].iter().map(|e| e.from));
        }
    }
    false
}

fn label(draft: &Draft<'_>) -> String {
    shown(draft.label.unwrap_or("?"))
}

/// Reports one path for each edge that closes a circle and does not say so, found by a walk against the flow; without recursion, as depth is the
/// manifest's to choose.
fn cycles(drafts: &[Draft<'_>], edges: &[Vec<Edge<'_, '_>>]) {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        OnPath,
        Done,
    }
    let mut seen = vec![Seen::Not; drafts.len()];
    for start in 0..drafts.len() {
        if seen[start] != Seen::Not {
            continue;
        }
        // Bees on the way, each with the edge to look at next.
        let mut path: Vec<(usize, usize)> = vec![(start, 0)];
        seen[start] = Seen::OnPath;
        while let Some((bee, next)) = path.last_mut() {
            let (bee, edge) = (*bee, edges[*bee].get(*next));
            *next += 1;
            let Some(edge) = edge else {
                seen[bee] = Seen::Done;
                path.pop();
                continue;
            };
            match seen[edge.from] {
                _ if edge.laps => {}
                Seen::Done => {}
                Seen::Not => {
                    seen[edge.from] = Seen::OnPath;
                    path.push((edge.from, 0));
                }
                Seen::OnPath => {
                    let begin = path.iter().position(|(b, _)| *b == edge.from).unwrap_or(0);
                    // The walk goes against the flow; people read along it.
                    let mut names: Vec<String> = path[begin..]
                        .iter()
                        .rev()
                        .map(|(b, _)| shown(drafts[*b].label.unwrap_or("?")))
                        .collect();
                    names.rotate_right(1);
                    names.extend(names.first().cloned());
                    let message = format!("a cycle: {}", names.join(" → "));
                    edge.at.value.mistake(
                        message,
                        Some("take one of these inputs away, or mark it: `loop: 5` lets a message go round five times"),
                    );
                }
            }
        }
    }
}
