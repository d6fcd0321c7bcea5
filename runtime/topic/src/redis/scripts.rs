//! The scripts, each one atomic step of the store.

use std::sync::OnceLock;

macro_rules! scripts {
    ($($name:ident: $flags:literal, [$($part:literal),+];)+) => {
        /// A script by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Script { $($name),+ }

        impl Script {
            pub const ALL: &[Self] = &[$(Self::$name),+];

            pub fn source(self) -> &'static str {
                match self {
                    $(Self::$name => concat!("#!lua", $flags, "\n", $(include_str!(concat!("scripts/", $part, ".lua"))),+)),+
                }
            }
        }
    };
}

// Commits, leases and removals go on when memory is full, so that it drains; appends do not carry the flag and are refused.
scripts! {
    Publish: "", ["head", "topic", "append", "derived", "publish"];
    Claim: " flags=allow-oom", ["head", "lease", "claim"];
    Renew: " flags=allow-oom", ["head", "lease", "renew"];
    Release: " flags=allow-oom", ["head", "lease", "release"];
    Mark: " flags=allow-oom", ["head", "lease", "mark"];
    Fetch: " flags=no-writes", ["head", "lease", "fetch"];
    State: " flags=no-writes", ["head", "lease", "state"];
    Commit: " flags=allow-oom", ["head", "topic", "append", "lease", "puts", "commit"];
    Status: " flags=no-writes", ["head", "status"];
    Letters: " flags=no-writes", ["head", "letters"];
    Discard: " flags=allow-oom", ["head", "topic", "discard"];
    StateOf: " flags=no-writes", ["head", "state_of"];
    Keys: " flags=no-writes", ["head", "keys"];
    Register: " flags=allow-oom", ["head", "register"];
    RemoveTopic: " flags=allow-oom", ["head", "topic", "remove_topic"];
    ForgetSwarm: " flags=allow-oom", ["head", "topic", "forget_swarm"];
    Sweep: " flags=allow-oom", ["head", "sweep"];
    EndLife: " flags=allow-oom", ["head", "end_life"];
    Replies: " flags=allow-oom", ["head", "replies"];
    CatalogPut: " flags=allow-oom", ["head", "seen", "catalog_put"];
    CatalogDelete: " flags=allow-oom", ["head", "seen", "catalog_delete"];
    CatalogReplace: " flags=allow-oom", ["head", "seen", "catalog_replace"];
    Rescale: " flags=allow-oom", ["head", "topic", "derived", "rescale"];
    Layout: " flags=no-writes", ["head", "layout"];
    Waiting: " flags=no-writes", ["head", "lease", "waiting"];
    HandOver: " flags=allow-oom", ["head", "topic", "derived", "lease", "hand_over"];
    Hold: " flags=allow-oom", ["head", "hold"];
    LetGo: " flags=allow-oom", ["head", "let_go"];
    BeginImport: " flags=allow-oom", ["head", "begin_import"];
    Import: "", ["head", "topic", "append", "derived", "puts", "import"];
    EndImport: " flags=allow-oom", ["head", "end_import"];
    Beat: " flags=allow-oom", ["head", "beat"];
    Leave: " flags=allow-oom", ["head", "leave"];
}

static NAMES: [OnceLock<String>; Script::ALL.len()] = [const { OnceLock::new() }; Script::ALL.len()];

impl Script {
    /// The digest by which the server knows it; empty until it was loaded once.
    pub fn digest(self) -> &'static str {
        NAMES[self as usize].get().map_or("", String::as_str)
    }

    pub fn learn(self, digest: String) {
        // The digest depends on the source alone: whoever learned it before learned the same.
        let _ = NAMES[self as usize].set(digest);
    }
}
