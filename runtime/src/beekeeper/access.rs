//! The service of tenants and tokens; what it does is in `tenants.rs` and `tokens.rs`.

use skep_proto::v1;
use skep_proto::v1::access_server::Access;
use tonic::{Request, Response};

use super::{Desk, Reply, detached};

#[tonic::async_trait]
impl Access for Desk {
    async fn bootstrap(&self, request: Request<v1::BootstrapRequest>) -> Reply<v1::NewToken> {
        let this = self.of(&request)?;
        detached(async move { this.first_token().await })
            .await
            .map(Response::new)
    }

    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Reply<v1::WhoAmIReply> {
        self.of(&request)?.who().await.map(Response::new)
    }

    async fn create_tenant(&self, request: Request<v1::CreateTenantRequest>) -> Reply<v1::Tenant> {
        let this = self.of(&request)?;
        let made = detached(async move { this.make_tenant(request.into_inner()).await });
        made.await.map(Response::new)
    }

    async fn set_tenant(&self, request: Request<v1::SetTenantRequest>) -> Reply<v1::Tenant> {
        let this = self.of(&request)?;
        let set = detached(async move { this.limit_tenant(request.into_inner()).await });
        set.await.map(Response::new)
    }

    async fn list_tenants(&self, request: Request<v1::ListTenantsRequest>) -> Reply<v1::ListTenantsReply> {
        let this = self.of(&request)?;
        let tenants = this.tenants(&request.into_inner().name).await?;
        Ok(Response::new(v1::ListTenantsReply { tenants }))
    }

    async fn usage(&self, request: Request<v1::UsageRequest>) -> Reply<v1::UsageReply> {
        let this = self.of(&request)?;
        let used = this.usage(request.into_inner()).await?;
        Ok(Response::new(v1::UsageReply { used }))
    }

    async fn delete_tenant(&self, request: Request<v1::DeleteTenantRequest>) -> Reply<v1::Tenant> {
        let (this, desk) = (self.of(&request)?, self.clone());
        let gone = detached(async move { this.remove_tenant(&desk, request.into_inner()).await });
        gone.await.map(Response::new)
    }

    async fn create_token(&self, request: Request<v1::CreateTokenRequest>) -> Reply<v1::NewToken> {
        let this = self.of(&request)?;
        let made = detached(async move { this.make_token(request.into_inner()).await });
        made.await.map(Response::new)
    }

    async fn list_tokens(&self, request: Request<v1::ListTokensRequest>) -> Reply<v1::ListTokensReply> {
        let this = self.of(&request)?;
        let tokens = this.tokens(&request.into_inner().tenant).await?;
        Ok(Response::new(v1::ListTokensReply { tokens }))
    }

    async fn revoke_token(&self, request: Request<v1::RevokeTokenRequest>) -> Reply<v1::Token> {
        let this = self.of(&request)?;
        let gone = detached(async move { this.revoke(&request.into_inner().id).await });
        gone.await.map(Response::new)
    }

    async fn rotate_token(&self, request: Request<v1::RotateTokenRequest>) -> Reply<v1::NewToken> {
        let this = self.of(&request)?;
        let made = detached(async move { this.rotate(request.into_inner()).await });
        made.await.map(Response::new)
    }
}
