//! The seam between those who call models (Bees, stages, doors) and the node that has them.
//!
//! Who a model belongs to, what a name means now, where its bytes are and which calls run together is the node's matter. What is
//! asked and answered is tensors by name.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use crate::error::ErrorKind;
use crate::id::Digest;
use crate::name::{ModelName, ModelRef, NAME_BYTES_MAX, TenantId};
use crate::tensor::{Signature, Tensor};

/// Tensors of a call, or of its answer, by name: inputs in any order, outputs in the model's.
pub type Tensors = Vec<(String, Tensor)>;

/// One version of a model, as a name meant it when it was asked for. Holding it keeps nothing in memory and stops no deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelVersion {
    pub name: ModelName,
    pub digest: Digest,
    /// Every tag that names it now, in order.
    pub tags: Vec<String>,
    pub signature: Signature,
}

/// Why a model was not found or gave no answer. A model has no effects, so every call may be tried again; whether that has a
/// point is said by `kind`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct PredictError {
    /// `NotFound`: no such model. `Invalid`: the inputs do not fit, and the text names what would. `Overloaded`: busy, or no memory for
    /// it now. `DeadlineExceeded`, `Failed` (the model itself), `Rejected` (it cannot be loaded), `Unavailable` (its bytes cannot be had now).
    pub kind: ErrorKind,
    pub text: String,
}

impl PredictError {
    #[must_use]
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { kind, text }
    }
}

/// The models that one stage may call, as its manifest lists them.
#[derive(Debug, Clone)]
pub struct ModelAccess {
    pub models: Arc<dyn Models>,
    pub tenant: TenantId,
    pub granted: BTreeSet<ModelRef>,
}

impl ModelAccess {
    /// What a Bee means by a name: an entry of its manifest as it is written there, or the bare name of its only entry of that model.
    ///
    /// # Errors
    /// `Forbidden`: it is not granted. `Invalid`: the name means several of its entries.
    pub fn named(&self, name: &str) -> Result<&ModelRef, PredictError> {
        let wanted = name.parse::<ModelRef>().ok();
        if let Some(granted) = wanted.as_ref().and_then(|wanted| self.granted.get(wanted)) {
            return Ok(granted);
        }
        let mut of_name = self.granted.iter().filter(|granted| granted.name.as_str() == name);
        match (of_name.next(), of_name.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(PredictError::new(
                ErrorKind::Invalid,
                format!(
                    "`{name}` may be one of several models here: name one as the manifest does, {}",
                    self.shown()
                ),
            )),
            (None, _) => Err(not_granted(name, &self.shown())),
        }
    }

    fn shown(&self) -> String {
        let all: Vec<String> = self.granted.iter().map(|model| format!("`{model}`")).collect();
        all.join(", ")
    }
}

/// A Bee asks for a model that its manifest does not list. `granted`: what it lists, as text; it may be empty.
#[must_use]
pub fn not_granted(name: &str, granted: &str) -> PredictError {
    let name: String = name.chars().take(2 * NAME_BYTES_MAX).collect();
    let hint = name
        .parse::<ModelRef>()
        .map_or_else(|_| String::from("NAME"), |_| name.clone());
    let has = if granted.is_empty() {
        String::from("it is granted no model")
    } else {
        format!("it is granted {granted}")
    };
    PredictError::new(
        ErrorKind::Forbidden,
        format!("model {name:?} is not granted to this Bee ({has}): add `models: [{hint}]` to it in the manifest"),
    )
}

/// What comes later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T, PredictError>> + Send + 'a>>;

/// The models of a node, for whoever may call them. Implemented by the node; tests have their own.
///
/// Contract: a tenant reaches its own models only, and what is another's is answered as what is nobody's. A tag means what it means at the
/// time of [`Models::find`]; a call runs the version that was found, also when the tag moves meanwhile, unless that version is deleted.
/// Inputs are checked against the signature before anything waits. Dropping a future gives the call up. Nothing panics.
pub trait Models: Debug + Send + Sync + 'static {
    /// What a name means now. Loads nothing.
    fn find<'a>(&'a self, tenant: &'a TenantId, model: &'a ModelRef) -> Later<'a, Arc<ModelVersion>>;

    /// All models of a tenant by name, each in the version tagged `latest`, or the one pushed last.
    fn list<'a>(&'a self, tenant: &'a TenantId) -> Later<'a, Vec<Arc<ModelVersion>>>;

    /// That a version is in memory, loaded now if it is not.
    fn load<'a>(&'a self, tenant: &'a TenantId, model: &'a ModelVersion) -> Later<'a, ()>;

    /// Calls a model. Needs a tokio runtime around it.
    fn predict<'a>(
        &'a self,
        tenant: &'a TenantId,
        model: &'a ModelVersion,
        inputs: Tensors,
        deadline: Option<Instant>,
    ) -> Later<'a, Tensors>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct None;

    impl Models for None {
        fn find<'a>(&'a self, _: &'a TenantId, _: &'a ModelRef) -> Later<'a, Arc<ModelVersion>> {
            unreachable!()
        }

        fn list<'a>(&'a self, _: &'a TenantId) -> Later<'a, Vec<Arc<ModelVersion>>> {
            unreachable!()
        }

        fn load<'a>(&'a self, _: &'a TenantId, _: &'a ModelVersion) -> Later<'a, ()> {
            unreachable!()
        }

        fn predict<'a>(
            &'a self,
            _: &'a TenantId,
            _: &'a ModelVersion,
            _: Tensors,
            _: Option<Instant>,
        ) -> Later<'a, Tensors> {
            unreachable!()
        }
    }

    #[test]
    fn a_name_means_what_the_manifest_lists() {
        let access = |granted: &[&str]| ModelAccess {
            models: Arc::new(None),
            tenant: TenantId::default_tenant(),
            granted: granted.iter().map(|model| model.parse().unwrap()).collect(),
        };
        let pinned = format!("d@{}", Digest::of(b"d"));
        let some = access(&["a", "b:v1", "c:v1", "c:v2", &pinned]);
        for (name, means) in [
            ("a", "a:latest"),
            ("a:latest", "a:latest"),
            ("b", "b:v1"),
            ("b:v1", "b:v1"),
            ("c:v2", "c:v2"),
            ("d", &pinned),
            (&pinned, &pinned),
        ] {
            assert_eq!(some.named(name).unwrap().to_string(), means);
        }
        assert_eq!(some.named("c").unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(access(&["c", "c:v2"]).named("c").unwrap().to_string(), "c:latest");
        for name in ["b:latest", "e", "", "A b", &"x".repeat(10_000)] {
            let error = some.named(name).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Forbidden, "{name}");
            assert!(error.text.len() < 700, "{error}");
        }
        let told = access(&[]).named("e").unwrap_err().text;
        assert!(
            told.contains("granted no model") && told.contains("`models: [e]`"),
            "{told}"
        );
    }
}
