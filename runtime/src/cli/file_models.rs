//! The models of `filter`: files that are loaded once, without a node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use skep_inference::backend::tract::Tract;
use skep_inference::limits::THREAD_STACK_BYTES;
use skep_inference::{Batcher, Bounds, InferError, Limits, Model, Policy, Subject, Threads};
use skep_model::Bytes;
use skep_model::error::ErrorKind;
use skep_model::id::Digest;
use skep_model::limits::MODELS_PER_STAGE_MAX;
use skep_model::name::{ModelRef, TenantId};
use skep_model::predict::{Later, ModelAccess, ModelVersion, Models, PredictError, Tensors};

use super::failure::{Exit, Failure, Outcome};
use super::models;

/// What a stage's `models:` grants, of files. They run as on a node without settings: on tract, with its checks.
pub async fn given(files: &[(ModelRef, PathBuf)]) -> Outcome<Option<Arc<ModelAccess>>> {
    if files.is_empty() {
        return Ok(None);
    }
    if files.len() > MODELS_PER_STAGE_MAX {
        let what = format!("{} models; a Bee calls at most {MODELS_PER_STAGE_MAX}", files.len());
        return Err(Failure::new(Exit::Usage, what));
    }
    let threads = Threads::start(1).map_err(|e| Failure::new(Exit::Failed, format!("start a thread: {e}")))?;
    let mut kept = BTreeMap::new();
    for (name, file) in files {
        let bytes = Bytes::from(models::read(file).await?);
        let model = load(file, bytes.clone()).await?;
        let version = ModelVersion {
            name: name.name.clone(),
            digest: Digest::of(&bytes),
            tags: Vec::new(),
            signature: model.signature().clone(),
        };
        let batcher = Batcher::new(model, Policy::default(), Bounds::default(), Arc::clone(&threads));
        if kept.insert(name.clone(), (Arc::new(version), batcher)).is_some() {
            let what = format!("the model `{name}` is given twice");
            return Err(Failure::new(Exit::Usage, what));
        }
    }
    Ok(Some(Arc::new(ModelAccess {
        granted: kept.keys().cloned().collect(),
        models: Arc::new(Files(kept)),
        tenant: TenantId::default_tenant(),
    })))
}

/// On a thread of its own: a model may need a deep stack.
async fn load(file: &Path, bytes: Bytes) -> Outcome<Model> {
    let (done, loaded) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().stack_size(THREAD_STACK_BYTES);
    let begun = thread.spawn(move || drop(done.send(Model::load(&Tract::new(), &bytes, &Limits::default()))));
    begun.map_err(|e| Failure::new(Exit::Failed, format!("start a thread: {e}")))?;
    let failed = |why: String| Failure::new(Exit::Refused, format!("{}: {why}", file.display()));
    match loaded.await {
        Ok(loaded) => loaded.map_err(|e| failed(e.to_string())),
        Err(_) => Err(failed("its load was given up".to_owned())),
    }
}

#[derive(Debug)]
struct Files(BTreeMap<ModelRef, (Arc<ModelVersion>, Arc<Batcher>)>);

impl Models for Files {
    fn find<'a>(&'a self, _: &'a TenantId, model: &'a ModelRef) -> Later<'a, Arc<ModelVersion>> {
        Box::pin(async move {
            let found = self.0.get(model).map(|(version, _)| Arc::clone(version));
            found.ok_or_else(|| {
                let text = format!("no model `{model}`: give its file with --model {model}=FILE.onnx");
                PredictError::new(ErrorKind::NotFound, text)
            })
        })
    }

    fn list<'a>(&'a self, _: &'a TenantId) -> Later<'a, Vec<Arc<ModelVersion>>> {
        Box::pin(async { Ok(self.0.values().map(|(version, _)| Arc::clone(version)).collect()) })
    }

    fn load<'a>(&'a self, _: &'a TenantId, _: &'a ModelVersion) -> Later<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn predict<'a>(
        &'a self,
        tenant: &'a TenantId,
        model: &'a ModelVersion,
        inputs: Tensors,
        deadline: Option<Instant>,
    ) -> Later<'a, Tensors> {
        Box::pin(async move {
            let told = |error: &InferError| PredictError::new(error.kind(), error.to_string());
            model
                .signature
                .check(&inputs)
                .map_err(|e| told(&InferError::Input(e)))?;
            let same = |(version, _): &&(Arc<ModelVersion>, Arc<Batcher>)| **version == *model;
            let Some((_, batcher)) = self.0.values().find(same) else {
                return Err(PredictError::new(
                    ErrorKind::NotFound,
                    format!("no model `{}`", model.name),
                ));
            };
            let answer = batcher.infer(Subject::named(tenant.as_str()), inputs, deadline).await;
            answer.map_err(|e| told(&e))
        })
    }
}
