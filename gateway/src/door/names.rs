//! What a control call is about: the fields of its messages that name things. Only these are read, so no payload, manifest or secret value
//! can get into a record.

/// A field by its numbers, from the message downwards.
pub struct Field {
    pub what: &'static str,
    pub at: &'static [u32],
    pub form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Number,
    Flag,
    /// A packed list of numbers.
    Numbers,
}

const fn text(what: &'static str, at: &'static [u32]) -> Field {
    Field {
        what,
        at,
        form: Form::Text,
    }
}

const fn number(what: &'static str, at: &'static [u32]) -> Field {
    Field {
        what,
        at,
        form: Form::Number,
    }
}

const fn flag(what: &'static str, at: &'static [u32]) -> Field {
    Field {
        what,
        at,
        form: Form::Flag,
    }
}

const fn numbers(what: &'static str, at: &'static [u32]) -> Field {
    Field {
        what,
        at,
        form: Form::Numbers,
    }
}

pub type Fields = &'static [Field];

/// Of the first message that is sent, and of the first that is answered. A test compares with the descriptors.
#[must_use]
pub fn of(path: &str) -> (Fields, Fields) {
    match path {
        "/skep.v1.Beekeeper/PushModule" => (
            &const { [text("module", &[1, 1]), text("tag", &[1, 2])] },
            &const { [text("digest", &[1])] },
        ),
        "/skep.v1.Beekeeper/DeleteModule" => (&const { [text("module", &[1]), text("tag", &[2])] }, &[]),
        "/skep.v1.Beekeeper/ApplySwarm" => (
            &const {
                [
                    flag("dry_run", &[2]),
                    flag("discard_state", &[4]),
                    flag("rescale", &[5]),
                    text("grant", &[6]),
                    flag("grant_all", &[7]),
                ]
            },
            &const { [text("swarm", &[1]), number("revision", &[2])] },
        ),
        "/skep.v1.Beekeeper/ScaleStage" => (
            &const {
                [
                    text("swarm", &[1]),
                    text("stage", &[2]),
                    number("partitions", &[3]),
                    number("concurrency", &[4]),
                    flag("dry_run", &[5]),
                ]
            },
            &const { [number("revision", &[2])] },
        ),
        "/skep.v1.Beekeeper/HoldSwarm" => (
            &const { [text("swarm", &[1]), text("stage", &[2]), number("hold", &[3])] },
            &[],
        ),
        "/skep.v1.Beekeeper/DeleteSwarm" => (&const { [text("swarm", &[1]), flag("discard", &[3])] }, &[]),
        "/skep.v1.Beekeeper/DiscardDeadLetters" => (
            &const { [text("swarm", &[1]), numbers("letters", &[2])] },
            &const { [number("discarded", &[1])] },
        ),
        "/skep.v1.Beekeeper/RedriveDeadLetters" => (
            &const { [text("swarm", &[1]), numbers("letters", &[2])] },
            &const { [number("redriven", &[1])] },
        ),
        "/skep.v1.Beekeeper/TryDeadLetter" => (
            &const { [text("swarm", &[1]), number("letter", &[2]), text("module", &[3])] },
            &[],
        ),
        "/skep.v1.Beekeeper/ImportState" => (
            &const { [text("swarm", &[1]), text("stage", &[2])] },
            &const { [number("keys", &[1])] },
        ),
        "/skep.v1.Beekeeper/DrainNode" => (
            &const { [text("node", &[1]), flag("undo", &[2])] },
            &const { [text("id", &[1])] },
        ),
        "/skep.v1.Beekeeper/Restore" => (&[], &const { [number("taken_ms", &[1]), number("modules", &[4])] }),
        "/skep.v1.Access/CreateTenant" => (
            &const {
                [
                    text("tenant", &[1]),
                    text("limit", &[2, 1]),
                    text("isolation", &[3]),
                    text("nodes", &[4]),
                ]
            },
            &[],
        ),
        "/skep.v1.Access/SetTenant" => (
            &const {
                [
                    text("tenant", &[1]),
                    text("limit", &[2, 1]),
                    text("unlimited", &[3]),
                    text("signer", &[4]),
                    text("no_signer", &[5]),
                    text("isolation", &[6]),
                    text("nodes", &[7]),
                ]
            },
            &[],
        ),
        "/skep.v1.Access/DeleteTenant" => (&const { [text("tenant", &[1]), flag("purge", &[2])] }, &[]),
        "/skep.v1.Access/Bootstrap" => (&[], &const { [text("token", &[1, 1]), text("role", &[1, 3])] }),
        "/skep.v1.Access/CreateToken" => (
            &const { [text("tenant", &[1]), text("role", &[2]), text("name", &[3])] },
            &const { [text("token", &[1, 1])] },
        ),
        "/skep.v1.Access/RevokeToken" => (
            &const { [text("token", &[1])] },
            &const { [text("tenant", &[2]), text("name", &[4])] },
        ),
        "/skep.v1.Access/RotateToken" => (
            &const { [text("token", &[1])] },
            &const { [text("tenant", &[1, 2]), text("name", &[1, 4])] },
        ),
        "/skep.v1.Models/PushModel" => (
            &const { [text("model", &[1, 1]), text("tag", &[1, 2])] },
            &const { [text("digest", &[1, 1])] },
        ),
        "/skep.v1.Models/TagModel" => (
            &const { [text("model", &[1]), text("tag", &[2]), text("version", &[3])] },
            &const { [text("digest", &[1])] },
        ),
        "/skep.v1.Models/DeleteModel" => (
            &const { [text("model", &[1]), text("tag", &[2]), flag("force", &[3])] },
            &const { [text("digest", &[2])] },
        ),
        "/skep.v1.Models/SetBatching" => (
            &const {
                [
                    text("model", &[1]),
                    flag("off", &[2, 1]),
                    number("rows", &[2, 2]),
                    number("wait_us", &[2, 3]),
                ]
            },
            &[],
        ),
        "/skep.v1.Edges/InviteEdge" => (&const { [text("edge", &[1]), text("label", &[2])] }, &[]),
        "/skep.v1.Edges/RevokeEdge" => (&const { [text("edge", &[1])] }, &[]),
        "/skep.v1.Edges/LabelEdge" => (&const { [text("edge", &[1]), text("label", &[2])] }, &[]),
        "/skep.v1.Edges/DiscardAtEdge" => (&const { [text("edge", &[1]), text("what", &[2])] }, &[]),
        "/skep.v1.Edges/ResumeEdge" => (&const { [text("edge", &[1])] }, &const { [number("revision", &[1])] }),
        "/skep.v1.Secrets/SetSecret" => (&const { [text("secret", &[1])] }, &const { [number("version", &[2])] }),
        "/skep.v1.Secrets/DeleteSecret" => (&const { [text("secret", &[1]), flag("force", &[2])] }, &[]),
        "/skep.v1.Secrets/ResealSecrets" => (&[], &const { [number("resealed", &[1])] }),
        _ => (&[], &[]),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::field_descriptor_proto::{Label, Type};
    use prost_types::{DescriptorProto, FileDescriptorSet};

    use super::super::needs;
    use super::*;

    fn message<'a>(set: &'a FileDescriptorSet, name: &str) -> &'a DescriptorProto {
        let name = name.trim_start_matches(".skep.v1.");
        let mut all = set.file.iter().flat_map(|file| &file.message_type);
        all.find(|m| m.name() == name)
            .unwrap_or_else(|| panic!("no message {name}"))
    }

    #[test]
    fn every_field_is_there_and_names_something() {
        let set = FileDescriptorSet::decode(skep_proto::DESCRIPTOR).unwrap();
        let mut named = 0;
        for (service, method) in set
            .file
            .iter()
            .flat_map(|file| &file.service)
            .flat_map(|service| service.method.iter().map(move |method| (service, method)))
        {
            let path = format!("/skep.v1.{}/{}", service.name(), method.name());
            let (asked, answered) = of(&path);
            let changes = needs::listed(&path).is_some_and(|asked| asked.changes);
            assert!(
                changes || (asked.is_empty() && answered.is_empty()),
                "{path} is not recorded"
            );
            let bare = asked.is_empty() && answered.is_empty() && !path.ends_with("/Backup");
            assert!(!changes || !bare, "{path} is recorded without what it is about");
            let sides = [(asked, method.input_type()), (answered, method.output_type())];
            for (field, of) in sides
                .iter()
                .flat_map(|(fields, of)| fields.iter().map(move |f| (f, of)))
            {
                let mut within = message(&set, of);
                for (depth, number) in field.at.iter().enumerate() {
                    let found = within
                        .field
                        .iter()
                        .find(|f| f.number() == i32::try_from(*number).unwrap());
                    let found = found.unwrap_or_else(|| panic!("{path}: {of} has no field {:?}", field.at));
                    if depth + 1 < field.at.len() {
                        within = message(&set, found.type_name());
                        continue;
                    }
                    let form = match (found.r#type(), found.label()) {
                        (Type::String, Label::Optional | Label::Repeated) => Form::Text,
                        (Type::Bool, Label::Optional) => Form::Flag,
                        (Type::Uint64 | Type::Uint32 | Type::Enum, Label::Optional) => Form::Number,
                        (Type::Uint64, Label::Repeated) => Form::Numbers,
                        other => panic!("{path}: {} names nothing: {other:?}", found.name()),
                    };
                    assert_eq!(form, field.form, "{path}: {}", found.name());
                    // What only its owner may have.
                    assert!(
                        !["text", "value", "manifest"].contains(&found.name()),
                        "{path}: {}",
                        found.name()
                    );
                    named += 1;
                }
            }
        }
        let ours = |path: &str| of(path).0.len() + of(path).1.len();
        assert!(named > 40 && ours("/skep.v1.Beekeeper/ApplySwarm") == 7, "{named}");
    }
}
