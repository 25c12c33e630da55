//! The web page's files, before everything else at the address of gRPC: a GET is for the page, gRPC always posts.
//!
//! They are the same for everybody and tell nothing of a cluster, so nobody has to be known to get them. What the page then
//! calls goes the way of every call. What another site has a browser send is turned away: by what the browser says of it, and
//! where there is no login, by the name that it believes to talk to.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use crescendo_page::File;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body_util::Full;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tower::{Layer, Service};

/// Scripts and styles of its own alone, calls to its own origin alone, and in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; \
     worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const INDEX: &str = "/index.html";
/// Their names hold a hash of their content.
const HASHED: &str = "/assets/";
const NOT_BUILT: &str = "This controller was built without the web page. Build web/ with Node 20 or newer (make setup), then the controller.\n";
const SWITCHED_OFF: &str = "The web page of this controller is switched off (--web-page).\n";
const FOREIGN: &str = "This comes from another site, or by a name that is not this machine's.\n";
const NO_SUCH_FILE: &str = "There is no such page here. The page is at /\n";

/// Puts the page before a server's services.
#[derive(Clone, Copy, Debug)]
pub struct PageLayer {
    files: &'static [File],
    shown: bool,
    /// There is no login, so that only this machine's own names are good.
    dev: bool,
}

impl PageLayer {
    pub fn new(shown: bool, dev: bool) -> Self {
        Self { files: crescendo_page::files(), shown, dev }
    }
}

impl<S> Layer<S> for PageLayer {
    type Service = Page<S>;

    fn layer(&self, inner: S) -> Page<S> {
        Page { inner, page: *self }
    }
}

/// Services behind [`PageLayer`].
#[derive(Clone, Debug)]
pub struct Page<S> {
    inner: S,
    page: PageLayer,
}

impl<S, Req> Service<http::Request<Req>> for Page<S>
where
    S: Service<http::Request<Req>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Req>) -> Self::Future {
        let is_head = request.method() == Method::HEAD;
        let is_foreign = self.page.is_foreign(request.version(), request.headers());
        let answer = match *request.method() {
            Method::GET | Method::HEAD if !is_foreign => {
                self.page.answer(request.uri().path(), request.headers())
            }
            _ if is_foreign => plain(StatusCode::FORBIDDEN, FOREIGN),
            _ => return Box::pin(self.inner.call(request)),
        };
        let answer = answer.map(|content| match is_head {
            true => Body::empty(),
            false => Body::new(Full::new(content)),
        });
        Box::pin(async { Ok(answer) })
    }
}

impl PageLayer {
    /// A browser sends this for another site, or believes another site to be here.
    fn is_foreign(&self, version: Version, headers: &HeaderMap) -> bool {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        // A link that leads here is followed from anywhere; such a request asks for a document.
        let follows_link = text("sec-fetch-mode") == Some("navigate");
        let is_of_another = text("sec-fetch-site")
            .is_some_and(|site| !matches!(site, "same-origin" | "none"))
            && !follows_link;
        // Without TLS browsers speak HTTP/1.1 alone.
        let is_misnamed =
            self.dev && version <= Version::HTTP_11 && !text(HOST.as_str()).is_some_and(is_this_machine);
        is_of_another || is_misnamed
    }

    fn answer(&self, path: &str, headers: &HeaderMap) -> http::Response<Bytes> {
        if !self.shown {
            return plain(StatusCode::NOT_FOUND, SWITCHED_OFF);
        }
        if self.files.is_empty() {
            return plain(StatusCode::NOT_FOUND, NOT_BUILT);
        }
        let path = if path == "/" { INDEX } else { path };
        let Some((file, content_type)) =
            self.files.iter().find(|file| file.path == path).and_then(|file| Some((file, type_of(file)?)))
        else {
            return plain(StatusCode::NOT_FOUND, NO_SUCH_FILE);
        };
        let packed = accepts_gzip(headers);
        let mut response = http::Response::new(Bytes::from_static(match packed {
            true => file.gzipped,
            false => file.content,
        }));
        let set = response.headers_mut();
        protect(set);
        set.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        set.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        if packed {
            set.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let keep = match file.path.starts_with(HASHED) {
            true => "public, max-age=31536000, immutable",
            false => "no-cache",
        };
        set.insert(CACHE_CONTROL, HeaderValue::from_static(keep));
        response
    }
}

/// `host` or `host:port` of a header names this machine's loopback.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A sentence in place of a page.
fn plain(status: StatusCode, text: &'static str) -> http::Response<Bytes> {
    let mut response = http::Response::new(Bytes::from_static(text.as_bytes()));
    *response.status_mut() = status;
    let set = response.headers_mut();
    protect(set);
    set.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    set.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    set.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
    response
}

fn protect(headers: &mut HeaderMap) {
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    for (name, value) in
        [("cross-origin-opener-policy", "same-origin"), ("cross-origin-resource-policy", "same-origin")]
    {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// None of a file that a page has no use for.
fn type_of(file: &File) -> Option<&'static str> {
    match file.path.rsplit_once('.')?.1 {
        "html" => Some("text/html; charset=utf-8"),
        "js" => Some("text/javascript; charset=utf-8"),
        "css" => Some("text/css; charset=utf-8"),
        "svg" => Some("image/svg+xml"),
        "txt" => Some("text/plain; charset=utf-8"),
        _ => None,
    }
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim().eq_ignore_ascii_case("gzip") && !matches!(weight.trim(), "q=0" | "q=0.0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    static FILES: [File; 2] = [
        File { path: "/assets/a-1.js", content: b"let a", gzipped: b"packed" },
        File { path: "/index.html", content: b"<!doctype html>", gzipped: b"small" },
    ];

    fn page(files: &'static [File], shown: bool) -> PageLayer {
        PageLayer { files, shown, dev: true }
    }

    fn header<'a>(response: &'a http::Response<Bytes>, name: &str) -> &'a str {
        response.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[test]
    fn hashed_files_are_kept_and_the_index_is_asked_for_again() {
        let page = page(&FILES, true);
        let index = page.answer("/", &HeaderMap::new());
        assert_eq!((index.status(), index.body().as_ref()), (StatusCode::OK, b"<!doctype html>".as_ref()));
        assert_eq!(header(&index, "cache-control"), "no-cache");
        assert_eq!(header(&index, "content-type"), "text/html; charset=utf-8");
        let script = page.answer("/assets/a-1.js", &HeaderMap::new());
        assert_eq!(header(&script, "cache-control"), "public, max-age=31536000, immutable");
        assert_eq!(header(&script, "content-type"), "text/javascript; charset=utf-8");
    }

    #[test]
    fn every_answer_is_protected() {
        for (files, path) in [(FILES.as_slice(), "/"), (&FILES, "/nothing"), (&[], "/")] {
            let answer = page(files, true).answer(path, &HeaderMap::new());
            let policy = header(&answer, "content-security-policy");
            assert!(
                policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
                "{path}: {policy}"
            );
            assert_eq!(header(&answer, "x-content-type-options"), "nosniff", "{path}");
            assert_eq!(header(&answer, "referrer-policy"), "no-referrer", "{path}");
        }
    }

    #[test]
    fn what_is_not_there_says_so() {
        let absent = page(&[], true).answer("/", &HeaderMap::new());
        assert_eq!((absent.status(), absent.body().as_ref()), (StatusCode::NOT_FOUND, NOT_BUILT.as_bytes()));
        let off = page(&FILES, false).answer("/", &HeaderMap::new());
        assert_eq!((off.status(), off.body().as_ref()), (StatusCode::NOT_FOUND, SWITCHED_OFF.as_bytes()));
        let unknown = page(&FILES, true).answer("/../Cargo.toml", &HeaderMap::new());
        assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn who_takes_gzip_gets_it() {
        let asked = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            let answer = page(&FILES, true).answer("/", &headers);
            (answer.body().clone(), header(&answer, "content-encoding").to_owned())
        };
        let (packed, plain) = (Bytes::from_static(b"small"), Bytes::from_static(b"<!doctype html>"));
        for (accepts, content, encoding) in [
            ("gzip, deflate, br", &packed, "gzip"),
            ("br;q=1.0, GZIP;q=0.5", &packed, "gzip"),
            ("gzip;q=0, br", &plain, ""),
            ("identity", &plain, ""),
        ] {
            assert_eq!(asked(accepts), (content.clone(), encoding.to_owned()), "{accepts}");
        }
    }

    #[test]
    fn what_another_site_sends_is_turned_away() {
        let foreign = |version, dev, given: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            PageLayer { files: &FILES, shown: true, dev }.is_foreign(version, &headers)
        };
        let (old, new) = (Version::HTTP_11, Version::HTTP_2);
        for host in ["127.0.0.1:7400", "localhost", "LOCALHOST:1", "[::1]:7400"] {
            assert!(!foreign(old, true, &[("host", host)]), "{host}");
        }
        for host in ["evil.example:7400", "127.0.0.1.evil.example", "10.0.0.1", ""] {
            assert!(foreign(old, true, &[("host", host)]), "{host}");
            assert!(!foreign(old, false, &[("host", host)]), "{host}: who calls is known there");
        }
        assert!(!foreign(new, true, &[]), "programs");
        assert!(foreign(new, false, &[("sec-fetch-site", "cross-site")]));
        assert!(foreign(new, false, &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")]));
        assert!(!foreign(new, false, &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]));
        assert!(!foreign(new, false, &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")]));
    }
}
