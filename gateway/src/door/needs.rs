//! What each path of the port needs: the whole matrix of roles, in one table.

use skep_model::access::Role;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Whoever asks whether the node is alive; and edges, which prove themselves who they are.
    Nothing,
    /// A token, of whatever role.
    Token,
    Role(Role),
    /// Another node of the store.
    Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub need: Need,
    /// It may go on for long, so it ends when the token does.
    pub streams: bool,
    /// It is recorded: who asked for it, and what came of it.
    pub changes: bool,
}

const NOTHING: Asked = Asked {
    need: Need::Nothing,
    streams: false,
    changes: false,
};

const fn once(role: Role) -> Asked {
    Asked {
        need: Need::Role(role),
        streams: false,
        changes: false,
    }
}

const fn stream(role: Role) -> Asked {
    Asked {
        streams: true,
        ..once(role)
    }
}

/// What changes something, or takes all there is, as a backup does.
const fn change(role: Role) -> Asked {
    Asked {
        changes: true,
        ..once(role)
    }
}

const fn changes(role: Role) -> Asked {
    Asked {
        changes: true,
        ..stream(role)
    }
}

/// Every gRPC method. A test compares with the descriptors, so that none is forgotten.
#[must_use]
pub fn listed(path: &str) -> Option<Asked> {
    use Role::{Admin, Deploy, Invoke, Operator, Read};
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    Some(match (service, method) {
        ("skep.v1.Gateway", "Request" | "Submit") => once(Invoke),
        ("skep.v1.Gateway", "Requests" | "RequestStream" | "SubmitStream") => stream(Invoke),

        // As a prober asks: see `/readyz`.
        ("inference.GRPCInferenceService", "ServerLive" | "ServerReady") => NOTHING,
        ("inference.GRPCInferenceService", "ServerMetadata") => Asked {
            need: Need::Token,
            ..NOTHING
        },
        ("inference.GRPCInferenceService", "ModelInfer" | "ModelReady" | "ModelMetadata" | "RepositoryIndex") => {
            once(Invoke)
        }
        ("inference.GRPCInferenceService", "ModelStreamInfer") => stream(Invoke),

        ("skep.v1.Beekeeper", "ListModules" | "ListSwarms" | "DescribeSwarm") => once(Read),
        ("skep.v1.Beekeeper", "ListDeadLetters" | "GetState") => once(Read),
        ("skep.v1.Beekeeper", "Logs" | "ListState") => stream(Read),
        ("skep.v1.Beekeeper", "PushModule" | "ImportState" | "DeleteSwarm") => changes(Deploy),
        ("skep.v1.Beekeeper", "DeleteModule" | "ApplySwarm" | "ScaleStage" | "HoldSwarm") => change(Deploy),
        ("skep.v1.Beekeeper", "DiscardDeadLetters" | "RedriveDeadLetters" | "TryDeadLetter") => change(Deploy),
        ("skep.v1.Beekeeper", "ListNodes") => once(Operator),
        ("skep.v1.Beekeeper", "DrainNode") => change(Operator),
        ("skep.v1.Beekeeper", "Backup" | "Restore") => changes(Operator),
        ("skep.v1.Beekeeper", "Node") => Asked {
            need: Need::Token,
            streams: false,
            changes: false,
        },

        // Whoever is no operator sees the own one.
        ("skep.v1.Access", "ListTenants") => once(Admin),
        ("skep.v1.Access", "CreateTenant" | "SetTenant" | "DeleteTenant") => change(Operator),
        ("skep.v1.Access", "ListTokens") => once(Admin),
        ("skep.v1.Access", "CreateToken" | "RevokeToken" | "RotateToken") => change(Admin),
        ("skep.v1.Access", "Usage") => once(Read),
        // Only an open door has it: see `Bootstrap`.
        ("skep.v1.Access", "Bootstrap") => change(Operator),
        ("skep.v1.Access", "WhoAmI") => Asked {
            need: Need::Token,
            streams: false,
            changes: false,
        },

        ("skep.v1.Models", "ListModels") => once(Read),
        ("skep.v1.Models", "PushModel") => changes(Deploy),
        ("skep.v1.Models", "TagModel" | "DeleteModel" | "SetBatching") => change(Deploy),

        ("skep.v1.Secrets", "ListSecrets") => once(Read),
        ("skep.v1.Secrets", "SetSecret" | "DeleteSecret") => change(Admin),
        ("skep.v1.Secrets", "ResealSecrets") => change(Operator),

        ("skep.v1.Edges", "ListEdges") => once(Read),
        ("skep.v1.Edges", "InviteEdge" | "RevokeEdge" | "ResumeEdge" | "LabelEdge" | "DiscardAtEdge") => change(Admin),
        // An edge has no token: it shows its invitation's secret, and then proves its key.
        ("skep.v1.Edges", "Enroll") => NOTHING,
        ("skep.v1.Edges", "Attach") => Asked {
            streams: true,
            ..NOTHING
        },

        ("skep.v1.Audit", "ListAudit") => stream(Admin),
        ("skep.v1.Audit", "VerifyAudit") => once(Admin),

        ("skep.v1.Peer", "Counts" | "Recorded" | "Sound") => Asked {
            need: Need::Node,
            streams: false,
            changes: false,
        },
        ("skep.v1.Peer", "Said") => Asked {
            need: Need::Node,
            streams: true,
            changes: false,
        },
        _ => return None,
    })
}

/// What a path needs. What nobody thought of is the operator's.
#[must_use]
pub fn of(path: &str, takes_events: bool) -> Asked {
    if let Some(asked) = listed(path) {
        return asked;
    }
    let (need, streams) = match path {
        "/healthz" | "/readyz" | "/v2/health/live" | "/v2/health/ready" => (Need::Nothing, false),
        _ if path.starts_with("/grpc.health.v1.Health/") => (Need::Nothing, false),
        _ if path.starts_with("/v1/") => (Need::Role(Role::Invoke), takes_events),
        _ if path.starts_with("/v2/") => (Need::Role(Role::Invoke), false),
        _ if path.starts_with("/skep.v1.") => (Need::Role(Role::Operator), true),
        // Reflection, and what is not there.
        _ => (Need::Token, true),
    };
    Asked {
        need,
        streams,
        changes: false,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::{FileDescriptorProto, FileDescriptorSet};

    use super::*;

    fn files() -> Vec<FileDescriptorProto> {
        let sets = [skep_proto::DESCRIPTOR, skep_proto::INFERENCE_DESCRIPTOR];
        let files = sets.map(|set| FileDescriptorSet::decode(set).unwrap().file);
        files.into_iter().flatten().collect()
    }

    #[test]
    fn every_method_has_its_need_and_says_whether_it_streams() {
        let mut seen = 0;
        for file in &files() {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let asked = listed(&path).unwrap_or_else(|| panic!("{path} is not in the table of needs"));
                    let streams = method.client_streaming() || method.server_streaming();
                    assert_eq!(asked.streams, streams, "{path}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 30, "{seen}");
    }

    /// What leaves everything as it is, and the traffic itself.
    const UNRECORDED: &[&str] = &[
        "Gateway/Request",
        "Gateway/Submit",
        "Gateway/Requests",
        "Gateway/RequestStream",
        "Gateway/SubmitStream",
        "Beekeeper/ListModules",
        "Beekeeper/ListSwarms",
        "Beekeeper/DescribeSwarm",
        "Beekeeper/ListDeadLetters",
        "Beekeeper/GetState",
        "Beekeeper/ListState",
        "Beekeeper/Logs",
        "Beekeeper/Node",
        "Beekeeper/ListNodes",
        "Access/WhoAmI",
        "Access/ListTenants",
        "Access/Usage",
        "Access/ListTokens",
        "Models/ListModels",
        "Secrets/ListSecrets",
        "Edges/ListEdges",
        // Noted by the hub itself, which knows who it was.
        "Edges/Enroll",
        "Edges/Attach",
        "Audit/ListAudit",
        "Audit/VerifyAudit",
        "GRPCInferenceService/ServerLive",
        "GRPCInferenceService/ServerReady",
        "GRPCInferenceService/ServerMetadata",
        "GRPCInferenceService/ModelReady",
        "GRPCInferenceService/ModelMetadata",
        "GRPCInferenceService/ModelInfer",
        "GRPCInferenceService/ModelStreamInfer",
        "GRPCInferenceService/RepositoryIndex",
        "Peer/Counts",
        "Peer/Said",
        "Peer/Recorded",
        "Peer/Sound",
    ];

    #[test]
    fn every_method_that_changes_something_is_recorded() {
        let files = files();
        let services = files
            .iter()
            .flat_map(|file| file.service.iter().map(move |service| (file, service)));
        for (file, service) in services {
            for method in &service.method {
                let name = format!("{}/{}", service.name(), method.name());
                let unrecorded = UNRECORDED.contains(&name.as_str());
                let changes = listed(&format!("/{}.{name}", file.package())).unwrap().changes;
                assert_ne!(
                    changes, unrecorded,
                    "{name}: is it recorded, or does it leave everything as it is?"
                );
            }
        }
    }

    #[test]
    fn what_nobody_thought_of_is_closed() {
        let need = |path| of(path, false).need;
        assert_eq!(need("/skep.v1.Beekeeper/Newest"), Need::Role(Role::Operator));
        assert_eq!(need("/skep.v1.Gateway/request"), Need::Role(Role::Operator));
        assert_eq!(need("/v1/orders"), Need::Role(Role::Invoke));
        assert_eq!(need("/v1/orders:submit"), Need::Role(Role::Invoke));
        assert_eq!(
            need("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
            Need::Token
        );
        assert_eq!(need("/v2/models/m/infer"), Need::Role(Role::Invoke));
        assert_eq!(need("/v2/health/ready"), Need::Nothing);
        assert_eq!(need("/inference.GRPCInferenceService/ServerLive"), Need::Nothing);
        assert_eq!(need("/v2/health/ready/"), Need::Role(Role::Invoke));
        for odd in [
            "",
            "/",
            "//v1/orders",
            "/V1/orders",
            "/healthz/",
            "/v1",
            "/v2",
            "/v2x/models",
        ] {
            assert_eq!(need(odd), Need::Token, "{odd}");
        }
        assert_eq!(need("/healthz"), Need::Nothing);
    }
}
