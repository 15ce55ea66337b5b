//! The page: four files in the binary, which ask nothing of any other host.

use crate::http::error::bytes_response;
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};

/// What the page may do: run and show what comes from here, record sound, and ask this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data: blob:; media-src 'self' data: blob:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, text: &'static str) -> Response<Body> {
    let mut response = bytes_response(StatusCode::OK, kind, text.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

pub(super) async fn html() -> Response<Body> {
    file("text/html; charset=utf-8", include_str!("../page/index.html"))
}

pub(super) async fn script() -> Response<Body> {
    file("text/javascript; charset=utf-8", include_str!("../page/app.js"))
}

pub(super) async fn style() -> Response<Body> {
    file("text/css; charset=utf-8", include_str!("../page/app.css"))
}

pub(super) async fn icon() -> Response<Body> {
    file("image/svg+xml", include_str!("../page/icon.svg"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_refers_outside() {
        let files = [
            include_str!("../page/index.html"),
            include_str!("../page/app.js"),
            include_str!("../page/app.css"),
        ];
        for text in files {
            for outside in ["http://", "https://", "src=\"//", "url(//", "@import", "innerHTML"] {
                assert!(!text.contains(outside), "{outside}");
            }
        }
        // As many words in one language as in the other.
        let [en, zh] = ["  en: {", "  zh: {"].map(|start| {
            let words = files[1].split_once(start).expect("words").1;
            let words = words.split_once("examples:").expect("an end").0;
            words.matches(": \"").count()
        });
        assert_eq!(en, zh);
        assert!(!files[0].contains("<script>") && !files[0].contains(" style="), "kept by the CSP");
    }
}
