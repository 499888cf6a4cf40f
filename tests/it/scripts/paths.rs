//! From a path to a script: what is found below the directory of a route, and nothing outside it.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::{Client, Deferd, Reply, TempDir, eventually, fixtures};

/// Creates directories as an attacker would wish them: a secret program beside those of the route.
///
/// ```text
/// scripts/         the route's
///   where          a script
///   sub/deep/where
///   plain          a file that is no program
///   pipe           a named pipe
///   inside  -> sub/deep/where
///   out     -> ../secret
///   out-dir -> ..
///   near    -> ../scripts-of-others/secret
///   dangling, loop
/// secret
/// scripts-of-others/secret
/// ```
fn tree() -> TempDir {
    let dir = TempDir::new();
    let scripts = dir.join("scripts");
    std::fs::create_dir_all(scripts.join("sub/deep")).unwrap();
    std::fs::create_dir(dir.join("scripts-of-others")).unwrap();
    for place in ["scripts/where", "scripts/sub/deep/where", "secret", "scripts-of-others/secret"] {
        install(&fixtures().join("s-where"), &dir.join(place));
    }
    std::fs::write(scripts.join("plain"), "#!/bin/sh\necho run all the same\n").unwrap();
    let pipe = scripts.join("pipe");
    assert!(Command::new("mkfifo").args(["-m", "755"]).arg(pipe).status().unwrap().success());
    for (name, target) in [
        ("inside", "sub/deep/where"),
        ("out", "../secret"),
        ("out-dir", ".."),
        ("near", "../scripts-of-others/secret"),
        ("dangling", "nowhere"),
        ("loop", "loop"),
    ] {
        symlink(target, scripts.join(name)).unwrap();
    }
    dir
}

/// Copies a program, by a process of its own: if this process had the copy open for writing, a deferd that another
/// test starts at that moment could inherit the descriptor, and a file that is open for writing cannot be executed.
fn install(from: &Path, to: &Path) {
    let mut command = Command::new("install");
    assert!(command.args(["-m", "755"]).arg(from).arg(to).status().unwrap().success());
}

fn start(dir: &TempDir) -> Deferd {
    let scripts = dir.join("scripts").display().to_string();
    let (cgi, run) = (format!("/cgi/=cgi:{scripts}"), format!("/run=run:{scripts}"));
    Deferd::start(&["--route", &cgi, "--route", &run])
}

/// Asserts that the path is refused with this status, both for a waiting client and before a `202`.
#[track_caller]
fn assert_refused(client: &mut Client, path: &str, status: u16) {
    for fields in [&[][..], &[("x-arango-async", "store")], &[("x-arango-async", "true")]] {
        let reply = client.request("GET", path, fields, b"");
        assert_eq!(reply.status, status, "{path} {fields:?}: {reply:?}");
        reply.expect_error(status, status);
    }
}

#[test]
fn nothing_outside_the_directory_is_reached() {
    let dir = tree();
    let deferd = start(&dir);
    let mut client = deferd.client();
    let secret = dir.join("secret").display().to_string();
    let encoded = secret.replace('/', "%2f");
    for path in [
        "../secret",
        "%2e%2e/secret",
        "%2E%2e/secret",
        ".%2e/secret",
        "..%2fsecret",
        "%2e%2e%2Fsecret",
        "../scripts/where",
        "sub/../../secret",
        "sub/%2e%2e/%2e%2e/secret",
        "sub%2f..%2f..%2fsecret",
        "out",
        "out/info",
        "out-dir/secret",
        "near",
        &format!("/{secret}"),
        &encoded,
        &format!("/{encoded}"),
    ] {
        for prefix in ["/cgi/", "/run/"] {
            assert_refused(&mut client, &format!("{prefix}{path}"), 404);
        }
    }
    assert_eq!(client.list("done").len() + client.list("pending").len(), 0);
}

#[test]
fn what_names_no_script_is_not_found() {
    let dir = tree();
    let deferd = start(&dir);
    let mut client = deferd.client();
    for path in [
        "",
        "/",
        "none",
        "none/where",
        ".",
        "./where",
        "//",
        "sub",
        "sub/",
        "sub/deep",
        "sub//deep//",
        "sub/../where",
        "sub%2fdeep%2fwhere",
        "dangling",
        "loop",
        "pipe",
        "where%00",
        "%00where",
        "where%00.txt",
        "where%",
        "where%7",
        "where%zz",
        "%where",
        "where/%",
        "where/%4",
        "where/%zz",
        "where/%00",
        "WHERE",
    ] {
        for prefix in ["/cgi/", "/run/"] {
            assert_refused(&mut client, &format!("{prefix}{path}"), 404);
        }
    }
    for path in ["/cgi", "/run", "/runwhere", "/runner/where"] {
        assert_refused(&mut client, path, 404);
    }
    let long = format!("/run/{}", "x".repeat(5000));
    assert_refused(&mut client, &long, 404);
}

#[test]
fn the_first_segments_naming_a_file_are_the_script() {
    let dir = tree();
    let deferd = start(&dir);
    let mut client = deferd.client();
    let scripts = dir.join("scripts").display().to_string();
    let long = "x".repeat(5000);
    for (path, script, path_info, directory) in [
        ("where", "where", "", ""),
        ("where/", "where", "/", ""),
        ("where/sub/deep/where", "where", "/sub/deep/where", ""),
        ("wh%65re/%2e.%2e", "where", "/...", ""),
        ("where/a%2Fb%2f/c", "where", "/a/b//c", ""),
        ("where/.a/..b/c..~", "where", "/.a/..b/c..~", ""),
        ("where/a%20b%5cc%c3%a4", "where", "/a b\\c\u{e4}", ""),
        // The file that the rest names may be missing, and its names may be too long.
        ("where/inside/none", "where", "/inside/none", ""),
        (&format!("where/{long}"), "where", &format!("/{long}"), ""),
        ("sub/deep/where", "sub/deep/where", "", "/sub/deep"),
        ("sub/deep/where/info", "sub/deep/where", "/info", "/sub/deep"),
        // Empty segments before the script's name have no meaning; after it, they belong to the script.
        ("/where", "where", "", ""),
        ("//sub///deep//where//info/", "sub/deep/where", "//info/", "/sub/deep"),
        ("%73ub/deep/where", "sub/deep/where", "", "/sub/deep"),
        // A link that stays inside is a script like any other; its directory is the real one.
        ("inside/info", "inside", "/info", "/sub/deep"),
    ] {
        let reply = client.get(&format!("/cgi/{path}")).expect(200);
        let expected = format!("/cgi/{script}\n{path_info}\n{scripts}{directory}\n");
        assert_eq!(reply.text(), expected, "{path}");
    }
}

/// Asserts that the log reports at `warn` that this path was refused, and why, in a line of bounded length.
#[track_caller]
fn assert_told(deferd: &Deferd, path: &str, why: &str) {
    let start = &path[..path.len().min(100)];
    let mut line = None;
    eventually(&format!("{path} is in the log"), || {
        let log = deferd.log();
        let found = log.lines().rfind(|line| line.contains("WARN") && line.contains(start));
        line = found.map(str::to_owned);
        line.is_some()
    });
    let line = line.unwrap();
    assert!(line.contains(why) && line.len() < 500, "{line}");
    assert!(line.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), "{line:?}");
}

#[test]
fn path_info_that_leads_outside_is_refused() {
    let dir = tree();
    let deferd = start(&dir);
    let mut client = deferd.client();
    let long = format!("where/{}/../x", "y".repeat(4000));
    for (path, why) in [
        ("where/../../../../etc/hostname", "dot segment"),
        ("where/..", "dot segment"),
        ("where/.", "dot segment"),
        ("where/a/./b", "dot segment"),
        ("where/%2e%2e/%2E%2e/secret", "dot segment"),
        ("where/%2e", "dot segment"),
        ("where%2f..%2fsecret", "encoded slash"),
        ("where/a%2f..%2f..%2fsecret", "dot segment"),
        ("where/..%2fsecret", "dot segment"),
        ("where/..%5csecret", "dot segment"),
        ("where/a%5C%2e%2e%5Csecret", "dot segment"),
        ("sub/deep/where/../../secret", "dot segment"),
        (&long, "dot segment"),
        ("where/%0a", "control character"),
        ("where/a%0Db", "control character"),
        ("where/%7f", "control character"),
        ("where/%1b[2J", "control character"),
        ("where/%c2%85", "control character"),
        // Its file is outside, through a link on the way or at the end.
        ("where/out", "symbolic link"),
        ("where/out-dir/secret", "symbolic link"),
        ("where/sub/../out", "dot segment"),
        ("where//out-dir", "symbolic link"),
        ("where/near", "symbolic link"),
        ("where/dangling", "symbolic link"),
        ("where/loop/a", "symbolic link"),
        ("where/%zz", "broken escape"),
        ("where/%00", "broken escape"),
    ] {
        for prefix in ["/cgi/", "/run/"] {
            let target = format!("{prefix}{path}");
            assert_refused(&mut client, &target, 404);
            assert_told(&deferd, &target, why);
        }
    }
}

#[test]
fn hidden_names_and_backups_are_no_scripts() {
    let dir = tree();
    let scripts = dir.join("scripts");
    std::fs::create_dir_all(scripts.join(".git/hooks")).unwrap();
    std::fs::create_dir(scripts.join("old~")).unwrap();
    let names = [
        ".git/hooks/post-commit",
        ".hidden",
        "sub/.hidden",
        "where~",
        "sub/deep/where~",
        "old~/where",
    ];
    for name in names {
        install(&fixtures().join("s-where"), &scripts.join(name));
    }
    let deferd = start(&dir);
    let mut client = deferd.client();
    for (path, why) in [
        (".git/hooks/post-commit", "begins with a dot"),
        ("%2egit/hooks/post-commit", "begins with a dot"),
        (".hidden", "begins with a dot"),
        (".hidden/info", "begins with a dot"),
        ("sub/.hidden", "begins with a dot"),
        ("...", "begins with a dot"),
        ("where~", "backup"),
        ("where%7E/info", "backup"),
        ("sub/deep/where~", "backup"),
    ] {
        for prefix in ["/cgi/", "/run/"] {
            let target = format!("{prefix}{path}");
            assert_refused(&mut client, &target, 404);
            assert_told(&deferd, &target, why);
        }
    }
    // A directory is not a backup of a script.
    client.get("/cgi/old~/where").expect(200);
}

#[test]
fn the_log_says_why_a_path_is_refused() {
    let dir = tree();
    let deferd = start(&dir);
    let mut client = deferd.client();
    for (path, why) in [
        ("../secret", "dot segment"),
        ("%2e%2e/secret", "dot segment"),
        ("..%2fsecret", "encoded slash"),
        ("out", "symbolic link"),
        ("out-dir/secret", "symbolic link"),
        ("out-dir/none", "symbolic link"),
        ("out-dir", "symbolic link"),
        ("near", "symbolic link"),
        ("%00where", "broken escape"),
    ] {
        let target = format!("/run/{path}");
        assert_refused(&mut client, &target, 404);
        assert_told(&deferd, &target, why);
    }
    // A missing file alone is not worth a warning.
    assert_refused(&mut client, "/run/missing", 404);
    let log = deferd.log_with("target=/run/missing ");
    assert!(!log.lines().any(|line| line.contains("WARN") && line.contains("missing")), "{log}");
}

#[test]
fn a_local_redirect_is_checked_like_a_request() {
    let dir = tree();
    let scripts = dir.join("scripts");
    let targets =
        ["/cgi/out", "/cgi/where/../../secret", "/run/.hidden", "/run/where/%0a", "/up/..;/x"];
    for (n, target) in targets.iter().enumerate() {
        let draft = dir.join("draft");
        std::fs::write(
            &draft,
            format!("#!/bin/sh\nprintf 'Location: {}\\n\\n'\n", target.replace('%', "%%")),
        )
        .unwrap();
        install(&draft, &scripts.join(format!("to-{n}")));
    }
    let (cgi, run) =
        (format!("/cgi/=cgi:{}", scripts.display()), format!("/run=run:{}", scripts.display()));
    let deferd =
        Deferd::start(&["--route", &cgi, "--route", &run, "--route", "/up/=http://127.0.0.1:1/"]);
    let mut client = deferd.client();
    for (n, target) in targets.iter().enumerate() {
        let status = if target.starts_with("/up/") { 400 } else { 404 };
        client.get(&format!("/cgi/to-{n}")).expect_error(status, status);
    }
}

#[test]
fn trace_never_reaches_a_script() {
    let dir = tree();
    let deferd = start(&dir);
    let mut client = deferd.client();
    for prefix in ["/cgi/", "/run/"] {
        for fields in
            [&[][..], &[("x-arango-async", "store")], &[("x-http-method-override", "TRACE")]]
        {
            let method =
                if fields.first().is_some_and(|f| f.1 == "TRACE") { "POST" } else { "TRACE" };
            let reply = client.request(method, &format!("{prefix}where"), fields, b"");
            let reply = reply.expect_error(405, 405);
            let allow = reply.header("allow").expect("allow");
            assert!(allow.contains("GET") && !allow.contains("TRACE"), "{allow}");
        }
    }
}

#[test]
fn the_directory_of_a_route_may_be_a_link() {
    let dir = tree();
    symlink("scripts", dir.join("link")).unwrap();
    let route = format!("/=cgi:{}", dir.join("link").display());
    let deferd = Deferd::start(&["--route", &route]);
    let reply = deferd.client().get("/sub/deep/where/x").expect(200);
    let directory = dir.join("scripts/sub/deep");
    assert_eq!(reply.text(), format!("/sub/deep/where\n/x\n{}\n", directory.display()));
}

/// Programs with many names choose their function by the name under which they are called.
#[test]
fn a_linked_script_runs_under_the_requested_name() {
    let dir = tree();
    let scripts = dir.join("scripts");
    let draft = dir.join("draft");
    let text = "#!/bin/sh\nprintf '%s\\n' \"$0\" \"$SCRIPT_NAME\" \"$SCRIPT_FILENAME\"\n";
    std::fs::write(&draft, text).unwrap();
    install(&draft, &scripts.join("multi"));
    symlink("multi", scripts.join("upload")).unwrap();
    symlink("sub", scripts.join("way")).unwrap();
    symlink("../../multi", scripts.join("sub/deep/download")).unwrap();
    let deferd = start(&dir);
    let mut client = deferd.client();
    for name in ["multi", "upload", "sub/deep/download", "way/deep/download"] {
        let path = scripts.canonicalize().unwrap().join(name).display().to_string();
        let expected = format!("{path}\n/run/{name}\n{path}\n");
        assert_eq!(client.get(&format!("/run/{name}")).expect(200).text(), expected);
        let id = client.store("GET", &format!("/run/{name}"), b"");
        assert_eq!(client.result(&id).expect(200).text(), expected);
    }
}

#[test]
fn links_lead_outside_only_with_links_yes() {
    let dir = tree();
    let scripts = dir.join("scripts").display().to_string();
    let (open, closed) = (format!("/open/=cgi:{scripts},links=yes"), format!("/=cgi:{scripts}"));
    let deferd = Deferd::start(&["--route", &open, "--route", &closed]);
    let mut client = deferd.client();
    for (path, name, path_info) in [
        ("out", "out", ""),
        ("near/x", "near", "/x"),
        ("out-dir/secret", "out-dir/secret", ""),
        ("where/out-dir/secret", "where", "/out-dir/secret"),
    ] {
        let reply = client.get(&format!("/open/{path}")).expect(200);
        let found = reply.text();
        let lines: Vec<&str> = found.lines().take(2).collect();
        assert_eq!(lines, [&format!("/open/{name}"), path_info], "{path}");
        assert_refused(&mut client, &format!("/{path}"), 404);
        assert_told(&deferd, &format!("path=/{path}"), "links=yes");
    }
    // Only links are permitted.
    for path in ["../secret", "%2e%2e/secret", "dangling", "loop", "where/../x", "pipe"] {
        assert_refused(&mut client, &format!("/open/{path}"), 404);
    }
}

/// Releases are switched by a link.
#[test]
fn the_directory_of_a_route_is_resolved_for_each_request() {
    let dir = TempDir::new();
    for release in ["1", "2"] {
        let directory = dir.join(&format!("releases/{release}"));
        std::fs::create_dir_all(&directory).unwrap();
        let draft = dir.join("draft");
        let text = format!("#!/bin/sh\necho {release} \"$DOCUMENT_ROOT\"\n");
        std::fs::write(&draft, text).unwrap();
        install(&draft, &directory.join("which"));
    }
    symlink("releases/1", dir.join("current")).unwrap();
    let route = format!("/run/=run:{},concurrency=1", dir.join("current").display());
    let deferd = Deferd::start(&["--route", &route]);
    let mut client = deferd.client();
    let root = dir.0.canonicalize().unwrap().join("releases").display().to_string();
    assert_eq!(client.get("/run/which").expect(200).text(), format!("1 {root}/1\n"));
    symlink("releases/2", dir.join("next")).unwrap();
    std::fs::rename(dir.join("next"), dir.join("current")).unwrap();
    assert_eq!(client.get("/run/which").expect(200).text(), format!("2 {root}/2\n"));
    std::fs::remove_dir_all(dir.join("releases/1")).unwrap();
    let id = client.store("GET", "/run/which", b"");
    assert_eq!(client.result(&id).expect(200).text(), format!("2 {root}/2\n"));
    // While the link leads nowhere, there is no script, and the log says why.
    std::fs::remove_file(dir.join("current")).unwrap();
    assert_refused(&mut client, "/run/which", 404);
    assert_told(&deferd, "/run/which", "the directory of the route is missing");
}

#[test]
fn a_file_that_is_not_executable_is_forbidden() {
    let dir = tree();
    let deferd = start(&dir);
    let mut client = deferd.client();
    for path in ["/cgi/plain", "/run/plain", "/cgi/plain/info"] {
        assert_refused(&mut client, path, 403);
    }
}

/// Returns a program that names another loader: that of a C library which is not installed.
fn of_another_library() -> Vec<u8> {
    let mut program = std::fs::read("/bin/true").unwrap();
    let name = b"/lib64/ld-linux-x86-64.so.2";
    match program.windows(name.len()).position(|bytes| bytes == name) {
        Some(at) => program[at..at + name.len()].copy_from_slice(b"/lib64/ld-musl-nowhere.so.2"),
        None => panic!("/bin/true has another loader"),
    }
    program
}

#[test]
fn a_script_that_cannot_start_names_the_reason() {
    let dir = tree();
    let interpreter = dir.join("scripts/interpreter").display().to_string();
    let not_executable = dir.join("scripts/plain").display().to_string();
    let mut scripts = vec![
        (
            "missing",
            b"#!/nowhere/perl -w\n".to_vec(),
            r#"its interpreter "/nowhere/perl" is missing"#,
        ),
        (
            "windows",
            b"#!/bin/sh\r\necho hello\r\n".to_vec(),
            r#""/bin/sh\r" is missing: the #! line ends with a carriage return"#,
        ),
        ("no-line", b"echo hello\n".to_vec(), "it has no #! line and is not a program"),
        ("empty", Vec::new(), "it has no #! line and is not a program"),
        ("mark", b"\xef\xbb\xbf#!/bin/sh\n".to_vec(), "a byte order mark"),
        ("interpreter", b"#!/nowhere/deep\n".to_vec(), r#""/nowhere/deep" is missing"#),
        ("chain", format!("#!{interpreter}\n").into_bytes(), r#""/nowhere/deep" is missing"#),
        ("plainly", format!("#!{not_executable}\n").into_bytes(), "is not executable"),
        ("directory", b"#!/bin\n".to_vec(), r#"its interpreter "/bin" is not executable"#),
        ("processor", [b"\x7fELF\x02\x01\x01", &[0; 57][..]].concat(), "another kind of processor"),
    ];
    if cfg!(all(target_arch = "x86_64", target_env = "gnu")) {
        let why = r#"the loader of this program "/lib64/ld-musl-nowhere.so.2" is missing"#;
        scripts.push(("library", of_another_library(), why));
    }
    for (name, text, _) in &scripts {
        let draft = dir.join(name);
        std::fs::write(&draft, text).unwrap();
        install(&draft, &dir.join("scripts").join(name));
    }
    let deferd = start(&dir);
    let mut client = deferd.client();
    for (name, _, why) in scripts {
        let mut times = 0;
        for prefix in ["/cgi/", "/run/"] {
            let target = format!("{prefix}{name}");
            let message = |reply: &Reply| reply.json()["errorMessage"].as_str().unwrap().to_owned();
            let now = client.request("POST", &target, &[], b"x").expect_error(502, 502);
            assert!(message(&now).contains(why), "{name}: {}", message(&now));
            // Only the attempt shows the error: so the job's result reports it.
            let id = client.store("POST", &target, b"x");
            let result = client.result(&id).expect(502);
            assert_eq!(message(&result), message(&now));
            // Once for the request, and once for the job.
            times += 2;
            eventually(&format!("{name} is logged"), || deferd.log().matches(why).count() >= times);
        }
    }
    assert!(deferd.children().is_empty());
}

#[test]
fn a_script_removed_before_its_turn_is_not_found() {
    let dir = tree();
    let scripts = dir.join("scripts");
    install(&fixtures().join("s-say"), &scripts.join("say"));
    let route = format!("/run/=run:{},concurrency=1", scripts.display());
    let deferd = Deferd::start(&["--route", &route]);
    let mut client = deferd.client();
    let first = client.store("GET", &format!("/run/say?{}", dir.0.display()), b"");
    let gone = client.store("GET", "/run/where", b"");
    let closed = client.store("GET", "/run/sub/deep/where", b"");
    std::fs::remove_file(scripts.join("where")).unwrap();
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(scripts.join("sub/deep/where"), mode).unwrap();
    std::fs::write(dir.join("go"), "").unwrap();
    client.result(&first).expect(200);
    assert_eq!(client.result(&gone).expect(404).json()["errorNum"], 404);
    assert_eq!(client.result(&closed).expect(403).json()["errorNum"], 403);
}
