//! The wire between a test and the agent that runs its programs: frames that carry many sessions over one byte stream.
//!
//! A frame is a kind (1 byte), a session (4), a length (4) and a payload; integers are little-endian. Data flows by
//! credit: each side may send [`WINDOW`] bytes of a stream before the other says that it has room for more, so a slow
//! reader of one session holds up neither another session nor the link.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Bytes of one stream that may be under way before the receiver grants more.
pub const WINDOW: usize = 256 << 10;

/// The largest piece of a stream that one frame carries.
pub const CHUNK: usize = 32 << 10;

/// A longer payload than this is a broken link, not a frame.
const PAYLOAD_MAX: usize = 1 << 20;

/// The number of the session that a frame belongs to; 0 is the link itself.
pub type Id = u32;

/// One of a program's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Towards the program.
    Input,
    /// From the program; both of its output streams where it has a terminal.
    Output,
    /// From the program, for its messages.
    Errors,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A program to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// Variables that are added to the agent's own environment.
    pub env: Vec<(OsString, OsString)>,
    /// The directory to start in; the agent's own when empty.
    pub directory: OsString,
    /// A terminal of this size for all three streams, else three pipes.
    pub terminal: Option<Size>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It returned this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
}

/// What the two ends of a link say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The agent is ready.
    Hello,
    /// Start a program.
    Spawn(Program),
    /// The program could not be started, and why.
    Failed(String),
    /// Bytes of a stream; none at all mean that it has ended.
    Data(Stream, Vec<u8>),
    /// This many more bytes of a stream are welcome.
    Credit(Stream, u32),
    /// The terminal has a new size.
    Resize(Size),
    /// Send the program a signal.
    Signal(i32),
    /// Kill what is left of the session and forget it.
    Close,
    /// The program has ended.
    Exit(Status),
}

/// Writes a message as one frame.
///
/// # Errors
/// Those of `to`.
pub fn send(to: &mut impl Write, id: Id, message: &Message) -> io::Result<()> {
    let mut payload = Vec::new();
    let kind = match message {
        Message::Hello => b'h',
        Message::Spawn(program) => {
            put_list(&mut payload, &program.argv);
            let env: Vec<_> =
                program.env.iter().flat_map(|(name, value)| [name.clone(), value.clone()]).collect();
            put_list(&mut payload, &env);
            put_list(&mut payload, std::slice::from_ref(&program.directory));
            if let Some(size) = program.terminal {
                put_size(&mut payload, size);
            }
            b's'
        }
        Message::Failed(why) => {
            payload.extend_from_slice(why.as_bytes());
            b'f'
        }
        Message::Data(stream, bytes) => {
            payload.push(*stream as u8);
            payload.extend_from_slice(bytes);
            b'd'
        }
        Message::Credit(stream, count) => {
            payload.push(*stream as u8);
            payload.extend_from_slice(&count.to_le_bytes());
            b'c'
        }
        Message::Resize(size) => {
            put_size(&mut payload, *size);
            b'r'
        }
        Message::Signal(number) => {
            payload.extend_from_slice(&number.to_le_bytes());
            b'k'
        }
        Message::Close => b'x',
        Message::Exit(status) => {
            let (how, value) = match status {
                Status::Code(code) => (0, code),
                Status::Signal(number) => (1, number),
            };
            payload.push(how);
            payload.extend_from_slice(&value.to_le_bytes());
            b'e'
        }
    };
    let length = u32::try_from(payload.len()).map_err(|_| broken("payload too long"))?;
    let mut frame = vec![kind];
    frame.extend_from_slice(&id.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&payload);
    to.write_all(&frame)
}

/// Reads the next frame; `None` where the stream ends between two frames.
///
/// # Errors
/// Those of `from`, and bytes that are no frame.
pub fn receive(from: &mut impl Read) -> io::Result<Option<(Id, Message)>> {
    let mut kind = [0];
    if from.read(&mut kind)? == 0 {
        return Ok(None);
    }
    let mut head = [0; 8];
    from.read_exact(&mut head)?;
    let mut head = Payload(&head);
    let (id, length) = (head.u32()?, head.u32()? as usize);
    if length > PAYLOAD_MAX {
        return Err(broken("frame too long"));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    let mut payload = Payload(&payload);
    let message = match kind[0] {
        b'h' => Message::Hello,
        b's' => Message::Spawn(payload.program()?),
        b'f' => Message::Failed(String::from_utf8_lossy(payload.0).into_owned()),
        b'd' => Message::Data(payload.stream()?, payload.0.to_vec()),
        b'c' => Message::Credit(payload.stream()?, payload.u32()?),
        b'r' => Message::Resize(payload.size()?),
        b'k' => Message::Signal(payload.u32()?.cast_signed()),
        b'x' => Message::Close,
        b'e' => Message::Exit(match payload.u8()? {
            0 => Status::Code(payload.u32()?.cast_signed()),
            _ => Status::Signal(payload.u32()?.cast_signed()),
        }),
        _ => return Err(broken("unknown frame")),
    };
    Ok(Some((id, message)))
}

fn put_list(payload: &mut Vec<u8>, list: &[OsString]) {
    payload.extend_from_slice(&(list.len() as u32).to_le_bytes());
    for item in list {
        payload.extend_from_slice(&(item.len() as u32).to_le_bytes());
        payload.extend_from_slice(item.as_bytes());
    }
}

fn put_size(payload: &mut Vec<u8>, size: Size) {
    payload.extend_from_slice(&size.rows.to_le_bytes());
    payload.extend_from_slice(&size.columns.to_le_bytes());
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What is left of a payload to take apart.
struct Payload<'a>(&'a [u8]);

impl<'a> Payload<'a> {
    fn bytes(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| broken("short payload"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(|| broken("short payload"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> io::Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn stream(&mut self) -> io::Result<Stream> {
        [Stream::Input, Stream::Output, Stream::Errors]
            .get(usize::from(self.u8()?))
            .copied()
            .ok_or_else(|| broken("unknown stream"))
    }

    fn size(&mut self) -> io::Result<Size> {
        Ok(Size { rows: u16::from_le_bytes(self.array()?), columns: u16::from_le_bytes(self.array()?) })
    }

    fn list(&mut self) -> io::Result<Vec<OsString>> {
        (0..self.u32()?)
            .map(|_| {
                let length = self.u32()? as usize;
                Ok(OsString::from_vec(self.bytes(length)?.to_vec()))
            })
            .collect()
    }

    fn program(&mut self) -> io::Result<Program> {
        let argv = self.list()?;
        let env = self.list()?.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        let directory = self.list()?.pop().unwrap_or_default();
        let terminal = if self.0.is_empty() { None } else { Some(self.size()?) };
        Ok(Program { argv, env, directory, terminal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> Vec<Message> {
        let program = Program {
            argv: vec!["sh".into(), "-c".into(), OsString::from_vec(vec![0xff, 0])],
            env: vec![("TERM".into(), String::new().into())],
            directory: "/tmp".into(),
            terminal: Some(Size { rows: 24, columns: 80 }),
        };
        vec![
            Message::Hello,
            Message::Spawn(Program { terminal: None, ..program.clone() }),
            Message::Spawn(program),
            Message::Failed("no such file".into()),
            Message::Data(Stream::Errors, (0..=255).collect()),
            Message::Data(Stream::Input, vec![]),
            Message::Credit(Stream::Output, 70_000),
            Message::Resize(Size { rows: 1, columns: 65_535 }),
            Message::Signal(15),
            Message::Close,
            Message::Exit(Status::Code(96)),
            Message::Exit(Status::Signal(9)),
        ]
    }

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let mut bytes = Vec::new();
        for (id, message) in messages().iter().enumerate() {
            send(&mut bytes, id as Id, message).unwrap();
        }
        let mut from = bytes.as_slice();
        for (id, message) in messages().into_iter().enumerate() {
            assert_eq!(receive(&mut from).unwrap(), Some((id as Id, message)));
        }
        assert_eq!(receive(&mut from).unwrap(), None);
    }

    #[test]
    fn a_cut_frame_is_an_error() {
        for message in messages() {
            let mut bytes = Vec::new();
            send(&mut bytes, 7, &message).unwrap();
            for length in 1..bytes.len() {
                assert!(receive(&mut &bytes[..length]).is_err(), "{message:?} cut to {length} bytes");
            }
        }
    }

    #[test]
    fn an_unknown_or_giant_frame_is_an_error() {
        assert!(receive(&mut [b'?', 0, 0, 0, 0, 0, 0, 0, 0].as_slice()).is_err());
        assert!(receive(&mut [b'd', 0, 0, 0, 0, 255, 255, 255, 255].as_slice()).is_err());
    }
}
