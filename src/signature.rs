//! Signed requests: whether the content of a request comes from a sender that knows a secret of its route.
//!
//! Owns the schemes and the files of their secrets; signs callbacks too. Does not know what the request is for.
//! Invariants: how long a comparison takes does not depend on what was sent, nor on which secret it matches; every
//! secret of the file is compared.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac_sha256::{HMAC, Hash};
use http::{HeaderMap, HeaderName, HeaderValue};
use subtle::{Choice, ConstantTimeEq};

use crate::auth;
use crate::content::Content;
use crate::exchange::Owner;
use crate::fields::{FieldLines, find};
use crate::hex;
use crate::job::Stamp;

/// The greatest difference between the time of a signature and that of this host (Standard Webhooks).
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// What the secrets of Standard Webhooks begin with.
const SECRET_PREFIX: &str = "whsec_";

const GITHUB: HeaderName = HeaderName::from_static("x-hub-signature-256");
const GITEA: HeaderName = HeaderName::from_static("x-gitea-signature");
const GITLAB: HeaderName = HeaderName::from_static("x-gitlab-token");

/// The fields of Standard Webhooks.
static STANDARD_FIELDS: [HeaderName; 3] = [
    HeaderName::from_static("webhook-id"),
    HeaderName::from_static("webhook-timestamp"),
    HeaderName::from_static("webhook-signature"),
];

/// Base64 as senders write it: some leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How a request is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HMAC-SHA256 of the content, in `x-hub-signature-256: sha256=HEX`.
    GitHub,
    /// The same in `x-gitea-signature: HEX`.
    Gitea,
    /// The secret itself, in `x-gitlab-token`.
    GitLab,
    /// Standard Webhooks: HMAC-SHA256 of `id.timestamp.content`.
    Standard,
}

/// The secrets of a route, and the owner of its requests.
pub struct Signature {
    scheme: Scheme,
    path: PathBuf,
    secrets: RwLock<Arc<[Secret]>>,
    /// The owner of the jobs that they make.
    pub owner: Owner,
}

/// A key, as bytes.
type Secret = Box<[u8]>;

/// What a request shows for its signature.
struct Shown {
    /// What is signed before the content.
    before: String,
    /// One of these must match.
    codes: Vec<[u8; 32]>,
}

/// Why a request does not count as signed.
pub type Unsigned = &'static str;

impl Signature {
    /// Reads the secrets from a file, one a line.
    ///
    /// # Errors
    /// In words, what is wrong with the file and what to do.
    pub fn load(scheme: Scheme, path: &Path, owner: Owner) -> Result<Self, String> {
        let secrets = RwLock::new(read(scheme, path)?);
        Ok(Self { scheme, path: path.to_owned(), secrets, owner })
    }

    /// Reads the file again; returns how many secrets there are now.
    ///
    /// # Errors
    /// What is wrong with the file; then the secrets stay as they were.
    pub fn reload(&self) -> Result<usize, String> {
        let secrets = read(self.scheme, &self.path)?;
        let count = secrets.len();
        *self.secrets.write().unwrap_or_else(PoisonError::into_inner) = secrets;
        Ok(count)
    }

    /// Returns whether this is the `secret=` of the other as well.
    pub fn has_secret_of(&self, other: &Self) -> bool {
        self.path == other.path
    }

    /// Returns the fields that sign a message of deferd's own by Standard Webhooks, with each of the secrets.
    ///
    /// # Errors
    /// Those of the file that has the content.
    pub fn sign(
        &self,
        id: &str,
        content: &Content,
        now: Stamp,
    ) -> io::Result<[(HeaderName, HeaderValue); 2]> {
        let secrets = Arc::clone(&self.secrets.read().unwrap_or_else(PoisonError::into_inner));
        let time = now.micros() / 1_000_000;
        let before = format!("{id}.{time}.");
        let codes = Scheme::Standard.codes(&secrets, &before, content)?;
        let signatures: Vec<_> =
            codes.iter().map(|code| format!("v1,{}", BASE64.encode(code))).collect();
        let signatures = HeaderValue::try_from(signatures.join(" "));
        let [_, timestamp, signature] = &STANDARD_FIELDS;
        Ok([
            (timestamp.clone(), HeaderValue::from(time)),
            (signature.clone(), signatures.expect("base64 and blanks are a field value")),
        ])
    }

    /// Checks the part of the signature that needs no content.
    ///
    /// # Errors
    /// Why the request cannot be signed.
    pub fn check_fields(&self, fields: &HeaderMap, now: Stamp) -> Result<(), Unsigned> {
        shown(self.scheme, fields, now).map(drop)
    }

    /// Checks the signature of a request. A secret that stands in its fields is removed: it was meant for deferd,
    /// and neither a handler nor a disk is to get it.
    ///
    /// # Errors
    /// Those of the file that has the content; within, why the request is not signed.
    pub fn verify(
        &self,
        fields: &mut HeaderMap,
        content: &Content,
        now: Stamp,
    ) -> io::Result<Result<(), Unsigned>> {
        let shown = match shown(self.scheme, fields, now) {
            Ok(shown) => shown,
            Err(what) => return Ok(Err(what)),
        };
        let secrets = Arc::clone(&self.secrets.read().unwrap_or_else(PoisonError::into_inner));
        let mut matches = Choice::from(0);
        for expected in self.scheme.codes(&secrets, &shown.before, content)? {
            for code in &shown.codes {
                matches |= expected.ct_eq(code);
            }
        }
        if self.scheme == Scheme::GitLab {
            fields.remove(GITLAB);
        }
        let matches = bool::from(matches);
        Ok(matches.then_some(()).ok_or("it matches no secret of the route"))
    }
}

impl Scheme {
    /// Returns what a request with this content shows if its sender knows one of the secrets, for each of them: the
    /// content is read once.
    ///
    /// # Errors
    /// Those of the file that has the content.
    fn codes(
        self,
        secrets: &[Secret],
        before: &str,
        content: &Content,
    ) -> io::Result<Vec<[u8; 32]>> {
        if self == Self::GitLab {
            // Hashed, so that tokens of all lengths compare in the same time.
            return Ok(secrets.iter().map(|secret| Hash::hash(secret)).collect());
        }
        let mut macs: Vec<HMAC> = secrets.iter().map(HMAC::new).collect();
        macs.iter_mut().for_each(|mac| mac.update(before));
        content.for_each_piece(|piece| macs.iter_mut().for_each(|mac| mac.update(piece)))?;
        Ok(macs.into_iter().map(HMAC::finalize).collect())
    }

    /// Reads a secret from its line.
    fn secret(self, line: &str) -> Result<Secret, &'static str> {
        if self != Self::Standard {
            return Ok(line.as_bytes().into());
        }
        let encoded = line.strip_prefix(SECRET_PREFIX);
        let secret = encoded.and_then(|encoded| BASE64.decode(encoded).ok());
        let secret = secret.filter(|secret| !secret.is_empty());
        secret.map(Vec::into_boxed_slice).ok_or("not of the form whsec_BASE64")
    }
}

/// Reads what a request shows for its signature.
fn shown(scheme: Scheme, fields: &HeaderMap, now: Stamp) -> Result<Shown, Unsigned> {
    let code = match scheme {
        Scheme::GitHub => {
            let value = text(find(fields, &[GITHUB])[0])?;
            hex::decode(
                value.strip_prefix("sha256=").ok_or("x-hub-signature-256 is not sha256=HEX")?,
            )
        }
        Scheme::Gitea => hex::decode(text(find(fields, &[GITEA])[0])?),
        Scheme::GitLab => {
            let [token] = find(fields, &[GITLAB]);
            Some(Hash::hash(token.only().ok_or(MISSING)?.as_bytes()))
        }
        Scheme::Standard => return shown_by_standard(fields, now),
    };
    let code = code.ok_or("it is not a SHA-256 in hexadecimal digits")?;
    Ok(Shown { before: String::new(), codes: vec![code] })
}

const MISSING: Unsigned = "its signature is missing, or there twice";

fn text(lines: FieldLines<'_>) -> Result<&str, Unsigned> {
    lines.only_text().ok_or(MISSING)
}

fn shown_by_standard(fields: &HeaderMap, now: Stamp) -> Result<Shown, Unsigned> {
    let [id, timestamp, signatures] = find(fields, &STANDARD_FIELDS);
    let (id, timestamp, signatures) = (text(id)?, text(timestamp)?, text(signatures)?);
    if id.contains('.') {
        // With a full stop in the id, one signature would fit several ids, times and contents.
        return Err("webhook-id has a full stop");
    }
    let digits = !timestamp.is_empty() && timestamp.bytes().all(|b| b.is_ascii_digit());
    let seconds: Option<u64> = timestamp.parse().ok().filter(|_| digits);
    let seconds = seconds.ok_or("webhook-timestamp is not a number of seconds")?;
    if seconds.abs_diff(now.micros() / 1_000_000) > TOLERANCE.as_secs() {
        return Err("webhook-timestamp is more than 5 minutes from this host's time");
    }
    let code = |signature: &str| {
        let encoded = signature.strip_prefix("v1,")?;
        BASE64.decode(encoded).ok()?.try_into().ok()
    };
    // Those of other versions do not count, and are no fault.
    let codes: Vec<_> = signatures.split(' ').filter_map(code).collect();
    if codes.is_empty() {
        return Err("webhook-signature has no v1,BASE64 of a SHA-256");
    }
    Ok(Shown { before: format!("{id}.{timestamp}."), codes })
}

fn read(scheme: Scheme, path: &Path) -> Result<Arc<[Secret]>, String> {
    let text = auth::read_private(path)?;
    let mut secrets = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        secrets.push(scheme.secret(line).map_err(|what| format!("line {}: {what}", n + 1))?);
    }
    if secrets.is_empty() {
        return Err("it has no secret; write one a line".into());
    }
    Ok(secrets.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    use http::HeaderValue;

    /// The moment of the vector of Standard Webhooks' libraries.
    const SIGNED_AT: u64 = 1_614_265_330;

    fn signature(scheme: Scheme, text: &str) -> Result<Signature, String> {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("deferd-secret-{}-{n}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let signature = Signature::load(scheme, &path, Owner::anonymous());
        std::fs::remove_file(&path).unwrap();
        signature
    }

    fn fields(lines: &[(&str, &str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().unwrap();
            fields.append(name, HeaderValue::from_str(value).unwrap());
        }
        fields
    }

    fn at(seconds: u64) -> Stamp {
        Stamp::from_micros(seconds * 1_000_000)
    }

    fn verify(
        signature: &Signature,
        lines: &[(&str, &str)],
        content: &[u8],
        seconds: u64,
    ) -> Result<(), Unsigned> {
        let mut fields = fields(lines);
        let early = signature.check_fields(&fields, at(seconds));
        let content = content.to_vec().into();
        let whole = signature.verify(&mut fields, &content, at(seconds)).unwrap();
        assert!(early.is_ok() || whole == early, "what is seen early is seen later as well");
        whole
    }

    /// GitHub's documentation, "Validating webhook deliveries": "Testing the webhook payload validation".
    #[test]
    fn github_s_own_example_is_verified() {
        const HEX: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let signature = signature(Scheme::GitHub, "It's a Secret to Everybody\n").unwrap();
        let field = "x-hub-signature-256";
        let (good, upper) = (format!("sha256={HEX}"), format!("sha256={}", HEX.to_uppercase()));
        for value in [&good, &upper] {
            assert_eq!(verify(&signature, &[(field, value)], b"Hello, World!", 0), Ok(()));
        }
        let other = good.replace("757", "756");
        for (lines, content) in [
            (&[(field, good.as_str())][..], &b"Hello, World"[..]),
            (&[(field, &other)], b"Hello, World!"),
            (&[(field, HEX)], b"Hello, World!"),
            (&[(field, &good[..70])], b"Hello, World!"),
            (&[(field, &good.replace("757", "+57"))], b"Hello, World!"),
            (&[(field, "sha256=")], b"Hello, World!"),
            (&[(field, &good), (field, &good)], b"Hello, World!"),
            (&[("x-gitea-signature", HEX)], b"Hello, World!"),
            (&[], b"Hello, World!"),
        ] {
            assert!(verify(&signature, lines, content, 0).is_err(), "{lines:?}");
        }
    }

    /// Gitea's documentation has code and no numbers: `hash_hmac('sha256', $payload, $secret_key, false)`. The numbers
    /// are those of GitHub's example, as Gitea itself sends the same code in both fields.
    #[test]
    fn gitea_s_signature_is_the_bare_code() {
        const HEX: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let signature = signature(Scheme::Gitea, "It's a Secret to Everybody").unwrap();
        let field = "x-gitea-signature";
        assert_eq!(verify(&signature, &[(field, HEX)], b"Hello, World!", 0), Ok(()));
        let prefixed = format!("sha256={HEX}");
        for lines in [&[(field, prefixed.as_str())][..], &[("x-hub-signature-256", &prefixed)]] {
            assert!(verify(&signature, lines, b"Hello, World!", 0).is_err(), "{lines:?}");
        }
    }

    /// GitLab's documentation, "Webhooks": the secret token is sent as it is.
    #[test]
    fn gitlab_s_token_is_the_secret_itself_and_goes_no_further() {
        let signature = signature(Scheme::GitLab, "old token\nnew-token\n").unwrap();
        let field = "x-gitlab-token";
        for token in ["old token", "new-token"] {
            let mut fields = fields(&[(field, token), ("x-gitlab-event", "Push Hook")]);
            assert_eq!(signature.verify(&mut fields, &"{}".into(), at(0)).unwrap(), Ok(()));
            assert!(!fields.contains_key(field) && fields.contains_key("x-gitlab-event"));
        }
        for lines in [
            &[(field, "new-toke")][..],
            &[(field, "new-token2")],
            &[(field, "")],
            &[(field, "new-token"), (field, "new-token")],
            &[],
        ] {
            assert!(verify(&signature, lines, b"{}", 0).is_err(), "{lines:?}");
        }
    }

    /// The vector of Standard Webhooks' reference libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: (&str, &str) = ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek");
    const TIME: (&str, &str) = ("webhook-timestamp", "1614265330");
    const CODE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const CONTENT: &[u8] = b"{\"test\": 2432232314}";

    #[test]
    fn standard_webhooks_own_example_is_verified() {
        let signature = signature(Scheme::Standard, SECRET).unwrap();
        let field = "webhook-signature";
        let several = format!("v1a,{} v1,AAAA v1,{} {CODE}", &CODE[3..], "A".repeat(43));
        for value in [CODE, CODE.trim_end_matches('='), &several] {
            let lines = [ID, TIME, (field, value)];
            assert_eq!(verify(&signature, &lines, CONTENT, SIGNED_AT), Ok(()), "{value}");
        }
        for lines in [
            &[ID, TIME][..],
            &[ID, (field, CODE)],
            &[TIME, (field, CODE)],
            &[ID, TIME, (field, &CODE[3..])],
            &[ID, TIME, (field, &CODE.replace("v1", "v2"))],
            &[ID, TIME, (field, &CODE.replace("g0", "g1"))],
            &[ID, TIME, (field, CODE), (field, CODE)],
            &[("webhook-id", "msg_other"), TIME, (field, CODE)],
            &[ID, ("webhook-timestamp", "1614265331"), (field, CODE)],
            &[ID, ("webhook-timestamp", "+1614265330"), (field, CODE)],
            &[ID, ("webhook-timestamp", ""), (field, CODE)],
        ] {
            assert!(verify(&signature, lines, CONTENT, SIGNED_AT).is_err(), "{lines:?}");
        }
        let lines = [ID, TIME, (field, CODE)];
        assert!(verify(&signature, &lines, b"{\"test\": 2432232315}", SIGNED_AT).is_err());
    }

    #[test]
    fn a_signature_is_good_for_five_minutes_before_and_after() {
        let signature = signature(Scheme::Standard, SECRET).unwrap();
        let lines = [ID, TIME, ("webhook-signature", CODE)];
        for (now, is_good) in [
            (SIGNED_AT - 301, false),
            (SIGNED_AT - 300, true),
            (SIGNED_AT + 300, true),
            (SIGNED_AT + 301, false),
            (0, false),
            (u64::MAX / 1_000_000, false),
        ] {
            assert_eq!(verify(&signature, &lines, CONTENT, now).is_ok(), is_good, "{now}");
        }
    }

    /// `a.1.b` could be the id `a` or the id `a.1`: what was signed for one would be good for the other.
    #[test]
    fn an_id_that_reads_in_two_ways_is_refused() {
        let signature = signature(Scheme::Standard, SECRET).unwrap();
        let key = BASE64.decode(&SECRET[6..]).unwrap();
        let sign = |text: &str| format!("v1,{}", BASE64.encode(HMAC::mac(text, &key)));
        let code = sign("a.1614265330.1614265331.x");
        let with = |id, timestamp| {
            [
                ("webhook-id", id),
                ("webhook-timestamp", timestamp),
                ("webhook-signature", code.as_str()),
            ]
        };
        let (first, second) = (with("a", "1614265330"), with("a.1614265330", "1614265331"));
        assert_eq!(verify(&signature, &first, b"1614265331.x", SIGNED_AT), Ok(()));
        assert!(verify(&signature, &second, b"x", SIGNED_AT).is_err());
    }

    #[test]
    fn every_secret_of_the_file_is_good_and_files_without_one_are_refused() {
        let content = [0, 255, b'\r', b'\n', 0];
        for secrets in ["# both\none\n\n two \r\n", "two\none"] {
            let signature = signature(Scheme::Gitea, secrets).unwrap();
            for (secret, is_good) in [("one", true), ("two", true), ("# both", false), ("", false)]
            {
                let code = HMAC::mac(content, secret);
                let code: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
                let lines = [("x-gitea-signature", code.as_str())];
                assert_eq!(verify(&signature, &lines, &content, 0).is_ok(), is_good, "{secret}");
            }
        }
        for (scheme, text, part) in [
            (Scheme::GitHub, "", "it has no secret"),
            (Scheme::GitLab, "\n  \n# later\n", "it has no secret"),
            (Scheme::Standard, "\nMfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "line 2: not of the form"),
            (Scheme::Standard, "whsec_", "line 1: not of the form whsec_BASE64"),
            (Scheme::Standard, "whsec_%%", "line 1: not of the form whsec_BASE64"),
        ] {
            let error = signature(scheme, text).err().unwrap();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        assert!(
            Signature::load(Scheme::GitHub, Path::new("/nonexistent"), Owner::anonymous()).is_err()
        );
    }
}
