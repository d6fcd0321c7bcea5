//! Where a credential becomes a scope: the only door into a tenant.

use skep_model::name::TenantId;
use skep_model::scope::Scope;

/// The scope of a caller. No tenants are configured yet, so everybody who reaches the port is the one tenant; credentials
/// will be an argument here and nothing behind the door changes.
#[must_use]
pub fn enter() -> Scope {
    Scope::of(TenantId::default_tenant())
}
