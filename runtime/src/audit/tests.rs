use std::fs;
use std::net::SocketAddr;

use skep_gateway::door::Who;
use skep_model::access::{By, Caller, TokenId};
use skep_model::env::{ManualClock, SeededEntropy};
use skep_model::limits::{AUDIT_FILE_BYTES, AUDIT_FILES_MAX};
use skep_model::scope::Scope;

use super::*;

fn deed(tenant: &str, role: Role, from: &str) -> Deed {
    Deed {
        who: Some(Who {
            caller: Caller {
                scope: Scope::of(tenant.parse().unwrap()),
                role,
                by: By::Token(TokenId::random(&SeededEntropy::new(1))),
            },
            name: "ci".into(),
        }),
        method: "Beekeeper/DeleteModule".to_owned(),
        objects: vec![("module", "orders".to_owned())],
        from: from.parse::<SocketAddr>().unwrap(),
    }
}

struct Place {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::at(1_000_000)),
        }
    }

    fn open(&self) -> Arc<Audit> {
        Audit::open(self.dir.path(), Arc::clone(&self.clock) as Arc<dyn Clock>).unwrap()
    }

    fn file(&self, book: &str) -> PathBuf {
        let folder = self.dir.path().join("audit").join(book);
        let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        files.pop().unwrap()
    }
}

fn all(audit: &Audit, tenant: Option<&str>) -> Vec<(String, Entry)> {
    let tenant = tenant.map(|tenant| tenant.parse().unwrap());
    audit.read(tenant.as_ref(), 0, &HashMap::new(), 10_000).unwrap().entries
}

fn trouble(audit: &Audit, book: &str) -> Option<String> {
    let books = audit.verify(None, &HashMap::new()).unwrap();
    books.into_iter().find(|(name, _)| name == book).unwrap().1.trouble
}

#[test]
fn each_tenant_has_a_book_of_its_own_and_the_operator_reads_all() {
    let place = Place::new();
    let audit = place.open();
    for (tenant, role) in [
        ("acme", Role::Deploy),
        ("other", Role::Admin),
        ("default", Role::Operator),
    ] {
        let deed = deed(tenant, role, "10.0.0.1:5");
        let number = audit.asked(&deed).unwrap();
        place.clock.advance(5);
        audit.ended(&deed, Some(number), "ok");
    }
    audit.denied(&deed("acme", Role::Invoke, "10.0.0.1:6"), "forbidden");
    audit.denied(&deed("other", Role::Invoke, "10.0.0.2:6"), "forbidden");
    let books = |tenant| {
        all(&audit, tenant)
            .into_iter()
            .map(|(book, _)| book)
            .collect::<Vec<_>>()
    };
    assert_eq!(books(Some("acme")), ["tenant-acme", "tenant-acme", "denied"]);
    assert_eq!(books(None).len(), 8);
    assert_eq!(books(Some("nobody")), [""; 0]);
    let (_, entry) = &all(&audit, Some("acme"))[1];
    assert_eq!(
        (entry.kind, entry.of, entry.outcome.as_str()),
        (Kind::Ended, Some(1), "ok")
    );
    assert_eq!(
        (entry.token_name.as_deref(), entry.from.as_str()),
        (Some("ci"), "10.0.0.1:5")
    );
    assert_eq!(entry.objects["module"], "orders");
    // Pages go on where the last one ended, and tell all of it once.
    let (mut after, mut told) = (HashMap::new(), Vec::new());
    loop {
        let page = audit.read(None, 0, &after, 3).unwrap();
        assert!(page.entries.len() <= 3);
        told.extend(page.entries);
        after = page.after;
        if !page.more {
            break;
        }
    }
    assert_eq!(told, all(&audit, None));
    assert!(audit.read(None, 0, &after, 3).unwrap().entries.is_empty());
    // Another start goes on with the same chains.
    let again = place.open();
    again.note("started");
    assert_eq!(all(&again, None).len(), 9);
    assert!(
        again
            .verify(None, &HashMap::new())
            .unwrap()
            .iter()
            .all(|(_, sound)| sound.trouble.is_none())
    );
}

/// Whatever is done to a file, a verification names the first record that is wrong.
#[test]
fn tampering_is_told_with_its_place() {
    let line = |text: &str, at: usize| text.lines().nth(at).unwrap().to_owned() + "\n";
    type Act = fn(&str, &dyn Fn(&str, usize) -> String) -> String;
    let acts: [(&str, Act, &str); 7] = [
        (
            "changed",
            |text, _| text.replacen("orders", "0rders", 1),
            "line 1: the record was changed",
        ),
        (
            "removed",
            |text, line| text.replacen(&line(text, 2), "", 1),
            "line 3: records 3 to 3 were removed",
        ),
        (
            "reordered",
            |text, line| {
                let (a, b) = (line(text, 1), line(text, 2));
                text.replacen(&format!("{a}{b}"), &format!("{b}{a}"), 1)
            },
            "line 2: records 2 to 2 were removed",
        ),
        (
            "repeated",
            |text, line| text.replacen(&line(text, 1), &line(text, 1).repeat(2), 1),
            "line 3: record 2 is out of order",
        ),
        (
            "truncated",
            |text, line| text.replacen(&line(text, 5), "", 1),
            "the last 1 of 6 records were cut off",
        ),
        ("emptied", |_, _| String::new(), "the last 6 of 6 records were cut off"),
        (
            "headless",
            |text, line| text.replacen(&line(text, 0), "", 1),
            "records 1 to 1 were removed at the beginning",
        ),
    ];
    for (name, act, told) in acts {
        let place = Place::new();
        let audit = place.open();
        for _ in 0..6 {
            audit.asked(&deed("acme", Role::Deploy, "10.0.0.1:5")).unwrap();
        }
        assert_eq!(trouble(&audit, "tenant-acme"), None);
        let file = place.file("tenant-acme");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, act(&text, &line)).unwrap();
        let found = trouble(&audit, "tenant-acme").unwrap_or_default();
        assert!(found.contains(told), "{name}: {found}");
    }
}

/// Who owns the machine writes a whole new chain, or cuts it while the node does not run: what was told before shows it.
#[test]
fn a_chain_written_anew_does_not_end_as_the_one_that_was_told() {
    let place = Place::new();
    let audit = place.open();
    for _ in 0..4 {
        audit.asked(&deed("acme", Role::Deploy, "10.0.0.1:5")).unwrap();
    }
    let told = audit.verify(None, &HashMap::new()).unwrap();
    let known: HashMap<_, _> = told.into_iter().map(|(book, s)| (book, (s.last_seq, s.head))).collect();
    drop(audit);
    let file = place.file("tenant-acme");
    let text = fs::read_to_string(&file).unwrap();
    let cut: String = text.lines().take(3).map(|line| format!("{line}\n")).collect();
    fs::write(&file, cut).unwrap();
    let audit = place.open();
    assert_eq!(
        trouble(&audit, "tenant-acme"),
        None,
        "by itself a chain does not know that it was longer"
    );
    let trouble = |audit: &Audit| {
        audit
            .verify(None, &known)
            .unwrap()
            .remove(0)
            .1
            .trouble
            .unwrap_or_default()
    };
    assert!(trouble(&audit).contains("records 4 to 4, which were told before, were cut off"));
    audit.asked(&deed("acme", Role::Deploy, "10.0.0.9:9")).unwrap();
    assert!(trouble(&audit).contains("record 4 is not the one that was told before"));
    drop(audit);
    fs::remove_dir_all(place.dir.path().join("audit")).unwrap();
    assert!(trouble(&place.open()).contains("the whole book is gone"));
}

#[test]
fn a_record_that_a_crash_left_unfinished_goes_and_is_told() {
    let place = Place::new();
    let audit = place.open();
    audit.asked(&deed("acme", Role::Deploy, "10.0.0.1:5")).unwrap();
    audit.asked(&deed("acme", Role::Deploy, "10.0.0.1:5")).unwrap();
    drop(audit);
    let file = place.file("tenant-acme");
    let text = fs::read(&file).unwrap();
    fs::write(&file, &text[..text.len() - 20]).unwrap();
    let audit = place.open();
    let kinds: Vec<Kind> = all(&audit, None).into_iter().map(|(_, entry)| entry.kind).collect();
    assert_eq!(kinds, [Kind::Asked, Kind::Repaired]);
    assert_eq!(trouble(&audit, "tenant-acme"), None);
}

/// The disk was full, or the node died, just when a file was begun.
#[test]
fn a_file_without_a_record_breaks_no_chain() {
    let place = Place::new();
    let audit = place.open();
    audit.asked(&deed("acme", Role::Deploy, "10.0.0.1:5")).unwrap();
    audit.asked(&deed("acme", Role::Deploy, "10.0.0.1:5")).unwrap();
    drop(audit);
    let next = place.dir.path().join("audit/tenant-acme/0000000000000003.log");
    for left in [&b""[..], b"0123 {\"seq\":3,"] {
        fs::write(&next, left).unwrap();
        let audit = place.open();
        audit.asked(&deed("acme", Role::Deploy, "10.0.0.1:5")).unwrap();
        assert_eq!(trouble(&audit, "tenant-acme"), None);
        assert!(fs::metadata(&next).unwrap().len() > 100);
        fs::remove_file(&next).unwrap();
    }
}

#[test]
fn old_files_go_and_the_chain_says_so() {
    let place = Place::new();
    let audit = place.open();
    let mut much = deed("acme", Role::Deploy, "10.0.0.1:5");
    much.objects = vec![("module", "m".repeat(3_500))];
    let files = (AUDIT_FILES_MAX as u64 + 3) * AUDIT_FILE_BYTES / 3_700;
    for _ in 0..files {
        audit.asked(&much).unwrap();
    }
    let folder = place.dir.path().join("audit/tenant-acme");
    let mut kept: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    kept.sort();
    assert_eq!(kept.len(), AUDIT_FILES_MAX);
    let bytes: u64 = kept.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(bytes < (AUDIT_FILES_MAX as u64 + 1) * AUDIT_FILE_BYTES);
    assert_eq!(trouble(&audit, "tenant-acme"), None);
    let first = audit.verify(None, &HashMap::new()).unwrap().remove(0).1.first_seq;
    assert!(first > 1, "{first}");
    // Somebody takes away one file more.
    fs::remove_file(&kept[0]).unwrap();
    assert!(
        trouble(&audit, "tenant-acme")
            .unwrap()
            .contains("removed at the beginning")
    );
}

#[test]
fn a_flood_of_refusals_is_a_few_records_and_drives_out_nothing_else() {
    let place = Place::new();
    let audit = place.open();
    audit.asked(&deed("acme", Role::Deploy, "10.0.0.1:5")).unwrap();
    let stranger = |from: &str| Deed {
        who: None,
        objects: Vec::new(),
        ..deed("acme", Role::Invoke, from)
    };
    for n in 0..100_000_u32 {
        // A new address each, and among them one that asks again and again from other ports and addresses of its network.
        audit.denied(
            &stranger(&format!("10.{}.{}.{}:7", n >> 16, (n >> 8) & 255, n & 255)),
            "unauthenticated",
        );
        audit.denied(
            &stranger(&format!("[2001:db8::{:x}]:{}", n & 0xffff, 1 + n % 60_000)),
            "unauthenticated",
        );
    }
    audit.look(true);
    let told = all(&audit, None);
    assert!(told.len() <= 2 * AUDIT_DENIED_KINDS_MAX + 3, "{}", told.len());
    let refused: u64 = told
        .iter()
        .filter(|(book, _)| book == DENIED)
        .map(|(_, entry)| entry.times)
        .sum();
    assert_eq!(refused, 200_000, "every one is counted");
    assert!(
        told.iter()
            .any(|(_, entry)| entry.times == 99_999 && entry.from.starts_with("[2001:db8::"))
    );
    assert_eq!(told.iter().filter(|(book, _)| book == "tenant-acme").count(), 1);
    assert_eq!(trouble(&audit, DENIED), None);
}

#[test]
fn who_has_a_token_is_told_by_name_however_many_strangers_and_other_tenants_are_refused() {
    let place = Place::new();
    let audit = place.open();
    let from = |n: u32| format!("10.{}.{}.{}:7", n >> 16, (n >> 8) & 255, n & 255);
    for n in 0..10_000_u32 {
        let stranger = Deed {
            who: None,
            objects: Vec::new(),
            ..deed("acme", Role::Invoke, &from(n))
        };
        audit.denied(&stranger, "unauthenticated");
        audit.denied(&deed("globex", Role::Invoke, &from(n)), "forbidden");
    }
    audit.denied(&deed("acme", Role::Invoke, "10.9.9.9:7"), "forbidden");
    audit.look(true);
    let told = all(&audit, None);
    let of = |tenant: Option<&str>| -> Vec<_> {
        let denied = told.iter().filter(|(book, _)| book == DENIED).map(|(_, entry)| entry);
        denied.filter(|entry| entry.tenant.as_deref() == tenant).collect()
    };
    assert_eq!(
        (of(Some("acme")).len(), of(Some("acme"))[0].from.as_str()),
        (1, "10.9.9.9:7")
    );
    assert_eq!(of(Some("globex")).len(), KINDS_OF_TENANT_MAX + 1);
    assert_eq!(of(None).len(), AUDIT_DENIED_KINDS_MAX + 1);
    for whose in [None, Some("globex")] {
        assert_eq!(
            of(whose).iter().map(|entry| entry.times).sum::<u64>(),
            10_000,
            "every one is counted"
        );
    }
    // A new window begins with all its kinds.
    audit.denied(&deed("globex", Role::Invoke, "10.8.8.8:7"), "forbidden");
    assert!(all(&audit, None).iter().any(|(_, entry)| entry.from == "10.8.8.8:7"));
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    let place = Place::new();
    let audit = place.open();
    audit.asked(&deed("acme", Role::Deploy, "10.0.0.1:5")).unwrap();
    let folder = place.dir.path().join("audit/tenant-acme");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, b"").unwrap();
    let why = audit.asked(&deed("acme", Role::Deploy, "10.0.0.1:5")).unwrap_err();
    assert!(why.contains("tenant-acme"), "{why}");
}
