//! The audit, and backups.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  skep audit list --since 24h
  skep audit list --follow -o json >> audit.jsonl
  skep audit verify -o json > heads.json
  skep audit verify --heads heads.json")]
pub struct Audit {
    #[command(subcommand)]
    pub what: AuditCommand,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Show the records of all nodes, oldest first
    List {
        /// Only those of this last time: `24h`, `7d`
        #[arg(long, value_parser = duration, value_name = "TIME")]
        since: Option<Duration>,
        /// Only what this tenant's people did
        #[arg(long)]
        tenant: Option<String>,
        /// Then those that come
        #[arg(short, long)]
        follow: bool,
    },
    /// Read every record and tell the first that was changed, removed, put in or cut off
    Verify {
        /// What an earlier `audit verify -o json` wrote: the chains must still have those records
        #[arg(long, value_name = "FILE")]
        heads: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Modules, Swarms, and of each Swarm what is unread, waits or is dead-lettered, keyed state, timers, and how repeated calls are
recognised: each Swarm as at one moment. Nothing stops but, on Redis, each Swarm while it is read.

Examples:
  skep backup /backups/skep-$(date +%F)
  skep backup - | ssh other 'cat > skep.backup'")]
pub struct Backup {
    /// Where to; `-` writes to stdout. It appears once it is whole, in the place of a former one
    pub file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The node's catalog must be empty. A file that is not whole and sound is refused, and nothing is written. Interrupted, it is given
again: no Swarm serves before all is there.

Examples:
  skep restore /backups/skep-2026-11-21
  skep restore --node http://new:4020 - < skep.backup")]
pub struct Restore {
    /// What `skep backup` wrote; `-` reads stdin
    pub file: PathBuf,
}
