use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skep_model::access::Role;
use skep_model::limits::{OIDC_KNOWN_MAX, OIDC_WAITERS_MAX};

use super::keys::tests::{NOW, Signer, claims, rules};
use super::*;

fn mapping() -> Mapping {
    Mapping {
        tenant_claim: Claim::new("tenant").unwrap(),
        role_claim: Claim::new("roles").unwrap(),
        tenants: BTreeMap::new(),
        roles: BTreeMap::new(),
    }
}

fn said(claims: &Value) -> Verified {
    Verified {
        until_ms: NOW,
        dropped: CancellationToken::new(),
        claims: claims.as_object().unwrap().clone(),
    }
}

#[test]
fn claims_become_a_tenant_and_a_role() {
    let who = |mapping: &Mapping, claims: Value| {
        let found = mapping.identity(&said(&claims));
        found.map(|(who, tenant, role)| format!("{} {} {tenant} {role}", who.subject, who.name))
    };
    let plain = mapping();
    let ann = |roles: Value| json!({ "sub": "ann", "tenant": "acme", "roles": roles, "email": "a@b" });
    assert_eq!(who(&plain, ann(json!("admin"))).unwrap(), "ann a@b acme admin");
    // The most that any gives; what is no role, or no text, gives nothing.
    assert_eq!(
        who(&plain, ann(json!(["read", 7, "staff", "deploy"]))).unwrap(),
        "ann a@b acme deploy"
    );
    // Nobody becomes an operator by a word that nobody here has said.
    let no_role = Err(NoPlace::Role("roles".into()));
    for roles in [
        json!("operator"),
        json!(["operator"]),
        json!([]),
        json!({ "admin": true }),
        Value::Null,
    ] {
        assert_eq!(who(&plain, ann(roles.clone())), no_role, "{roles}");
    }
    assert_eq!(
        who(&plain, ann(json!(["operator", "read"]))).unwrap(),
        "ann a@b acme read"
    );
    // Beyond the bound none is looked at.
    let many: Vec<&str> = std::iter::repeat_n("x", OIDC_ROLES_MAX).chain(["admin"]).collect();
    assert_eq!(who(&plain, ann(json!(many))), no_role);

    let no_tenant = Err(NoPlace::Tenant("tenant".into()));
    for tenant in [
        json!("default"),
        json!("ACME"),
        json!(["acme"]),
        json!(""),
        json!("a/b"),
        Value::Null,
    ] {
        assert_eq!(
            who(&plain, json!({ "sub": "ann", "tenant": tenant, "roles": "read" })),
            no_tenant,
            "{tenant}"
        );
    }
    for sub in [json!(""), json!(7), json!("a\nb"), json!("x".repeat(256)), Value::Null] {
        assert_eq!(
            who(&plain, json!({ "sub": sub, "tenant": "acme", "roles": "read" })),
            Err(NoPlace::Subject),
            "{sub}"
        );
    }

    let bound = json!({ "sub": "ann", "tenant": "acme", "roles": "read", "cnf": { "jkt": "x" } });
    assert_eq!(who(&plain, bound), Err(NoPlace::Bound));

    let mapped = Mapping {
        tenant_claim: Claim::new("/org/~1id").unwrap(),
        role_claim: Claim::new("/realm_access/roles").unwrap(),
        tenants: [("7", "acme"), ("0", "default")]
            .map(|(value, tenant)| (value.to_owned(), tenant.parse().unwrap()))
            .into(),
        roles: [("ops".to_owned(), Role::Operator), ("dev".to_owned(), Role::Deploy)].into(),
    };
    let bob =
        |org: &str, roles: Value| json!({ "sub": "bob", "org": { "/id": org }, "realm_access": { "roles": roles } });
    assert_eq!(
        who(&mapped, bob("7", json!(["dev", "admin"]))).unwrap(),
        "bob  acme deploy"
    );
    assert_eq!(who(&mapped, bob("0", json!("dev"))).unwrap(), "bob  default deploy");
    // An operator is of no tenant, whatever the token says.
    assert_eq!(
        who(&mapped, bob("8", json!(["dev", "ops"]))).unwrap(),
        "bob  default operator"
    );
    assert_eq!(
        who(&mapped, bob("8", json!("dev"))),
        Err(NoPlace::Tenant("/org/~1id".into()))
    );
    assert_eq!(
        who(&mapped, bob("acme", json!("dev"))),
        Err(NoPlace::Tenant("/org/~1id".into()))
    );
    // With a mapping, names of roles mean nothing by themselves.
    assert_eq!(
        who(&mapped, bob("7", json!("admin"))),
        Err(NoPlace::Role("/realm_access/roles".into()))
    );
}

fn token(signer: &Signer, kid: &str) -> String {
    let mut claims = claims();
    claims["tenant"] = json!("acme");
    claims["roles"] = json!("invoke");
    signer.sign(&json!({ "alg": "EdDSA", "kid": kid }), &claims)
}

#[test]
fn keys_that_the_provider_dropped_let_nobody_in_not_even_whom_they_let_in_before() {
    let (old, new) = (Signer::new(), Signer::new());
    let provider = Provider::new(rules(), mapping());
    let shown = token(&old, "ed");
    assert_eq!(provider.look(&shown, NOW), Err(Unlet::Unsure), "no keys were read yet");
    provider.read(old.keys());
    let known = provider.look(&shown, NOW).unwrap();
    assert_eq!((known.tenant.as_str(), known.role), ("acme", Role::Invoke));
    // Remembered, and only as long as it is good.
    assert_eq!(provider.look(&shown, NOW).unwrap(), known);
    assert_eq!(provider.look(&shown, NOW + 400_000), Err(Unlet::Bad(Refused::Expired)));
    // A provider that cannot be reached changes nothing, nor does one that has the same keys still.
    provider.unread();
    provider.read(old.keys());
    assert_eq!(provider.look(&shown, NOW).unwrap(), known);
    assert!(!known.dropped.is_cancelled());
    // Another key by the same name is another key: what was begun with the former one ends.
    provider.read(new.keys());
    assert!(known.dropped.is_cancelled());
    assert_eq!(provider.look(&shown, NOW), Err(Unlet::Bad(Refused::Signature)));
    let known = provider.look(&token(&new, "ed"), NOW).unwrap();
    assert!(!known.dropped.is_cancelled());
    provider.forget();
    assert!(known.dropped.is_cancelled());
    assert_eq!(provider.look(&token(&new, "ed"), NOW), Err(Unlet::Unsure));
}

#[test]
fn what_is_remembered_of_tokens_is_bounded() {
    let signer = Signer::new();
    let provider = Provider::new(rules(), mapping());
    provider.read(signer.keys());
    for n in 0..OIDC_KNOWN_MAX + 10 {
        let mut claims = claims();
        claims["tenant"] = json!("acme");
        claims["roles"] = json!("invoke");
        claims["sub"] = json!(format!("s{n}"));
        let shown = signer.sign(&json!({ "alg": "EdDSA", "kid": "ed" }), &claims);
        assert_eq!(provider.look(&shown, NOW).unwrap().identity.subject, format!("s{n}"));
    }
    assert_eq!(provider.known.lock().unwrap().len(), 10);
}

#[tokio::test]
async fn a_call_of_an_unknown_key_waits_for_the_keys_and_no_more_than_a_few_do() {
    let signer = Signer::new();
    let provider = Provider::new(rules(), mapping());
    let waiting = |provider: &Arc<Provider>| {
        let provider = Arc::clone(provider);
        tokio::spawn(async move { provider.fresh().await })
    };
    let waits = waiting(&provider);
    tokio::time::timeout(Duration::from_secs(5), provider.wanted())
        .await
        .unwrap();
    assert!(!waits.is_finished());
    provider.begin();
    provider.read(signer.keys());
    assert_eq!(waits.await.unwrap(), Ok(()));
    // That it cannot be read is told at once.
    let waits = waiting(&provider);
    provider.wanted().await;
    provider.begin();
    provider.unread();
    assert_eq!(waits.await.unwrap(), Err(NotRead));
    // One that was under way already may not have seen the key.
    provider.begin();
    let waits = waiting(&provider);
    provider.wanted().await;
    provider.unread();
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    provider.begin();
    provider.read(signer.keys());
    assert_eq!(waits.await.unwrap(), Ok(()));
    // A flood: so many wait, the others are told; and once the keys were read nobody waits any more.
    let all: Vec<_> = (0..OIDC_WAITERS_MAX + 50).map(|_| waiting(&provider)).collect();
    while all.iter().filter(|waits| waits.is_finished()).count() < 50 {
        tokio::task::yield_now().await;
    }
    provider.begin();
    provider.read(signer.keys());
    let mut ended = 0;
    for waits in all {
        ended += usize::from(waits.await.unwrap() == Ok(()));
    }
    assert_eq!(
        (ended, provider.waiters.available_permits()),
        (OIDC_WAITERS_MAX, OIDC_WAITERS_MAX)
    );
}
