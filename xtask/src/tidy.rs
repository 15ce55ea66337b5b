//! The rules. To add one: write its function, add its line to [`RULES`], test it both ways.

use std::collections::BTreeSet;

use crate::source::{File, lines_with_word};

/// A rule of this repository.
pub(crate) struct Rule {
    /// How it is called in what it finds.
    pub(crate) name: &'static str,
    /// What it wants, in a line.
    pub(crate) what: &'static str,
    /// Where it does not hold.
    pub(crate) check: fn(&[File]) -> Vec<Finding>,
}

/// A place where a rule does not hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) path: String,
    /// From 1.
    pub(crate) line: usize,
    pub(crate) reason: String,
}

/// All rules.
#[rustfmt::skip]
pub(crate) const RULES: &[Rule] = &[
    Rule { name: "short-files", what: "no Rust file of a crate is over 1,000 lines", check: short_files },
    Rule { name: "unsafe-in-ops", what: "unsafe code is in danlu-ops only (peers that are measured apart)", check: unsafe_in_ops },
    Rule { name: "no-tensor-outside", what: "core, media, data, eval and report know no tensor", check: no_tensor_outside },
    Rule { name: "dependency-direction", what: "crates depend on each other by the table only", check: dependency_direction },
    Rule { name: "libraries-are-silent", what: "only the program, xtask, examples, benches and build scripts print", check: libraries_are_silent },
    Rule { name: "no-async", what: "async code is in danlu-serve only", check: no_async },
    Rule { name: "no-ignored-test", what: "every test runs", check: no_ignored_test },
    Rule { name: "recipe-comment", what: "every recipe begins by saying what it is", check: recipe_comment },
    Rule { name: "crate-doc", what: "every crate begins by saying what it is", check: crate_doc },
    Rule { name: "links", what: "relative links of Markdown files lead somewhere", check: links },
    Rule { name: "trailing-blanks", what: "no line of written text ends in a blank", check: trailing_blanks },
    Rule { name: "large-files", what: "files over 1 MB are weights, samples, goldens or documentation", check: large_files },
];

const LINES: usize = 1_000;
const LARGE: usize = 1_000_000;
const LARGE_FOLDERS: [&str; 4] = ["models/", "packs/sample/", "golden/", "docs/"];
const WITHOUT_TENSORS: [&str; 5] =
    ["danlu-core", "danlu-data", "danlu-media", "danlu-eval", "danlu-report"];

/// Which crates of this workspace each one may use. Data and model never meet below the loop.
const MAY_USE: &[(&str, &[&str])] = &[
    ("danlu-core", &[]),
    ("danlu-ops", &[]),
    ("danlu-report", &[]),
    ("danlu-media", &["danlu-core"]),
    ("danlu-data", &["danlu-core", "danlu-media"]),
    ("danlu-model", &["danlu-core", "danlu-media", "danlu-ops"]),
    ("danlu-eval", &["danlu-core", "danlu-media", "danlu-data", "danlu-report"]),
    (
        "danlu-train",
        &["danlu-core", "danlu-media", "danlu-ops", "danlu-data", "danlu-model", "danlu-report"],
    ),
    ("danlu-serve", &["danlu-core", "danlu-media", "danlu-model", "danlu-ops"]),
    (
        "danlu",
        &[
            "danlu-core",
            "danlu-media",
            "danlu-ops",
            "danlu-data",
            "danlu-model",
            "danlu-train",
            "danlu-eval",
            "danlu-report",
            "danlu-serve",
        ],
    ),
];

fn finding(file: &File, line: usize, reason: impl Into<String>) -> Finding {
    Finding { path: file.path.clone(), line, reason: reason.into() }
}

fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.path.ends_with(".rs"))
}

fn short_files(files: &[File]) -> Vec<Finding> {
    rust(files)
        .filter(|file| file.path.starts_with("crates/") && file.text.lines().count() > LINES)
        .map(|file| {
            let lines = file.text.lines().count();
            finding(file, LINES + 1, format!("{lines} lines, more than {LINES}: split it"))
        })
        .collect()
}

fn unsafe_in_ops(files: &[File]) -> Vec<Finding> {
    rust(files)
        .filter(|file| file.crate_name() != Some("danlu-ops"))
        // Programs beside Danlu that call the libraries of others.
        .filter(|file| !file.path.starts_with("benches/peers/"))
        .flat_map(|file| {
            lines_with_word(&file.code, "unsafe")
                .map(|line| finding(file, line, "unsafe code outside danlu-ops"))
        })
        .collect()
}

fn no_tensor_outside(files: &[File]) -> Vec<Finding> {
    let mut out = Vec::new();
    for file in files {
        let Some(name) = file.crate_name().filter(|name| WITHOUT_TENSORS.contains(name)) else {
            continue;
        };
        let reason = || format!("{name} must know no tensor: no burn here");
        if file.path.ends_with("/Cargo.toml") {
            let burn = |key: &str| key == "burn" || key.starts_with("burn-");
            let uses = dependencies(&file.text).into_iter().filter(|(_, key)| burn(key));
            out.extend(uses.map(|(line, _)| finding(file, line, reason())));
        }
        out.extend(lines_with_word(&file.code, "burn::").map(|line| finding(file, line, reason())));
    }
    out
}

/// The keys of all dependency tables of a Cargo.toml, with their lines.
fn dependencies(manifest: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    let mut inside = false;
    for (i, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            inside = table.ends_with("dependencies") && !table.starts_with("workspace");
            // The long form, `[dependencies.name]`.
            if let Some((_, key)) = table.split_once("dependencies.") {
                out.push((i + 1, key.trim_matches('"')));
            }
        } else if inside && !line.starts_with('#') && line.contains('=') {
            let key = line.split(['.', '=', ' ']).next().unwrap_or_default();
            out.push((i + 1, key.trim_matches('"')));
        }
    }
    out
}

fn dependency_direction(files: &[File]) -> Vec<Finding> {
    let mut out = Vec::new();
    for file in files {
        let Some(name) = file.crate_name() else { continue };
        if file.path != format!("crates/{name}/Cargo.toml") {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(of, _)| *of == name) else {
            let reason = format!("{name} is not in the table of xtask/src/tidy.rs: add it");
            out.push(finding(file, 1, reason));
            continue;
        };
        for (line, key) in dependencies(&file.text) {
            let ours = key == "danlu" || key.starts_with("danlu-");
            if ours && !allowed.contains(&key) {
                out.push(finding(file, line, format!("{name} may not depend on {key}")));
            }
        }
    }
    out
}

fn libraries_are_silent(files: &[File]) -> Vec<Finding> {
    let may_print = |file: &File| {
        let mut folders = file.path.split('/');
        file.path.starts_with("crates/danlu/")
            || file.path.starts_with("xtask/")
            || file.path.ends_with("/build.rs")
            || folders.any(|folder| folder == "examples" || folder == "benches")
    };
    let mut out = Vec::new();
    for file in rust(files).filter(|file| !may_print(file)) {
        for call in ["println!", "eprintln!", "print!", "eprint!", "dbg!"] {
            let lines = lines_with_word(&file.code, call);
            out.extend(lines.map(|line| finding(file, line, format!("{call} in a library"))));
        }
    }
    out
}

fn no_async(files: &[File]) -> Vec<Finding> {
    rust(files)
        .filter(|file| file.crate_name() != Some("danlu-serve"))
        .flat_map(|file| {
            lines_with_word(&file.code, "async")
                .map(|line| finding(file, line, "async code outside danlu-serve"))
        })
        .collect()
}

fn no_ignored_test(files: &[File]) -> Vec<Finding> {
    let mut out = Vec::new();
    for file in rust(files) {
        for (i, line) in file.code.lines().enumerate() {
            let line: String = line.split_whitespace().collect();
            if line.contains("#[ignore")
                || (line.starts_with("#[cfg_attr") && line.contains("ignore"))
            {
                out.push(finding(file, i + 1, "an ignored test: make it run or take it out"));
            }
        }
    }
    out
}

fn recipe_comment(files: &[File]) -> Vec<Finding> {
    files
        .iter()
        .filter(|file| file.path.starts_with("recipes/") && file.path.ends_with(".toml"))
        .filter(|file| {
            let first = file.text.lines().next().unwrap_or_default();
            first.strip_prefix('#').is_none_or(|words| words.trim().is_empty())
        })
        .map(|file| finding(file, 1, "the first line should be a comment on what it trains"))
        .collect()
}

fn crate_doc(files: &[File]) -> Vec<Finding> {
    let mut out = Vec::new();
    for manifest in files.iter().filter(|file| file.path.ends_with("Cargo.toml")) {
        let folder = manifest.path.trim_end_matches("Cargo.toml");
        if !manifest.text.lines().any(|line| line.trim() == "[package]") {
            continue;
        }
        let roots = ["src/lib.rs", "src/main.rs"].map(|root| format!("{folder}{root}"));
        for file in files.iter().filter(|file| roots.contains(&file.path)) {
            if !file.text.lines().any(|line| line.starts_with("//! ")) {
                out.push(finding(file, 1, "the crate has no //! line that says what it is"));
            }
        }
    }
    out
}

fn links(files: &[File]) -> Vec<Finding> {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for file in files {
        // The file and every folder above it.
        let ends = file.path.match_indices('/').map(|(at, _)| at).chain([file.path.len()]);
        known.extend(ends.map(|end| file.path[..end].to_owned()));
    }
    let mut out = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut fenced = false;
        for (i, line) in file.text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            }
            if fenced {
                continue;
            }
            for target in targets(line) {
                let outside = target.contains("://") || target.starts_with("mailto:");
                let path = target.split(['#', '?']).next().unwrap_or_default();
                if outside || path.is_empty() {
                    continue;
                }
                match resolve(folder, path) {
                    Some(path) if path.is_empty() || known.contains(&path) => {}
                    _ => out.push(finding(file, i + 1, format!("the link to {target} is dead"))),
                }
            }
        }
    }
    out
}

/// Where the links and pictures of a line of Markdown lead.
fn targets(line: &str) -> Vec<&str> {
    // Every second piece between backticks is code.
    let prose = line.split('`').step_by(2);
    let mut out = Vec::new();
    for piece in prose.clone() {
        for (open, close) in [("](", ')'), ("src=\"", '"'), ("href=\"", '"')] {
            for rest in piece.split(open).skip(1) {
                out.extend(rest.split(close).next());
            }
        }
    }
    // A link whose words are code is cut in two by the split above: `](` begins its second half,
    // so it is found like any other. What is left are definitions: `[name]: target`.
    if let Some((name, target)) = line.split_once("]: ")
        && name.starts_with('[')
        && !name.starts_with("[^")
    {
        out.push(target);
    }
    let bare = |target: &'_ str| -> usize { target.find([' ', '\t']).unwrap_or(target.len()) };
    out.into_iter()
        .map(|target| target.trim())
        .map(|target| &target[..bare(target)])
        .map(|target| target.trim_start_matches('<').trim_end_matches('>'))
        .collect()
}

/// `path` seen from `folder`, without dots; nothing if it leaves the repository.
fn resolve(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = match path.starts_with('/') {
        true => Vec::new(),
        false => folder.split('/').filter(|part| !part.is_empty()).collect(),
    };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn trailing_blanks(files: &[File]) -> Vec<Finding> {
    const WRITTEN: [&str; 9] =
        [".rs", ".toml", ".md", ".py", ".sh", ".css", ".js", ".ci/run", ".gitignore"];
    let mut out = Vec::new();
    for file in files.iter().filter(|file| WRITTEN.iter().any(|end| file.path.ends_with(end))) {
        for (i, line) in file.text.split('\n').enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                out.push(finding(file, i + 1, "a blank at the end of the line"));
            }
        }
    }
    out
}

fn large_files(files: &[File]) -> Vec<Finding> {
    files
        .iter()
        .filter(|file| file.size > LARGE)
        .filter(|file| !LARGE_FOLDERS.iter().any(|folder| file.path.starts_with(folder)))
        .map(|file| {
            let size = file.size as f64 / 1e6;
            finding(
                file,
                1,
                format!("{size:.1} MB; only {} hold large files", LARGE_FOLDERS.join(", ")),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Vec<File> {
        list.iter().map(|(path, text)| File::new(path, text.as_bytes().to_vec())).collect()
    }

    /// Runs a rule on files that keep it, and on files that break it at the given places.
    fn holds(name: &str, good: &[(&str, &str)], bad: &[(&str, &str)], places: &[(&str, usize)]) {
        let rule = RULES.iter().find(|rule| rule.name == name).expect("the rule is in the list");
        assert_eq!((rule.check)(&files(good)), []);
        let found = (rule.check)(&files(bad));
        let found: Vec<(&str, usize)> = found.iter().map(|f| (f.path.as_str(), f.line)).collect();
        assert_eq!(found, places);
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<&str> = RULES.iter().map(|rule| rule.name).collect();
        assert_eq!(names.len(), RULES.len());
    }

    #[test]
    fn short_files() {
        let (full, over) = ("x\n".repeat(1_000), "x\n".repeat(1_001));
        let bad = [("crates/a/src/b.rs", over.as_str())];
        let good = [("crates/a/src/b.rs", full.as_str()), ("a.md", over.as_str())];
        holds("short-files", &good, &bad, &[("crates/a/src/b.rs", 1_001)]);
    }

    #[test]
    fn unsafe_in_ops() {
        let bad = "fn f() {\n    unsafe { g() }\n}\n";
        let good = "// unsafe\nconst A: &str = \"unsafe\";\n#![deny(unsafe_code)]\n";
        holds(
            "unsafe-in-ops",
            &[
                ("crates/danlu-ops/src/lib.rs", bad),
                ("crates/danlu/src/main.rs", good),
                ("benches/peers/gemm/src/main.rs", bad),
            ],
            &[("crates/danlu-model/src/lib.rs", bad), ("benches/webgpu/src/main.rs", bad)],
            &[("crates/danlu-model/src/lib.rs", 2), ("benches/webgpu/src/main.rs", 2)],
        );
    }

    #[test]
    fn no_tensor_outside() {
        let code = "use burn::Tensor;\n";
        let manifest = "[dependencies]\nserde = \"1\"\nburn.workspace = true\n";
        holds(
            "no-tensor-outside",
            &[
                ("crates/danlu-model/src/lib.rs", code),
                ("crates/danlu-model/Cargo.toml", manifest),
                ("crates/danlu-data/src/lib.rs", "//! no burn::Tensor here\n"),
            ],
            &[
                ("crates/danlu-eval/src/lib.rs", code),
                ("crates/danlu-data/Cargo.toml", manifest),
                ("crates/danlu-core/Cargo.toml", "[dependencies.burn-core]\nversion = \"1\"\n"),
            ],
            &[
                ("crates/danlu-eval/src/lib.rs", 1),
                ("crates/danlu-data/Cargo.toml", 3),
                ("crates/danlu-core/Cargo.toml", 1),
            ],
        );
    }

    #[test]
    fn dependency_direction() {
        holds(
            "dependency-direction",
            &[(
                "crates/danlu-data/Cargo.toml",
                "[package]\nname = \"danlu-data\"\n[dependencies]\ndanlu-core.workspace = true\n\
                 # danlu-model.workspace = true\nserde = { version = \"1\" }\n",
            )],
            &[
                ("crates/danlu-data/Cargo.toml", "[dev-dependencies]\ndanlu-model = \"1\"\n"),
                (
                    "crates/danlu-model/Cargo.toml",
                    "[dependencies]\n\ndanlu-data.workspace = true\n",
                ),
                (
                    "crates/danlu-core/Cargo.toml",
                    "[dependencies]\ndanlu = { path = \"../danlu\" }\n",
                ),
                ("crates/danlu-new/Cargo.toml", "[package]\n"),
            ],
            &[
                ("crates/danlu-data/Cargo.toml", 2),
                ("crates/danlu-model/Cargo.toml", 3),
                ("crates/danlu-core/Cargo.toml", 2),
                ("crates/danlu-new/Cargo.toml", 1),
            ],
        );
    }

    #[test]
    fn the_table_has_no_circle() {
        for (i, (_, uses)) in MAY_USE.iter().enumerate() {
            for used in *uses {
                assert!(MAY_USE[..i].iter().any(|(name, _)| name == used), "{used} comes later");
            }
        }
    }

    #[test]
    fn libraries_are_silent() {
        let code = "fn f() {\n    println!(\"x\");\n}\n";
        holds(
            "libraries-are-silent",
            &[
                ("crates/danlu/src/main.rs", code),
                ("xtask/src/main.rs", code),
                ("crates/danlu-report/examples/demo.rs", code),
                ("crates/danlu-core/src/lib.rs", "/// println!(\"x\")\nfn pprintln() {}\n"),
            ],
            &[
                ("crates/danlu-core/src/lib.rs", code),
                ("crates/danlu-ops/src/a.rs", "eprint!(\"\")"),
            ],
            &[("crates/danlu-core/src/lib.rs", 2), ("crates/danlu-ops/src/a.rs", 1)],
        );
    }

    #[test]
    fn no_async() {
        let code = "async fn f() {}\n";
        holds(
            "no-async",
            &[("crates/danlu-serve/src/lib.rs", code), ("crates/danlu/src/a.rs", "// async\n")],
            &[("crates/danlu-core/src/lib.rs", code)],
            &[("crates/danlu-core/src/lib.rs", 1)],
        );
    }

    #[test]
    fn no_ignored_test() {
        holds(
            "no-ignored-test",
            &[("a.rs", "// #[ignore]\n#[test]\nfn ignored() {}\n")],
            &[("a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}\n#[cfg_attr(x, ignore)]\n")],
            &[("a.rs", 2), ("a.rs", 4)],
        );
    }

    #[test]
    fn recipe_comment() {
        holds(
            "recipe-comment",
            &[("recipes/a.toml", "# Names pictures.\n[model]\n"), ("b.toml", "[model]\n")],
            &[("recipes/a.toml", "[model]\n"), ("recipes/b/c.toml", "#\n"), ("recipes/d.toml", "")],
            &[("recipes/a.toml", 1), ("recipes/b/c.toml", 1), ("recipes/d.toml", 1)],
        );
    }

    #[test]
    fn crate_doc() {
        let manifest = ("crates/a/Cargo.toml", "[package]\n");
        holds(
            "crate-doc",
            &[manifest, ("crates/a/src/lib.rs", "//! Says it.\n"), ("crates/a/src/b.rs", "")],
            &[manifest, ("crates/a/src/lib.rs", "use std::io;\n")],
            &[("crates/a/src/lib.rs", 1)],
        );
    }

    #[test]
    fn links() {
        holds(
            "links",
            &[
                (
                    "docs/a.md",
                    "[b](b.md#part) ![p](../pictures/p.png \"title\") [w](https://x.org/y.md)\n\
                     [`code`](b.md) `[no](none.md)` [here](#part) [up](..) [root](/docs/)\n\
                     ```\n[fenced](none.md)\n```\n[ref]: b.md\n<img src=\"b.md\">\n",
                ),
                ("docs/b.md", ""),
                ("pictures/p.png", ""),
            ],
            &[(
                "docs/a.md",
                "fine\n[b](c.md)\n[`code`](d.md)\n[out](../../x.md)\n[ref]: e.md\n<img src=\"f.png\">\n",
            )],
            &[
                ("docs/a.md", 2),
                ("docs/a.md", 3),
                ("docs/a.md", 4),
                ("docs/a.md", 5),
                ("docs/a.md", 6),
            ],
        );
    }

    #[test]
    fn trailing_blanks() {
        holds(
            "trailing-blanks",
            &[("a.rs", "fn f() {}\n\n"), ("packs/sample/licences/a.txt", "verbatim \n")],
            &[("a.md", "one\ntwo  \nthree\t\n"), ("b.py", "x\r\n")],
            &[("a.md", 2), ("a.md", 3), ("b.py", 1)],
        );
    }

    #[test]
    fn large_files() {
        let (full, over) = ("x".repeat(LARGE), "x".repeat(LARGE + 1));
        holds(
            "large-files",
            &[("a.bin", &full), ("models/a.safetensors", &over), ("packs/sample/a.tar", &over)],
            &[("packs/other/a.tar", &over), ("model/a", &over)],
            &[("packs/other/a.tar", 1), ("model/a", 1)],
        );
    }
}
