//! A submission, made of arguments and a file.
//!
//! Owns where its content comes from, and how the id is returned. Invariant: content from a pipe is read before deferd
//! is asked, up to 16 MiB of it, so that a slow writer meets no time limit of a request.

use std::fs::File;
use std::io::{self, Cursor, IsTerminal, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Method};
use ureq::SendBody;

use super::Trouble;
use super::server::{Patience, Question, Server};
use crate::job::JobId;
use crate::protocol::{ASYNC, ASYNC_ID};

/// How much is read ahead, in bytes: deferd's default limit for content.
const READ_AHEAD: u64 = 16 << 20;

/// What a job is made from.
pub struct Submission {
    /// The path with its query.
    pub path: String,
    /// `None`: POST if the request has content, else GET.
    pub method: Option<Method>,
    pub fields: HeaderMap,
    pub content: Source,
}

/// Where content comes from.
pub enum Source {
    /// No content.
    Nothing,
    /// Standard input.
    Stdin,
    /// Standard input, unless it is a terminal; if it is empty, the request has no content.
    Inherited,
    /// A file.
    File(PathBuf),
}

/// A submission whose content can be sent.
pub struct Prepared {
    question: Question,
    content: Option<Box<dyn Read>>,
}

impl Submission {
    /// Opens the content.
    ///
    /// # Errors
    /// [`Trouble::Usage`] if it cannot be read.
    pub fn prepare(self) -> Result<Prepared, Trouble> {
        let content = self.content.open()?;
        let default = if content.is_some() { Method::POST } else { Method::GET };
        let mut question = Question::new(self.method.unwrap_or(default), self.path);
        question.fields = self.fields;
        question.fields.insert(ASYNC, HeaderValue::from_static("store"));
        if let Some(length) = content.as_ref().and_then(|content| content.length) {
            question.fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        Ok(Prepared { question, content: content.map(|content| content.reader) })
    }
}

impl Prepared {
    /// Submits the request; returns the id of the job.
    ///
    /// # Errors
    /// [`Trouble::Refused`].
    pub fn submit(self, server: &Server) -> Result<JobId, Trouble> {
        let content = self.content.map_or_else(SendBody::none, SendBody::from_owned_reader);
        let answer = server.send(self.question, content, Patience::Bounded)?;
        // A route may answer a submission with a status other than 202.
        match answer.field(&ASYNC_ID).as_deref().and_then(JobId::parse) {
            Some(id) if answer.response.status().is_success() => Ok(id),
            _ => Err(answer.refusal()),
        }
    }
}

/// Content that can be read.
struct Content {
    reader: Box<dyn Read>,
    /// `None`: not known before the end.
    length: Option<u64>,
}

impl Source {
    fn open(&self) -> Result<Option<Content>, Trouble> {
        let stdin = Path::new("standard input");
        let content = match self {
            Self::Nothing => return Ok(None),
            Self::Inherited if io::stdin().is_terminal() => return Ok(None),
            Self::Stdin | Self::Inherited => Content::of(standard_input(), stdin),
            Self::File(path) => Content::of(File::open(path), path),
        }?;
        let is_needed = !matches!(self, Self::Inherited) || content.length != Some(0);
        Ok(is_needed.then_some(content))
    }
}

/// Returns standard input as a file.
fn standard_input() -> io::Result<File> {
    io::stdin().as_fd().try_clone_to_owned().map(File::from)
}

impl Content {
    fn of(file: io::Result<File>, name: &Path) -> Result<Self, Trouble> {
        let content = file.and_then(|mut file| {
            let metadata = file.metadata()?;
            // A file in /proc has size 0, but is not empty.
            if metadata.is_file() && metadata.len() > 0 {
                let length = metadata.len().saturating_sub(file.stream_position()?);
                return Ok(Self { reader: Box::new(file), length: Some(length) });
            }
            let mut ahead = Vec::new();
            let length = file.by_ref().take(READ_AHEAD).read_to_end(&mut ahead)? as u64;
            let length = (length < READ_AHEAD).then_some(length);
            Ok(Self { reader: Box::new(Cursor::new(ahead).chain(file)), length })
        });
        content.map_err(|error| Trouble::Usage(format!("{}: {error}", name.display())))
    }
}
