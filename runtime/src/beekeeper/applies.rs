//! Applies: what a manifest means against the catalog, what it changes, what is refused, and the new revision.

use std::collections::{BTreeMap, BTreeSet};

use skep_model::diff;
use skep_model::id::{Digest, Incarnation};
use skep_model::limits::{CONCURRENCY_MAX, MANIFEST_BYTES_MAX, PARTITIONS_MAX, SWARM_PARTITIONS_MAX, SWARMS_MAX};
use skep_model::manifest::{self, Modules};
use skep_model::name::{BeeName, ModuleName, ModuleRef, StageName, SwarmName, Version as Wanted};
use skep_model::permission::{self, Permission};
use skep_model::swarm::Swarm;
use skep_proto::v1;
use tonic::{Response, Status};

use super::failure::{internal, invalid, topic_error};
use super::{Keeper, Reply};
use crate::catalog::{ModuleRecord, ModuleVersion, RACES_MAX, SwarmRecord};
use crate::level::Build;
use crate::wording::{count, instead};

/// What each stage runs, as hex digest.
type Digests = BTreeMap<StageName, String>;

/// The catalog's modules, as the manifest's reader wants to see them.
pub(super) struct Known<'a>(pub &'a BTreeMap<ModuleName, ModuleRecord>);

impl Known<'_> {
    pub fn resolve(&self, wanted: &ModuleRef) -> Option<(Digest, &ModuleVersion)> {
        let record = self.0.get(&wanted.name)?;
        let hex = match &wanted.version {
            Wanted::Tag(tag) => record.tags.get(tag.as_str())?.clone(),
            Wanted::Digest(digest) => digest.to_hex(),
        };
        Some((hex.parse().ok()?, record.versions.get(&hex)?))
    }
}

impl Modules for Known<'_> {
    fn bees(&self, module: &ModuleRef) -> Option<Vec<BeeName>> {
        let (_, version) = self.resolve(module)?;
        Some(version.bees.iter().filter_map(|b| b.parse().ok()).collect())
    }

    fn names(&self) -> Vec<String> {
        self.0
            .iter()
            .flat_map(|(name, record)| record.tags.keys().map(move |tag| format!("{name}:{tag}")))
            .collect()
    }
}

impl Keeper {
    /// A module that was built to send requests runs only where some are granted: whoever applies it is to see that.
    async fn check_requests(&self, swarm: &Swarm, digests: &Digests) -> Result<(), Status> {
        let modules = self.catalog.modules().await.map_err(internal)?;
        let version = |hex: &String| modules.values().find_map(|record| record.versions.get(hex));
        let bare = swarm.stages.iter().filter(|stage| stage.http.is_empty());
        let refused: Vec<String> = bare
            .filter(|stage| digests.get(&stage.name).and_then(version).is_some_and(|v| v.sends_http))
            .map(|stage| {
                format!(
                    "Bee `{}` is of a module that sends HTTP requests (`{}`), and its manifest grants none: list the hosts that it may reach, \
                     `http: [api.example.com]`",
                    stage.name, stage.module
                )
            })
            .collect();
        match refused.is_empty() {
            true => Ok(()),
            false => Err(Status::failed_precondition(refused.join("\n"))),
        }
    }

    /// What was taken before the tenant had signers is not applied any more; nor is what a key signed that was taken away.
    async fn check_signatures(&self, swarm: &Swarm, digests: &Digests) -> Result<(), Status> {
        let tenant = self
            .supervisor
            .catalogs
            .tenant(self.catalog.tenant())
            .await
            .map_err(internal)?;
        let Some(signers) = tenant
            .map(|found| found.record.signers)
            .filter(|signers| !signers.is_empty())
        else {
            return Ok(());
        };
        let modules = self.catalog.modules().await.map_err(internal)?;
        let mut refused = Vec::new();
        for stage in swarm.stages.iter().filter(|stage| stage.builtin.is_none()) {
            let wanted: ModuleRef = stage.module.parse().map_err(invalid)?;
            let Some(hex) = digests.get(&stage.name) else { continue };
            let digest: Digest = hex.parse().map_err(invalid)?;
            let version = modules.get(&wanted.name).and_then(|record| record.versions.get(hex));
            let signatures = version.map_or(&[][..], |version| &version.signatures);
            if let Err(why) = signers.check(&wanted.name, &digest, signatures) {
                refused.push(format!("stage `{}`: {why}", stage.name));
            }
        }
        match refused.is_empty() {
            true => Ok(()),
            false => Err(Status::permission_denied(refused.join("\n"))),
        }
    }

    /// A revision with other numbers at one stage.
    pub(super) async fn scale(&self, asked: v1::ScaleStageRequest) -> Reply<v1::ApplySwarmReply> {
        let (name, found, _) = self.find(&asked.swarm).await?;
        let known: Vec<&str> = found.record.swarm.stages.iter().map(|s| s.name.as_str()).collect();
        if !known.contains(&asked.stage.as_str()) {
            let hint = instead(&asked.stage, &known, "it has none");
            return Err(Status::not_found(format!(
                "Swarm `{name}` has no stage `{}`; {hint}",
                asked.stage
            )));
        }
        for (what, number, max) in [
            ("partitions", asked.partitions, PARTITIONS_MAX),
            ("concurrency", asked.concurrency, CONCURRENCY_MAX),
        ] {
            if number.is_some_and(|n| !(1..=u32::from(max)).contains(&n)) {
                return Err(invalid(format!("`{what}` is from 1 to {max}")));
            }
        }
        let call = v1::ApplySwarmRequest {
            manifest: found.record.manifest,
            dry_run: asked.dry_run,
            expect_revision: found.record.revision,
            discard_state: false,
            rescale: true,
            ..v1::ApplySwarmRequest::default()
        };
        self.make(call, Some(asked)).await
    }

    pub(super) async fn apply(&self, asked: v1::ApplySwarmRequest) -> Reply<v1::ApplySwarmReply> {
        self.make(asked, None).await
    }

    /// A new revision: what the manifest says, or the current one with other numbers.
    async fn make(
        &self,
        asked: v1::ApplySwarmRequest,
        scaled: Option<v1::ScaleStageRequest>,
    ) -> Reply<v1::ApplySwarmReply> {
        if asked.manifest.len() > MANIFEST_BYTES_MAX {
            return Err(invalid(format!(
                "the manifest has {} bytes, at most {MANIFEST_BYTES_MAX} are taken",
                asked.manifest.len()
            )));
        }
        let dry_run = asked.dry_run;
        let Decided {
            name,
            revision,
            changes,
            lost_state,
            gains,
        } = self.decide(asked, scaled).await?;
        if !dry_run {
            // Also when nothing changed: applying again is how people mend what could not run.
            self.supervisor.settle(&self.path(&name)).await.map_err(internal)?;
            if let Some(trouble) = self.supervisor.trouble(&self.path(&name)) {
                return Err(Status::internal(format!(
                    "revision {revision} of `{name}` is stored, but this node cannot run it: {trouble}"
                )));
            }
        }
        Ok(Response::new(v1::ApplySwarmReply {
            swarm: name.to_string(),
            revision,
            changes,
            dry_run,
            lost_state,
            gains,
        }))
    }

    /// Reads a manifest against the catalog and writes the new revision, unless nothing changes or it is a dry run. What the
    /// manifest refers to stays there until it is written.
    async fn decide(
        &self,
        asked: v1::ApplySwarmRequest,
        scaled: Option<v1::ScaleStageRequest>,
    ) -> Result<Decided, Status> {
        let _writes = self.supervisor.writes.lock().await;
        for _ in 0..RACES_MAX {
            if let Some(decided) = self.decide_once(&asked, scaled.as_ref()).await? {
                return Ok(decided);
            }
        }
        Err(Status::aborted(
            "the catalog is being changed by too many at once: try again",
        ))
    }

    /// `None`: another node wrote to the catalog meanwhile, perhaps a Swarm with the same subject, or took away a module.
    async fn decide_once(
        &self,
        asked: &v1::ApplySwarmRequest,
        scaled: Option<&v1::ScaleStageRequest>,
    ) -> Result<Option<Decided>, Status> {
        let catalog = &self.catalog;
        let seen = catalog.number().await.map_err(internal)?;
        let (swarm, digests) = match scaled {
            Some(scaled) => self.with_numbers(scaled).await?,
            None => self.read(&asked.manifest).await?,
        };
        let now_ms = self.clock.now_ms();
        let name = swarm.name.clone();
        let too_new = Build::current().too_new(&swarm, self.members.level());
        if let Some(why) = self.members.not_yet(&too_new) {
            return Err(Status::failed_precondition(why));
        }
        let swarms = catalog.swarms().await.map_err(internal)?;
        let current = catalog.swarm(&name).await.map_err(internal)?;
        check_subjects(&swarms, &swarm)?;
        self.check_secrets(&swarm).await?;
        self.check_models(&swarm).await?;
        self.check_requests(&swarm, &digests).await?;
        // Other numbers are no other code.
        if scaled.is_none() {
            self.check_signatures(&swarm, &digests).await?;
        }
        if let Some(found) = &current
            && found.record.deleting
        {
            return Err(Status::failed_precondition(format!(
                "Swarm `{name}` is being deleted: look at `skep swarms`, and apply again once it is gone or serves again"
            )));
        }
        if asked.expect_revision != 0 {
            let now = current.as_ref().map_or(0, |found| found.record.revision);
            if now == 0 {
                return Err(Status::aborted(format!(
                    "there is no Swarm `{name}`, so it is not at revision {}: apply without a revision to make it",
                    asked.expect_revision
                )));
            }
            if now != asked.expect_revision {
                return Err(Status::aborted(format!(
                    "Swarm `{name}` is at revision {now}, not {}: look at the difference, then apply again",
                    asked.expect_revision
                )));
            }
        }
        let (expect, record) = match &current {
            Some(found) => {
                let old = &found.record;
                let mut refusals = diff::refusals(&old.swarm, &swarm, asked.rescale);
                for stage in &swarm.stages {
                    if let Some(left) = old.draining.get(&stage.name) {
                        refusals.extend(diff::misplaced(&left.stage, stage, false).into_iter().map(|why| {
                            format!(
                                "{why}; what is left of the removed `{}` still drains, or has dead letters",
                                stage.name
                            )
                        }));
                    }
                }
                refusals.extend(self.still_rescaling(old, &swarm).await?);
                if !refusals.is_empty() {
                    return Err(Status::failed_precondition(refusals.join("\n")));
                }
                let mut next = old.clone();
                next.revision += 1;
                next.applied_ms = now_ms;
                next.manifest.clone_from(&asked.manifest);
                next.born = old.born_next(&swarm, next.revision);
                next.draining = old.left_behind(&swarm);
                next.swarm = swarm;
                next.paused.retain(|stage| next.swarm.stage(stage).is_some());
                next.modules = digests;
                // Something may come again, so it is looked for anew.
                next.ended_ms = None;
                (found.version, next)
            }
            None if swarms.len() >= SWARMS_MAX => {
                return Err(Status::resource_exhausted(format!(
                    "there are {SWARMS_MAX} Swarms, no more fit: delete one"
                )));
            }
            None => (
                0,
                SwarmRecord {
                    incarnation: Incarnation::random(self.entropy.as_ref()).to_string(),
                    revision: 1,
                    created_ms: now_ms,
                    applied_ms: now_ms,
                    manifest: asked.manifest.clone(),
                    born: swarm.stages.iter().map(|stage| (stage.name.clone(), 1)).collect(),
                    swarm,
                    modules: digests,
                    deleting: false,
                    deleted_by: None,
                    draining: BTreeMap::new(),
                    hold: None,
                    paused: BTreeSet::new(),
                    ended_ms: None,
                },
            ),
        };
        let partitions = record.partitions();
        if partitions > SWARM_PARTITIONS_MAX {
            return Err(Status::failed_precondition(format!(
                "the stages of `{name}` have {partitions} partitions together (removed stages that still drain included), \
                 at most {SWARM_PARTITIONS_MAX} are taken: lower `partitions`, or make two Swarms of it"
            )));
        }
        let mut changes = changes(current.as_ref().map(|c| &c.record), &record);
        let lost_state = match &current {
            Some(found) => self.lost_state(&found.record, &record.swarm).await?,
            None => Vec::new(),
        };
        changes.extend(lost_state.iter().map(|loss| v1::Change {
            kind: v1::change::Kind::Remove.into(),
            what: format!("stage {}: its state", loss.stage),
            before: what_goes(loss),
            after: String::new(),
        }));
        // Who makes a Swarm says what it is granted; who changes one says what it is granted beside.
        let gains: Vec<v1::Gain> = match (&current, scaled) {
            (Some(found), None) => gains(&found.record.swarm, &record.swarm),
            _ => Vec::new(),
        };
        let decided = |revision, changes| Decided {
            name: name.clone(),
            revision,
            changes,
            lost_state: lost_state.clone(),
            gains: gains.clone(),
        };
        match &current {
            // Nothing to do is not a revision.
            Some(found) if changes.is_empty() => return Ok(Some(decided(found.record.revision, changes))),
            _ if asked.dry_run => {}
            _ if !lost_state.is_empty() && !asked.discard_state => return Err(would_lose(&name, &lost_state)),
            _ => {
                if let Some(found) = current.as_ref().filter(|_| !asked.discard_state) {
                    self.check_edges(&found.record, &record.swarm).await?;
                }
                check_gains(&name, &gains, asked)?;
                if let Err(now) = catalog.put_swarm_if(expect, seen, &record).await.map_err(internal)? {
                    if now == expect {
                        return Ok(None);
                    }
                    return Err(Status::aborted(format!(
                        "Swarm `{name}` was changed by somebody else meanwhile (record {now}): look again, then apply again"
                    )));
                }
            }
        }
        Ok(Some(decided(record.revision, changes)))
    }

    /// What a manifest says, against the modules of this moment.
    async fn read(&self, manifest: &str) -> Result<(Swarm, Digests), Status> {
        let modules = self.catalog.modules().await.map_err(internal)?;
        let known = Known(&modules);
        let swarm = manifest::parse_with(manifest, &known).map_err(invalid)?;
        let mut digests = Digests::new();
        for stage in &swarm.stages {
            if stage.builtin.is_some() {
                digests.insert(stage.name.clone(), Digest::of(stage.module.as_bytes()).to_hex());
                continue;
            }
            let wanted: ModuleRef = stage.module.parse().map_err(invalid)?;
            let (digest, _) = known
                .resolve(&wanted)
                .ok_or_else(|| invalid(format!("stage `{}`: no module `{wanted}`: push it first", stage.name)))?;
            digests.insert(stage.name.clone(), digest.to_hex());
        }
        Ok((swarm, digests))
    }

    /// The current revision with other numbers. Its modules stay those that it runs, whatever their tags mean by now.
    async fn with_numbers(&self, scaled: &v1::ScaleStageRequest) -> Result<(Swarm, Digests), Status> {
        let (_, found, _) = self.find(&scaled.swarm).await?;
        let mut swarm = found.record.swarm;
        for stage in swarm.stages.iter_mut().filter(|s| s.name.as_str() == scaled.stage) {
            let number = |asked: Option<u32>, now: u16| asked.map_or(now, |n| u16::try_from(n).unwrap_or(now));
            stage.partitions = number(scaled.partitions, stage.partitions);
            stage.concurrency = number(scaled.concurrency, stage.concurrency);
        }
        Ok((swarm, found.record.modules))
    }

    /// Stages that are to get another number of partitions while they still get the last one.
    async fn still_rescaling(&self, old: &SwarmRecord, next: &Swarm) -> Result<Vec<String>, Status> {
        let id = old.id(self.catalog.scope()).map_err(internal)?;
        let mut out = Vec::new();
        for stage in &next.stages {
            let changes = old
                .swarm
                .stage(&stage.name)
                .is_some_and(|s| s.partitions != stage.partitions);
            if !changes {
                continue;
            }
            let layout = self.backend.layout(&id.topic(&stage.name)).await.map_err(topic_error)?;
            if layout.is_some_and(|l| l.rescaling) {
                out.push(format!(
                    "stage `{}` is still being rescaled: what came before works itself off first; try again then",
                    stage.name
                ));
            }
        }
        Ok(out)
    }

    /// Stages that go while edges have, or may have, messages in them or for them.
    async fn check_edges(&self, old: &SwarmRecord, next: &Swarm) -> Result<(), Status> {
        let gone = old.swarm.stages.iter().map(|stage| &stage.name);
        let gone: BTreeSet<StageName> = gone.filter(|name| next.stage(name).is_none()).cloned().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let id = old.id(self.catalog.scope()).map_err(internal)?;
        let far = self.edges.may_hold(self.catalog.tenant(), &id, Some(&gone)).await;
        let far = far.map_err(internal)?;
        if far.is_empty() {
            return Ok(());
        }
        let gone: Vec<&str> = gone.iter().map(StageName::as_str).collect();
        Err(Status::failed_precondition(format!(
            "{} would go while {}: wait until `skep edge status` shows nothing waiting, or apply with --discard-state: nobody takes what is there then",
            gone.join(", "),
            crate::edges::listed(&far)
        )))
    }

    /// The state that removed stages take with them. Counted while messages flow, so the numbers are of this moment.
    async fn lost_state(&self, old: &SwarmRecord, next: &Swarm) -> Result<Vec<v1::StateLoss>, Status> {
        let id = old.id(self.catalog.scope()).map_err(internal)?;
        let removed: Vec<_> = old
            .swarm
            .stages
            .iter()
            .filter(|stage| next.stage(&stage.name).is_none())
            .collect();
        if removed.is_empty() {
            return Ok(Vec::new());
        }
        let topics = super::views::depths(self.backend.as_ref(), &id).await?;
        let mut lost = Vec::new();
        for stage in removed {
            let topic = id.topic(&stage.name);
            let depth = topics.iter().find(|t| t.topic == topic);
            let loss = v1::StateLoss {
                stage: stage.name.to_string(),
                // Also where `state` is off by now: what was kept before is still there.
                keys: self.backend.state_size(&topic).await.map_err(topic_error)?.keys,
                waiting: depth.filter(|_| stage.state).map_or(0, |d| d.unread + d.parked),
                timers: depth.map_or(0, |d| d.timers),
            };
            if loss.keys + loss.waiting + loss.timers > 0 {
                lost.push(loss);
            }
        }
        Ok(lost)
    }
}

/// What becomes of an apply.
struct Decided {
    name: SwarmName,
    revision: u64,
    changes: Vec<v1::Change>,
    lost_state: Vec<v1::StateLoss>,
    gains: Vec<v1::Gain>,
}

fn gains(old: &Swarm, new: &Swarm) -> Vec<v1::Gain> {
    let gained = permission::gained(old, new).into_iter();
    let told = gained.map(|(stage, permission)| v1::Gain {
        stage: stage.to_string(),
        permission: permission.to_string(),
    });
    told.collect()
}

/// What a Bee would have that it had not is said once more by who applies it, and not by who wrote the manifest alone.
fn check_gains(name: &SwarmName, gains: &[v1::Gain], asked: &v1::ApplySwarmRequest) -> Result<(), Status> {
    let granted: Vec<String> = asked
        .grant
        .iter()
        .map(|text| {
            text.parse::<Permission>()
                .map(|permission| permission.to_string())
                .map_err(invalid)
        })
        .collect::<Result<_, _>>()?;
    if asked.grant_all {
        return Ok(());
    }
    let missing: Vec<&v1::Gain> = gains
        .iter()
        .filter(|gain| !granted.contains(&gain.permission))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing
        .iter()
        .map(|gain| format!("Bee `{}`: {}", gain.stage, gain.permission))
        .collect();
    Err(Status::failed_precondition(format!(
        "Swarm `{name}` would be granted what it is not yet: {}. If that is meant, apply again with --grant, or with --grant={} for each",
        list.join("; "),
        missing[0].permission
    )))
}

fn what_goes(loss: &v1::StateLoss) -> String {
    let mut what = vec![count(loss.keys, "key")];
    if loss.timers > 0 {
        what.push(count(loss.timers, "timer"));
    }
    if loss.waiting > 0 {
        what.push(format!(
            "what {} would still write",
            count(loss.waiting, "waiting message")
        ));
    }
    what.join(", ")
}

fn would_lose(name: &SwarmName, lost: &[v1::StateLoss]) -> Status {
    let lines: Vec<String> = lost
        .iter()
        .map(|loss| format!("stage `{}` goes with its keyed state: {}", loss.stage, what_goes(loss)))
        .collect();
    Status::failed_precondition(format!(
        "{}\nnothing was applied to `{name}`: keep the stage, or apply with --discard-state to let its state go",
        lines.join("\n")
    ))
}

/// A subject feeds one Swarm.
fn check_subjects(swarms: &BTreeMap<SwarmName, SwarmRecord>, swarm: &Swarm) -> Result<(), Status> {
    let mine = swarm.subjects();
    for (name, other) in swarms.iter().filter(|(name, _)| **name != swarm.name) {
        if let Some(taken) = other.swarm.subjects().into_iter().find(|s| mine.contains(s)) {
            return Err(Status::already_exists(format!(
                "subject `{taken}` feeds Swarm `{name}` already, and a subject feeds one Swarm: choose another name"
            )));
        }
    }
    Ok(())
}

/// The manifest's changes, and those of what its tags mean.
fn changes(old: Option<&SwarmRecord>, new: &SwarmRecord) -> Vec<v1::Change> {
    let mut out: Vec<v1::Change> = diff::changes(old.map(|o| &o.swarm), &new.swarm)
        .into_iter()
        .map(|c| v1::Change {
            kind: match c.kind {
                diff::ChangeKind::Add => v1::change::Kind::Add,
                diff::ChangeKind::Remove => v1::change::Kind::Remove,
                diff::ChangeKind::Change => v1::change::Kind::Change,
            }
            .into(),
            what: c.what,
            before: c.before,
            after: c.after,
        })
        .collect();
    for (stage, after) in &new.modules {
        let before = old.and_then(|o| o.modules.get(stage));
        if let Some(before) = before
            && before != after
        {
            out.push(v1::Change {
                kind: v1::change::Kind::Change.into(),
                what: format!("stage {stage}: code"),
                before: format!("sha256:{}", &before[..12]),
                after: format!("sha256:{}", &after[..12]),
            });
        }
    }
    out
}
