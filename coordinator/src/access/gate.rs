//! The gate before the services: each call is let in with its caller, or refused with what it lacks.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use chrono::Utc;
use futures::future::BoxFuture;
use lorafleet_proto::bearer;
use tonic::{
    Status,
    codegen::{
        Service,
        http::{HeaderMap, Request, Response},
    },
};
use tower_layer::Layer;

use super::{
    needs::{Need, need},
    verdict::{Shown, judge},
};
use crate::{
    api::error::ApiError,
    db::within,
    tokens::{Keys, Secret},
};

/// Puts [`Guarded`] around the services.
#[derive(Clone, Debug)]
pub struct Gate {
    keys: Arc<Keys>,
    required: bool,
}

/// The services, behind the gate.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    services: S,
    gate: Gate,
}

impl Gate {
    /// A gate that knows these tokens. `required`: nobody gets in without one.
    pub fn new(keys: Arc<Keys>, required: bool) -> Self {
        Self { keys, required }
    }

    /// Reads what a call shows. One that needs nothing is not looked at.
    async fn look(&self, need: Need, headers: &HeaderMap) -> Result<Shown, ApiError> {
        let Some(header) = headers.get(bearer::HEADER).filter(|_| need != Need::Nothing) else {
            return Ok(Shown::Nothing);
        };
        let text = header.to_str().ok().and_then(bearer::read);
        let Some(secret) = text.and_then(Secret::parse) else { return Ok(Shown::Garbage) };
        let found = within(self.keys.find(secret.digest())).await?;
        Ok(found.map_or(Shown::Unknown, Shown::Token))
    }
}

impl<S> Layer<S> for Gate {
    type Service = Guarded<S>;

    fn layer(&self, services: S) -> Guarded<S> {
        Guarded { services, gate: self.clone() }
    }
}

impl<S, B, R> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Send + 'static,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let gate = self.gate.clone();
        // The one that was asked whether it is ready goes; its clone stays for the next call.
        let next = self.services.clone();
        let mut services = mem::replace(&mut self.services, next);
        Box::pin(async move {
            let need = need(request.uri().path());
            let judged = match gate.look(need, request.headers()).await {
                Ok(shown) => judge(need, shown, gate.required, Utc::now()).map_err(ApiError::from),
                Err(error) => Err(error),
            };
            match judged {
                Ok(Some(caller)) => drop(request.extensions_mut().insert(caller)),
                Ok(None) => {}
                Err(error) => return Ok(Status::from(error).into_http()),
            }
            services.call(request).await
        })
    }
}
