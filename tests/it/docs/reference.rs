//! REFERENCE.md has a row for everything that a user can set or see, and no other rows.

use std::collections::BTreeSet;

use crate::support::Deferd;

const REFERENCE: &str = include_str!("../../../REFERENCE.md");

type Names = BTreeSet<String>;

/// Returns the cells of each row below a heading, up to the next heading.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, below) = REFERENCE.split_once(&format!("\n{heading}\n")).expect(heading);
    let section = below.lines().take_while(|line| !line.starts_with('#'));
    let rows = section.filter(|line| line.starts_with("| `"));
    rows.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// Returns the beginnings of the code spans in the first cells below a heading, up to one of these characters.
fn names(heading: &str, ends: &[char]) -> Names {
    let rows = rows(heading);
    let cells = rows.iter().map(|cells| cells[0]);
    let spans = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    spans.map(|span| span.split(ends).next().unwrap().to_owned()).collect()
}

/// Returns the options at the beginning of the lines of a help text.
fn options(help: &str) -> Names {
    let lines = help.lines().filter_map(|line| line.strip_prefix("  -"));
    let heads = lines.map(|line| line.split("  ").next().unwrap());
    let each = heads.flat_map(|head| head.split(", -"));
    each.map(|option| format!("-{}", option.split(' ').next().unwrap())).collect()
}

#[track_caller]
fn assert_same(what: &str, told: &Names, is: &Names) {
    let (missing, stray): (Vec<_>, Vec<_>) =
        (is.difference(told).collect(), told.difference(is).collect());
    assert!(
        missing.is_empty() && stray.is_empty(),
        "{what}: no row for {missing:?}; no such {stray:?}"
    );
}

#[test]
fn every_option_has_a_row_and_every_row_an_option() {
    // `--route` is in the line of usage.
    let mut of_deferd = options(deferd::config::HELP);
    of_deferd.insert("--route".into());
    assert!(of_deferd.len() > 25, "{of_deferd:?}");
    assert_same("options", &names("## Options", &[' ']), &of_deferd);
    let (_, below) = deferd::config::HELP.split_once("Options of a route").unwrap();
    let (block, _) = below.split_once("\n\n").unwrap();
    let of_route: Names = block
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert!(of_route.contains("retry-on") && of_route.len() > 15, "{of_route:?}");
    assert_same("options of a route", &names("### Options of a route", &['=']), &of_route);
}

#[cfg(feature = "client")]
#[test]
fn every_option_of_the_client_has_a_row() {
    let of_client = options(deferd::client::HELP);
    assert_same("options of the client", &names("## The client", &[' ']), &of_client);
}

#[test]
fn every_described_request_has_a_row() {
    let deferd = Deferd::start(&[]);
    let root = deferd.client().get("/_api/openapi.json").expect(200).json();
    let mut described = Names::new();
    for (path, methods) in root["paths"].as_object().unwrap() {
        let methods = methods.as_object().unwrap();
        // Endpoints with any method are described for GET alone.
        let any = methods.contains_key("patch");
        for method in methods.keys().filter(|method| !any || *method == "get") {
            described.insert(format!("{} {}", method.to_uppercase(), path.replace("{id}", "ID")));
        }
    }
    // HEAD goes with GET, and POST cancels as PUT does.
    described
        .retain(|request| !request.starts_with("HEAD ") && !request.starts_with("POST /_api/job"));
    let told =
        names("## Requests", &['\n']).into_iter().filter(|name| name.contains(" /")).collect();
    assert_same("requests", &told, &described);
}

#[test]
fn every_field_of_deferd_s_own_has_a_row() {
    let own = deferd::protocol::EXPOSED;
    let own = own.to_str().unwrap().split(", ").map(str::to_owned).collect();
    assert_same("fields of a response", &names("### Fields of a response", &[' ']), &own);
}

#[test]
fn every_metric_has_a_row() {
    let deferd = Deferd::start(&[]);
    let page = deferd.client().get("/_admin/metrics").expect(200).text();
    let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let given = kinds.map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_same("metrics", &names("## Metrics", &[' ']), &given);
}

#[test]
fn documents_have_short_lines() {
    let documents = [
        ("REFERENCE.md", REFERENCE),
        ("README.md", include_str!("../../../README.md")),
        ("ARCHITECTURE.md", include_str!("../../../ARCHITECTURE.md")),
    ];
    for (name, text) in documents {
        let long = text.lines().position(|line| line.chars().count() > 120);
        assert_eq!(long.map(|n| n + 1), None, "{name} has a line of more than 120 columns");
    }
}
