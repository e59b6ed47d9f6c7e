//! An ELF file that arrives as a stream of bytes, put into guest memory as it comes.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::elf::{Elf, HEAD_SIZE};
use crate::{Error, Result};

/// Why a file cannot be put into place, in words that follow its name.
type Refusal = &'static str;

/// What can stop the stream.
pub(crate) enum Stop {
    /// What arrives is not what can be put into place.
    Refused(Refusal),
    /// Guest memory is.
    Memory(Error),
}

/// Whoever wants to have what goes into memory: how far from the first byte, and bytes.
pub(crate) type Keep<'a> = &'a mut dyn FnMut(u64, &[u8]);

/// The stream, up to some byte of it.
pub(crate) struct Scatter<'a> {
    memory: &'a GuestMemoryMmap,
    /// Gets what goes into memory too, and how far from the first byte of all.
    keep: Keep<'a>,
    /// What is added to addresses as linked, modulo 2^64.
    shift: u64,
    /// The addresses as linked that the file may use.
    room: std::ops::Range<u64>,
    position: u64,
    /// The file's first bytes, until there are enough of them for its headers.
    head: Vec<u8>,
    elf: Option<Elf>,
    /// What follows all that belongs into memory.
    rest: Vec<u8>,
}

impl<'a> Scatter<'a> {
    pub(crate) fn new(
        memory: &'a GuestMemoryMmap,
        shift: u64,
        room: std::ops::Range<u64>,
        keep: Keep<'a>,
    ) -> Self {
        Self { memory, keep, shift, room, position: 0, head: Vec::new(), elf: None, rest: Vec::new() }
    }

    /// Takes the bytes that follow those taken before.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        if self.elf.is_none() {
            let missing = HEAD_SIZE.saturating_sub(self.head.len()).min(bytes.len());
            let (head, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
            self.head.extend_from_slice(head);
            bytes = rest;
            if self.head.len() < HEAD_SIZE {
                return Ok(());
            }
            self.start()?;
        }
        self.put(bytes)
    }

    /// Ends the stream: what the headers say, and the bytes that follow all that belongs into memory.
    pub(crate) fn finish(mut self) -> Result<(Elf, Vec<u8>), Stop> {
        if self.elf.is_none() {
            self.start()?;
        }
        let elf = self.elf.ok_or(Stop::Refused("it is no ELF file"))?;
        if elf.end > self.position {
            return Err(Stop::Refused("it ends before its last ELF segment does"));
        }
        Ok((elf, self.rest))
    }

    fn start(&mut self) -> Result<(), Stop> {
        let elf = Elf::parse(&self.head).map_err(Stop::Refused)?;
        let memory = elf.memory();
        if memory.start < self.room.start || memory.end > self.room.end {
            return Err(Stop::Refused("its ELF segments lie outside of the memory that its header asks for"));
        }
        self.elf = Some(elf);
        let head = std::mem::take(&mut self.head);
        self.put(&head)
    }

    /// Puts each byte where the segments that hold it want to have it.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let Some(elf) = &self.elf else { return Ok(()) };
        let first = elf.filled().start;
        let start = self.position;
        let end = start.saturating_add(length(bytes));
        for segment in &elf.segments {
            let from = segment.file.start.max(start);
            let Some(part) = slice(bytes, start, from, segment.file.end.min(end)) else { continue };
            let offset = from.saturating_sub(segment.file.start);
            let linked = segment.memory.start.saturating_add(offset);
            (self.keep)(linked.saturating_sub(first), part);
            let address = linked.wrapping_add(self.shift);
            self.memory
                .write_slice(part, GuestAddress(address))
                .map_err(|source| Stop::Memory(Error::Memory { what: "the kernel", address, source }))?;
        }
        if let Some(part) = slice(bytes, start, elf.loaded_end().max(start), end) {
            self.rest.extend_from_slice(part);
        }
        self.position = end;
        Ok(())
    }
}

/// Of `bytes`, which start at position `start`, those from position `from` to `to`, if there are any.
fn slice(bytes: &[u8], start: u64, from: u64, to: u64) -> Option<&[u8]> {
    let index = |position: u64| usize::try_from(position.checked_sub(start)?).ok();
    bytes.get(index(from)?..index(to)?).filter(|part| !part.is_empty())
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
