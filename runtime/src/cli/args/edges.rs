//! `edge`.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct Edge {
    #[command(subcommand)]
    pub what: EdgeCommand,
}

#[derive(Debug, Subcommand)]
pub enum EdgeCommand {
    /// Print the line with which a machine becomes an edge: good once, and for an hour. An edge of that name enrols again with it
    Enroll {
        /// a-z, 0-9 and `-`
        name: String,
        /// Stages whose manifest says `place: { label: KEY=VALUE }` run there; again for more
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
        /// Where the edge reaches this hub, if not by the address that this command uses
        #[arg(long, value_name = "URL")]
        hub: Option<String>,
        /// Also for a hub without TLS beyond this machine, where whoever stands between could read and forge what is handed over
        #[arg(long)]
        allow_insecure: bool,
    },
    /// List them: whether they are attached, which orders they follow, what waits there
    List,
    /// Show one
    Status {
        /// Its name
        name: String,
    },
    /// Take an edge's word from it: it hands over nothing more, and gets no orders
    Revoke {
        /// Its name
        name: String,
    },
    /// Give it other labels, all of them: other stages run there from then on. What waits there is handed over all the same
    Label {
        /// Its name
        name: String,
        /// Again for more; none: nothing runs there
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
    },
    /// Let go of what waits there for a stage that takes it no more, or refuses it. The edge does so when it hears of it
    Discard {
        /// Its name
        name: String,
        /// As `skep edge status` shows it: SWARM/STAGE
        what: String,
        /// The first message only
        #[arg(long)]
        first: bool,
    },
    /// Go on with an edge that knows more than this hub, which was restored from an older backup: what that lost stays lost
    Resume {
        /// Its name
        name: String,
    },
}
