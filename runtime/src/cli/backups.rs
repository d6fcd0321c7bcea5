//! `backup`, `restore`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skep_model::limits::UPLOAD_CHUNK_BYTES;
use skep_proto::v1;
use skep_proto::v1::backup_reply::Part;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::args;
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::files;
use super::output::{Printer, size, time};
use crate::wording::count;

/// Chunks that were read and not sent yet.
const CHUNKS_READY: usize = 4;

/// Where a backup goes.
enum Target {
    Stdout,
    /// Under its name once it is whole.
    File(tempfile::NamedTempFile, PathBuf),
}

impl Target {
    fn open(file: &Path) -> Outcome<Self> {
        if files::is_stdin(file) {
            if std::io::stdout().is_terminal() {
                return Err(Failure::new(Exit::Usage, "a backup is no text for a terminal")
                    .remedy("name a file, or send stdout to one"));
            }
            return Ok(Self::Stdout);
        }
        let unwritable = |e: std::io::Error| {
            Failure::new(Exit::Failed, format!("cannot write {}: {e}", file.display()))
                .remedy("name a file in a folder that is there and that you may write to")
        };
        if file.is_dir() {
            return Err(unwritable(std::io::ErrorKind::IsADirectory.into()));
        }
        let folder = file.parent().filter(|f| !f.as_os_str().is_empty());
        // Nobody else may read it: it has users' data in it.
        let new = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(unwritable)?;
        Ok(Self::File(new, file.to_owned()))
    }

    fn write(&mut self, chunk: &[u8]) -> Outcome {
        match self {
            Self::Stdout => {
                let mut out = std::io::stdout().lock();
                let written = out.write_all(chunk).and_then(|()| out.flush());
                // Also when its reader went away: that is no backup.
                written.map_err(|e| Failure::new(Exit::Failed, format!("cannot write the backup to stdout: {e}")))
            }
            Self::File(file, path) => file
                .write_all(chunk)
                .map_err(|e| Failure::new(Exit::Failed, format!("cannot write {}: {e}", path.display()))),
        }
    }

    fn finish(self) -> Outcome {
        let Self::File(file, path) = self else { return Ok(()) };
        let failed = |e: std::io::Error| Failure::new(Exit::Failed, format!("cannot write {}: {e}", path.display()));
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    }
}

pub async fn backup(args: args::Backup, node: &str, out: Printer) -> Outcome {
    let mut target = Target::open(&args.file)?;
    let mut beekeeper = connect::beekeeper(node).await?;
    let mut chunks = beekeeper.backup(v1::BackupRequest {}).await?.into_inner();
    let mut contents = None;
    while let Some(reply) = chunks.message().await? {
        match reply.part {
            Some(Part::Chunk(chunk)) => target.write(&chunk)?,
            Some(Part::Contents(told)) => contents = Some(told),
            None => {}
        }
    }
    let contents = contents.ok_or_else(|| {
        Failure::new(Exit::Unavailable, "the node ended the backup before it was whole").remedy("try again")
    })?;
    let to_stdout = matches!(target, Target::Stdout);
    target.finish()?;
    // Stdout has the backup.
    if to_stdout {
        if !out.json() {
            eprintln!("{}", line(&contents));
        }
        return Ok(());
    }
    shown(&contents, out)
}

pub async fn restore(args: args::Restore, node: &str, out: Printer) -> Outcome {
    let mut file: Box<dyn std::io::Read + Send> = if files::is_stdin(&args.file) {
        Box::new(std::io::stdin())
    } else {
        Box::new(files::open(&args.file)?)
    };
    let mut beekeeper = connect::beekeeper(node).await?;
    let (send, chunks) = mpsc::channel(CHUNKS_READY);
    let name = args.file.clone();
    let reading = tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = Vec::with_capacity(UPLOAD_CHUNK_BYTES);
            let some = file.by_ref().take(UPLOAD_CHUNK_BYTES as u64).read_to_end(&mut chunk);
            match some {
                Err(e) => return Err(files::unreadable(&name, &e)),
                Ok(0) => return Ok(()),
                Ok(_) => {}
            }
            if send.blocking_send(v1::RestoreRequest { chunk: chunk.into() }).is_err() {
                // The node has answered.
                return Ok(());
            }
        }
    });
    let answer = beekeeper.restore(ReceiverStream::new(chunks)).await;
    // What could not be read explains an answer that tells of a file that is cut off.
    if (answer.is_ok() || reading.is_finished())
        && let Ok(read) = reading.await
    {
        read?;
    }
    shown(&answer?.into_inner(), out)
}

fn line(contents: &v1::BackupContents) -> String {
    format!(
        "{}, {} and {}, {}, taken {} by skep {}",
        count(contents.swarms.len() as u64, "Swarm"),
        count(contents.modules, "module"),
        count(contents.models, "model"),
        size(contents.bytes),
        time(contents.taken_ms),
        contents.version,
    )
}

fn shown(contents: &v1::BackupContents, out: Printer) -> Outcome {
    if out.json() {
        return out.document(&as_json(contents));
    }
    if !contents.swarms.is_empty() {
        let rows = contents.swarms.iter().map(|s| {
            let numbers = [s.revision, s.unread, s.parked, s.timers, s.keys, s.dead, s.calls];
            let cells = numbers.iter().map(u64::to_string);
            std::iter::once(s.name.clone()).chain(cells).collect()
        });
        out.table(
            &[
                "SWARM", "REVISION", "UNREAD", "WAITING", "TIMERS", "KEYS", "DEAD", "CALLS",
            ],
            rows.collect(),
        )?;
    }
    out.line(&line(contents))
}

fn as_json(contents: &v1::BackupContents) -> Value {
    let swarms = contents.swarms.iter().map(|s| {
        json!({
            "name": s.name, "revision": s.revision, "unread": s.unread, "parked": s.parked, "timers": s.timers,
            "keys": s.keys, "dead": s.dead, "calls": s.calls,
        })
    });
    json!({
        "taken_ms": contents.taken_ms, "version": contents.version, "modules": contents.modules, "models": contents.models,
        "bytes": contents.bytes, "swarms": swarms.collect::<Vec<_>>(),
    })
}
