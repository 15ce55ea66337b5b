//! The routes. To add one: a file with its handler, a line in [`ROUTES`], its path in
//! `openapi.json`.

mod chat;
mod completions;
mod embeddings;
mod images;
mod models;
mod page;
mod speech;
mod state;
pub(crate) mod tools;
mod transcriptions;

use crate::app::App;
use crate::http::error::ApiError;
use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};
use std::sync::Arc;

/// What a path answers.
struct Route {
    path: &'static str,
    handler: fn() -> MethodRouter<Arc<App>>,
}

/// The API, all of it in `openapi.json`.
#[rustfmt::skip]
const ROUTES: &[Route] = &[
    Route { path: "/v1/chat/completions", handler: || post(chat::chat) },
    Route { path: "/v1/completions", handler: || post(completions::completions) },
    Route { path: "/v1/images/generations", handler: || post(images::images) },
    Route { path: "/v1/audio/speech", handler: || post(speech::speech) },
    Route { path: "/v1/audio/transcriptions", handler: || post(transcriptions::transcriptions) },
    Route { path: "/v1/embeddings", handler: || post(embeddings::embeddings) },
    Route { path: "/v1/models", handler: || get(models::list) },
    Route { path: "/v1/models/{model}", handler: || get(models::one) },
    Route { path: "/health", handler: || get(state::health) },
    Route { path: "/ready", handler: || get(state::ready) },
    Route { path: "/metrics", handler: || get(state::metrics) },
    Route { path: "/openapi.json", handler: || get(state::openapi) },
];

/// The page.
#[rustfmt::skip]
const PAGE: &[Route] = &[
    Route { path: "/", handler: || get(page::html) },
    Route { path: "/app.js", handler: || get(page::script) },
    Route { path: "/app.css", handler: || get(page::style) },
    Route { path: "/icon.svg", handler: || get(page::icon) },
];

/// The path of the route that a path leads to, as it stands here.
pub(crate) fn known(path: &str) -> Option<&'static str> {
    let leads = |route: &str| match route.split_once('{') {
        Some((before, _)) => path.strip_prefix(before).is_some_and(|rest| !rest.is_empty()),
        None => route == path,
    };
    ROUTES.iter().chain(PAGE).map(|route| route.path).find(|route| leads(route))
}

/// All routes with what is around them.
pub(crate) fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in ROUTES.iter().chain(PAGE) {
        router = router.route(route.path, (route.handler)());
    }
    router
        .fallback(async || {
            ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path").code("not_found")
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path has other methods; see Allow")
                .code("method_not_allowed")
        })
        .layer(from_fn_with_state(app.clone(), crate::http::guard::guard))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use super::ROUTES;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_is_documented() {
        let document: serde_json::Value =
            serde_json::from_str(super::state::OPENAPI).expect("JSON");
        let written = document["paths"].as_object().expect("paths");
        let written: BTreeSet<&str> = written.keys().map(String::as_str).collect();
        let routes = ROUTES.iter().map(|r| r.path);
        assert_eq!(routes.collect::<BTreeSet<_>>(), written);
    }

    #[test]
    fn what_is_passed_over_is_documented_and_the_rest_is_refused() {
        let document: serde_json::Value =
            serde_json::from_str(super::state::OPENAPI).expect("JSON");
        let schemas = &document["components"]["schemas"];
        let written = schemas["Ignored"]["properties"].as_object().expect("names");
        let written: BTreeSet<&str> = written.keys().map(String::as_str).collect();
        assert_eq!(crate::ask::IGNORED.into_iter().collect::<BTreeSet<_>>(), written);
        for (path, operations) in document["paths"].as_object().expect("paths") {
            let content = &operations["post"]["requestBody"]["content"];
            for body in content.as_object().into_iter().flat_map(|content| content.values()) {
                let at = body["schema"]["$ref"].as_str().and_then(|name| name.rsplit('/').next());
                let schema = at.map_or(&body["schema"], |name| &schemas[name]);
                let closed = ["additionalProperties", "unevaluatedProperties"];
                assert!(closed.iter().any(|key| schema[key] == false), "{path}");
            }
        }
    }
}
