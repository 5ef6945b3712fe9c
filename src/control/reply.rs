//! The shape of every error: as in the client protocol, with the HTTP status beside it.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use serde::de::DeserializeOwned;

use crate::protocol::encode;
use crate::protocol::error::{ErrorCode, Refusal};

/// A refusal with the HTTP status that goes with it.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    refusal: Refusal,
}

impl Failure {
    pub(super) fn new(status: StatusCode, refusal: Refusal) -> Self {
        Self { status, refusal }
    }

    /// The refusal, where there is no status to say it with.
    pub(super) fn refusal(&self) -> &Refusal {
        &self.refusal
    }

    pub(super) fn bad_request(message: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Refusal::new(ErrorCode::BadRequest, message))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.code {
            ErrorCode::Unauthorized | ErrorCode::TokenExpired => StatusCode::UNAUTHORIZED,
            ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
            ErrorCode::UnknownRoom | ErrorCode::NotFound | ErrorCode::UnknownType => StatusCode::NOT_FOUND,
            ErrorCode::Already | ErrorCode::Conflict | ErrorCode::UnrecoverableCursor => StatusCode::CONFLICT,
            ErrorCode::LimitExceeded | ErrorCode::InboxFull => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
            ErrorCode::NotAvailable => StatusCode::NOT_IMPLEMENTED,
            ErrorCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Busy | ErrorCode::Degraded => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, refusal }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut body = Vec::with_capacity(128);
        encode::error(&mut body, None, &self.refusal);
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.refusal.retry_after_ms > 0 {
            let seconds = self.refusal.retry_after_ms.div_ceil(1_000);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// What a path names, or the error in our shape.
pub(super) struct Named<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let named = Path::from_request_parts(parts, state).await;
        named.map(|Path(named)| Self(named)).map_err(|rejection| Failure::bad_request(rejection.body_text()))
    }
}

/// 404 for paths that do not exist.
pub(super) async fn no_such_path() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, Refusal::new(ErrorCode::NotFound, "there is nothing at this path"))
}

/// 405 for paths that exist.
pub(super) async fn no_such_method() -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        Refusal::new(ErrorCode::BadRequest, "this path does not take that method; see the Allow header"),
    )
}
