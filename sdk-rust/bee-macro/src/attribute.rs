//! What stands in the brackets: `#[skep::bee(name = "…", timer = path, batch)]`.

use proc_macro2::TokenStream;
use syn::parse::Parser;
use syn::{LitStr, Path};

/// The options of one Bee, as written.
#[derive(Default)]
pub struct Options {
    pub name: Option<LitStr>,
    pub timer: Option<Path>,
    pub batch: bool,
}

impl Options {
    pub fn parse(args: TokenStream) -> syn::Result<Self> {
        let mut options = Self::default();
        syn::meta::parser(|meta| {
            let twice = |present: bool| {
                if present {
                    Err(meta.error("this option is given twice: remove one"))
                } else {
                    Ok(())
                }
            };
            if meta.path.is_ident("name") {
                twice(options.name.is_some())?;
                options.name = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("timer") {
                twice(options.timer.is_some())?;
                options.timer = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("batch") {
                twice(options.batch)?;
                options.batch = true;
            } else {
                return Err(
                    meta.error("unknown option: `#[skep::bee]` knows `name = \"…\"`, `timer = path` and `batch`")
                );
            }
            Ok(())
        })
        .parse2(args)?;
        Ok(options)
    }
}
