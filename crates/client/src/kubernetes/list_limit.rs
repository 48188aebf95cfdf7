//! Bounds the size of a page of a list. Tenants may write more than a megabyte of labels into each object, and kube
//! holds up to three copies of the text of a page.

use std::{
    error::Error,
    task::{Context, Poll},
};

use futures::{FutureExt as _, TryFutureExt as _, future::BoxFuture};
use http::{Request, Response};
use http_body_util::{LengthLimitError, Limited};
use kube::client::Body;
use tower::Service;

/// A layer that ends the response to a list with an error after `longest` bytes.
#[derive(Clone)]
pub(super) struct ListLimit<S> {
    pub(super) inner: S,
    pub(super) longest: usize,
}

impl<S, B> Service<Request<Body>> for ListLimit<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<Limited<B>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_list =
            request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("limit=")));
        let longest = if is_list { self.longest } else { usize::MAX };
        self.inner.call(request).map_ok(move |response| response.map(|body| Limited::new(body, longest))).boxed()
    }
}

/// Whether the error of a list means that its page was too long.
pub fn is_too_long(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |cause| (*cause).source());
    causes.any(|cause| cause.is::<LengthLimitError>())
}
