//! Hostile clients against the strict front: section 5 of the contract, and every row of section 10.
//!
//! Each case runs against a deferd of its own, inside [`unharmed`]: whatever the client did, an honest request is
//! answered afterwards, and no memory, no thread and no descriptor is left behind. If a request is refused, what
//! follows it would leave a job as its trace if it were ever read.
//!
//! The tests of each rule (`file::part_of_a_name`):
//!
//! | section 10, row by row | |
//! |---|---|
//! | 16 kept connections | `crowds::every_one_of_many` |
//! | `content-length: 30000000000` | `framing::thirty_gigabytes` |
//! | `HTTP/2.0` | `heads::many_requests_of_http_2` |
//! | 200 MB in a line, ten million fields | `shapes::200_megabytes`, `ten_million_fields` |
//! | `abc`, two lengths, both framings | `framing::not_digits`, `more_than_one_length`, `both_framings` |
//! | half a content | `bodies::half_a_content`, `chunks_without_the_last` |
//! | out of descriptors | `scarcity::running_out_of_descriptors`, `connections_without_descriptors` |
//! | 500 connections, a byte a second | `trickles::trickles_heads`, `_content`, `_chunk_extensions` |
//! | `te: a;q=nan` | `heads::weight_that_is_no_number` |
//! | 44 ms an answer | `crowds::wait_for_acknowledgements` |
//! | 300 000 pipelined requests | `floods::unread_answers_hold_back` |
//!
//! | section 5 | |
//! |---|---|
//! | one length, of digits | `framing::not_digits`, `more_than_one_length`, `beyond_every_number` |
//! | or exactly `chunked` | `framing::other_than_chunked`, `more_than_once_or_not_last`, `in_http_1_0` |
//! | never both | `framing::both_framings` |
//! | chunks | `chunks` (sizes, ends, extensions, trailers and their fields), `bodies::chunks_without_the_last` |
//! | no obs-fold, bare CR or LF, blank before the colon, NUL | `heads::folded`, `bare`, `blank`, `nul` |
//! | names are tokens, values opaque | `heads::no_token`, `bytes_beyond_ascii` |
//! | one `host`; 1.0 and 1.1 only | `heads::not_exactly_one_host`, `version_that_is_not_offered` |
//! | the target names a resource | `targets` (absolute-form, authority-form, `*`) |
//! | `--max-head`, 100 fields | `shapes::exactly_max_head`, `a_hundred_fields`, `target_of_a_megabyte` |
//! | deadlines: head, content, answer, idle | `contract::deadlines`, `trickles`, `bodies::too_late`, `silence::too_little`, `crowds::idle` |
//! | silence within content | `bodies::silence_after` |
//! | a body cut short is never run | `bodies`, `resets::inside_content` |
//! | a refused upload's answer arrives | `lingering` |
//! | `100` after every check | `expectations` |
//! | `--max-connections`; threads | `crowds::beyond_the_limit`, `scarcity::running_out_of_threads` |
//! | resets in every phase | `resets` |
//! | a client that leaves ends its run and frees its place | `leaving` |
//! | synchronous answers flow (section 3) | `flow` |
//! | `--max-memory`, `--max-stored` | `memory` (content sent, unread, stored; keys) |

mod bodies;
mod chunks;
mod crowds;
mod expectations;
mod floods;
mod flow;
mod framing;
mod heads;
mod leaving;
mod lingering;
mod memory;
mod resets;
mod scarcity;
mod shapes;
mod silence;
mod smuggling;
mod targets;
mod trickles;
pub mod unharmed;
mod waiting;

pub use unharmed::unharmed;
