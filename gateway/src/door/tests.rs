use skep_model::env::{ManualClock, SeededEntropy};

use super::*;

struct Ward {
    clock: Arc<ManualClock>,
    door: Arc<Door>,
    entropy: SeededEntropy,
    peers: PeerKey,
}

impl Ward {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::at(1_000));
        let entropy = SeededEntropy::new(7);
        Self {
            door: Door::open(Arc::clone(&clock) as Arc<dyn Clock>),
            clock,
            peers: PeerKey::random(&entropy),
            entropy,
        }
    }

    fn secret(&self) -> Secret {
        Secret::random(TokenId::random(&self.entropy), &self.entropy)
    }

    fn close(&self, passes: &[Pass]) {
        self.door.close(passes.to_vec(), Vec::new(), self.peers.clone());
    }
}

fn pass(secret: &Secret, tenant: &str, role: Role, until_ms: Option<u64>) -> Pass {
    Pass {
        hash: secret.hash(),
        until_ms,
        caller: Caller {
            scope: Scope::of(tenant.parse().unwrap()),
            role,
            by: By::Token(secret.id),
        },
        name: "somebody".into(),
    }
}

fn headers(values: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(AUTHORIZATION, value.parse().unwrap());
    }
    headers
}

fn ask(door: &Door, need: Need, values: &[&str]) -> Result<Entered, ErrorKind> {
    door.enter(need, "/p", &headers(values)).map_err(|e| e.why.kind)
}

#[test]
fn an_open_door_takes_everybody_and_a_closed_one_only_whom_it_knows() {
    let ward = Ward::new();
    let secret = ward.secret();
    let bearer = format!("Bearer {}", secret.text());
    let deploy = Need::Role(Role::Deploy);
    let entered = ask(&ward.door, Need::Role(Role::Operator), &[]).unwrap();
    assert_eq!(entered.caller, Some(everybody()));
    ward.close(&[pass(&secret, "acme", Role::Deploy, None)]);
    let entered = ask(&ward.door, deploy, &[&bearer]).unwrap();
    assert_eq!(entered.caller.unwrap().scope.tenant().as_str(), "acme");
    let lower = bearer.replacen("Bearer", "bearer", 1);
    assert!(ask(&ward.door, deploy, &[&lower]).is_ok());
    assert_eq!(
        ask(&ward.door, Need::Role(Role::Admin), &[&bearer]).unwrap_err(),
        ErrorKind::Forbidden
    );
    // Another secret under the same id, another id with the same bits, other schemes, two headers, nothing.
    let other = Secret::random(secret.id, &ward.entropy);
    let stranger = ward.secret();
    for bad in [
        &[][..],
        &[""],
        &["Bearer"],
        &["Bearer "],
        &[&format!("Basic {}", secret.text())],
        &[&secret.text()],
        &[&format!("Bearer  {}", secret.text())],
        &[&format!("Bearer {}", other.text())],
        &[&format!("Bearer {}", stranger.text())],
        &[&bearer, &bearer],
        &[&format!("Bearer {}", "x".repeat(1 << 20))],
    ] {
        assert_eq!(ask(&ward.door, deploy, bad).unwrap_err(), ErrorKind::Unauthenticated);
        assert_eq!(
            ask(&ward.door, Need::Token, bad).unwrap_err(),
            ErrorKind::Unauthenticated
        );
    }
    assert!(ask(&ward.door, Need::Nothing, &[]).is_ok());
}

#[test]
fn tokens_run_out_by_the_clock_and_streams_with_them() {
    let ward = Ward::new();
    let secret = ward.secret();
    let bearer = format!("Bearer {}", secret.text());
    ward.close(&[pass(&secret, "acme", Role::Read, Some(2_000))]);
    let end = ask(&ward.door, Need::Token, &[&bearer]).unwrap().end.unwrap();
    ward.clock.advance(999);
    ward.door.expire();
    assert!(ask(&ward.door, Need::Token, &[&bearer]).is_ok() && !end.called.is_cancelled());
    ward.clock.advance(1);
    assert_eq!(
        ask(&ward.door, Need::Token, &[&bearer]).unwrap_err(),
        ErrorKind::Unauthenticated
    );
    ward.door.expire();
    assert!(end.called.is_cancelled());
}

#[test]
fn a_revoked_token_ends_its_streams_and_nobody_else_s() {
    let ward = Ward::new();
    let (one, two) = (ward.secret(), ward.secret());
    let passes = [
        pass(&one, "acme", Role::Read, None),
        pass(&two, "acme", Role::Read, None),
    ];
    ward.close(&passes);
    let end = |secret: &Secret| {
        let bearer = format!("Bearer {}", secret.text());
        ask(&ward.door, Need::Token, &[&bearer]).map(|entered| entered.end.unwrap())
    };
    let (first, second) = (end(&one).unwrap(), end(&two).unwrap());
    // Told the same again: nothing ends.
    ward.close(&passes);
    assert!(!first.called.is_cancelled() && !second.called.is_cancelled());
    // One is gone, the other has another secret and its former one for a while.
    let next = Secret::random(two.id, &ward.entropy);
    ward.close(&[
        pass(&next, "acme", Role::Read, None),
        pass(&two, "acme", Role::Read, Some(3_000)),
    ]);
    assert!(first.called.is_cancelled() && !second.called.is_cancelled());
    assert_eq!(end(&one).unwrap_err(), ErrorKind::Unauthenticated);
    assert!(end(&two).is_ok() && end(&next).is_ok());
    // Another role is another caller.
    let third = end(&next).unwrap();
    ward.close(&[pass(&next, "acme", Role::Invoke, None)]);
    assert!(second.called.is_cancelled() && third.called.is_cancelled());
    // Nobody left: it is closed all the same.
    ward.close(&[]);
    assert!(!ward.door.is_open());
    assert_eq!(end(&next).unwrap_err(), ErrorKind::Unauthenticated);
}

#[test]
fn nodes_prove_themselves_and_tokens_do_not_stand_in() {
    let ward = Ward::new();
    assert!(ward.door.proof("/p").is_none());
    assert!(ask(&ward.door, Need::Node, &[]).is_ok());
    let operator = ward.secret();
    ward.close(&[pass(&operator, "default", Role::Operator, None)]);
    let proof = ward.door.proof("/p").unwrap();
    assert!(ask(&ward.door, Need::Node, &[&proof]).is_ok());
    let bearer = format!("Bearer {}", operator.text());
    let (other, longer) = (ward.door.proof("/other").unwrap(), format!("{proof}0"));
    for bad in [&[][..], &[bearer.as_str()], &[other.as_str()], &[longer.as_str()]] {
        assert_eq!(
            ask(&ward.door, Need::Node, bad).unwrap_err(),
            ErrorKind::Unauthenticated
        );
    }
    assert_eq!(
        ask(&ward.door, Need::Token, &[&proof]).unwrap_err(),
        ErrorKind::Unauthenticated
    );
}

#[test]
fn who_did_not_hear_of_the_store_lets_nobody_in_until_it_does() {
    let ward = Ward::new();
    let secret = ward.secret();
    let bearer = format!("Bearer {}", secret.text());
    let passes = [pass(&secret, "acme", Role::Read, None)];
    ward.close(&passes);
    let end = ask(&ward.door, Need::Token, &[&bearer]).unwrap().end.unwrap();
    assert!(!ward.door.expire() && !end.called.is_cancelled());
    // As if it had been told long ago.
    let long_ago = Instant::now().checked_sub(std::time::Duration::from_millis(3 * ACCESS_UNHEARD_MS));
    let door = Door {
        born: long_ago.expect("this machine is not that new"),
        provider: OnceLock::new(),
        clock: Arc::clone(&ward.door.clock),
        state: RwLock::new(ward.door.state()),
        heard_ms: AtomicU64::new(0),
    };
    assert_eq!(ask(&door, Need::Token, &[&bearer]).unwrap_err(), ErrorKind::Unavailable);
    assert!(door.expire() && end.called.is_cancelled());
    assert_eq!(
        ask(&door, Need::Token, &["Bearer x"]).unwrap_err(),
        ErrorKind::Unauthenticated
    );
    door.close(passes.to_vec(), Vec::new(), ward.peers.clone());
    let again = ask(&door, Need::Token, &[&bearer]).unwrap().end.unwrap();
    assert!(!door.expire() && !again.called.is_cancelled());
}

#[tokio::test]
async fn whom_a_provider_vouches_for_is_of_a_tenant_that_there_is_until_the_token_ends() {
    use super::oidc::keys::tests::{NOW, Signer, claims, rules};
    use super::oidc::{Claim, Mapping};
    use futures::FutureExt as _;
    use serde_json::json;

    let ward = Ward::new();
    let signer = Signer::new();
    let claim = |name| Claim::new(name).unwrap();
    let mapping = Mapping {
        tenant_claim: claim("tenant"),
        role_claim: claim("roles"),
        tenants: Default::default(),
        roles: Default::default(),
    };
    let provider = Provider::new(rules(), mapping);
    let mut said = claims();
    said["tenant"] = json!("acme");
    said["roles"] = json!("invoke");
    let shown = format!("Bearer {}", signer.sign(&json!({ "alg": "ES256", "kid": "ec" }), &said));
    let at = |now_ms: u64| ward.clock.advance(now_ms.saturating_sub(ward.clock.now_ms()));
    at(NOW);
    let own = ward.secret();
    let acme = || vec!["acme".parse().unwrap()];
    let close = |tenants| {
        ward.door.close(
            vec![pass(&own, "acme", Role::Invoke, None)],
            tenants,
            ward.peers.clone(),
        )
    };
    close(acme());
    // Nobody was told of a provider: it is a wrong token as any.
    let why = ward.door.enter(Need::Token, "/p", &headers(&[&shown])).unwrap_err();
    assert!(why.why.kind == ErrorKind::Unauthenticated && why.unsure.is_none());
    ward.door.trust(Arc::clone(&provider));
    let why = ward.door.enter(Need::Token, "/p", &headers(&[&shown])).unwrap_err();
    assert!(why.unsure.is_some(), "its keys were never read");
    provider.read(signer.keys());

    let entered = ask(&ward.door, Need::Role(Role::Invoke), &[&shown]).unwrap();
    let caller = entered.caller.unwrap();
    assert_eq!((caller.scope.tenant().as_str(), caller.role), ("acme", Role::Invoke));
    assert_eq!(caller.by.shown().unwrap(), "oidc:ann");
    assert_eq!(
        ask(&ward.door, Need::Role(Role::Deploy), &[&shown]).unwrap_err(),
        ErrorKind::Forbidden
    );
    // Not for what nodes ask each other; and two credentials are none.
    assert_eq!(
        ask(&ward.door, Need::Node, &[&shown]).unwrap_err(),
        ErrorKind::Unauthenticated
    );
    assert_eq!(
        ask(&ward.door, Need::Token, &[&shown, &shown]).unwrap_err(),
        ErrorKind::Unauthenticated
    );
    // The platform's own tokens go on beside it.
    assert!(ask(&ward.door, Need::Token, &[&format!("Bearer {}", own.text())]).is_ok());

    // What was begun ends with the tenant, not because others come and go.
    let end = entered.end.unwrap();
    close(vec!["acme".parse().unwrap(), "zeta".parse().unwrap()]);
    assert!(!end.called.is_cancelled());
    close(Vec::new());
    assert!(end.called.is_cancelled());
    assert_eq!(
        ask(&ward.door, Need::Token, &[&shown]).unwrap_err(),
        ErrorKind::Forbidden
    );
    close(acme());
    // … with the key that the token is signed by, however long it would be good …
    let end = ask(&ward.door, Need::Token, &[&shown]).unwrap().end.unwrap();
    let mut comes = Box::pin(end.come());
    provider.read(signer.keys());
    assert!(comes.as_mut().now_or_never().is_none(), "the same keys end nothing");
    provider.read(Signer::new().keys());
    tokio::time::timeout(Duration::from_secs(5), comes).await.unwrap();
    provider.read(signer.keys());
    // … and with the token, of itself.
    at(NOW + 300_000 + skep_model::limits::OIDC_LEEWAY_MS - 20);
    let end = ask(&ward.door, Need::Token, &[&shown]).unwrap().end.unwrap();
    assert_eq!(end.vouched.as_ref().unwrap().0, Duration::from_millis(20));
    tokio::time::timeout(Duration::from_secs(5), end.come()).await.unwrap();
    at(NOW + 300_000 + skep_model::limits::OIDC_LEEWAY_MS);
    assert_eq!(
        ask(&ward.door, Need::Token, &[&shown]).unwrap_err(),
        ErrorKind::Unauthenticated
    );
}
