//! The README's transcripts, run exactly as written: its commands, its answers.
//!
//! A small parser of curl's options runs the commands, so that the test needs no curl. Numbers (ids, sizes) may
//! differ; everything else that the README shows must be in the answer.

use crate::support::{Deferd, Reply, eventually};

const README: &str = include_str!("../../../README.md");

/// Returns the fenced blocks of the README: language and text.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let fenced = README.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap()).collect()
}

/// Splits a command line as a shell would, with single quotes and `$ID`.
fn words(line: &str, id: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (n, part) in line.replace("$ID", id).split('\'').enumerate() {
        if n % 2 == 1 {
            words.last_mut().unwrap().push_str(part);
            continue;
        }
        for (m, word) in part.split(' ').enumerate() {
            if m > 0 {
                words.push(String::new());
            }
            words.last_mut().unwrap().push_str(word);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Runs a curl command of the README.
fn curl(deferd: &Deferd, line: &str, id: &str) -> Reply {
    let mut method = "GET".to_owned();
    let mut fields = Vec::new();
    let mut body = Vec::new();
    let mut target = String::new();
    let mut words = words(line, id).into_iter().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-i" => {}
            "-X" => method = words.next().unwrap(),
            "-H" => {
                let field = words.next().unwrap();
                let (name, value) = field.split_once(": ").unwrap();
                fields.push((name.to_owned(), value.to_owned()));
            }
            "--data-binary" => {
                let file = words.next().unwrap();
                let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
                body = std::fs::read(root.join(file.strip_prefix('@').unwrap())).unwrap();
                method = "POST".into();
            }
            url => target = url.strip_prefix("http://127.0.0.1:8529").unwrap().to_owned(),
        }
    }
    let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    deferd.client().request(&method, &target, &fields, &body)
}

/// Returns the text with every run of digits replaced by one `N`.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('N') {
            out.push('N');
        }
    }
    out
}

#[test]
fn the_readme_s_transcripts_work() {
    let mut deferd = None;
    let mut id = String::new();
    let mut last = None;
    let mut compared = 0;
    for (language, text) in blocks() {
        for line in text.lines().filter(|_| language == "sh") {
            if let Some(arguments) = line.strip_prefix("cargo run --release -- ") {
                let arguments = words(arguments, "");
                let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
                deferd = Some(Deferd::start(&arguments));
            } else if line.starts_with("curl") {
                last = Some(line);
            } else {
                assert!(line.starts_with("ID="), "a command that this test does not know: {line}");
            }
        }
        if language != "http" {
            continue;
        }
        let (deferd, line) = (deferd.as_ref().unwrap(), last.take().unwrap());
        let (head, body) = text.split_once("\n\n").unwrap_or((text.trim_end(), ""));
        let mut shown = head.lines();
        let status: u16 = shown.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let fields: Vec<_> = shown.map(without_numbers).collect();
        let mut reply = None;
        eventually(&format!("{line} answers as shown"), || {
            let got = curl(deferd, line, &id);
            let lines: Vec<_> =
                got.headers.iter().map(|(n, v)| without_numbers(&format!("{n}: {v}"))).collect();
            let as_shown = got.status == status && fields.iter().all(|f| lines.contains(f));
            reply = as_shown.then_some(got);
            as_shown
        });
        let reply = reply.unwrap();
        assert_eq!(without_numbers(&reply.text()), without_numbers(body), "{line}");
        if status == 202 {
            id = reply.id().unwrap().to_owned();
        }
        compared += 1;
    }
    assert!(compared >= 3, "the README shows fewer answers than it should");
}

#[test]
fn the_readme_is_read_in_one_sitting() {
    assert!(README.lines().count() <= 130);
}
