//! `dlq`: dead letters as a workbench.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use skep_proto::v1;
use skep_proto::v1::beekeeper_client::BeekeeperClient;

use super::args::{self, DlqCommand, Letters, Which};
use super::connect::{self, Wire};
use super::failure::{Exit, Failure, Outcome};
use super::output::{Paint, Printer, payload_json, payload_text, shown, time};
use super::progress::Progress;
use crate::wording::count;

/// Ids discarded or put back in one call.
const CHUNK: usize = 200;
/// Between two looks at an inbox that is full.
const PAUSE: Duration = Duration::from_millis(500);
/// A redrive gives up when none came back for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// One Swarm's dead letters at a node.
struct Desk {
    beekeeper: BeekeeperClient<Wire>,
    swarm: String,
    out: Printer,
}

pub async fn dlq(args: args::Dlq, node: &str, out: Printer) -> Outcome {
    let mut desk = Desk {
        beekeeper: connect::beekeeper(node).await?,
        swarm: args.swarm,
        out,
    };
    let default = DlqCommand::List {
        which: Which::default(),
        after: 0,
        limit: 100,
    };
    match args.what.unwrap_or(default) {
        DlqCommand::List { which, after, limit } => desk.list(&which, after, limit).await,
        DlqCommand::Show { id } => desk.show(id).await,
        DlqCommand::Try { id, module } => desk.try_one(id, module.unwrap_or_default()).await,
        DlqCommand::Redrive(letters) => desk.redrive(letters).await,
        DlqCommand::Export { which } => desk.export(&which).await,
        DlqCommand::Discard(letters) => desk.discard(letters).await,
    }
}

impl Desk {
    fn asking(&self, which: &Which, after: u64, limit: u32) -> v1::ListDeadLettersRequest {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ago = |time: Option<Duration>| {
            time.map_or(0, |t| {
                u64::try_from(now.saturating_sub(t).as_millis()).unwrap_or(u64::MAX)
            })
        };
        v1::ListDeadLettersRequest {
            swarm: self.swarm.clone(),
            stage: which.stage.clone().unwrap_or_default(),
            after,
            limit,
            reason: which.reason.clone().unwrap_or_default(),
            key: which.key.clone(),
            module: which.module.clone().unwrap_or_default(),
            since_ms: ago(which.since),
            until_ms: ago(which.until),
            brief: false,
        }
    }

    fn none(&self, id: u64) -> Failure {
        Failure::new(
            Exit::NotFound,
            format!("Swarm `{}` has no dead letter {id}", self.swarm),
        )
        .remedy(format!("list them with `skep dlq {}`", self.swarm))
    }

    async fn list(&mut self, which: &Which, after: u64, limit: u32) -> Outcome {
        let out = self.out;
        let mut request = self.asking(which, after, limit);
        let mut letters: Vec<v1::DeadLetter> = Vec::new();
        let next = loop {
            let page = self.beekeeper.list_dead_letters(request.clone()).await?.into_inner();
            letters.extend(page.letters);
            let left = limit.saturating_sub(u32::try_from(letters.len()).unwrap_or(u32::MAX));
            if page.next == 0 || left == 0 {
                break page.next;
            }
            (request.after, request.limit) = (page.next, left);
        };
        if out.json() {
            return out.document(&json!({ "letters": letters.iter().map(letter).collect::<Vec<_>>() }));
        }
        if letters.is_empty() {
            return out.line("no dead letters");
        }
        let rows = letters.iter().map(|l| {
            vec![
                l.id.to_string(),
                l.stage.clone(),
                time(l.at_ms),
                l.attempts.to_string(),
                l.reason.clone(),
                l.detail.lines().next().unwrap_or_default().to_owned(),
            ]
        });
        out.table_of_lines(&["ID", "STAGE", "AT", "ATTEMPTS", "REASON", "DETAIL"], rows.collect())?;
        if next > 0 {
            // On stderr: it is about the list, not in it.
            eprintln!("there may be more: `skep dlq {} list --after {next}`", self.swarm);
        }
        Ok(())
    }

    async fn show(&mut self, id: u64) -> Outcome {
        let request = self.asking(&Which::default(), id.saturating_sub(1), 1);
        let letters = self.beekeeper.list_dead_letters(request).await?.into_inner().letters;
        let found = letters.into_iter().find(|l| l.id == id).ok_or_else(|| self.none(id))?;
        if self.out.json() {
            self.out.document(&letter(&found))
        } else {
            show(&found, self.out)
        }
    }

    async fn export(&mut self, which: &Which) -> Outcome {
        let mut request = self.asking(which, 0, 1_000);
        loop {
            let page = self.beekeeper.list_dead_letters(request.clone()).await?.into_inner();
            for found in &page.letters {
                self.out.item(&letter(found))?;
            }
            if page.next == 0 {
                return Ok(());
            }
            request.after = page.next;
        }
    }

    /// Those asked for as they are now: what dies again while they come back is not among them.
    async fn chosen(&mut self, letters: &Letters) -> Outcome<Vec<u64>> {
        if !letters.all {
            let which = &letters.which;
            let given = [&which.stage, &which.reason, &which.key, &which.module];
            if given.iter().any(|g| g.is_some()) || which.since.is_some() || which.until.is_some() {
                let message = "ids and conditions together say two things";
                return Err(Failure::new(Exit::Usage, message).remedy("give ids, or --all with conditions"));
            }
            return Ok(letters.ids.clone());
        }
        let mut request = self.asking(&letters.which, 0, 1_000);
        request.brief = true;
        let mut ids = Vec::new();
        loop {
            let page = self.beekeeper.list_dead_letters(request.clone()).await?.into_inner();
            ids.extend(page.letters.iter().map(|l| l.id));
            if page.next == 0 {
                return Ok(ids);
            }
            request.after = page.next;
        }
    }

    fn progress(&self) -> Progress {
        if self.out.json() {
            Progress::silent()
        } else {
            Progress::stderr()
        }
    }

    async fn discard(&mut self, letters: Letters) -> Outcome {
        let ids = self.chosen(&letters).await?;
        let asked = ids.len() as u64;
        let mut discarded = 0;
        let step = (ids.len() > CHUNK).then(|| self.progress().count("discard", asked));
        for chunk in ids.chunks(CHUNK) {
            let request = v1::DiscardDeadLettersRequest {
                swarm: self.swarm.clone(),
                ids: chunk.to_vec(),
            };
            discarded += self
                .beekeeper
                .discard_dead_letters(request)
                .await?
                .into_inner()
                .discarded;
            if let Some(step) = &step {
                step.at(discarded);
            }
        }
        drop(step);
        if discarded < asked && !letters.all {
            let message = format!("discarded {discarded} of {asked}: the others are not there");
            return Err(
                Failure::new(Exit::NotFound, message).remedy(format!("list them with `skep dlq {}`", self.swarm))
            );
        }
        if self.out.json() {
            return self.out.document(&json!({ "discarded": discarded }));
        }
        self.out.line(&format!("discarded {discarded}"))
    }

    async fn redrive(&mut self, letters: Letters) -> Outcome {
        let mut ids = self.chosen(&letters).await?;
        let asked = ids.len() as u64;
        let step = (ids.len() > CHUNK).then(|| self.progress().count("redrive", asked));
        let (mut redriven, mut gone) = (0, 0);
        let mut stuck: Vec<v1::LetterLeft> = Vec::new();
        let mut got_on = Instant::now();
        while !ids.is_empty() {
            let chunk: Vec<u64> = ids.drain(..CHUNK.min(ids.len())).collect();
            let request = v1::RedriveDeadLettersRequest {
                swarm: self.swarm.clone(),
                ids: chunk,
            };
            let reply = self.beekeeper.redrive_dead_letters(request).await?.into_inner();
            redriven += reply.redriven;
            gone += reply.gone;
            if let Some(step) = &step {
                step.at(redriven);
            }
            if reply.redriven > 0 {
                got_on = Instant::now();
            }
            let (later, never): (Vec<_>, Vec<_>) = reply.left.into_iter().partition(|left| left.later);
            stuck.extend(never);
            if later.is_empty() {
                continue;
            }
            if got_on.elapsed() > PATIENCE {
                stuck.extend(later);
                break;
            }
            if let Some(step) = &step {
                step.note(&format!("waiting: {}", later[0].why));
            }
            // In front: letters of a key come back in the order in which they died.
            ids.splice(..0, later.iter().map(|left| left.id));
            tokio::time::sleep(PAUSE).await;
        }
        drop(step);
        let waiting = ids.len();
        if self.out.json() {
            let left: Vec<Value> = stuck.iter().map(|l| json!({ "id": l.id, "why": l.why })).collect();
            self.out
                .document(&json!({ "redriven": redriven, "gone": gone, "left": left, "waiting": waiting }))?;
        } else {
            self.out.line(&format!("redriven {redriven}"))?;
        }
        if let Some(first) = stuck.first() {
            let left = stuck.len() + waiting;
            let message = format!(
                "{} not put back; the first, {}: {}",
                count(left as u64, "dead letter"),
                first.id,
                first.why
            );
            return Err(Failure::new(Exit::Failed, message)
                .remedy("they are all still there; `redrive` again when what it names has changed"));
        }
        if gone > 0 && !letters.all {
            let message = format!("{gone} of {asked} are not there: discarded, or back already");
            return Err(
                Failure::new(Exit::NotFound, message).remedy(format!("list them with `skep dlq {}`", self.swarm))
            );
        }
        Ok(())
    }

    async fn try_one(&mut self, id: u64, module: String) -> Outcome {
        let request = v1::TryDeadLetterRequest {
            swarm: self.swarm.clone(),
            id,
            module,
        };
        let tried = self.beekeeper.try_dead_letter(request).await?.into_inner();
        if self.out.json() {
            self.out.document(&trial(&tried))
        } else {
            show_trial(&tried, self.out)
        }
    }
}

fn named(headers: &[v1::Header]) -> Vec<Value> {
    let headers = headers.iter();
    headers.map(|h| json!({ "name": h.name, "value": h.value })).collect()
}

fn letter(l: &v1::DeadLetter) -> Value {
    let mut letter = json!({
        "id": l.id, "stage": l.stage, "reason": l.reason, "detail": l.detail, "stderr": l.stderr, "attempts": l.attempts,
        "at_ms": l.at_ms, "message": l.message, "key": l.key, "payload": payload_json(&l.payload),
        "headers": named(&l.headers), "module": l.module, "trace_id": l.trace_id,
    });
    if !l.timer.is_empty() {
        letter["timer"] = json!({ "name": l.timer, "at_ms": l.timer_at_ms });
    }
    letter
}

fn rows(rows: &[(&str, String)], out: Printer) -> Outcome {
    for (name, value) in rows {
        if !value.is_empty() {
            out.line(&format!("{name:11} {}", shown(value.trim_end())))?;
        }
    }
    Ok(())
}

fn header_text(headers: &[v1::Header]) -> String {
    let headers: Vec<String> = headers.iter().map(|h| format!("{}={}", h.name, h.value)).collect();
    headers.join(", ")
}

fn show(l: &v1::DeadLetter, out: Printer) -> Outcome {
    rows(
        &[
            ("dead letter", l.id.to_string()),
            ("stage", l.stage.clone()),
            ("at", time(l.at_ms)),
            ("reason", l.reason.clone()),
            ("detail", l.detail.clone()),
            ("attempts", l.attempts.to_string()),
            ("module", l.module.clone()),
            ("message", l.message.clone()),
            ("trace", l.trace_id.clone()),
            ("key", l.key.clone().unwrap_or_default()),
            ("headers", header_text(&l.headers)),
            ("payload", payload_text(&l.payload)),
            ("stderr", l.stderr.clone()),
        ],
        out,
    )
}

fn trial(t: &v1::TryDeadLetterReply) -> Value {
    json!({
        "stage": t.stage, "module": t.module, "digest": t.digest, "outcome": t.outcome, "detail": t.detail, "stderr": t.stderr,
        "took_us": t.took_us,
        "publish": t.publish.iter().map(|e| json!({
            "output": e.output, "key": e.key, "headers": named(&e.headers), "payload": payload_json(&e.payload), "to": e.to,
        })).collect::<Vec<_>>(),
        "respond": t.respond.iter().map(|body| payload_json(body)).collect::<Vec<_>>(),
        "state": t.state.iter().map(|w| json!({
            "name": w.name, "value": w.value.as_ref().map(|v| payload_json(v)),
        })).collect::<Vec<_>>(),
        "timers": t.timers.iter().map(|w| json!({ "name": w.name, "at_ms": w.at_ms })).collect::<Vec<_>>(),
        "log": t.log.iter().map(|l| json!({ "level": l.level, "context": l.context, "text": l.text })).collect::<Vec<_>>(),
    })
}

fn show_trial(t: &v1::TryDeadLetterReply, out: Printer) -> Outcome {
    let paint = if t.outcome == "done" { Paint::Green } else { Paint::Red };
    let ran = format!("{} ({})", t.module, t.digest);
    rows(&[("stage", t.stage.clone()), ("module", ran)], out)?;
    out.line(&format!("{:11} {}", "outcome", out.paint(paint, &shown(&t.outcome))))?;
    rows(&[("detail", t.detail.clone())], out)?;
    for emit in &t.publish {
        let output = if emit.output.is_empty() {
            String::new()
        } else {
            format!("{}: ", emit.output)
        };
        let to = if emit.to.is_empty() {
            "nobody".to_owned()
        } else {
            emit.to.join(", ")
        };
        let text = format!("{output}{} → {to}", payload_text(&emit.payload));
        rows(&[("publishes", text), ("  headers", header_text(&emit.headers))], out)?;
    }
    for body in &t.respond {
        rows(&[("responds", payload_text(body))], out)?;
    }
    for write in &t.state {
        let value = write.value.as_ref().map_or("(deleted)".to_owned(), |v| payload_text(v));
        rows(&[("state", format!("{} = {value}", write.name))], out)?;
    }
    for timer in &t.timers {
        let at = timer.at_ms.map_or("(cancelled)".to_owned(), time);
        rows(&[("timer", format!("{} at {at}", timer.name))], out)?;
    }
    for line in &t.log {
        rows(&[("log", format!("{} {}", line.level, line.text))], out)?;
    }
    rows(&[("stderr", t.stderr.clone())], out)?;
    out.line("nothing of this happened: it was a trial")
}
