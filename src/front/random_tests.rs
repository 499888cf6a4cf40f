//! Random input: mutated requests through the readers of head and content.
//!
//! What the readers accept must end where two other parsers see its end: `httparse`, and a parser of RFC 9112's
//! framing rules that is written here and shares no code with the readers. A failure prints the seed of its case.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::head::tests::limits;
use super::input::{Input, Timed};
use super::intake::Intake;
use super::{RequestError, body, head};
use crate::handler::Takes;
use crate::memory::Allowance;

const CASES: u64 = 8_000;

/// What follows each request.
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nhost: next\r\n\r\n";

/// What a mutation inserts: the pieces on which readers disagree.
const PIECES: &[&[u8]] = &[
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b" ",
    b"\t",
    b"\r\n ",
    b"\0",
    b"\x7f",
    b"\x80",
    b"\xff",
    b":",
    b";",
    b",",
    b"=",
    b"\"",
    b"+",
    b"-",
    b"_",
    b"0",
    b"5",
    b"a",
    b"F",
    b"0x",
    b"5;",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"http/1.1",
    b"chunked",
    b", chunked",
    b"gzip, ",
    b"identity",
    b"content-length: 5\r\n",
    b"Content-Length:0\r\n",
    b"content-length : 5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"Transfer-Encoding:\tCHUNKED \r\n",
    b"transfer-encoding: x\r\n",
    b"host: b\r\n",
    b"expect: 100-continue\r\n",
    b"connection: close\r\n",
    b"x:\r\n",
    b"18446744073709551621",
    b"GET / HTTP/1.1\r\n",
];

/// The seed of a case, printed when its test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// Returns `count` cases: the seed of each, and its random numbers.
fn cases(count: u64) -> impl Iterator<Item = (Seed, Rng)> {
    (0..count).map(|seed| (Seed(seed), Rng::with_seed(seed)))
}

/// A well-formed request, and what it means.
struct Sample {
    bytes: Vec<u8>,
    content: Vec<u8>,
}

/// Returns content whose bytes look like framing.
fn content(random: &mut Rng) -> Vec<u8> {
    let length = random.usize(..100);
    (0..length).map(|_| *random.choice(b"ab05 :;\r\n\0\xff").unwrap()).collect()
}

fn chunks(random: &mut Rng, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = content;
    while !rest.is_empty() {
        let (chunk, others) = rest.split_at(1 + random.usize(..rest.len()));
        let zeros = random.choice(["", "", "0", "000"]).unwrap();
        let extension = random.choice(["", "", ";a", ";a=b", " ;a=\"b c\""]).unwrap();
        bytes.extend(format!("{zeros}{:x}{extension}\r\n", chunk.len()).into_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
        rest = others;
    }
    bytes.extend_from_slice(random.choice([&b"0\r\n"[..], b"000\r\n", b"0;last\r\n"]).unwrap());
    bytes.extend_from_slice(
        random.choice([&b""[..], b"", b"x: y\r\n", b"content-length: 9\r\n"]).unwrap(),
    );
    bytes.extend_from_slice(b"\r\n");
    bytes
}

fn sample(random: &mut Rng) -> Sample {
    let target = random.choice(["/", "/a?b=c", "http://example.org/a", "//x/..%2f"]).unwrap();
    let method = random.choice(["GET", "POST", "PUT", "x-y"]).unwrap();
    let mut lines =
        vec![random.choice(["host: a", "Host:a:80", "HOST: \t[::1]  "]).unwrap().to_owned()];
    let content = if random.usize(..4) == 0 { Vec::new() } else { content(random) };
    let mut version = "HTTP/1.1";
    let mut payload = content.clone();
    if random.bool() {
        payload = chunks(random, &content);
        lines.push(
            random
                .choice(["transfer-encoding: chunked", "Transfer-Encoding:CHUNKED "])
                .unwrap()
                .into(),
        );
    } else {
        version = random.choice(["HTTP/1.0", "HTTP/1.1"]).unwrap();
        if !content.is_empty() || random.bool() {
            let zeros = random.choice(["", "", "00"]).unwrap();
            lines.push(format!("content-length: {zeros}{}", content.len()));
        }
    }
    for _ in 0..random.usize(..4) {
        let others =
            ["x: y", "x:", "connection: close", "a-b: c, d; e=\"f:g\"", "cookie: \t a=\u{e4}"];
        lines.push(random.choice(others).unwrap().into());
    }
    // The fields may be in any order.
    let by = random.usize(..lines.len());
    lines.rotate_left(by);
    let blank = if random.usize(..8) == 0 { "\r\n" } else { "" };
    let head = format!("{blank}{method} {target} {version}\r\n{}\r\n\r\n", lines.join("\r\n"));
    Sample { bytes: [head.into_bytes(), payload].concat(), content }
}

fn mutate(random: &mut Rng, bytes: &mut Vec<u8>) {
    let at = random.usize(..bytes.len());
    let end = (at + 1 + random.usize(..12)).min(bytes.len());
    match random.usize(..10) {
        9 => twist(random, bytes),
        0 => bytes[at] = random.u8(..),
        1 => bytes[at] ^= 0x20,
        2 => drop(bytes.drain(at..end)),
        3 => drop(bytes.remove(at)),
        4 => {
            let piece = bytes[at..end].to_vec();
            let to = random.usize(..bytes.len());
            drop(bytes.splice(to..to, piece));
        }
        5 if bytes.len() > 1 && random.usize(..4) == 0 => bytes.truncate(at.max(1)),
        7 => {
            if let Some(version) = bytes.windows(8).position(|w| w == b"HTTP/1.1") {
                bytes[version + 7] = *random.choice(b"0002").unwrap();
            }
        }
        // At the beginning of a line, where whole fields and chunks fit, or of a value.
        6 => {
            let starts: Vec<_> = (0..bytes.len())
                .filter(|&i| bytes[..i].ends_with(b"\n") || bytes[..i].ends_with(b": "))
                .collect();
            let to = if starts.is_empty() { 0 } else { *random.choice(&starts).unwrap() };
            drop(bytes.splice(to..to, random.choice(PIECES).unwrap().iter().copied()));
        }
        _ => drop(bytes.splice(at..at, random.choice(PIECES).unwrap().iter().copied())),
    }
    if bytes.is_empty() {
        bytes.push(b'x');
    }
}

/// Changes the beginning of a length, a chunk size or a coding: into a sign, a list, nothing, or a number that
/// overflows to the same one.
fn twist(random: &mut Rng, bytes: &mut Vec<u8>) {
    let begins = |&i: &usize| b"\n :".contains(&bytes[i - 1]) && bytes[i].is_ascii_hexdigit();
    let starts: Vec<_> = (1..bytes.len()).filter(begins).collect();
    if starts.is_empty() {
        return;
    }
    let start = *random.choice(&starts).unwrap();
    let rest = &bytes[start..];
    let end = start + rest.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(rest.len());
    let word = String::from_utf8_lossy(&bytes[start..end]).into_owned();
    let other = match random.usize(..8) {
        0 => format!("+{word}"),
        1 => format!("-{word}"),
        2 => format!("0x{word}"),
        3 => format!("gzip, {word}"),
        4 => format!("{word}, {word}"),
        5 => String::new(),
        6 => word.parse().map_or(word, |n: u64| (u128::from(n) + (1 << 64)).to_string()),
        _ => format!("1{word:0>16}"),
    };
    drop(bytes.splice(start..end, other.into_bytes()));
}

/// An accepted request: its content, and how many bytes the request took with it.
#[derive(Debug, PartialEq, Eq)]
struct Accepted {
    content: Vec<u8>,
    end: usize,
}

/// Returns bytes in pieces of random length, with interruptions.
struct Pieces<'a> {
    bytes: &'a [u8],
    random: Rng,
    most: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.random.usize(..5) == 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        let most = target.len().min(1 + self.random.usize(..self.most));
        self.bytes.read(&mut target[..most])
    }
}

impl Timed for Pieces<'_> {
    fn set_read_time(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// Returns what the readers make of the first request.
fn first_reading<R: Read + Timed>(
    source: R,
    length: usize,
) -> Result<Option<Accepted>, RequestError> {
    let mut input = Input::new(source);
    let Some(head) = head::read(&mut input, &limits())? else { return Ok(None) };
    let limits = limits();
    let memory = Allowance::default();
    let intake = Intake::new(Takes::Any, &limits, &memory);
    let content = body::read(&mut input, head.framing, &limits, &intake)?;
    let content = content.in_memory().unwrap().to_vec();
    let mut rest = input.bytes().len();
    while let Ok(n @ 1..) = input.fill(Instant::now() + Duration::from_secs(60)) {
        rest += n;
    }
    Ok(Some(Accepted { content, end: length - rest }))
}

fn accepted(bytes: &[u8]) -> Option<Accepted> {
    first_reading(bytes, bytes.len()).ok().flatten()
}

fn accepted_in_pieces(bytes: &[u8], seed: u64) -> Option<Accepted> {
    let mut random = Rng::with_seed(seed);
    let most = random.choice([1, 3, 40]).unwrap();
    first_reading(Pieces { bytes, random, most }, bytes.len()).ok().flatten()
}

/// Returns a request as a failure shows it.
fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A cursor over lines that end in CRLF and have no other CR or LF in them.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n'))?;
        let ends_well = rest[end..].starts_with(b"\r\n");
        self.at += end + 2;
        ends_well.then(|| &rest[..end])
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(taken)
    }
}

/// Reads by RFC 9112 sections 2.2, 3, 5, 6 and 7.1 once more: returns `None` if a request is malformed, ambiguous, or
/// incomplete.
fn second_reading(bytes: &[u8]) -> Option<Accepted> {
    let mut lines = Lines { bytes, at: 0 };
    let mut request_line = lines.next()?;
    if request_line.is_empty() {
        request_line = lines.next()?;
    }
    let words: Vec<_> = request_line.split(|&b| b == b' ').collect();
    let &[method, target, version] = words.as_slice() else { return None };
    if method.is_empty() || target.is_empty() {
        return None;
    }
    let chunks_are_known = match version {
        b"HTTP/1.0" => false,
        b"HTTP/1.1" => true,
        _ => return None,
    };
    let mut hosts = 0;
    let mut lengths = Vec::new();
    let mut codings = Vec::new();
    loop {
        let line = lines.next()?;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|&b| b == b':')?;
        let name = &line[..colon];
        let value = line[colon + 1..].trim_ascii();
        if !is_token(name) || line.contains(&0) {
            return None;
        }
        match name.to_ascii_lowercase().as_slice() {
            b"host" => hosts += 1,
            b"content-length" => lengths.push(value),
            b"transfer-encoding" => codings.push(value.to_ascii_lowercase()),
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && chunks_are_known) {
        return None;
    }
    let content = match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Vec::new(),
        ([length], []) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
            let length = String::from_utf8_lossy(length).parse().ok()?;
            lines.take(length)?.to_vec()
        }
        ([], [coding]) if coding == b"chunked" && chunks_are_known => second_chunks(&mut lines)?,
        _ => return None,
    };
    Some(Accepted { content, end: lines.at })
}

fn is_token(name: &[u8]) -> bool {
    let of_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    !name.is_empty() && name.iter().all(of_token)
}

fn second_chunks(lines: &mut Lines<'_>) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let line = lines.next()?;
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let behind = &line[digits..];
        let extension = behind.trim_ascii_start();
        if digits == 0 || !(behind.is_empty() || extension.starts_with(b";")) {
            return None;
        }
        let size = u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        content.extend_from_slice(lines.take(usize::try_from(size).ok()?)?);
        if !lines.next()?.is_empty() {
            return None;
        }
    }
    loop {
        let line = lines.next()?;
        if line.is_empty() {
            return Some(content);
        }
        let (name, value) = line.split_at(line.iter().position(|&b| b == b':')?);
        let is_control = |b: &u8| *b < b' ' && *b != b'\t' || *b == 0x7f;
        if !is_token(name) || value.iter().any(is_control) {
            return None;
        }
    }
}

/// Returns `httparse`'s view of the whole request, from the first byte of the connection.
fn reading_of_httparse(bytes: &[u8]) -> Option<Accepted> {
    // The parser requires a target in UTF-8; the value of its high bytes does not change where it ends.
    let line = bytes.iter().skip(2).position(|&b| b == b'\n').map_or(bytes.len(), |end| end + 2);
    let mut bytes = bytes.to_vec();
    bytes[..line].iter_mut().filter(|b| **b >= 0x80).for_each(|b| *b = b'x');
    let bytes = &bytes[..];
    let mut lines = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut lines);
    let Ok(httparse::Status::Complete(mut at)) = request.parse(bytes) else { return None };
    let value = |name: &str| {
        let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(field.value).ok()
    };
    let mut content = Vec::new();
    if value("transfer-encoding").is_some() {
        loop {
            let chunk = httparse::parse_chunk_size(&bytes[at..]);
            let Ok(httparse::Status::Complete((used, size))) = chunk else { return None };
            at += used;
            if size == 0 {
                break;
            }
            content.extend_from_slice(&bytes[at..at + size as usize]);
            at += size as usize + 2;
        }
        let mut trailer = [httparse::EMPTY_HEADER; 100];
        match httparse::parse_headers(&bytes[at..], &mut trailer) {
            Ok(httparse::Status::Complete((used, _))) => at += used,
            _ => return None,
        }
    } else if let Some(length) = value("content-length") {
        let length: usize = length.parse().ok()?;
        content.extend_from_slice(&bytes[at..at + length]);
        at += length;
    }
    Some(Accepted { content, end: at })
}

#[test]
fn a_well_formed_request_is_read_to_its_end_and_no_further() {
    for (_seed, ref mut random) in cases(CASES / 10) {
        let Sample { bytes, content } = sample(random);
        let expected = Some(Accepted { content, end: bytes.len() });
        let with_next = [&bytes, NEXT].concat();
        assert_eq!(accepted(&with_next), expected, "{}", shown(&with_next));
        assert_eq!(second_reading(&with_next), expected, "the test's own: {}", shown(&bytes));
    }
}

#[test]
fn a_request_cut_anywhere_is_never_taken_for_a_whole_one() {
    for (_seed, ref mut random) in cases(CASES / 100) {
        let Sample { bytes, .. } = sample(random);
        for cut in 0..bytes.len() {
            assert_eq!(accepted(&bytes[..cut]), None, "{}", shown(&bytes[..cut]));
        }
    }
}

#[test]
fn what_is_accepted_ends_where_two_other_readings_see_its_end() {
    let mut chunked = 0;
    let mut by_length = 0;
    for (_seed, ref mut random) in cases(CASES) {
        let Sample { bytes, .. } = sample(random);
        let mut bytes = [&bytes, NEXT].concat();
        for _ in 0..1 + random.usize(..4) {
            mutate(random, &mut bytes);
        }
        let Some(first) = accepted(&bytes) else { continue };
        assert_eq!(second_reading(&bytes).as_ref(), Some(&first), "{}", shown(&bytes));
        assert_eq!(
            reading_of_httparse(&bytes).as_ref(),
            Some(&first),
            "httparse: {}",
            shown(&bytes)
        );
        let is_chunked = shown(&bytes).to_ascii_lowercase().contains("transfer-encoding");
        *(if is_chunked { &mut chunked } else { &mut by_length }) += 1;
    }
    // Otherwise the test tried nothing.
    assert!(chunked as u64 > CASES / 20 && by_length as u64 > CASES / 20, "{chunked} {by_length}");
}

#[test]
fn how_bytes_come_in_pieces_changes_nothing() {
    for (seed, ref mut random) in cases(CASES) {
        let Sample { mut bytes, .. } = sample(random);
        for _ in 0..random.usize(..3) {
            mutate(random, &mut bytes);
        }
        assert_eq!(accepted_in_pieces(&bytes, seed.0), accepted(&bytes), "{}", shown(&bytes));
    }
}

#[test]
fn noise_is_survived() {
    for (_seed, ref mut random) in cases(CASES) {
        let length = random.usize(..300);
        let pick = |_| {
            if random.bool() {
                random.choice(PIECES).unwrap().to_vec()
            } else {
                vec![random.u8(..)]
            }
        };
        let bytes: Vec<u8> = (0..length).map(pick).collect::<Vec<_>>().concat();
        if let Some(first) = accepted(&bytes) {
            assert_eq!(second_reading(&bytes), Some(first), "{}", shown(&bytes));
        }
        // This includes content in chunks, with any bytes in them.
        let bytes =
            [b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n", &bytes[..]]
                .concat();
        if let Some(first) = accepted(&bytes) {
            assert_eq!(second_reading(&bytes), Some(first), "{}", shown(&bytes));
        }
    }
}
