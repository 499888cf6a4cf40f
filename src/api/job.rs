//! The job resource: `/_api/job` and what is below it.
//!
//! Owns its paths, methods, parameters and status codes. How jobs live is `jobs`' and the store's.
//! Invariant: `x-arango-async-id` stands on results and nowhere else, so that it tells a job's own
//! `404` from this resource's.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};

use super::query::{number, parameter};
use super::{Endpoint, json, text};
use crate::content::{NoMemory, SMALL, held};
use crate::error::Error;
use crate::exchange::{Answer, Call, Guard, Owner, empty};
use crate::job::stored::StoredResponse;
use crate::job::{JobId, Stamp};
use crate::jobs::Jobs;
use crate::memory::Allowance;
use crate::store::{JobKey, List, Lookup, Status, StoreUnavailable};

/// The field that carries a job's id.
pub const ASYNC_ID: HeaderName = HeaderName::from_static("x-arango-async-id");

/// The same under the name that the prose of ArangoDB's documentation gives it.
const ASYNC_JOB_ID: HeaderName = HeaderName::from_static("x-arango-async-job-id");

const PROGRESS: HeaderName = HeaderName::from_static("x-progress");

/// A result that is opened as a page runs nothing, and acts in no name (CSP level 3, section 6.3.2).
const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox");

/// How many ids a list holds when `count` is absent.
const DEFAULT_COUNT: usize = 100;

/// How many it holds at most.
const MAX_COUNT: usize = 10_000;

/// The longest id as text, with quotes and a comma, in bytes.
const ID_TEXT: usize = 23;

const TRUE: &str = r#"{"result":true}"#;

/// Answers a request for the job resource; `rest` is the path behind it.
///
/// # Errors
/// What the resource itself has to say: `400`, `404`, `405`.
pub fn answer(
    jobs: &Arc<Jobs>,
    call: &Call,
    rest: &str,
    memory: &Allowance,
) -> Result<Answer, Error> {
    let query = call.request.uri().query().unwrap_or_default();
    let (segments, count) = segments(rest);
    let segments = &segments[..count];
    match *call.request.method() {
        Method::PUT => put(jobs, &call.owner, segments),
        Method::DELETE => delete(jobs, &call.owner, segments, query),
        _ => get(jobs, &call.owner, segments, query, memory),
    }
}

/// The segments of the path behind the resource, and how many they are; more than three are as good as
/// three, because no path has as many.
fn segments(rest: &str) -> ([&str; 3], usize) {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (mut segments, mut count) = ([""; 3], 0);
    for (place, segment) in segments.iter_mut().zip(rest.split('/').skip(1)) {
        *place = segment;
        count += 1;
    }
    (segments, count)
}

/// The job that a request asks after, so that its client may prefer to wait for it. `path` is that of the
/// whole target.
pub fn awaited(method: &Method, path: &str) -> Option<JobId> {
    let Ok(Endpoint::Job(rest)) = Endpoint::of(path) else { return None };
    let (segments, count) = segments(rest);
    match (method, &segments[..count]) {
        (&Method::GET | &Method::HEAD | &Method::PUT, [id])
        | (&Method::GET | &Method::HEAD, [id, "result"]) => JobId::parse(id),
        _ => None,
    }
}

fn get(
    jobs: &Jobs,
    owner: &Owner,
    segments: &[&str],
    query: &str,
    memory: &Allowance,
) -> Result<Answer, Error> {
    match segments {
        [] => Err(Error::bad_parameter("")),
        ["done"] => list(jobs, owner, List::Done, query, memory),
        ["pending"] => list(jobs, owner, List::Pending, query, memory),
        [id] => status(jobs, &key(owner, id).ok_or(Error::bad_parameter(""))?),
        [id, "result"] => peek(jobs, &key(owner, id).ok_or(Error::bad_parameter(""))?),
        [id, "log"] => log(jobs, &key(owner, id).ok_or(Error::bad_parameter(""))?, memory),
        _ => Err(Error::bad_parameter("")),
    }
}

fn put(jobs: &Arc<Jobs>, owner: &Owner, segments: &[&str]) -> Result<Answer, Error> {
    match segments {
        [id] => collect(jobs, key(owner, id).ok_or(Error::not_found())?),
        [id, "cancel"] => found(match key(owner, id) {
            Some(job) => jobs.cancel(&job)?,
            None => false,
        }),
        _ => Err(Error::bad_parameter("")),
    }
}

fn delete(jobs: &Jobs, owner: &Owner, segments: &[&str], query: &str) -> Result<Answer, Error> {
    match segments {
        ["all"] => {
            jobs.store.forget_all(owner)?;
            found(true)
        }
        ["expired"] => {
            jobs.store.forget_before(owner, stamp(query)?)?;
            found(true)
        }
        [id] => found(match key(owner, id) {
            Some(job) => jobs.store.forget(&job)?,
            None => false,
        }),
        _ => Err(Error::bad_parameter("")),
    }
}

fn key(owner: &Owner, segment: &str) -> Option<JobKey> {
    JobId::parse(segment).map(|id| JobKey { owner: owner.clone(), id })
}

fn found(exists: bool) -> Result<Answer, Error> {
    if exists { Ok(json(TRUE).into()) } else { Err(Error::not_found()) }
}

fn stamp(query: &str) -> Result<Stamp, Error> {
    number(query, "stamp")
        .and_then(Stamp::from_unix_seconds)
        .ok_or(Error::bad_parameter("stamp is not a number"))
}

fn list(
    jobs: &Jobs,
    owner: &Owner,
    list: List,
    query: &str,
    memory: &Allowance,
) -> Result<Answer, Error> {
    let count = match parameter(query, "count") {
        None => DEFAULT_COUNT,
        Some(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            text.parse().map_or(MAX_COUNT, |count: usize| count.min(MAX_COUNT))
        }
        Some(_) => return Err(Error::bad_parameter("count is not a number")),
    };
    // The ids as they come, and as text with its quotes and commas.
    let mut charge = memory.nothing();
    let ids = jobs.store.list(owner, list, count);
    if ids.len() > DEFAULT_COUNT {
        charge.grow(ids.len() * (size_of::<JobId>() + ID_TEXT))?;
    }
    let (mut text, mut digits) =
        (String::with_capacity(2 + ids.len() * ID_TEXT), itoa::Buffer::new());
    text.push('[');
    for id in &ids {
        let comma = if text.len() > 1 { "," } else { "" };
        for part in [comma, "\"", digits.format(id.number()), "\""] {
            text.push_str(part);
        }
    }
    text.push(']');
    drop(ids);
    charge.shrink_to(text.len());
    Ok(json(held(text.into_bytes().into(), charge)).into())
}

fn status(jobs: &Jobs, job: &JobKey) -> Result<Answer, Error> {
    match jobs.store.status(job) {
        None => Err(Error::not_found()),
        Some(Status::Done) => Ok(text("").into()),
        Some(Status::Pending(progress)) => {
            let mut response = empty(StatusCode::NO_CONTENT);
            if let Some(line) = progress.and_then(|line| HeaderValue::try_from(line).ok()) {
                response.headers_mut().insert(PROGRESS, line);
            }
            Ok(response.into())
        }
    }
}

fn log(jobs: &Jobs, job: &JobKey, memory: &Allowance) -> Result<Answer, Error> {
    let log = jobs.store.log(job)?.ok_or(Error::not_found())?;
    let mut charge = memory.nothing();
    if log.len() > SMALL {
        charge.grow(log.len())?;
    }
    Ok(text(held(log.into(), charge)).into())
}

fn peek(jobs: &Jobs, job: &JobKey) -> Result<Answer, Error> {
    answer_with(jobs.store.peek(job), job, |mut response| {
        response.headers_mut().append(CONTENT_SECURITY_POLICY, SANDBOX);
        response.into()
    })
}

fn collect(jobs: &Arc<Jobs>, job: JobKey) -> Result<Answer, Error> {
    answer_with(jobs.store.collect(&job), &job, |response| Answer {
        response,
        guard: Guard::Verbatim,
        receipt: jobs.receipt(job.clone()),
    })
}

fn answer_with(
    lookup: Lookup,
    job: &JobKey,
    answer: impl FnOnce(Response<Bytes>) -> Answer,
) -> Result<Answer, Error> {
    match lookup {
        Lookup::Unknown => Err(Error::not_found()),
        Lookup::Pending => Ok(empty(StatusCode::NO_CONTENT).into()),
        Lookup::Unreadable => Err(StoreUnavailable.into()),
        Lookup::NoMemory => Err(Error::no_memory(&NoMemory::Budget)),
        Lookup::TooLarge => {
            let what = "the stored result is larger than --max-memory: raise that; it stays";
            Err(Error::InsufficientStorage(what.into()))
        }
        Lookup::Done(result) => Ok(answer(named(&result, job.id))),
    }
}

/// A result as its client gets it.
fn named(result: &StoredResponse, id: JobId) -> Response<Bytes> {
    let mut response = result.to_response();
    for name in [ASYNC_ID, ASYNC_JOB_ID] {
        response.headers_mut().insert(name, id_value(id));
    }
    response
}

/// The id as a field value.
pub fn id_value(id: JobId) -> HeaderValue {
    let mut digits = itoa::Buffer::new();
    HeaderValue::from_str(digits.format(id.number())).expect("digits are a field value")
}
