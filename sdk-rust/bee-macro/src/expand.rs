//! From the user's function to the function and its registration.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ItemFn;
use syn::spanned::Spanned as _;

use crate::attribute::Options;
use crate::signature;

/// On a mistake the function itself is still emitted, so that the only error a user sees is the one that matters and
/// not also "cannot find function" at each of its callers.
pub fn expand(args: TokenStream, item: TokenStream) -> TokenStream {
    match try_expand(args, item.clone()) {
        Ok(tokens) => tokens,
        Err(error) => {
            let error = error.to_compile_error();
            quote! { #item #error }
        }
    }
}

fn try_expand(args: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    let options = Options::parse(args)?;
    let function: ItemFn = syn::parse2(item.clone()).map_err(|_| {
        syn::Error::new_spanned(
            &item,
            "`#[skep::bee]` goes on a function: write `fn(swarm: &mut Swarm, message: Message)`",
        )
    })?;
    signature::check(&function, options.batch)?;
    let name = signature::name(&function.sig.ident, options.name.as_ref())?;

    let mut register = if signature::joins(&function) {
        let adapter = adapter(&function, quote!(::skep::Joined));
        quote! { ::skep::__private::Bee::joined(#name, #adapter) }
    } else if options.batch {
        let adapter = adapter(&function, quote!(::std::vec::Vec<::skep::Message>));
        quote! { ::skep::__private::Bee::batch(#name, #adapter) }
    } else {
        let adapter = adapter(&function, quote!(::skep::Message));
        quote! { ::skep::__private::Bee::one(#name, #adapter) }
    };
    if let Some(timer) = &options.timer {
        register = quote_spanned! {timer.span()=>
            #register.with_timer(|swarm: &mut ::skep::Swarm, timer: ::skep::Timer| -> ::skep::Result {
                ::skep::__private::IntoResult::into_result(#timer(swarm, timer))
            })
        };
    }
    let cfgs = function.attrs.iter().filter(|attr| attr.path().is_ident("cfg"));
    Ok(quote! {
        #function

        #(#cfgs)*
        ::skep::__private::submit! { #register }
    })
}

/// A closure without captures: it becomes the function pointer that the registry holds. Its parts carry the spans of the
/// user's signature, so that a type which does not fit is underlined where the user wrote it.
fn adapter(function: &ItemFn, input: TokenStream) -> TokenStream {
    let ident = &function.sig.ident;
    let span = |argument: usize| match &function.sig.inputs[argument] {
        syn::FnArg::Typed(typed) => typed.ty.span(),
        syn::FnArg::Receiver(receiver) => receiver.span(),
    };
    let output = match &function.sig.output {
        syn::ReturnType::Default => ident.span(),
        syn::ReturnType::Type(_, ty) => ty.span(),
    };
    // `swarm` and `input` are bound under the macro's own name resolution and only reported elsewhere.
    let here = proc_macro2::Span::mixed_site();
    let swarm = syn::Ident::new("swarm", span(0).resolved_at(here));
    let value = syn::Ident::new("input", span(1).resolved_at(here));
    let result = quote_spanned! {output=> ::skep::__private::IntoResult::into_result };
    quote! { |#swarm: &mut ::skep::Swarm, #value: #input| -> ::skep::Result { #result(#ident(#swarm, #value)) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(args: TokenStream, item: TokenStream) -> String {
        expand(args, item).to_string()
    }

    #[test]
    fn a_bee_is_registered_under_its_name_and_stays_a_function() {
        let out = expanded(
            quote!(),
            quote! { pub fn say_hello(swarm: &mut Swarm, message: Message) -> skep::Result { Ok(()) } },
        );
        assert!(
            out.contains("pub fn say_hello (swarm : & mut Swarm , message : Message)"),
            "{out}"
        );
        assert!(out.contains("Bee :: one (\"say-hello\""), "{out}");
        assert!(!out.contains("with_timer"), "{out}");
        syn::parse_str::<syn::File>(&out).unwrap();

        let out = expanded(
            quote!(name = "w2", timer = timers::fired),
            quote! { #[cfg(feature = "x")] fn r#loop(s: &mut Swarm, m: Message) {} },
        );
        assert!(out.contains("Bee :: one (\"w2\""), "{out}");
        assert!(out.contains("timers :: fired (swarm , timer)"), "{out}");
        assert_eq!(out.matches("cfg (feature = \"x\")").count(), 2, "{out}");
        syn::parse_str::<syn::File>(&out).unwrap();

        let out = expanded(quote!(), quote! { fn vote(s: &mut Swarm, parts: skep::Joined) {} });
        assert!(out.contains("Bee :: joined (\"vote\""), "{out}");

        let out = expanded(quote!(), quote! { fn r#loop(s: &mut Swarm, m: Message) -> () {} });
        assert!(out.contains("Bee :: one (\"loop\""), "{out}");
        let out = expanded(
            quote!(batch),
            quote! { fn all(s: &mut Swarm, m: Vec<Message>) -> Result<(), E> {} },
        );
        assert!(out.contains("Bee :: batch (\"all\""), "{out}");
    }

    #[test]
    fn each_wrong_form_gets_an_error_that_names_the_remedy() {
        const FORM: &str = "fn(swarm: &mut Swarm, message: Message)";
        let cases: Vec<(TokenStream, TokenStream, &[&str])> = vec![
            (quote!(), quote! { struct Hello; }, &["goes on a function", FORM]),
            (
                quote!(),
                quote! { async fn f(s: &mut Swarm, m: Message) {} },
                &["cannot be `async`", FORM],
            ),
            (
                quote!(),
                quote! { unsafe fn f(s: &mut Swarm, m: Message) {} },
                &["cannot be `unsafe`", FORM],
            ),
            (
                quote!(),
                quote! { extern "C" fn f(s: &mut Swarm, m: Message) {} },
                &["not `extern`", FORM],
            ),
            (
                quote!(),
                quote! { fn f<T>(s: &mut Swarm, m: T) {} },
                &["cannot be generic", FORM],
            ),
            (quote!(), quote! { fn f(&self, m: Message) {} }, &["no `self`", FORM]),
            (
                quote!(),
                quote! { fn f(m: Message) {} },
                &["two arguments, this one takes 1", FORM],
            ),
            (
                quote!(),
                quote! { fn f() {} },
                &["two arguments, this one takes 0", FORM],
            ),
            (
                quote!(),
                quote! { fn f(s: Swarm, m: Message) {} },
                &["as `&mut Swarm`", FORM],
            ),
            (
                quote!(),
                quote! { fn f(s: &Swarm, m: Message) {} },
                &["as `&mut Swarm`", FORM],
            ),
            (
                quote!(),
                quote! { fn f(s: &mut Swarm, m: &Message) {} },
                &["owns what it is given", FORM],
            ),
            (
                quote!(),
                quote! { fn f(s: &mut Swarm, m: Vec<Message>) {} },
                &["#[skep::bee(batch)]", FORM],
            ),
            (
                quote!(batch),
                quote! { fn f(s: &mut Swarm, m: Message) {} },
                &["messages: Vec<Message>"],
            ),
            (
                quote!(),
                quote! { fn f(s: &mut Swarm, m: Message) -> String {} },
                &["returns nothing or `skep::Result`"],
            ),
            (
                quote!(),
                quote! { fn f(s: &mut Swarm, m: Message) -> &'static str {} },
                &["returns nothing or"],
            ),
            (
                quote!(),
                quote! { fn Hello(s: &mut Swarm, m: Message) {} },
                &["cannot name a Bee", "name ="],
            ),
            (
                quote!(),
                quote! { fn _f(s: &mut Swarm, m: Message) {} },
                &["cannot name a Bee", "name ="],
            ),
            (
                quote!(name = "Hello"),
                quote! { fn f(s: &mut Swarm, m: Message) {} },
                &["a DNS label"],
            ),
            (
                quote!(name = ""),
                quote! { fn f(s: &mut Swarm, m: Message) {} },
                &["it is empty"],
            ),
            (
                quote!(name = "a", name = "b"),
                quote! { fn f(s: &mut Swarm, m: Message) {} },
                &["given twice"],
            ),
            (
                quote!(nam = "a"),
                quote! { fn f(s: &mut Swarm, m: Message) {} },
                &["unknown option", "timer = path"],
            ),
        ];
        for (args, item, parts) in cases {
            let out = expanded(args, item.clone());
            assert!(out.contains("compile_error"), "{item} was taken");
            assert!(!out.contains("submit !"), "{item} was registered");
            // The message is a string literal in the tokens, so quotes in it are escaped.
            let out = out.replace("\\\"", "\"");
            for part in parts {
                assert!(out.contains(part), "{item}: no `{part}` in {out}");
            }
        }
        let long = "x".repeat(64);
        let out = expanded(quote!(name = #long), quote! { fn f(s: &mut Swarm, m: Message) {} });
        assert!(out.contains("more than 63 bytes"), "{out}");
    }
}
