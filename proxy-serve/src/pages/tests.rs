// SPDX-License-Identifier: Apache-2.0

//! Tests the pages, in particular with malicious texts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Arg, Command};
use http_body_util::BodyExt as _;
use hyper::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;

/// Names that an attacker would choose.
const HOSTILE: [&str; 6] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "</title></style><b>&amp;",
    "gnp\u{202e}.exe",
    "one\r\ntwo",
];

struct Shown;

impl Handler for Shown {
    async fn get(&self, path: &str, _: Option<&str>) -> Reply {
        text(StatusCode::NOT_FOUND, path.to_owned())
    }

    fn moved(&self, host: &str, path: &str, _: Option<&str>) -> Option<String> {
        (path == "/old").then(|| format!("//{host}/new"))
    }
}

impl Pages for Shown {
    const PATHS: &'static [&'static str] = &["/metrics", "/healthz"];

    async fn page(&self) -> Page {
        page(&HOSTILE)
    }
}

const COLUMNS: [Column; 2] = [Column::words("Name"), Column::numbers("Bytes")];

/// Returns a page that contains the texts in all places that accept text.
fn page(texts: &[&str]) -> Page {
    let mut page = Page::named(format!("name {}", texts.join("")));
    page.facts("Facts", texts.iter().map(|text| ("fact", Cell::good(text))));
    let row = |text: &&str| vec![Cell::text(text), Cell::bytes(2048)];
    page.table("Table", Table::of(&COLUMNS, texts, row));
    page
}

fn served() -> Served<Shown> {
    let command = Command::new("program");
    let mut command = command
        .arg(Arg::new("name").long("name").default_value("a\nforged=1"))
        .arg(Arg::new("password").long("password").default_value("pw"));
    let matches = command.try_get_matches_from_mut(["program"]).unwrap();
    let about = About {
        program: "program",
        version: "1.2.3",
        flags: Values::read(&command, &matches),
    };
    Served::new(about, Shown)
}

async fn get(path: &str) -> (Reply, String) {
    let mut reply = served().get(path, None).await;
    let body = reply.body_mut().collect().await.unwrap().to_bytes();
    (reply, String::from_utf8(body.to_vec()).unwrap())
}

fn document(page: &Page) -> String {
    let head = html::Head {
        program: "program",
        version: "1",
        up: uptime(Duration::ZERO),
        now: unix_date(SystemTime::UNIX_EPOCH),
        paths: paths::<Shown>(),
    };
    html::document(&head, page)
}

/// Returns the document's tags, without those that every document has.
fn tags(document: &str) -> Vec<&str> {
    document
        .split('<')
        .skip(1)
        .map(|tag| tag.split('>').next().unwrap())
        .collect()
}

#[tokio::test]
async fn statusz_is_in_kubernetes_format() {
    let (reply, body) = get("/statusz").await;
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
    assert_eq!(reply.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
    let lines: Vec<&str> = body.split('\n').collect();
    assert_eq!(lines[..4], ["", "program statusz", WARNING, ""]);
    assert!(lines[4].starts_with("Started: ") && lines[4].contains(" UTC "));
    assert_eq!(
        lines[5..],
        [
            "Up: 0 hr 00 min 00 sec",
            "Binary version: 1.2.3",
            "",
            "Paths: /flagz /healthz /metrics /statusz",
            "",
        ]
    );
}

#[tokio::test]
async fn flagz_has_a_line_for_each_flag_and_no_secret() {
    let (reply, body) = get("/flagz").await;
    assert_eq!(reply.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
    let want = format!("\nprogram flagz\n{WARNING}\nname=a\\nforged=1\npassword=CLASSIFIED\n");
    assert_eq!(body, want);
}

#[tokio::test]
async fn other_paths_are_the_handlers() {
    assert_eq!(get("/x").await.1, "/x");
    assert_eq!(get("/statusz/").await.1, "/statusz/");
    let moved = served().moved("a", "/old", None);
    assert_eq!(moved.as_deref(), Some("//a/new"));
}

#[tokio::test]
async fn the_page_allows_browsers_nothing_but_its_style() {
    let (reply, body) = get("/").await;
    let headers = reply.headers();
    assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8");
    assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
    let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
    let (_, style) = body.split_once("<style>").unwrap();
    let (style, _) = style.split_once("</style>").unwrap();
    let hash = STANDARD.encode(Sha256::digest(style));
    assert!(policy.contains(&format!("'sha256-{hash}'")), "{hash}");
    assert!(!policy.contains("unsafe"));
}

#[test]
fn hostile_texts_add_no_tag() {
    let harmless = HOSTILE.map(|_| "x");
    assert_eq!(
        tags(&document(&page(&HOSTILE))),
        tags(&document(&page(&harmless)))
    );
    let shown = document(&page(&HOSTILE));
    for text in [
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "&quot;&gt;&lt;img src=x onerror=alert(1)&gt;",
        "&lt;/title&gt;&lt;/style&gt;&lt;b&gt;&amp;amp;",
        "gnp\\u{202e}.exe",
        "one\\r\\ntwo",
    ] {
        assert!(shown.contains(text), "{text} in {shown}");
    }
}

proptest! {
    /// No arbitrary text adds a tag either.
    #[test]
    fn no_text_adds_a_tag(text: String) {
        let shown = document(&page(&[&text]));
        let plain = document(&page(&["x"]));
        prop_assert_eq!(tags(&shown), tags(&plain));
    }
}

#[test]
fn pages_are_bounded() {
    let long = "<".repeat(1000);
    let mut names: Vec<String> = (0..10_000)
        .rev()
        .map(|number| format!("{number:05}{long}"))
        .collect();
    smallest(&mut names, Ord::cmp);
    let mut page = Page::default();
    let row = |name: &String| vec![Cell::text(name), Cell::size(0)];
    page.table("Agents", Table::of(&COLUMNS, &names, row));
    let document = document(&page);
    assert!(document.contains("100 of 10000 are shown."));
    let first = document.find("00000&lt;").unwrap();
    assert!(first < document.find("00099&lt;").unwrap());
    assert!(!document.contains("00100&lt;"));
    assert!(document.len() < 300_000, "{}", document.len());
}

#[test]
fn an_empty_table_says_so() {
    let mut page = Page::default();
    page.table("Repairs", Table::of(&COLUMNS, [(); 0], |()| Vec::new()));
    assert!(document(&page).contains("<h2>Repairs</h2><p>None.</p>"));
}

#[test]
fn few_items_are_sorted() {
    let mut names = ["b", "c", "a"];
    smallest(&mut names, Ord::cmp);
    assert_eq!(names, ["a", "b", "c"]);
    smallest(&mut [""; 0], Ord::cmp);
}

#[test]
fn times_are_written_as_go_does() {
    let at = |seconds| unix_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(at(0), "Thu Jan  1 00:00:00 UTC 1970");
    assert_eq!(at(1_795_211_753), "Fri Nov 20 21:55:53 UTC 2026");
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    assert_eq!(unix_date(before), at(0));
    assert_eq!(
        uptime(Duration::from_secs(100 * 3600 + 61)),
        "100 hr 01 min 01 sec"
    );
}
