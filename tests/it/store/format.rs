//! The contents of a store's directory: damaged and foreign files are refused, and not changed.
//!
//! Through the store, a bit is flipped anywhere in a file. Through the real binary, deferd gets a directory that
//! contains something else, or that another deferd uses.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::store::kit::promise::{self, Check, Scenario};
use crate::store::kit::*;
use crate::support::{Deferd, TempDir, eventually};
use deferd::job::{JobId, Keep};
use deferd::store::disk::Durability;
use deferd::store::{Lookup, Store};
use redb::{Database, TableDefinition};

/// The number of places in which a bit is flipped.
const FLIPS: usize = 1000;

#[test]
fn a_flipped_bit_is_refused_or_changes_nothing() {
    let mut scenario = Scenario::new(11, Durability::Commit);
    (0..60).for_each(|_| scenario.step());
    assert!(scenario.flush());
    scenario.store.close();
    let (image, whole) = (scenario.volume.bytes(), scenario.volume.image());
    let Scenario { promises, mut random, .. } = scenario;
    // A page of zeros contains nothing.
    let pages: Vec<usize> = (0..image.len() / 4096)
        .filter(|n| image[n * 4096..][..4096].iter().any(|&b| b != 0))
        .collect();
    let mut refused = 0;
    for n in 0..FLIPS {
        // The head of the file, then anywhere.
        let at =
            if n < 320 { n } else { random.choice(&pages).unwrap() * 4096 + random.usize(..4096) };
        let mut damaged = image.clone();
        damaged[at] ^= 1 << random.usize(..8);
        let volume = Volume::of(whole.with_bytes(damaged.clone()));
        match promise::open(&volume, Durability::Commit) {
            Err(_) => {
                assert!(volume.bytes() == damaged, "refused for byte {at}, and changed");
                refused += 1;
            }
            Ok((store, found)) => {
                let check = Check {
                    promised: &promises,
                    begun: &promises,
                    refused: &[],
                    durability: Durability::Commit,
                };
                check.store(&store, found);
            }
        }
    }
    assert!(refused > FLIPS / 10, "only {refused} of {FLIPS} were in use");
}

#[test]
fn a_truncated_file_is_refused_and_left_as_it_is() {
    let volume = Volume::default();
    let store = open(&volume, Durability::Commit).unwrap().0;
    batch(&store, 9, Until::Done);
    store.close();
    let image = volume.bytes();
    for len in (0..image.len()).step_by(image.len() / 40 + 1).skip(1) {
        let volume = Volume::of(image[..len].to_vec());
        assert!(open(&volume, Durability::Commit).is_err(), "{len} of {}", image.len());
        assert_eq!(volume.bytes().len(), len);
        assert!(volume.bytes() == image[..len]);
    }
}

#[test]
fn an_invalid_message_affects_only_its_job() {
    let volume = Volume::default();
    let store = open(&volume, Durability::Commit).unwrap().0;
    let done = batch(&store, 2, Until::Done);
    let waiting: Vec<Job> = (2..4).map(|n| submit(&store, n, Keep::Result)).collect();
    store.close();
    let messages = TableDefinition::<&[u8], &[u8]>::new("messages");
    let database = Database::builder().create_with_backend(volume.clone()).unwrap();
    let write = database.begin_write().unwrap();
    for job in [&done[0], &waiting[0]] {
        let id = job.key.id.number().to_be_bytes();
        write.open_table(messages).unwrap().insert(&id[..], &b"no message"[..]).unwrap();
    }
    write.commit().unwrap();
    drop(database);
    let store = open(&volume, Durability::Commit).unwrap().0;
    assert!(matches!(store.peek(&done[0].key), Lookup::Unreadable));
    assert!(matches!(store.collect(&done[0].key), Lookup::Unreadable));
    done[1].assert_result(&collected(&store, &done[1]).unwrap().result);
    // The first of the waiting jobs is finished instead.
    start(&store, &waiting[1]);
    assert!(claim(&store).is_none());
    store.flush().unwrap();
    let told = collected(&store, &waiting[0]).expect("it is done").result.to_response();
    assert_eq!(told.status(), 500);
    assert!(
        String::from_utf8_lossy(told.body().in_memory().unwrap())
            .contains("the stored request is damaged")
    );
    // It can be removed.
    assert_eq!(store.forget(&done[0].key), Ok(true));
}

#[test]
fn ids_increase_over_restarts_with_the_clock_stepped_back() {
    let volume = Volume::default();
    let mut last: Option<JobId> = None;
    for (now, ends) in [(5000.0, true), (4000.0, false), (1.0, true), (0.0, false), (4999.0, true)]
    {
        let store = open(&volume, Durability::Commit).unwrap().0;
        for n in 0..3 {
            let id = offer(&store, call(n, &anonymous()), Keep::Nothing, at(now)).unwrap();
            assert!(last < Some(id), "{id} at {now}");
            last = Some(id);
            // Not even if no job is left.
            store.finish(&key(id), response(n), at(now));
        }
        store.flush().unwrap();
        if ends {
            store.close();
        } else {
            // Opened again as it was left, without being closed.
            std::mem::forget(store);
        }
    }
}

/// Runs deferd on a directory that it must refuse; returns its message.
#[track_caller]
fn refused(data: &Path) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_deferd"))
        .args(["--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut status = None;
    eventually("it is refused", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    let said = child.wait_with_output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert_eq!(status.unwrap().code(), Some(2), "{said}");
    assert!(said.contains("--data") && said.contains(data.to_str().unwrap()), "{said}");
    said
}

/// How many jobs are in such a file.
const SOME: usize = 5;

/// Returns a file of a store that had some jobs.
fn some_file(dir: &TempDir) -> Vec<u8> {
    let data = dir.join("some");
    let mut deferd = Deferd::start(&["--data", data.to_str().unwrap()]);
    let mut client = deferd.client();
    for _ in 0..SOME {
        let id = client.store("GET", "/_admin/time", b"");
        client.wait_done(&id);
    }
    deferd.signal("-TERM");
    deferd.wait();
    fs::read(data.join("jobs.redb")).unwrap()
}

#[test]
fn a_foreign_file_is_refused_and_unchanged() {
    let dir = TempDir::new();
    let good = some_file(&dir);
    let table = TableDefinition::<&[u8], &[u8]>::new("deferd");
    let with = |name: &str, change: &dyn Fn(&redb::WriteTransaction)| {
        let path = dir.join(name);
        if name != "other" {
            fs::write(&path, &good).unwrap();
        }
        let database = Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        change(&write);
        write.commit().unwrap();
        drop(database);
        fs::read(path).unwrap()
    };
    let other = with("other", &|write| {
        write
            .open_table(TableDefinition::<&str, &str>::new("songs"))
            .unwrap()
            .insert("a", "b")
            .unwrap();
    });
    let later = with("later", &|write| {
        write.open_table(table).unwrap().insert(&b"format"[..], &b"3"[..]).unwrap();
    });
    let record = |bytes: &'static [u8]| {
        move |write: &redb::WriteTransaction| {
            let jobs = TableDefinition::<&[u8], &[u8]>::new("jobs");
            write.open_table(jobs).unwrap().insert(&77_u64.to_be_bytes()[..], bytes).unwrap();
        }
    };
    let nonsense = with("nonsense", &record(b"state: dancing\n"));
    let files: [(&str, Vec<u8>, &str); 8] = [
        ("text", b"To do: buy milk\n".to_vec(), "move it away"),
        ("nothing", Vec::new(), "it is empty"),
        ("zeros", vec![0; 1 << 20], "move it away"),
        ("quarter", good[..good.len() / 4].to_vec(), "move it away"),
        ("other", other, "database of another program"),
        ("later", later, "its format is 3"),
        ("nonsense", nonsense, "the record of job 77 is damaged"),
        ("tail", [&good[..], b"more"].concat(), "move it away"),
    ];
    for (name, bytes, part) in files {
        let data = dir.join(&format!("data-{name}"));
        fs::create_dir(&data).unwrap();
        let file = data.join("jobs.redb");
        fs::write(&file, &bytes).unwrap();
        let said = refused(&data);
        assert!(said.contains(file.to_str().unwrap()), "{name}: {said}");
        assert!(said.contains(part) && said.contains("move it away"), "{name}: {said}");
        assert_eq!(said.lines().count(), 1, "{name}: {said}");
        assert!(fs::read(&file).unwrap() == bytes, "{name} was changed");
    }
    // The other half may be free: then everything is still there.
    let half = &good[..good.len() / 2];
    let volume = Volume::of(half.to_vec());
    match open(&volume, Durability::Commit) {
        Ok((_store, found)) => assert_eq!(found.jobs, SOME),
        Err(_) => assert!(volume.bytes() == half, "the half was changed"),
    }
}

#[test]
fn a_second_deferd_on_the_directory_is_refused() {
    let dir = TempDir::new();
    let data = dir.join("data");
    let deferd = Deferd::start(&["--data", data.to_str().unwrap()]);
    let said = refused(&data);
    assert!(said.contains("another deferd uses it"), "{said}");
    let mut client = deferd.client();
    let id = client.store("GET", "/_admin/time", b"");
    client.result(&id).expect(200);
    drop(deferd);
    // A lock left by a killed deferd does not block it.
    let deferd = Deferd::start(&["--data", data.to_str().unwrap()]);
    deferd.client().get("/_api/version").expect(200);
}
