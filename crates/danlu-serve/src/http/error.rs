//! Errors as clients of the API know them: `{"error":{"message","type","param","code"}}`, all four
//! keys always there.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

/// What a handler gives.
pub(crate) type Answer<T = Response<Body>> = Result<T, ApiError>;

/// An error that the client is told.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    /// Seconds after which to try again.
    pub(crate) retry: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry: None }
    }

    /// A parameter that cannot work.
    pub(crate) fn bad(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = Some(param.into());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A parameter that is not what it should be.
    pub(crate) fn expected(
        param: impl Into<String>,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Self {
        let param = param.into();
        let message = format!("`{param}`: expected {expected}, found {found}");
        Self::bad(param, message)
    }

    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn retry(self, seconds: u64) -> Self {
        Self { retry: Some(seconds), ..self }
    }

    /// Something of ours went wrong; the log has it, the client is not told what.
    pub(crate) fn internal(what: impl std::fmt::Display) -> Self {
        tracing::error!(error = %what, "internal error");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed on this request")
            .code("internal_error")
    }

    fn kind(&self) -> &'static str {
        // As the official API, which tells a wrong key and a model that is not there by the code.
        match self.status.as_u16() {
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

/// Every place is taken; there may be one after so many seconds.
pub(crate) fn full(retry: u64) -> ApiError {
    let message = "too many requests: the queue is full";
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).code("queue_full").retry(retry)
}

impl From<danlu_core::Error> for ApiError {
    fn from(error: danlu_core::Error) -> Self {
        match error {
            danlu_core::Error::Parameter { ref name, .. } => {
                Self::bad(name.clone(), error.to_string())
            }
            // Of files the client learns what was wrong, not where they are.
            danlu_core::Error::File { expected, found, .. } => {
                Self::new(StatusCode::BAD_REQUEST, format!("expected {expected}, found {found}"))
            }
            other => Self::internal(other),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, &self.json());
        if let Some(seconds) = self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// A response with a JSON body.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    bytes_response(status, "application/json", value.to_string().into_bytes())
}

/// A response with bytes of a kind.
pub(crate) fn bytes_response(
    status: StatusCode,
    kind: &'static str,
    bytes: Vec<u8>,
) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
