//! `place`: Bees that run on edges, and what then cannot be.

use super::bee::Draft;
use super::fields::PLACE;
use super::reader::{Report, Value};
use super::units::show_size;
use crate::limits;
use crate::name::NodeLabel;
use crate::swarm::{InputSource, Placed, StageInput, WhenFull};

pub(super) fn read(value: &Value<'_>) -> Option<Placed> {
    let fields = value.fields(&PLACE)?;
    let label = fields.required("label", "which edges it runs on: `place: { label: site=mill }`")?;
    let text = label.text()?;
    let read = text.parse::<NodeLabel>();
    if let Err(e) = &read {
        label.mistake(
            e.to_string(),
            Some("write what edges were enrolled with, like `site=mill`"),
        );
    }
    let outbox_bytes = fields
        .get("outbox")
        .and_then(|v| v.size(limits::OUTBOX_BYTES_MIN..=limits::OUTBOX_BYTES_MAX));
    let when_full = fields
        .get("when_full")
        .and_then(|v| v.choice(&[("refuse", WhenFull::Refuse), ("drop-oldest", WhenFull::DropOldest)]));
    Some(Placed {
        label: read.ok()?,
        outbox_bytes: outbox_bytes.unwrap_or(limits::OUTBOX_BYTES_DEFAULT),
        when_full: when_full.unwrap_or_default(),
    })
}

/// What an edge cannot do, and ways that there are not: from the hub to an edge, and from edges of one label to those of another.
pub(super) fn check(drafts: &[Draft<'_>], all: &[Vec<StageInput>], report: &Report) {
    let placed = |draft: &Draft<'_>| draft.stage.as_ref().and_then(|stage| stage.place.clone());
    let by_name = |name: &str| drafts.iter().find(|draft| draft.label == Some(name));
    if drafts.iter().any(|draft| placed(draft).is_some()) {
        // An end is found by looking at all topics of a Swarm at one moment, and nobody can look at those of an edge that is offline.
        for draft in drafts
            .iter()
            .filter(|d| d.stage.as_ref().is_some_and(|stage| stage.ends.is_some()))
        {
            report.add(
                draft.place,
                &format!("{}.ends", draft.path),
                "`ends` in a Swarm of which a Bee runs on edges".to_owned(),
                Some("what edges send has no end in this version: leave it out, or make two Swarms of it".to_owned()),
            );
        }
    }
    for (draft, inputs) in drafts.iter().zip(all) {
        let Some(own) = placed(draft) else { continue };
        let mistake = |what: String, hint: &str| {
            report.add(
                draft.place,
                &format!("{}.place", draft.path),
                what,
                Some(hint.to_owned()),
            );
        };
        for input in inputs {
            match &input.source {
                InputSource::Bee { stage, .. } => {
                    let Some(from) = by_name(stage.as_str()).filter(|from| from.stage.is_some()) else {
                        continue;
                    };
                    match placed(from) {
                        Some(there) if there.label == own.label => {}
                        Some(there) => mistake(
                            format!(
                                "it runs on edges with {} and reads from `{stage}`, which runs on edges with {}",
                                own.label, there.label
                            ),
                            "edges of different labels do not send to each other in this version: place both at one label",
                        ),
                        None => mistake(
                            format!("it runs on edges and reads from `{stage}`, which runs at the hub"),
                            "nothing goes from the hub to edges in this version: place that Bee at the same label, or neither",
                        ),
                    }
                }
                InputSource::Gateway(subject) => {
                    let also = |(other, its): &(&Draft<'_>, &Vec<StageInput>)| {
                        let same = its.iter().any(|i| i.source == input.source);
                        same && other.stage.is_some() && placed(other).map(|p| p.label).as_ref() != Some(&own.label)
                    };
                    if let Some((other, _)) = drafts.iter().zip(all).find(also) {
                        let other = other.label.unwrap_or("another Bee");
                        mistake(
                            format!("the subject `{subject}` also feeds `{other}`, which runs elsewhere"),
                            "a subject is one place's door: give the other Bee a subject of its own",
                        );
                    }
                }
            }
        }
        let Some(stage) = &draft.stage else { continue };
        if stage.memory_bytes > limits::EDGE_BEE_BYTES_MAX as u64 {
            mistake(
                format!(
                    "`memory: {}` on a Bee that runs on edges",
                    show_size(stage.memory_bytes)
                ),
                &format!(
                    "an edge gives a Bee up to {}",
                    show_size(limits::EDGE_BEE_BYTES_MAX as u64)
                ),
            );
        }
        let beyond = [
            (!stage.secrets.is_empty(), "secrets"),
            (!stage.http.is_empty(), "http"),
            (!stage.models.is_empty(), "models"),
            (stage.builtin.is_some() && stage.models.is_empty(), "type"),
        ];
        for (_, field) in beyond.iter().filter(|(said, _)| *said) {
            mistake(
                format!("`{field}` on a Bee that runs on edges"),
                "not available there in this version: leave it out, or do that part in a Bee at the hub",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::limits;
    use crate::manifest::parse;
    use crate::swarm::WhenFull;

    fn split(first: &str, second: &str) -> String {
        format!(
            "name: mill\nbees:\n  - name: near\n    module: m\n    input: {{ gateway: readings }}\n{first}  - name: far\n    module: m\n    input: \
             {{ bee: near }}\n{second}"
        )
    }

    #[test]
    fn a_bee_is_placed_with_what_may_wait_there() {
        let swarm = parse(&split("    place: { label: site=mill }\n", "")).unwrap();
        let place = swarm.stages[0].place.clone().unwrap();
        assert_eq!(place.label.as_str(), "site=mill");
        assert_eq!(
            (place.outbox_bytes, place.when_full),
            (limits::OUTBOX_BYTES_DEFAULT, WhenFull::Refuse)
        );
        assert!(swarm.is_split() && swarm.stages[1].place.is_none());
        let door = swarm.placed_door(&"readings".parse().unwrap());
        assert_eq!(door, Some(&place));
        let swarm = parse(&split(
            "    place: { label: site=mill, outbox: 8MiB, when_full: drop-oldest }\n",
            "",
        ))
        .unwrap();
        let place = swarm.stages[0].place.clone().unwrap();
        assert_eq!((place.outbox_bytes, place.when_full), (8 << 20, WhenFull::DropOldest));
    }

    #[test]
    fn what_cannot_be_placed_is_told_with_its_place() {
        let at = "    place: { label: site=mill }\n";
        for (first, second, says) in [
            ("", at, "nothing goes from the hub to edges"),
            (at, "    place: { label: site=farm }\n", "place both at one label"),
            ("    place: { outbox: 8MiB }\n", "", "label"),
            ("    place: { label: mill }\n", "", "mill"),
            ("    place: mill\n", "", "place"),
            ("    place: { label: site=mill, outbox: 1 }\n", "", "outbox"),
            ("    place: { label: site=mill, full: refuse }\n", "", "full"),
            (
                "    memory: 512MiB\n    place: { label: site=mill }\n",
                "",
                "an edge gives a Bee up to 256MiB",
            ),
            (
                "    secrets: [key]\n    place: { label: site=mill }\n",
                "",
                "`secrets` on a Bee that runs on edges",
            ),
            (
                "    key: message\n    state: true\n    ends: [a]\n    place: { label: site=mill }\n",
                "",
                "`ends` in a Swarm of which a Bee runs on edges",
            ),
            (
                at,
                "    key: message\n    state: true\n    ends: true\n",
                "`ends` in a Swarm of which a Bee runs on edges",
            ),
            (
                "    http: [example.com]\n    place: { label: site=mill }\n",
                "",
                "`http` on a Bee that runs on edges",
            ),
            (
                "    models: [digits]\n    place: { label: site=mill }\n",
                "",
                "`models` on a Bee that runs on edges",
            ),
        ] {
            let text = split(first, second);
            let mistakes = parse(&text).unwrap_err().to_string();
            assert!(mistakes.contains(says), "{text}\n{mistakes}");
        }
        let both = split(at, "  - name: also\n    module: m\n    input: { gateway: readings }\n");
        let mistakes = parse(&both).unwrap_err().to_string();
        assert!(mistakes.contains("also feeds `also`"), "{mistakes}");
    }
}
