//! The service of secrets. Values go in and never out.

use skep_model::name::SecretName;
use skep_model::swarm::Swarm;
use skep_proto::v1;
use skep_proto::v1::secrets_server::Secrets;
use tonic::{Request, Response, Status};

use super::failure::{internal, invalid};
use super::{Desk, Keeper, Reply, detached};
use crate::secrets::{Known, Refused};

#[tonic::async_trait]
impl Secrets for Desk {
    async fn set_secret(&self, request: Request<v1::SetSecretRequest>) -> Reply<v1::Secret> {
        let this = self.of(&request)?;
        let set = detached(async move { this.set_secret(request.into_inner()).await });
        set.await.map(Response::new)
    }

    async fn list_secrets(&self, request: Request<v1::ListSecretsRequest>) -> Reply<v1::ListSecretsReply> {
        let secrets = self.of(&request)?.list_secrets().await?;
        Ok(Response::new(v1::ListSecretsReply { secrets }))
    }

    async fn delete_secret(&self, request: Request<v1::DeleteSecretRequest>) -> Reply<v1::DeleteSecretReply> {
        let this = self.of(&request)?;
        let gone = detached(async move { this.delete_secret(request.into_inner()).await });
        gone.await.map(Response::new)
    }

    async fn reseal_secrets(&self, request: Request<v1::ResealSecretsRequest>) -> Reply<v1::ResealSecretsReply> {
        let this = self.of(&request)?;
        let done = detached(async move { this.supervisor.vault.reseal().await.map_err(told) });
        let resealed = done.await?;
        Ok(Response::new(v1::ResealSecretsReply { resealed }))
    }
}

impl Keeper {
    async fn set_secret(&self, asked: v1::SetSecretRequest) -> Result<v1::Secret, Status> {
        let name: SecretName = asked.name.parse().map_err(invalid)?;
        let (vault, tenant) = (&self.supervisor.vault, self.catalog.tenant());
        vault.look().await.map_err(internal)?;
        let value = asked.value.to_vec();
        vault
            .set(tenant, &name, value, self.clock.now_ms())
            .await
            .map_err(told)?;
        let all = self.list_secrets().await?;
        all.into_iter()
            .find(|secret| secret.name == name.as_str())
            .ok_or_else(|| Status::aborted(format!("secret `{name}` was deleted at the same moment")))
    }

    async fn list_secrets(&self) -> Result<Vec<v1::Secret>, Status> {
        let vault = &self.supervisor.vault;
        vault.look().await.map_err(internal)?;
        let mut out = Vec::new();
        for known in vault.list(self.catalog.tenant()) {
            let Known {
                name,
                version,
                set_ms,
                trouble,
            } = known;
            out.push(v1::Secret {
                granted: self.granted(&name).await?,
                name: name.to_string(),
                version,
                set_ms,
                trouble: trouble.unwrap_or_default(),
            });
        }
        Ok(out)
    }

    async fn delete_secret(&self, asked: v1::DeleteSecretRequest) -> Result<v1::DeleteSecretReply, Status> {
        let name: SecretName = asked.name.parse().map_err(invalid)?;
        // An apply must not grant it meanwhile.
        let _writes = self.supervisor.writes.lock().await;
        let granted = self.granted(&name).await?;
        if !granted.is_empty() && !asked.force {
            return Err(Status::failed_precondition(format!(
                "secret `{name}` is granted to {}: apply them without it first, or delete it with --force",
                granted.join(", ")
            )));
        }
        let there = self
            .supervisor
            .vault
            .delete(self.catalog.tenant(), &name)
            .await
            .map_err(internal)?;
        match there {
            true => Ok(v1::DeleteSecretReply {}),
            false => Err(Status::not_found(format!(
                "no secret `{name}`: look at `skep secret list`"
            ))),
        }
    }

    /// The stages that may read it.
    async fn granted(&self, name: &SecretName) -> Result<Vec<String>, Status> {
        let swarms = self.catalog.swarms().await.map_err(internal)?;
        let stages = swarms.values().flat_map(|record| {
            let of = &record.swarm.name;
            let stages = record.swarm.stages.iter().filter(|stage| stage.secrets.contains(name));
            stages.map(move |stage| format!("{of}/{}", stage.name))
        });
        Ok(stages.collect())
    }

    /// Every secret that a manifest grants has to be there.
    pub(super) async fn check_secrets(&self, swarm: &Swarm) -> Result<(), Status> {
        if swarm.stages.iter().all(|stage| stage.secrets.is_empty()) {
            return Ok(());
        }
        let vault = &self.supervisor.vault;
        vault.look().await.map_err(internal)?;
        let missing: Vec<String> = swarm
            .stages
            .iter()
            .flat_map(|stage| stage.secrets.iter().map(move |name| (stage, name)))
            .filter(|(_, name)| !vault.has(self.catalog.tenant(), name))
            .map(|(stage, name)| {
                format!(
                    "Bee `{}` is granted the secret `{name}`, and there is none: set it with `skep secret set {name}`",
                    stage.name
                )
            })
            .collect();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(Status::failed_precondition(missing.join("\n"))),
        }
    }
}

fn told(e: anyhow::Error) -> Status {
    match e.downcast_ref::<Refused>() {
        Some(refused) => Status::failed_precondition(refused.to_string()),
        None => internal(e),
    }
}
