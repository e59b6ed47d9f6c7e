//! Unpacking a kernel's payload as it is read, a piece at a time, so that a piece is still in the processor's
//! cache when it is put into its place.

mod lz4;
mod lzo;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::panic::resume_unwind;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, Builder};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::Stream;

use crate::input::{Input, STACK, file_error};
use crate::payload::{Compressor, Payload};
use crate::{Error, Result};

/// What is read from the file at a time.
const READ_SIZE: usize = 128 << 10;
/// What is unpacked at a time, where the format leaves the choice.
const PIECE_SIZE: usize = 256 << 10;
/// How many unpacked pieces wait at most, where one thread unpacks and another puts them away.
const WAITING: usize = 4;
/// What the dictionary of xz and lzma may occupy. The kernel's build uses up to 64 MiB.
const LZMA_MEMORY: u64 = 256 << 20;
/// The window of zstd, as a power of two. The kernel's build uses 27.
const ZSTD_WINDOW: u32 = 27;

/// Where the unpacked bytes go: each call takes those that follow the ones before.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Unpacks `payload` of `input` into `sink`, which gets as many bytes as the payload says that it has.
///
/// # Errors
///
/// [`Error::Unpack`] and [`Error::Payload`], which name the compressor, [`Error::Memory`] and whatever else
/// `sink` returns.
pub(crate) fn unpack(input: &Input, payload: &Payload, sink: Sink<'_>) -> Result<()> {
    let compressor = payload.compressor;
    let refuse = |reason| Err(Error::Payload { path: input.path(), compressor, reason });
    let mut left = payload.size;
    let mut bounded = |piece: &[u8]| {
        let size = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        let Some(rest) = left.checked_sub(size) else {
            return refuse("it unpacks to more bytes than it says");
        };
        left = rest;
        sink(piece)
    };
    let packed = BufReader::with_capacity(READ_SIZE, input.part(payload.offset, payload.length));
    match run(compressor, packed, &mut bounded) {
        Err(Failure::Data(source)) => return Err(Error::Unpack { path: input.path(), compressor, source }),
        Err(Failure::Sink(error)) => return Err(error),
        Ok(()) => {}
    }
    if left > 0 { refuse("it unpacks to fewer bytes than it says") } else { Ok(()) }
}

/// The same with a second thread that unpacks, while this one gives `sink` what came before: memory that is touched for the
/// first time, and a file's, takes time too.
pub(crate) fn unpack_beside(input: &Input, payload: &Payload, sink: Sink<'_>) -> Result<()> {
    let (full, arriving) = mpsc::sync_channel::<Vec<u8>>(WAITING);
    let (spare, empty) = mpsc::channel::<Vec<u8>>();
    let nobody = || {
        let (path, compressor) = (input.path(), payload.compressor);
        Error::Payload { path, compressor, reason: "nobody takes what it unpacks to" }
    };
    let pass_on = move |bytes: &[u8]| {
        bytes.chunks(PIECE_SIZE).try_for_each(|part| {
            let mut piece = empty.try_recv().unwrap_or_default();
            piece.clear();
            piece.extend_from_slice(part);
            full.send(piece).map_err(|_| nobody())
        })
    };
    thread::scope(|scope| {
        let unpacker = Builder::new()
            .name("unpacker".into())
            .stack_size(STACK)
            .spawn_scoped(scope, move || unpack(input, payload, &mut { pass_on }));
        let unpacker =
            unpacker.map_err(|source| file_error("start a thread to unpack", &input.path(), source))?;
        let taken = take(arriving, &spare, sink);
        let unpacked = unpacker.join().unwrap_or_else(|panic| resume_unwind(panic));
        taken.and(unpacked)
    })
}

/// Gives `sink` what arrives, and sends the buffers back. The other thread stops where this one has.
fn take(arriving: Receiver<Vec<u8>>, spare: &Sender<Vec<u8>>, sink: Sink<'_>) -> Result<()> {
    arriving.into_iter().try_for_each(|piece| {
        sink(&piece)?;
        // At its end the other thread wants none back.
        let _ = spare.send(piece);
        Ok(())
    })
}

/// Which side failed.
enum Failure {
    /// The packed bytes.
    Data(io::Error),
    /// What the unpacked ones were given to.
    Sink(Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Data(error)
    }
}

fn run(compressor: Compressor, packed: impl BufRead, sink: Sink<'_>) -> Result<(), Failure> {
    match compressor {
        Compressor::Gzip => pump(GzDecoder::new(packed), sink),
        Compressor::Xz => {
            let stream = Stream::new_stream_decoder(LZMA_MEMORY, 0).map_err(io::Error::from)?;
            pump(XzDecoder::new_stream(packed, stream), sink)
        }
        Compressor::Lzma => {
            let stream = Stream::new_lzma_decoder(LZMA_MEMORY).map_err(io::Error::from)?;
            pump(XzDecoder::new_stream(packed, stream), sink)
        }
        Compressor::Lzo => lzo::unpack(packed, sink),
        Compressor::Lz4 => lz4::unpack(packed, sink),
        Compressor::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(packed)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            pump(decoder, sink)
        }
        Compressor::Bzip2 => pump(BzDecoder::new(packed), sink),
    }
}

/// Hands on what a decoder makes, in full pieces.
fn pump(mut decoder: impl Read, sink: Sink<'_>) -> Result<(), Failure> {
    let mut piece = vec![0; PIECE_SIZE];
    loop {
        match decoder.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(size) => sink(piece.get(..size).unwrap_or_default()).map_err(Failure::Sink)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What an own container format says about bytes that break its rules.
fn invalid(reason: &'static str) -> Failure {
    Failure::Data(io::Error::new(ErrorKind::InvalidData, reason))
}

/// Reads `N` bytes of an own container format.
fn array<const N: usize>(packed: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    packed.read_exact(&mut bytes)?;
    Ok(bytes)
}
