//! Counts every call of the API, by method and status, with the time until its answer begins.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use futures::future::BoxFuture;
use tonic::{
    Code,
    codegen::{Service, http::Request, http::Response},
};
use tower_layer::Layer;

use crate::metrics;

/// Puts [`Counted`] around the services.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

/// The services, with every call counted.
#[derive(Clone, Debug)]
pub struct Counted<S>(S);

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, services: S) -> Counted<S> {
        Counted(services)
    }
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (path, start) = (request.uri().path().to_owned(), Instant::now());
        let answering = self.0.call(request);
        Box::pin(async move {
            let response = answering.await?;
            let code = code(&response);
            metrics::request(method(&path, code), name(code), start.elapsed());
            Ok(response)
        })
    }
}

/// A refusal stands in the headers. What begins to answer counts as well, although a stream may break later.
fn code<R>(response: &Response<R>) -> Code {
    let status = response.headers().get("grpc-status");
    status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()))
}

/// `Jobs/GetJob`. What nobody serves is one label value: a caller must not be able to make up series.
fn method(path: &str, code: Code) -> String {
    if code == Code::Unimplemented {
        return "unknown".to_owned();
    }
    let path = path.trim_start_matches('/');
    path.strip_prefix("lorafleet.v1.").unwrap_or(path).to_owned()
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_named_by_its_method_and_status() {
        assert_eq!(method("/lorafleet.v1.Jobs/GetJob", Code::NotFound), "Jobs/GetJob");
        assert_eq!(method("/grpc.health.v1.Health/Check", Code::Ok), "grpc.health.v1.Health/Check");
        assert_eq!(method("/made/up-by-a-scanner", Code::Unimplemented), "unknown");
        let refused = Response::builder().header("grpc-status", "5").body(()).unwrap();
        assert_eq!(name(code(&refused)), "NOT_FOUND");
        assert_eq!(name(code(&Response::new(()))), "OK");
    }
}
