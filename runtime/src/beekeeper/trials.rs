//! Trial runs: what a Bee, as it is or in another version, would do with a dead letter. A Bee's effects are a value, so all that it takes
//! is not to commit them.

use std::sync::Arc;
use std::time::Instant;

use skep_engine::BeeSettings;
use skep_model::condition::Facts;
use skep_model::id::Digest;
use skep_model::limits::TRIALS_MAX;
use skep_model::name::{BeeName, ModuleRef};
use skep_model::step::{Batch, Disposition, Due, Emit, Input, StateMap, Step};
use skep_model::swarm::Reader;
use skep_proto::v1;
use skep_stage::Bee;
use skep_stage::decide::visible;
use skep_topic::Work;
use tokio::sync::Semaphore;
use tonic::{Response, Status};

use super::applies::Known;
use super::failure::{internal, invalid, topic_error};
use super::letters::headers;
use super::{Keeper, Reply};
use crate::isolation::Isolation;
use crate::quotas::Account;
use crate::supervisor::TenantBee;

static TRIALS: Semaphore = Semaphore::const_new(TRIALS_MAX);

impl Keeper {
    /// Runs on the state that the letter's key has now, with the attempt that would come next.
    pub(super) async fn try_letter(&self, asked: v1::TryDeadLetterRequest) -> Reply<v1::TryDeadLetterReply> {
        let _place = TRIALS.try_acquire().map_err(|_| {
            Status::resource_exhausted(format!("{TRIALS_MAX} trial runs are under way: try again soon"))
        })?;
        let (name, found, id) = self.find(&asked.swarm).await?;
        let record = found.record;
        let Some(letter) = self.letter(&id, asked.id).await? else {
            return Err(Status::not_found(format!(
                "Swarm `{name}` has no dead letter {}",
                asked.id
            )));
        };
        let Some(stage) = record.swarm.stage(letter.topic.stage()) else {
            return Err(Status::failed_precondition(format!(
                "stage `{}` was removed: apply a manifest that has it, then try",
                letter.topic.stage()
            )));
        };
        if stage.join.is_some() {
            return Err(Status::failed_precondition(format!(
                "stage `{}` joins messages, and a dead letter is one side of a join: redrive the letters of all sides instead",
                stage.name
            )));
        }
        if stage.builtin.is_some() {
            return Err(Status::failed_precondition(format!(
                "stage `{}` is built in, so there is no module to try: redrive the dead letter instead",
                stage.name
            )));
        }
        if !self.supervisor.works_for(self.catalog.tenant()) {
            return Err(Status::failed_precondition(
                "this node runs no Bees of the tenant: ask one that does, as `skep nodes` shows them",
            ));
        }
        let (module, digest) = if asked.module.is_empty() {
            (stage.module.clone(), record.digest(&stage.name).map_err(internal)?)
        } else {
            (asked.module.clone(), self.digest_of(&asked.module).await?)
        };
        let account = self.registry.quotas.of(self.catalog.tenant());
        let settings = BeeSettings {
            share: Arc::clone(&account.share),
            secrets: self.supervisor.vault.grant(self.catalog.tenant(), &stage.secrets),
            models: self.supervisor.models.grant(self.catalog.tenant(), &stage.models),
            ..BeeSettings::of(stage, digest)
        };
        let bee = self.trial_bee(&module, digest, &stage.bee, settings, account).await?;
        let attempt = letter.letter.attempts.saturating_add(1);
        let input = match letter.letter.work {
            Work::Message(message) => Input::Message { message, attempt },
            Work::Timer { uid, key, name, at_ms } => Input::Timer(Due {
                uid,
                key,
                name,
                at_ms,
                attempt,
            }),
        };
        let mut state = StateMap::new();
        if let Some(key) = input.key().filter(|_| stage.state) {
            let stored = self.backend.state(&letter.topic, key).await.map_err(topic_error)?;
            let mut values = stored.into_iter().collect();
            visible(&mut values, stage.keep.ttl, self.clock.now_ms());
            state.insert(key.to_owned(), values);
        }
        let began = Instant::now();
        let batch = Batch {
            inputs: vec![input],
            state,
            ..Batch::default()
        };
        let ran = bee.process(batch).await;
        let mut reply = v1::TryDeadLetterReply {
            stage: stage.name.to_string(),
            module,
            digest: digest.to_string(),
            took_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            ..v1::TryDeadLetterReply::default()
        };
        reply.log = ran
            .log
            .into_iter()
            .map(|line| v1::LogEntry {
                level: line.level.as_str().to_owned(),
                context: line.context,
                text: line.text,
                stage: stage.name.to_string(),
                ..v1::LogEntry::default()
            })
            .collect();
        match ran.result {
            Ok(steps) => {
                if let Some(step) = steps.into_iter().next() {
                    tell(step, &record.swarm.readers(&stage.name), &mut reply);
                }
            }
            Err(trap) => {
                reply.outcome = trap.kind.as_str().to_owned();
                reply.detail = trap.detail;
                reply.stderr = trap.stderr;
            }
        }
        Ok(Response::new(reply))
    }

    /// Where its tenant's Bees run.
    async fn trial_bee(
        &self,
        module: &str,
        digest: Digest,
        bee: &BeeName,
        settings: BeeSettings,
        account: Arc<Account>,
    ) -> Result<TenantBee, Status> {
        let (modules, tenant) = (&self.supervisor.modules, self.catalog.tenant());
        let failed = |e| Status::failed_precondition(format!("module `{module}` cannot be loaded: {e:#}"));
        let looked = self.supervisor.look_at_isolation(tenant).await;
        match looked.map_err(internal)? {
            Isolation::Shared => {
                let code = modules.load(tenant, digest).await.map_err(failed)?;
                let tried = code.module.bee(bee, settings.clone());
                tried.map_err(|e| Status::failed_precondition(e.to_string()))?;
            }
            isolation @ Isolation::Process => modules.ready(tenant, isolation, digest).await.map_err(failed)?,
        }
        Ok(TenantBee::new(modules, account, tenant, bee, settings))
    }

    async fn digest_of(&self, module: &str) -> Result<Digest, Status> {
        let wanted: ModuleRef = module.parse().map_err(invalid)?;
        let known = self.catalog.modules().await.map_err(internal)?;
        let known = Known(&known);
        let found = known.resolve(&wanted);
        let (digest, version) =
            found.ok_or_else(|| Status::not_found(format!("no module `{wanted}`: push it first")))?;
        self.check_signed(&wanted.name, &digest, &version.signatures).await?;
        Ok(digest)
    }
}

fn tell(step: Step, readers: &[Reader], reply: &mut v1::TryDeadLetterReply) {
    (reply.outcome, reply.detail) = match step.outcome.disposition {
        Disposition::Done => ("done".to_owned(), String::new()),
        Disposition::RetryAfter(ms) => ("retry-after".to_owned(), format!("{ms} ms")),
        Disposition::Reject(reason) => ("reject".to_owned(), reason),
        Disposition::Fail { reason, detail } => (reason, detail),
    };
    reply.publish = step
        .outcome
        .publish
        .into_iter()
        .map(|emit| tried(emit, readers))
        .collect();
    reply.respond = step.outcome.respond;
    let state = step.state.into_iter();
    reply.state = state
        .map(|w| v1::TriedWrite {
            name: w.name,
            value: w.value,
        })
        .collect();
    let timers = step.timers.into_iter();
    reply.timers = timers
        .map(|t| v1::TriedTimer {
            name: t.name,
            at_ms: t.at_ms,
        })
        .collect();
}

fn tried(emit: Emit, readers: &[Reader]) -> v1::TriedEmit {
    let facts = Facts::new(&emit.headers, &emit.payload);
    let to = readers
        .iter()
        .filter(|r| r.output.as_ref().map(|o| o.as_str()) == emit.to.as_deref())
        .filter(|r| r.when.as_ref().is_none_or(|when| when.holds(&facts)))
        .map(|r| r.stage.to_string())
        .collect();
    v1::TriedEmit {
        output: emit.to.unwrap_or_default(),
        key: emit.key,
        headers: headers(emit.headers),
        payload: emit.payload,
        to,
    }
}
