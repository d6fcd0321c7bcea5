use super::*;

fn hidden(text: &str) -> Option<Hidden> {
    Some(Hidden(text.to_owned()))
}

fn with(change: impl FnOnce(&mut Layer)) -> Result<Settings, Wrong> {
    let mut layer = Layer::default();
    change(&mut layer);
    resolve(layer, None)
}

#[test]
fn without_a_word_it_is_one_node_on_its_own() {
    let settings = resolve(Layer::default(), None).unwrap();
    assert_eq!(settings.listen.to_string(), "127.0.0.1:4020");
    assert_eq!(settings.admin.unwrap().to_string(), "127.0.0.1:4021");
    assert_eq!(settings.backend, BackendSettings::Embedded);
    assert_eq!(settings.artifacts, ArtifactSettings::Own);
    assert_eq!(settings.roles, Roles::ALL);
    assert_eq!(settings.roles.to_string(), "gateway,worker,beekeeper");
    assert!(settings.warnings.is_empty());
    assert!(node_name(settings.node_name.clone()).is_ok(), "{}", settings.node_name);
    let told = settings.node(None).unwrap_err().to_string();
    assert!(told.contains("data folder"), "{told}");
}

#[test]
fn flags_go_before_the_file_and_that_before_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("skep.toml");
    let text = r#"
data = "/var/lib/skep"
listen = "0.0.0.0:5000"
no-admin = true
log-format = "json"
backend = "redis://:hush@store:6379/1"
gate = "wait:2"
artifacts = "s3://bees/all/of/them/"
roles = ["worker"]
node-name = "a"
"#;
    std::fs::write(&file, text).unwrap();
    let flags = Layer {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        roles: Some(vec!["gateway".into(), "beekeeper".into()]),
        ..Layer::default()
    };
    let got = resolve(flags, Some(&file)).unwrap();
    assert_eq!(got.data.as_deref(), Some(Path::new("/var/lib/skep")));
    assert_eq!(got.listen.port(), 0);
    assert_eq!(got.admin, None);
    assert_eq!(got.log_format, LogFormat::Json);
    assert_eq!(got.backend.to_string(), "redis://:***@store:6379/1");
    let BackendSettings::Redis(redis) = &got.backend else {
        panic!("{got:?}")
    };
    assert_eq!(redis.url, "redis://:hush@store:6379/1");
    assert!(matches!(redis.gate, Gate::Wait { replicas: 2, .. }));
    assert_eq!(got.artifacts.to_string(), "s3://bees/all/of/them");
    assert_eq!(got.roles.to_string(), "gateway,beekeeper");
    assert_eq!(got.node_name, "a");
    // The file's password is not everybody's business.
    assert!(got.warnings[0].contains("chmod 600"), "{:?}", got.warnings);
    assert!(!format!("{got:?}").contains("hush"), "{got:?}");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let flags = Layer {
        admin: Some("127.0.0.1:1".parse().unwrap()),
        backend: hidden("embedded"),
        ..Layer::default()
    };
    let got = resolve(flags, Some(&file)).unwrap();
    assert_eq!(got.admin.unwrap().port(), 1, "a typed address goes before `no-admin`");
    assert_eq!(
        got.backend,
        BackendSettings::Embedded,
        "the file's gate was for its Redis"
    );
    assert!(got.warnings.is_empty(), "{:?}", got.warnings);
}

#[test]
fn backends() {
    for (url, gate, shown) in [
        ("embedded", None, "embedded"),
        ("redis://127.0.0.1:6379", None, "redis://127.0.0.1:6379"),
        ("rediss://bee:hush@h/2", Some("wait:1"), "rediss://bee:***@h/2"),
        ("redis://h", Some("waitaof:0"), "redis://h"),
        ("redis://h", Some("none"), "redis://h"),
    ] {
        let got = with(|l| {
            l.backend = hidden(url);
            l.gate = gate.map(str::to_owned);
        });
        assert_eq!(got.unwrap().backend.to_string(), shown);
    }
    for (url, gate, says) in [
        ("embeded", None, "`embeded` is no backend"),
        ("http://:hush@h", None, "`http://:***@h` is no backend"),
        ("redis://", None, "names no host"),
        ("redis://:hush@/0", None, "names no host"),
        ("embedded", Some("wait:1"), "the backend is embedded"),
        ("redis://h", Some("wait:0"), "`wait:0` is no gate"),
        ("redis://h", Some("wait"), "`wait` is no gate"),
        ("redis://h", Some("waitaof:-1"), "is no gate"),
        ("redis://h", Some("wait:1000000"), "is no gate"),
    ] {
        let told = with(|l| {
            l.backend = hidden(url);
            l.gate = gate.map(str::to_owned);
        });
        let told = told.unwrap_err();
        assert!(told.what.contains(says), "{url} {gate:?}: {told:?}");
        assert!(
            !told.remedy.is_empty() && !format!("{told:?}").contains("hush"),
            "{told:?}"
        );
    }
}

#[test]
fn places_for_artifacts() {
    for (text, expected) in [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("file:///srv/bees", "file:///srv/bees"),
        ("srv/bees", "file://srv/bees"),
    ] {
        let got = with(|l| l.artifacts = hidden(text)).unwrap();
        assert_eq!(got.artifacts.to_string(), expected);
    }
    for (text, says) in [
        ("s3://", "bucket's name"),
        ("s3://Big_Bucket/x", "bucket's name"),
        ("s3://AKIA:hush@bucket/x", "credentials"),
        ("s3://bucket/x?endpoint=hush", "has options"),
        ("file://relative", "file:///folder"),
        ("gs://bucket", "no place for artifacts"),
        ("redis://:hush@h", "no place for artifacts"),
        ("", "no place for artifacts"),
    ] {
        let told = with(|l| l.artifacts = hidden(text)).unwrap_err();
        let all = format!("{} {}", told.what, told.remedy);
        assert!(all.contains(says), "{text}: {told:?}");
        assert!(!all.contains(":hush"), "{told:?}");
    }
}

#[test]
fn roles_and_names() {
    let told = with(|l| l.roles = Some(vec!["workr".into()])).unwrap_err();
    assert!(told.remedy.contains("did you mean `worker`?"), "{told:?}");
    assert!(with(|l| l.roles = Some(Vec::new())).is_err());
    for bad in ["", "a b", "a/b", "\u{1b}[2J"] {
        let told = with(|l| l.node_name = Some(bad.to_owned())).unwrap_err();
        assert!(!told.what.contains('\u{1b}'), "{told:?}");
    }
    assert!(with(|l| l.node_name = Some("a".repeat(NODE_NAME_BYTES_MAX + 1))).is_err());
    assert!(with(|l| l.sample_ratio = Some(f64::NAN)).is_err());
}

#[test]
fn several_nodes_without_a_common_store_are_warned() {
    let got = with(|l| l.backend = hidden("redis://h")).unwrap();
    assert!(got.warnings[0].contains("--artifacts"), "{:?}", got.warnings);
}

#[test]
fn a_mistake_in_the_file_is_told_with_its_line_and_without_its_secret() {
    for (text, what, remedy) in [
        ("lisen = \"x\"", "`lisen` is no setting", "did you mean `listen`?"),
        ("colour = 1", "`colour` is no setting", "there are: data, listen"),
        ("\nlisten = 5", "f:2:10", "flags"),
        ("backend = \"redis://:hush@h", "f:1:", "flags"),
        ("backend = [\"redis://:hush@h\"]", "f:1:", "flags"),
        ("no-admin = \"redis://:hush@h\"", "f:1:", "flags"),
        ("log-format = \"yaml\"", "unknown variant `yaml`", "flags"),
        ("data = \"a\"\ndata = \"b\"", "f:2:1", "flags"),
    ] {
        let told = file::parse(text, "f").unwrap_err();
        assert!(told.what.contains(what), "{text}: {told:?}");
        assert!(told.remedy.contains(remedy), "{text}: {told:?}");
        assert!(!format!("{told:?}").contains("hush"), "{told:?}");
    }
    let missing = resolve(Layer::default(), Some(Path::new("/nowhere/skep.toml"))).unwrap_err();
    assert!(
        missing.what.contains("/nowhere/skep.toml") && missing.remedy.contains("--config"),
        "{missing:?}"
    );
}

#[test]
fn the_list_of_keys_is_whole() {
    // `deny_unknown_fields` names all of them.
    let told = toml::from_str::<Layer>("nothing = 1").unwrap_err().message().to_owned();
    for key in KEYS {
        assert!(told.contains(&format!("`{key}`")), "{key}: {told}");
    }
    assert_eq!(told.matches('`').count(), 2 * (KEYS.len() + 1), "{told}");
}

#[test]
fn what_runs_models_is_said_or_refused() {
    let models = |change: fn(&mut Layer)| with(change).map(|settings| settings.models);
    assert_eq!(models(|_| {}).unwrap(), ModelSettings::default());
    let some = models(|layer| {
        layer.onnxruntime = Some("lib/libonnxruntime.so".into());
        layer.model_threads = Some(3);
        layer.model_memory = Some("512MiB".into());
    })
    .unwrap();
    assert_eq!((some.threads(), some.memory_bytes), (3, 512 << 20));
    // The process that looks at uploads works in another folder.
    let library = some.library.unwrap();
    assert!(
        library.is_absolute() && library.ends_with("lib/libonnxruntime.so"),
        "{library:?}"
    );
    type Change = fn(&mut Layer);
    assert_eq!(
        with(|layer| layer.module_memory = Some("64MiB".into()))
            .unwrap()
            .module_memory_bytes,
        64 << 20
    );
    let cases: [(Change, &str); 7] = [
        (
            |layer| layer.inference = Some(Inference::Onnxruntime),
            "no library is named",
        ),
        (
            |layer| {
                layer.inference = Some(Inference::Tract);
                layer.onnxruntime = Some("lib.so".into());
            },
            "leave one out",
        ),
        (|layer| layer.model_threads = Some(257), "at most 256"),
        (|layer| layer.model_memory = Some("5".into()), "with its unit"),
        (|layer| layer.model_memory = Some("1KiB".into()), "from 1MiB"),
        (|layer| layer.model_memory = Some("2TiB".into()), "to 1024GiB"),
        (|layer| layer.module_memory = Some("0".into()), "`module-memory` is `0`"),
    ];
    for (change, says) in cases {
        let Wrong { what, remedy } = with(change).unwrap_err();
        assert!(format!("{what}; {remedy}").contains(says), "{what}; {remedy}");
    }
}
