//! What people write in flags, manifests and headers: units, names, references, hosts, limits. What is taken is written in one way, which is taken for
//! the same.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use skep_model::access::Role;
use skep_model::egress::{Host, HttpGrant};
use skep_model::id::Digest;
use skep_model::manifest::units::{duration_ms, show_duration, show_size, size_bytes};
use skep_model::message::TraceContext;
use skep_model::name::{ModelRef, ModuleRef, NAME_BYTES_MAX, StageName, TenantId};
use skep_model::permission::Permission;
use skep_model::quota::Quota;
use skep_model::scope::SwarmPath;

pub fn run(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let mut taken = false;
    if let Some(ms) = duration_ms(text) {
        assert_eq!(duration_ms(&show_duration(ms)), Some(ms));
        taken = true;
    }
    if let Some(size) = size_bytes(text) {
        assert_eq!(size_bytes(&show_size(size)), Some(size));
        taken = true;
    }
    if let Some(trace) = TraceContext::parse(text) {
        assert_eq!(TraceContext::parse(&trace.to_traceparent()), Some(trace));
        taken = true;
    }
    for quota in Quota::ALL {
        if let Ok(value) = quota.parse(text) {
            assert_eq!(quota.check(value), Ok(value));
            assert_eq!(quota.parse(&quota.show(value)), Ok(value));
            taken = true;
        }
    }
    // A name means one thing and is written in one way.
    for name in [one_spelling::<StageName>(text), one_spelling::<TenantId>(text)] {
        assert!(!name || text.len() <= NAME_BYTES_MAX);
        taken |= name;
    }
    taken
        | taken_again::<Digest>(text)
        | one_spelling::<Quota>(text)
        | one_spelling::<Role>(text)
        | taken_again::<ModuleRef>(text)
        | taken_again::<ModelRef>(text)
        | taken_again::<SwarmPath>(text)
        | taken_again::<Host>(text)
        | taken_again::<HttpGrant>(text)
        | taken_again::<Permission>(text)
}

fn one_spelling<T: FromStr + Display>(text: &str) -> bool {
    let read: Option<T> = text.parse().ok();
    if let Some(read) = &read {
        assert_eq!(read.to_string(), text, "taken, and written in another way");
    }
    read.is_some()
}

fn taken_again<T: FromStr + Display + PartialEq + Debug>(text: &str) -> bool
where
    T::Err: Debug + Display,
{
    match text.parse::<T>() {
        Ok(read) => {
            let shown = read.to_string();
            let again = shown.parse::<T>();
            assert!(
                again.as_ref().is_ok_and(|again| *again == read),
                "{text:?} is {read:?}, shown as {shown:?}, which is {again:?}"
            );
            true
        }
        Err(why) => {
            assert!(!why.to_string().is_empty());
            false
        }
    }
}
