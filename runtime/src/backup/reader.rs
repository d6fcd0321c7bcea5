//! Frames, checked. The whole file is looked at before anything of it is used.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use skep_inference::limits::MODEL_BYTES_MAX;
use skep_model::Bytes;
use skep_model::id::{Digest, Incarnation};
use skep_model::limits::{BACKUP_FRAME_BYTES_MAX, UPLOAD_BYTES_MAX};
use skep_model::scope::{Scope, SwarmId};
use skep_topic::record::{Piece, decode_piece};

use super::writer::checksum;
use super::{Counts, FORMAT, HEAD_BYTES, Head, Kind, MAGIC, Tally};

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Bad {
    #[error("this is not a backup of skep")]
    Foreign,
    #[error("the backup is cut off after {0} bytes: take the whole file")]
    Cut(u64),
    #[error("the backup is damaged at byte {at}: {what}; take another copy of it")]
    Damaged { at: u64, what: String },
    #[error("the backup was taken by a newer skep, of format {0}; this one reads up to {FORMAT}: upgrade it")]
    Newer(u32),
    #[error("{0}")]
    Record(String),
    #[error("cannot read the backup: {0}")]
    Io(#[from] io::Error),
}

/// A place in a file.
#[derive(Debug, Clone, Copy)]
pub struct At {
    offset: u64,
    number: u64,
}

/// Reads a file from a place, beside others.
struct Window {
    file: Arc<File>,
    offset: u64,
}

impl Read for Window {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

pub struct Reader {
    input: BufReader<Window>,
    at: At,
}

#[derive(Debug)]
pub struct LifeAt {
    pub swarm: SwarmId,
    pub at: At,
    pub tally: Tally,
}

#[derive(Debug, Clone)]
pub struct FileAt {
    pub digest: Digest,
    pub at: At,
    size: usize,
}

/// What is where in a sound file.
#[derive(Debug)]
pub struct Contents {
    pub head: Head,
    pub lives: Vec<LifeAt>,
    pub files: Vec<FileAt>,
    pub records: Vec<(String, At)>,
    pub bytes: u64,
}

impl Reader {
    #[must_use]
    pub fn new(file: &Arc<File>, at: At) -> Self {
        let window = Window {
            file: Arc::clone(file),
            offset: at.offset,
        };
        Self {
            input: BufReader::with_capacity(256 << 10, window),
            at,
        }
    }

    fn damaged(&self, what: impl ToString) -> Bad {
        Bad::Damaged {
            at: self.at.offset,
            what: what.to_string(),
        }
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), Bad> {
        match self.input.read_exact(buf) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(Bad::Cut(self.at.offset)),
            Err(e) => Err(e.into()),
        }
    }

    fn next(&mut self) -> Result<(Kind, Bytes), Bad> {
        let mut head = [0; HEAD_BYTES];
        self.fill(&mut head)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let stored = u32::from_le_bytes([head[5], head[6], head[7], head[8]]);
        let kind = Kind::of(head[0]).ok_or_else(|| self.damaged("a frame of no kind"))?;
        if length > BACKUP_FRAME_BYTES_MAX {
            return Err(self.damaged("a frame is longer than any"));
        }
        let mut body = vec![0; length];
        self.fill(&mut body)?;
        if stored != checksum(self.at.number, head[0], &body) {
            return Err(self.damaged("a checksum does not match"));
        }
        self.at.offset += (HEAD_BYTES + length) as u64;
        self.at.number += 1;
        Ok((kind, body.into()))
    }

    /// The next piece of the life that it stands in.
    ///
    /// # Errors
    /// The file is not what it was.
    pub fn piece(&mut self) -> Result<Option<Piece>, Bad> {
        match self.next()? {
            (Kind::Piece, body) => self.decoded(body).map(Some),
            (Kind::LifeEnd, _) => Ok(None),
            _ => Err(self.damaged("no piece of a life")),
        }
    }

    fn decoded(&self, body: Bytes) -> Result<Piece, Bad> {
        decode_piece(body).map_err(|e| self.damaged(e))
    }

    /// The component or model that it stands in.
    ///
    /// # Errors
    /// The file is not what it was.
    pub fn file(&mut self, of: &FileAt) -> Result<Bytes, Bad> {
        let mut bytes = Vec::with_capacity(of.size);
        while bytes.len() < of.size {
            match self.next()? {
                (Kind::Chunk, chunk) if bytes.len() + chunk.len() <= of.size && !chunk.is_empty() => {
                    bytes.extend_from_slice(&chunk);
                }
                _ => return Err(self.damaged("no chunk of a file")),
            }
        }
        let bytes = Bytes::from(bytes);
        if Digest::of(&bytes) != of.digest {
            return Err(self.damaged("a file is not what its digest names"));
        }
        Ok(bytes)
    }

    /// The record that it stands at.
    ///
    /// # Errors
    /// The file is not what it was.
    pub fn record(&mut self) -> Result<(String, Bytes), Bad> {
        match self.next()? {
            (Kind::Record, body) => self.parted(&body),
            _ => Err(self.damaged("no record")),
        }
    }

    fn parted(&self, body: &Bytes) -> Result<(String, Bytes), Bad> {
        let cut = || self.damaged("a record without key");
        let length = body.get(..2).ok_or_else(cut)?;
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        let key = body.get(2..2 + length).ok_or_else(cut)?;
        let key = String::from_utf8(key.to_vec()).map_err(|_| cut())?;
        Ok((key, body.slice(2 + length..)))
    }
}

/// `tenant/swarm/incarnation`
fn swarm_of(name: &[u8]) -> Option<SwarmId> {
    let mut parts = std::str::from_utf8(name).ok()?.split('/');
    let (tenant, swarm, incarnation) = (parts.next()?, parts.next()?, parts.next()?);
    let incarnation: Incarnation = incarnation.parse().ok()?;
    if parts.next().is_some() {
        return None;
    }
    Some(Scope::of(tenant.parse().ok()?).swarm(&swarm.parse().ok()?, incarnation))
}

/// Looks at all of a file, and hands each catalog record to `judge`. Blocks.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn scan(file: &Arc<File>, mut judge: impl FnMut(&str, &Bytes) -> Result<(), String>) -> Result<Contents, Bad> {
    let bytes = file.metadata()?.len();
    let mut magic = [0; MAGIC.len()];
    if file.read_exact_at(&mut magic, 0).is_err() || magic != MAGIC {
        return Err(Bad::Foreign);
    }
    let offset = MAGIC.len() as u64;
    let mut reader = Reader::new(file, At { offset, number: 0 });
    let head = match reader.next()? {
        (Kind::Head, body) => head(&reader, &body)?,
        _ => return Err(reader.damaged("it does not begin with its head")),
    };
    let (mut counts, mut lives, mut files, mut records) = (Counts::default(), Vec::new(), Vec::new(), Vec::new());
    loop {
        let before = reader.at;
        match reader.next()? {
            (Kind::Life, name) => {
                let swarm = swarm_of(&name).ok_or_else(|| reader.damaged("a life without name"))?;
                let (at, mut tally) = (reader.at, Tally::default());
                while let Some(piece) = reader.piece()? {
                    counts.pieces += 1;
                    tally.add(&piece);
                }
                counts.lives += 1;
                lives.push(LifeAt { swarm, at, tally });
            }
            (Kind::File, body) => {
                let bad = || reader.damaged("a file without digest");
                let digest = body.get(..32).and_then(|b| b.try_into().ok()).ok_or_else(bad)?;
                let size = body.get(32..40).and_then(|b| b.try_into().ok()).ok_or_else(bad)?;
                let size = usize::try_from(u64::from_le_bytes(size)).map_err(|_| bad())?;
                if size > UPLOAD_BYTES_MAX.max(MODEL_BYTES_MAX) {
                    return Err(reader.damaged("a file is larger than any"));
                }
                let file = FileAt {
                    digest: Digest(digest),
                    at: reader.at,
                    size,
                };
                reader.file(&file)?;
                counts.files += 1;
                files.push(file);
            }
            (Kind::Record, body) => {
                let (key, value) = reader.parted(&body)?;
                judge(&key, &value).map_err(Bad::Record)?;
                counts.records += 1;
                records.push((key, before));
            }
            (Kind::End, body) => {
                let end: Counts = serde_json::from_slice(&body).map_err(|e| reader.damaged(e))?;
                if end != counts || reader.at.offset != bytes {
                    return Err(reader.damaged("it does not end where it says"));
                }
                return Ok(Contents {
                    head,
                    lives,
                    files,
                    records,
                    bytes,
                });
            }
            _ => return Err(reader.damaged("a frame that is not in its place")),
        }
    }
}

fn head(reader: &Reader, body: &[u8]) -> Result<Head, Bad> {
    #[derive(serde::Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(body).map_err(|e| reader.damaged(e))?;
    if format > FORMAT {
        return Err(Bad::Newer(format));
    }
    serde_json::from_slice(body).map_err(|e| reader.damaged(e))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use skep_model::id::Uid;

    use super::super::Writer;
    use super::*;

    fn whole() -> Vec<u8> {
        let (mut writer, mut out) = (Writer::default(), Vec::new());
        let head = Head {
            format: FORMAT,
            id: "1".to_owned(),
            taken_ms: 5,
            version: "0".to_owned(),
        };
        writer.begin(&head, &mut out);
        let scope = Scope::of(skep_model::name::TenantId::default_tenant());
        writer.life(&scope.swarm(&"s".parse().unwrap(), Incarnation([1; 16])), &mut out);
        for high in 0..3 {
            let piece = Piece::Session {
                id: Uid([7; 16]),
                high,
                expires_ms: 9,
            };
            writer.piece(&piece, &mut out);
        }
        writer.life_end(&mut out);
        let bytes = [3; 1_000];
        writer.file(Digest::of(&bytes), bytes.len(), &mut out);
        bytes.chunks(300).for_each(|chunk| writer.chunk(chunk, &mut out));
        writer.record("swarm/default/s", b"{}", &mut out);
        writer.end(&mut out);
        out
    }

    fn scanned(bytes: &[u8]) -> Result<Contents, Bad> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        scan(&Arc::new(file), |_, _| Ok(()))
    }

    #[test]
    fn a_whole_file_is_read_and_none_that_is_anything_less() {
        let bytes = whole();
        let contents = scanned(&bytes).unwrap();
        assert_eq!((contents.lives.len(), contents.files.len()), (1, 1));
        assert_eq!((contents.lives[0].tally.calls, contents.records.len()), (3, 1));
        for cut in 0..bytes.len() {
            assert!(scanned(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(scanned(&longer).is_err());
        for at in 0..bytes.len() {
            for bit in [0, 7] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(scanned(&flipped).is_err(), "flipped at {at}");
            }
        }
        assert!(matches!(scanned(b"PK\x03\x04 something else"), Err(Bad::Foreign)));
        assert!(matches!(scanned(b""), Err(Bad::Foreign)));
    }

    #[test]
    fn a_frame_that_is_missing_repeated_or_moved_is_damage() {
        let bytes = whole();
        // The sessions' frames are of one length.
        let (mut starts, mut at) = (Vec::new(), MAGIC.len());
        while at < bytes.len() {
            starts.push(at);
            at += HEAD_BYTES + u32::from_le_bytes(bytes[at + 1..at + 5].try_into().unwrap()) as usize;
        }
        let frame = |n: usize| &bytes[starts[n]..starts[n + 1]];
        let (before, behind) = (&bytes[..starts[2]], &bytes[starts[5]..]);
        let file = |middle: &[&[u8]]| [before, &middle.concat(), behind].concat();
        assert!(scanned(&file(&[frame(2), frame(3), frame(4)])).is_ok());
        for middle in [
            &[frame(2), frame(4)][..],
            &[frame(2), frame(3), frame(3), frame(4)],
            &[frame(3), frame(2), frame(4)],
        ] {
            assert!(matches!(scanned(&file(middle)), Err(Bad::Damaged { .. })));
        }
    }

    #[test]
    fn a_newer_one_says_to_upgrade() {
        let (mut writer, mut out) = (Writer::default(), Vec::new());
        let head = Head {
            format: FORMAT + 1,
            id: String::new(),
            taken_ms: 0,
            version: String::new(),
        };
        writer.begin(&head, &mut out);
        writer.end(&mut out);
        assert!(scanned(&out).unwrap_err().to_string().contains("upgrade"));
    }
}
