//! The body of a gRPC call: frames and their messages, of every method that a node serves, by the codecs that decode them there.

use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body_util::Full;
use prost::Message;
use skep_proto::bounded::Codec as Bounded;
use skep_proto::{inference, v1};
use tokio_stream::Stream as _;
use tonic::codec::{Codec, Streaming};

/// What a message may announce here. Its memory is taken at once, which is why a Gateway counts it as soon as it is announced (`gateway/src/body.rs`).
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The first byte chooses the message, the second whether the rest is a body or one message, to which a frame is put.
pub fn run(bytes: &[u8]) -> bool {
    let Some((&[of, framed], rest)) = bytes.split_first_chunk::<2>() else {
        return false;
    };
    let body = if framed & 1 == 0 {
        let mut body = vec![0];
        body.extend_from_slice(&u32::try_from(rest.len()).unwrap_or(u32::MAX).to_be_bytes());
        body.extend_from_slice(rest);
        Bytes::from(body)
    } else {
        Bytes::copy_from_slice(rest)
    };
    METHODS[usize::from(of) % METHODS.len()](body)
}

/// Decodes a body as a server does. Whether all of it was taken.
fn decode<T, C>(mut codec: C, body: Bytes) -> bool
where
    T: Message + Default + PartialEq + Debug + 'static,
    C: Codec<Decode = T>,
    C::Decoder: Send + 'static,
{
    let full: Full<Bytes> = Full::new(body);
    let full = http_body_util::BodyExt::map_err(full, |never: Infallible| match never {});
    let stream = Streaming::new_request(codec.decoder(), full, None, Some(MESSAGE_BYTES_MAX));
    let mut stream = pin!(stream);
    let mut cx = Context::from_waker(Waker::noop());
    let mut messages = 0;
    loop {
        match stream.as_mut().poll_next(&mut cx) {
            Poll::Ready(Some(Ok(message))) => {
                messages += 1;
                let again = T::decode(&message.encode_to_vec()[..]);
                assert!(
                    again.as_ref().is_ok_and(|again| same(again, &message)),
                    "{message:?} became {again:?}"
                );
            }
            Poll::Ready(Some(Err(status))) => {
                assert!(!status.message().is_empty());
                return false;
            }
            Poll::Ready(None) => return messages > 0,
            Poll::Pending => panic!("a body that is there is waited for"),
        }
    }
}

/// NaN is unlike itself. Then the sizes are compared, since maps are written in any order.
fn same<T: Message + PartialEq + Debug>(one: &T, other: &T) -> bool {
    one == other || (format!("{one:?}").contains("NaN") && one.encoded_len() == other.encoded_len())
}

macro_rules! methods {
    ($($module:ident::$message:ident,)*) => {
        /// What every method takes.
        const METHODS: &[fn(Bytes) -> bool] = &[$(|body| codec::$module::<$module::$message>(body),)*];
        /// Their names, as `package::Message`.
        pub const MESSAGES: &[&str] = &[$(concat!(stringify!($module), "::", stringify!($message)),)*];
    };
}

/// The codec of each package.
mod codec {
    use super::{Bounded, Bytes, Debug, Message, decode};

    pub fn v1<T: Message + Default + PartialEq + Debug + 'static>(body: Bytes) -> bool {
        decode(tonic_prost::ProstCodec::<T, T>::default(), body)
    }

    pub fn inference<T: Message + Default + PartialEq + Debug + 'static>(body: Bytes) -> bool {
        decode(Bounded::<T, T>::default(), body)
    }
}

methods! {
    v1::BootstrapRequest,
    v1::WhoAmIRequest,
    v1::CreateTenantRequest,
    v1::ListTenantsRequest,
    v1::SetTenantRequest,
    v1::DeleteTenantRequest,
    v1::CreateTokenRequest,
    v1::ListTokensRequest,
    v1::RevokeTokenRequest,
    v1::RotateTokenRequest,
    v1::UsageRequest,
    v1::ListAuditRequest,
    v1::VerifyAuditRequest,
    v1::PushModuleRequest,
    v1::ListModulesRequest,
    v1::DeleteModuleRequest,
    v1::ApplySwarmRequest,
    v1::ScaleStageRequest,
    v1::HoldSwarmRequest,
    v1::ListSwarmsRequest,
    v1::DescribeSwarmRequest,
    v1::DeleteSwarmRequest,
    v1::LogsRequest,
    v1::ListDeadLettersRequest,
    v1::DiscardDeadLettersRequest,
    v1::RedriveDeadLettersRequest,
    v1::TryDeadLetterRequest,
    v1::GetStateRequest,
    v1::ListStateRequest,
    v1::ImportStateRequest,
    v1::NodeRequest,
    v1::ListNodesRequest,
    v1::DrainNodeRequest,
    v1::BackupRequest,
    v1::RestoreRequest,
    v1::RequestCall,
    v1::SubmitCall,
    v1::SubmitFrame,
    v1::PushModelRequest,
    v1::ListModelsRequest,
    v1::TagModelRequest,
    v1::DeleteModelRequest,
    v1::SetBatchingRequest,
    v1::CountsRequest,
    v1::RecordedRequest,
    v1::SoundRequest,
    v1::SetSecretRequest,
    v1::ListSecretsRequest,
    v1::DeleteSecretRequest,
    v1::ResealSecretsRequest,
    inference::ServerLiveRequest,
    inference::ServerReadyRequest,
    inference::ModelReadyRequest,
    inference::ServerMetadataRequest,
    inference::ModelMetadataRequest,
    inference::ModelInferRequest,
    inference::RepositoryIndexRequest,
}
