//! Tokens: made, listed, revoked, rotated. An admin sees and names those of its own tenant, an operator all; for whoever may not see a token
//! it is not there.

use skep_model::access::{By, Role, TokenId};
use skep_model::limits::{TOKEN_GRACE_MS_MAX, TOKEN_NAME_BYTES_MAX, TOKEN_TTL_MS_MAX, TOKENS_MAX};
use skep_model::name::TenantId;
use skep_proto::v1;
use tonic::Status;

use super::Keeper;
use super::failure::{internal, invalid};
use crate::access::{LEVEL, TokenRecord};
use crate::catalog::{RACES_MAX, Versioned};
use crate::node::tokens_too_new;

impl Keeper {
    fn operates(&self) -> bool {
        self.caller.role == Role::Operator
    }

    /// Tokens and tenants mean something only where somebody has to show one.
    pub(super) fn closed(&self) -> Result<(), Status> {
        if self.registry.door.is_open() {
            return Err(Status::failed_precondition(
                "no token was ever made here, so everybody who reaches this node may do everything: make the first with `skep token bootstrap`",
            ));
        }
        Ok(())
    }

    pub(super) async fn first_token(&self) -> Result<v1::NewToken, Status> {
        if self.members.level() < LEVEL {
            return Err(Status::failed_precondition(tokens_too_new(self.members.level())));
        }
        match self.registry.bootstrap().await.map_err(internal)? {
            Some((id, record, text)) => Ok(v1::NewToken {
                token: Some(told(id, &record)),
                text,
            }),
            None => Err(Status::failed_precondition(
                "the first token was made already: whoever has it makes others with `skep token create`",
            )),
        }
    }

    pub(super) async fn who(&self) -> Result<v1::WhoAmIReply, Status> {
        let token = match self.caller.by.token() {
            None => None,
            Some(id) => {
                let all = self.registry.tokens().await.map_err(internal)?;
                all.get(&id).map(|found| told(id, &found.record))
            }
        };
        let identity = match &self.caller.by {
            By::Identity(identity) => Some(v1::Identity {
                subject: identity.subject.clone(),
                name: identity.name.clone(),
                expires_ms: identity.until_ms,
            }),
            By::Nothing | By::Token(_) => None,
        };
        Ok(v1::WhoAmIReply {
            open: self.caller.by == By::Nothing,
            tenant: self.caller.scope.tenant().to_string(),
            role: self.caller.role.to_string(),
            token,
            identity,
        })
    }

    pub(super) async fn make_token(&self, asked: v1::CreateTokenRequest) -> Result<v1::NewToken, Status> {
        self.closed()?;
        let role: Role = asked.role.parse().map_err(invalid)?;
        let own = self.caller.scope.tenant();
        let tenant = match (role, asked.tenant.as_str()) {
            (Role::Operator, _) if !self.operates() => {
                return Err(Status::permission_denied(
                    "an operator's token is made with an operator's token only",
                ));
            }
            (Role::Operator, "") => None,
            (Role::Operator, _) => return Err(invalid("an operator's token is of no tenant: leave the tenant out")),
            (_, "") => Some(own.clone()),
            (_, name) => Some(self.visible_tenant(name).await?),
        };
        if asked.name.len() > TOKEN_NAME_BYTES_MAX || asked.name.chars().any(char::is_control) {
            return Err(invalid(format!(
                "a token's name has at most {TOKEN_NAME_BYTES_MAX} bytes and no control characters"
            )));
        }
        if asked.ttl_ms > TOKEN_TTL_MS_MAX {
            return Err(invalid("a token is good for ten years at most, or without an end"));
        }
        let all = self.registry.tokens().await.map_err(internal)?;
        if all.values().filter(|found| found.record.tenant == tenant).count() >= TOKENS_MAX {
            return Err(Status::resource_exhausted(format!(
                "there are {TOKENS_MAX} tokens, no more fit: revoke some"
            )));
        }
        let now_ms = self.registry.now_ms();
        let record = TokenRecord {
            tenant,
            role,
            name: asked.name,
            hash: String::new(),
            created_ms: now_ms,
            expires_ms: (asked.ttl_ms > 0).then(|| now_ms + asked.ttl_ms),
            made_by: self.caller.by.shown(),
            former: None,
            from_file: false,
        };
        let (id, record, text) = self.registry.create(record).await.map_err(internal)?;
        self.registry.refresh().await.map_err(internal)?;
        Ok(v1::NewToken {
            token: Some(told(id, &record)),
            text,
        })
    }

    /// A tenant that this caller may name.
    pub(super) async fn visible_tenant(&self, name: &str) -> Result<TenantId, Status> {
        let tenant: TenantId = name.parse().map_err(invalid)?;
        // An admin is told of another tenant what it is told of one that is not there.
        let there = match self.operates() {
            _ if tenant == *self.caller.scope.tenant() => true,
            true => {
                let found = self.supervisor.catalogs.tenant(&tenant).await.map_err(internal)?;
                found.is_some_and(|found| !found.record.deleting)
            }
            false => false,
        };
        match there {
            true => Ok(tenant),
            false => Err(Status::not_found(format!("no tenant `{tenant}`"))),
        }
    }

    fn sees(&self, token: &TokenRecord) -> bool {
        self.operates() || token.tenant.as_ref() == Some(self.caller.scope.tenant())
    }

    pub(super) async fn tokens(&self, tenant: &str) -> Result<Vec<v1::Token>, Status> {
        let tenant = match tenant {
            "" => None,
            name => Some(self.visible_tenant(name).await?),
        };
        let all = self.registry.tokens().await.map_err(internal)?;
        let shown = all
            .into_iter()
            .filter(|(_, found)| self.sees(&found.record) && (tenant.is_none() || found.record.tenant == tenant));
        Ok(shown.map(|(id, found)| told(id, &found.record)).collect())
    }

    async fn token(&self, id: &str) -> Result<(TokenId, Versioned<TokenRecord>), Status> {
        let unknown = || Status::not_found("no such token: `skep token list` shows their ids");
        let id: TokenId = id.parse().map_err(|_| unknown())?;
        let found = self.registry.tokens().await.map_err(internal)?.remove(&id);
        let found = found.filter(|found| self.sees(&found.record)).ok_or_else(unknown)?;
        Ok((id, found))
    }

    pub(super) async fn revoke(&self, id: &str) -> Result<v1::Token, Status> {
        for _ in 0..RACES_MAX {
            let (id, found) = self.token(id).await?;
            if found.record.role == Role::Operator {
                self.is_not_last(id).await?;
            }
            if self.registry.revoke(id, &found).await.map_err(internal)? {
                self.registry.refresh().await.map_err(internal)?;
                return Ok(told(id, &found.record));
            }
        }
        Err(Status::aborted("this token is being changed by others: try again"))
    }

    /// Somebody must be left who can make tokens.
    async fn is_not_last(&self, id: TokenId) -> Result<(), Status> {
        let now_ms = self.registry.now_ms();
        let all = self.registry.tokens().await.map_err(internal)?;
        let left = all.iter().any(|(other, found)| {
            *other != id
                && found.record.role == Role::Operator
                && found.record.expires_ms.is_none_or(|end| now_ms < end)
        });
        match left {
            true => Ok(()),
            false => Err(Status::failed_precondition(
                "this is the last operator's token: make another first, or rotate this one, which ends its secret as well",
            )),
        }
    }

    pub(super) async fn rotate(&self, asked: v1::RotateTokenRequest) -> Result<v1::NewToken, Status> {
        if asked.grace_ms > TOKEN_GRACE_MS_MAX {
            return Err(invalid("the former secret may stay good for 30 days at most"));
        }
        let now_ms = self.registry.now_ms();
        for _ in 0..RACES_MAX {
            let (id, found) = self.token(&asked.id).await?;
            if found.record.expires_ms.is_some_and(|end| end <= now_ms) {
                return Err(Status::failed_precondition("this token ran out: make another"));
            }
            let until = (asked.grace_ms > 0).then(|| now_ms + asked.grace_ms);
            if let Some((record, text)) = self.registry.rotate(id, found, until).await.map_err(internal)? {
                self.registry.refresh().await.map_err(internal)?;
                return Ok(v1::NewToken {
                    token: Some(told(id, &record)),
                    text,
                });
            }
        }
        Err(Status::aborted("this token is being changed by others: try again"))
    }
}

fn told(id: TokenId, record: &TokenRecord) -> v1::Token {
    v1::Token {
        id: id.to_string(),
        tenant: record.tenant.as_ref().map(ToString::to_string).unwrap_or_default(),
        role: record.role.to_string(),
        name: record.name.clone(),
        created_ms: record.created_ms,
        expires_ms: record.expires_ms.unwrap_or(0),
        made_by: record.made_by.clone().unwrap_or_default(),
        former_until_ms: record.former.as_ref().map_or(0, |former| former.until_ms),
    }
}
