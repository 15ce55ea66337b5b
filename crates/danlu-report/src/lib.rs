//! Self-contained HTML pages: charts, tables, galleries of pictures and sounds.
//!
//! A page is one file. It asks nothing of the network (a content policy in its head forbids it),
//! carries its pictures and sounds as data URLs, follows the reader's light or dark setting, and
//! works on a phone, from the keyboard and with a screen reader. Without JavaScript everything is
//! still there; with it, charts have a readout and sounds a small play button.
//!
//! This crate knows nothing of models, tasks or metrics: callers hand it words, numbers and bytes,
//! and every word is escaped here.

mod chart;
mod gallery;
mod html;
mod table;

use std::fs;
use std::io::{self, Write};
use std::path::Path;

pub use chart::{Bar, BarChart, LineChart, Series};
pub use gallery::{Card, Part};
pub use table::{Cell, Table};

use html::{escape, language};

/// A number worth showing large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// What it is.
    pub label: String,
    /// The number with its unit, as it should read.
    pub value: String,
    /// A few words below it; may be empty.
    pub note: String,
}

/// The tone of a [`Page::note`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteKind {
    /// Something to know.
    Info,
    /// Something that went well.
    Good,
    /// Something to be careful about.
    Warning,
}

/// A page under construction: every call adds a block below the ones before.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    body: String,
    sections: Vec<String>,
    blocks: usize,
}

impl Page {
    /// An empty page.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), body: String::new(), sections: Vec::new(), blocks: 0 }
    }

    /// The opening paragraph, set larger than the others.
    pub fn lead(&mut self, text: &str) -> &mut Self {
        self.push(&format!("<p class=\"lead\"{}>{}</p>\n", language(text), escape(text)))
    }

    /// Starts a section. A page of three sections or more gets a list of them at its top.
    pub fn section(&mut self, title: &str) -> &mut Self {
        self.sections.push(title.to_owned());
        let id = self.sections.len();
        self.push(&format!("<h2 id=\"s{id}\"{}>{}</h2>\n", language(title), escape(title)))
    }

    /// A paragraph. Line breaks in `text` are kept.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.push(&format!("<p{}>{}</p>\n", language(text), escape(text)))
    }

    /// A row of large numbers.
    pub fn figures(&mut self, figures: &[Figure]) -> &mut Self {
        let mut out = String::from("<dl class=\"figures\">\n");
        for figure in figures {
            out += &format!(
                "<div><dt>{}</dt><dd class=\"value\">{}</dd>",
                escape(&figure.label),
                escape(&figure.value)
            );
            if !figure.note.is_empty() {
                out += &format!("<dd class=\"note\">{}</dd>", escape(&figure.note));
            }
            out += "</div>\n";
        }
        out += "</dl>\n";
        self.push(&out)
    }

    /// A table; its first column names the rows.
    pub fn table(&mut self, table: &Table) -> &mut Self {
        let id = self.next_id();
        self.push(&table.html(id))
    }

    /// A line chart.
    pub fn lines(&mut self, chart: &LineChart) -> &mut Self {
        self.push(&chart.html())
    }

    /// A bar chart.
    pub fn bars(&mut self, chart: &BarChart) -> &mut Self {
        self.push(&chart.html())
    }

    /// Examples, as cards. Where cards carry verdicts, the reader can keep the hits or the misses.
    pub fn gallery(&mut self, caption: &str, cards: &[Card]) -> &mut Self {
        self.push(&gallery::html(caption, cards))
    }

    /// A folded block of preformatted text, such as a recipe. `language` is shown beside the title.
    pub fn code(&mut self, title: &str, language: &str, text: &str) -> &mut Self {
        self.push(&format!(
            "<details class=\"code\"><summary>{} <small>{}</small></summary>\
             <pre tabindex=\"0\" role=\"region\" aria-label=\"{}\"><code>{}</code></pre></details>\n",
            escape(title),
            escape(language),
            escape(title),
            escape(text)
        ))
    }

    /// Links to pages beside this one, as `(words, file)`.
    pub fn links(&mut self, links: &[(&str, &str)]) -> &mut Self {
        let each = links
            .iter()
            .map(|(words, file)| format!("<a href=\"{}\">{}</a>", escape(file), escape(words)));
        self.push(&format!("<p>{}</p>\n", each.collect::<Vec<_>>().join(" · ")))
    }

    /// A paragraph set apart.
    pub fn note(&mut self, kind: NoteKind, text: &str) -> &mut Self {
        let (class, word) = match kind {
            NoteKind::Info => ("info", "Note"),
            NoteKind::Good => ("good", "Good"),
            NoteKind::Warning => ("warning", "Careful"),
        };
        self.push(&format!(
            "<p class=\"aside {class}\"{}><strong>{word}.</strong> {}</p>\n",
            language(text),
            escape(text)
        ))
    }

    /// The whole page.
    pub fn render(&self) -> String {
        let title = escape(&self.title);
        let mut contents = String::new();
        if self.sections.len() >= 3 {
            contents += "<nav aria-label=\"Sections\"><ul>";
            for (i, section) in self.sections.iter().enumerate() {
                contents += &format!("<li><a href=\"#s{}\">{}</a></li>", i + 1, escape(section));
            }
            contents += "</ul></nav>\n";
        }
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             img-src data:; media-src data:; style-src 'unsafe-inline'; \
             script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n\
             <h1{}>{title}</h1>\n{contents}{}</main>\n<script>\n{}</script>\n</body>\n</html>\n",
            include_str!("page.css"),
            language(&self.title),
            self.body,
            include_str!("page.js"),
        )
    }

    /// Writes the page to `path`, whole or not at all: a temporary file beside it is renamed over
    /// it, so a reader never sees half a page.
    pub fn write(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let written = fs::File::create(&temporary)
            .and_then(|mut file| {
                file.write_all(self.render().as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            // The first error is the one to tell; the temporary file may not even exist.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn push(&mut self, html: &str) -> &mut Self {
        self.body += html;
        self
    }

    fn next_id(&mut self) -> usize {
        self.blocks += 1;
        self.blocks
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A page with one of everything, all of its words being `word`.
    fn everything(word: &str) -> Page {
        let w = || word.to_owned();
        let mut page = Page::new(word);
        page.lead(word).section(word).section(word).section(word).text(word);
        page.figures(&[Figure { label: w(), value: w(), note: w() }]);
        page.table(&Table {
            caption: w(),
            head: vec![w(), w(), w()],
            rows: vec![vec![w().into(), Cell::number(1.0, 2), Cell::Missing]],
        });
        let points = (0..1000).map(|i| (f64::from(i), f64::from(i % 7))).collect::<Vec<_>>();
        page.lines(&LineChart {
            title: w(),
            x_label: w(),
            y_label: w(),
            log_y: false,
            series: vec![
                Series { name: w(), points: points.clone(), dashed: false },
                Series { name: w(), points, dashed: true },
            ],
        });
        page.bars(&BarChart {
            title: w(),
            unit: w(),
            mark_label: w(),
            bars: vec![Bar { label: w(), value: 2.0, low: 1.0, high: 3.0, mark: Some(4.0) }],
        });
        page.gallery(
            word,
            &[Card {
                title: w(),
                parts: vec![
                    Part::Text(w()),
                    Part::Quote(w()),
                    Part::Picture { png: vec![1, 2, 3], alt: w(), label: w() },
                    Part::Arrow,
                    Part::Sound { wav: vec![1, 2, 3], label: w() },
                    Part::Verdict { ok: true, text: w() },
                ],
            }],
        );
        page.code(word, word, word).note(NoteKind::Warning, word);
        page
    }

    /// Checks that tags nest and close, and returns how many elements there are.
    fn elements(page: &str) -> usize {
        const VOID: [&str; 6] = ["meta", "img", "input", "br", "rect", "line"];
        let mut open: Vec<&str> = Vec::new();
        let mut rest = page;
        let mut count = 0;
        while let Some(start) = rest.find('<') {
            rest = &rest[start + 1..];
            let end = rest.find('>').unwrap();
            let tag = &rest[..end];
            assert!(!tag.contains('<'), "a tag inside the tag <{tag}>");
            assert_eq!(tag.matches('"').count() % 2, 0, "quotes of <{tag}>");
            rest = &rest[end + 1..];
            let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap();
            if tag.starts_with('!') {
                continue;
            }
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "</{name}> closes another element");
            } else if !VOID.contains(&name) && !tag.ends_with('/') {
                open.push(name);
                count += 1;
                if name == "script" || name == "style" {
                    let close = format!("</{name}>");
                    rest = &rest[rest.find(&close).unwrap()..];
                }
            }
        }
        assert!(open.is_empty(), "left open: {open:?}");
        count
    }

    #[test]
    fn every_word_is_escaped() {
        let page = everything("<b a='1' c=\"2\">&\u{0}").render();
        assert!(!page.contains("<b a"));
        assert!(!page.contains('\u{0}'));
        // An attribute broken open would show as a bare quote or as a double escape.
        assert!(!page.contains("c=\"2\""));
        assert!(!page.contains("&amp;lt;"));
        assert!(page.matches("&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;\u{fffd}").count() > 25);
        assert_eq!(elements(&page), elements(&everything("plain").render()));
    }

    #[test]
    fn tags_nest_and_close() {
        assert!(elements(&everything("plain").render()) > 60);
        assert!(elements(&Page::new("empty").render()) > 5);
    }

    #[test]
    fn nothing_refers_outside() {
        let page = everything("plain").render();
        for outside in ["http:", "https:", "//cdn", "@import", "url(", "src=\"/", "fetch("] {
            assert!(!page.contains(outside), "{outside}");
        }
        for link in page.split("href=\"").skip(1) {
            assert!(link.starts_with('#'));
        }
        for source in page.split(" src=\"").skip(1) {
            assert!(source.starts_with("data:"));
        }
    }

    #[test]
    fn charts_and_media_have_words() {
        let page = everything("plain").render();
        for picture in page.split("<img").skip(1) {
            assert!(picture.split('>').next().unwrap().contains("alt=\"plain\""));
        }
        for svg in page.split("<svg").skip(1) {
            let tag = svg.split('>').next().unwrap();
            assert!(tag.contains("aria-label=\"plain") || tag.contains("aria-hidden=\"true\""));
        }
        assert_eq!(page.matches("<table").count(), page.matches("<caption").count());
    }

    #[test]
    fn sections_are_listed_from_three_on() {
        assert!(!Page::new("t").section("a").section("b").render().contains("<nav"));
        let page = Page::new("t").section("a").section("b").section("c").render();
        assert!(page.contains("<a href=\"#s3\">c</a>") && page.contains("id=\"s3\">c</h2>"));
    }

    #[test]
    fn a_page_is_written_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("danlu-report-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("run.html");
        fs::write(&path, "old").unwrap();
        let page = everything("plain");
        page.write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), page.render());
        // A folder cannot be replaced by a file: the error is told and nothing is left behind.
        fs::create_dir(folder.join("taken")).unwrap();
        assert!(page.write(folder.join("taken")).is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
    }
}
