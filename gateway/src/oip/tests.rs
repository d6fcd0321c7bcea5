use skep_model::name::Version;

use super::*;

#[test]
fn names_and_versions() {
    let model = |name: &str, version: &str| match Target::parse(name, version) {
        Ok(Target::Model(model)) => model.to_string(),
        other => panic!("{other:?}"),
    };
    let digest = skep_model::id::Digest::of(b"x").to_string();
    assert_eq!(model("m", ""), "m:latest");
    assert_eq!(model("m", "1"), "m:1");
    assert_eq!(model("m", &digest), format!("m@{digest}"));
    assert_eq!(Target::parse("subject.s", "").unwrap(), Target::Subject("s".into()));
    // Checked where it is looked up, in a table of valid names.
    assert_eq!(Target::parse("subject.a.b", "").unwrap(), Target::Subject("a.b".into()));
    for (name, version, kind) in [
        ("", "", ErrorKind::NotFound),
        ("m:v1", "", ErrorKind::NotFound),
        ("m@sha256:00", "", ErrorKind::NotFound),
        ("other.m", "", ErrorKind::NotFound),
        ("m", "V1", ErrorKind::Invalid),
        ("m", "sha256:zz", ErrorKind::Invalid),
        ("m", &digest[7..], ErrorKind::Invalid),
        ("subject.s", "1", ErrorKind::Invalid),
    ] {
        let error = Target::parse(name, version).unwrap_err();
        assert_eq!(error.kind, kind, "{name} {version}: {error}");
        assert!(error.message.len() < 300);
    }
    assert_eq!(Version::default().clone(), Version::Tag("latest".parse().unwrap()));
}

#[test]
fn any_response_is_read_back() {
    for text in ["", "null", "5", "[1,2]", r#"{"a":1}"#, r#"{"outputs":1}"#, "\u{0}plain"] {
        let read = read_back(&Bytes::copy_from_slice(text.as_bytes())).unwrap();
        assert_eq!(read.outputs[0].0, "response");
        assert_eq!(read.outputs[0].1.contents().collect::<Vec<_>>(), [text.as_bytes()]);
    }
    let read = read_back(&Bytes::from_static(
        br#"{"outputs":[{"name":"y","datatype":"INT8","shape":[1],"data":[3]}]}"#,
    ));
    assert_eq!(read.unwrap().outputs[0].1.bytes()[..], [3]);
    let broken = Bytes::from_static(br#"{"outputs":[{"name":"y","datatype":"INT8","shape":[2],"data":[3]}]}"#);
    assert_eq!(read_back(&broken).unwrap_err().kind, ErrorKind::Failed);
}

#[test]
fn loads_are_kept_as_long_as_somebody_holds_them() {
    let (_routes, table) = tokio::sync::watch::channel(Arc::default());
    let clock = Arc::new(skep_model::env::SystemClock);
    let entropy = Arc::new(skep_model::env::OsEntropy);
    let backend = skep_topic::memory::Memory::new(clock.clone(), entropy.clone());
    let spans = Arc::new(skep_model::span::NoSpans);
    let core = Core::new(backend, table, clock, entropy, spans, crate::Settings::default());
    let oip = Oip::new(core, None);
    let tenant = TenantId::default_tenant();
    let held = oip.load(&tenant, &"held".parse().unwrap());
    for at in 0..10 * LOADS_SWEPT_AT {
        drop(oip.load(&tenant, &format!("m{at}").parse().unwrap()));
    }
    assert!(Arc::ptr_eq(&held, &oip.load(&tenant, &"held".parse().unwrap())));
    assert!(oip.loads.lock().unwrap().len() <= LOADS_SWEPT_AT);
    // The same name of another tenant is another model.
    assert!(!Arc::ptr_eq(
        &held,
        &oip.load(&"acme".parse().unwrap(), &"held".parse().unwrap())
    ));
}
