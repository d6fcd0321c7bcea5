//! What a Bee's function must look like, and what to say when it does not.

use syn::{FnArg, Ident, ItemFn, LitStr, ReturnType, Type};

/// Longest name of a Bee, in bytes: a DNS label's (RFC 1123), as the node checks it at upload.
const NAME_BYTES_MAX: usize = 63;

/// Checks what tokens alone can tell; types proper are left to the compiler, because they may be aliases.
pub fn check(function: &ItemFn, batch: bool) -> syn::Result<()> {
    let signature = &function.sig;
    let form = if batch {
        "fn(swarm: &mut Swarm, messages: Vec<Message>)"
    } else {
        "fn(swarm: &mut Swarm, message: Message)"
    };
    let wrong =
        |at: &dyn quote::ToTokens, what: &str| Err(syn::Error::new_spanned(at, format!("{what}: write `{form}`")));

    if let Some(asyncness) = &signature.asyncness {
        return wrong(
            asyncness,
            "a Bee cannot be `async`, because a module's exports are synchronous",
        );
    }
    if let Some(unsafety) = &signature.unsafety {
        return wrong(unsafety, "a Bee cannot be `unsafe`");
    }
    if let Some(abi) = &signature.abi {
        return wrong(abi, "a Bee is an ordinary function, not `extern`");
    }
    if !signature.generics.params.is_empty() {
        return wrong(
            &signature.generics,
            "a Bee cannot be generic, because skep calls it by its name",
        );
    }
    if let Some(receiver) = signature.receiver() {
        return wrong(receiver, "a Bee is a free function, it has no `self`");
    }
    let inputs: Vec<&FnArg> = signature.inputs.iter().collect();
    let [first, second] = inputs.as_slice() else {
        return wrong(
            &signature.ident,
            &format!("a Bee takes two arguments, this one takes {}", inputs.len()),
        );
    };
    if let FnArg::Typed(first) = first
        && !matches!(&*first.ty, Type::Reference(reference) if reference.mutability.is_some())
    {
        return wrong(&first.ty, "a Bee takes the Swarm as `&mut Swarm`");
    }
    if let FnArg::Typed(second) = second
        && matches!(&*second.ty, Type::Reference(_))
    {
        return wrong(
            &second.ty,
            "a Bee owns what it is given, so that payloads move without a copy",
        );
    }
    if let FnArg::Typed(second) = second
        && is_named(&second.ty, "Vec") != batch
    {
        let what = if batch {
            "a batch Bee takes all messages at once"
        } else {
            "a Bee takes one message; for all messages of a batch say `#[skep::bee(batch)]`. Otherwise"
        };
        return wrong(&second.ty, what);
    }
    match &signature.output {
        ReturnType::Default => Ok(()),
        ReturnType::Type(_, ty) if is_unit(ty) || !matches!(&**ty, Type::Path(_)) => {
            if is_unit(ty) {
                Ok(())
            } else {
                wrong(
                    ty,
                    "a Bee returns nothing or `skep::Result`; what it publishes goes to the Swarm",
                )
            }
        }
        ReturnType::Type(_, ty) if is_plain_value(ty) => wrong(
            ty,
            "a Bee returns nothing or `skep::Result`; what it publishes goes to the Swarm",
        ),
        ReturnType::Type(..) => Ok(()),
    }
}

/// Whether the function takes what a join brings together.
pub fn joins(function: &ItemFn) -> bool {
    matches!(function.sig.inputs.iter().nth(1), Some(FnArg::Typed(second)) if is_named(&second.ty, "Joined"))
}

fn is_unit(ty: &Type) -> bool {
    matches!(ty, Type::Tuple(tuple) if tuple.elems.is_empty())
}

fn is_named(ty: &Type, name: &str) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|s| s.ident == name))
}

/// Values that people return by mistake. An alias of `Result` may have any other name, so nothing else is refused here.
fn is_plain_value(ty: &Type) -> bool {
    ["String", "Vec", "Option", "Message", "Emit", "Payload", "Value", "bool"]
        .iter()
        .any(|name| is_named(ty, name))
}

/// The Bee's name: what the attribute says, else the function's own name with `-` for `_`.
pub fn name(function: &Ident, given: Option<&LitStr>) -> syn::Result<LitStr> {
    use syn::ext::IdentExt as _;

    let Some(given) = given else {
        let name = function.unraw().to_string().replace('_', "-");
        return match complaint(&name) {
            None => Ok(LitStr::new(&name, function.span())),
            Some(why) => Err(syn::Error::new(
                function.span(),
                format!(
                    "`{name}`, made from the function's name, cannot name a Bee: {why}; say `#[skep::bee(name = \"…\")]`"
                ),
            )),
        };
    };
    match complaint(&given.value()) {
        None => Ok(given.clone()),
        Some(why) => Err(syn::Error::new(
            given.span(),
            format!("`{}` cannot name a Bee: {why}", given.value()),
        )),
    }
}

fn complaint(name: &str) -> Option<&'static str> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        Some("it is empty")
    } else if bytes.len() > NAME_BYTES_MAX {
        Some("it has more than 63 bytes")
    } else if !bytes.iter().all(|&b| ok(b) || b == b'-') || !ok(bytes[0]) || !ok(bytes[bytes.len() - 1]) {
        Some("use a-z, 0-9 and `-`, first and last a letter or digit (a DNS label)")
    } else {
        None
    }
}
