//! One request: the buffers of a descriptor chain, checked before the device sees them (VIRTIO 1.3 §2.7.4, §2.7.5).

use std::io;

use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, ReadVolatile, VolatileSlice,
    WriteVolatile,
};

use crate::queue::Fault;

/// Guest memory as devices know it.
pub type Memory = GuestMemoryMmap<()>;

/// A stretch of guest memory that lies in RAM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    addr: GuestAddress,
    len: u32,
}

/// The most descriptors of one chain, its indirect table included. Drivers need far fewer; it bounds a walk.
const MAX_SEGMENTS: usize = 1024;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const DESCRIPTOR_LEN: u32 = 16;

/// A table of descriptors: the queue's own or an indirect one.
#[derive(Clone, Copy)]
struct Table {
    addr: GuestAddress,
    entries: u32,
    is_indirect: bool,
}

struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Table {
    fn entry(self, memory: &Memory, index: u16) -> Result<Descriptor, Fault> {
        if u32::from(index) >= self.entries {
            return Err(Fault::Descriptor { index });
        }
        let at =
            u64::from(index).checked_mul(u64::from(DESCRIPTOR_LEN)).and_then(|o| self.addr.0.checked_add(o));
        let at = GuestAddress(at.ok_or(Fault::Descriptor { index })?);
        // The guest may be rewriting it meanwhile: take one copy, and judge only that.
        let raw: [u64; 2] = memory.read_obj(at).map_err(|_| Fault::Descriptor { index })?;
        let [addr, rest] = raw.map(u64::from_le);
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
        Ok(Descriptor {
            addr,
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

/// A request that the driver made: readable buffers first, then writable ones.
///
/// It is given back by value, to [`Queues::complete`](crate::queue::Queues::complete) or
/// [`Queues::put_back`](crate::queue::Queues::put_back), and knows by itself how many bytes were written.
#[must_use]
pub struct Chain<'m> {
    memory: &'m Memory,
    pub(crate) queue: u16,
    pub(crate) head: u16,
    pub(crate) segments: Vec<Segment>,
    /// How many of `segments`, from the first, the device may read; the others it may write.
    readable: usize,
    read: Cursor,
    written: Cursor,
}

/// How far one direction of a chain has been used.
#[derive(Clone, Copy, Default)]
struct Cursor {
    segment: usize,
    offset: u32,
    total: u32,
}

impl<'m> Chain<'m> {
    /// Walks the chain that begins at `head` of a table of `size` descriptors at `table`. `segments` is reused.
    pub(crate) fn walk(
        memory: &'m Memory,
        queue: u16,
        table: (GuestAddress, u16),
        head: u16,
        indirect_negotiated: bool,
        mut segments: Vec<Segment>,
    ) -> Result<Self, Fault> {
        segments.clear();
        let mut table = Table { addr: table.0, entries: u32::from(table.1), is_indirect: false };
        let mut readable = 0;
        let mut bytes = 0_u32;
        let mut index = head;
        let mut steps = 0_u32;
        loop {
            // A chain visits an entry once: more steps than entries is a loop.
            steps = steps.checked_add(1).filter(|s| *s <= table.entries).ok_or(Fault::Loop { head })?;
            let descriptor = table.entry(memory, index)?;
            if descriptor.flags & F_INDIRECT != 0 {
                table = indirect(&descriptor, table, indirect_negotiated, head)?;
                index = 0;
                steps = 0;
                continue;
            }
            let segment = Segment { addr: GuestAddress(descriptor.addr), len: descriptor.len };
            let is_writable = descriptor.flags & F_WRITE != 0;
            let access = if is_writable { Permissions::Write } else { Permissions::Read };
            let len = usize::try_from(segment.len).unwrap_or(usize::MAX);
            if len != 0 && !memory.check_range(segment.addr, len, access) {
                return Err(Fault::Buffer { addr: descriptor.addr, len: descriptor.len });
            }
            if !is_writable && readable != segments.len() {
                return Err(Fault::Direction { head });
            }
            // The whole chain is shorter than 4 GiB (VIRTIO 1.3 §2.7.5.2), so lengths fit the used ring.
            bytes = bytes.checked_add(segment.len).ok_or(Fault::TooLong { head })?;
            if segments.len() >= MAX_SEGMENTS {
                return Err(Fault::TooLong { head });
            }
            segments.push(segment);
            if !is_writable {
                readable = segments.len();
            }
            if descriptor.flags & F_NEXT == 0 {
                break;
            }
            index = descriptor.next;
        }
        let written = Cursor { segment: readable, ..Cursor::default() };
        Ok(Self { memory, queue, head, segments, readable, read: Cursor::default(), written })
    }

    /// The index of its first descriptor, by which the driver knows it.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may still read.
    pub fn readable(&self) -> u32 {
        self.left(self.segments.get(..self.readable), self.read)
    }

    /// Bytes that the device may still write.
    pub fn writable(&self) -> u32 {
        self.left(self.segments.get(self.readable..), self.written)
    }

    /// Bytes read so far.
    pub fn read_len(&self) -> u32 {
        self.read.total
    }

    /// Bytes written so far: the length that the used ring will carry.
    pub fn written_len(&self) -> u32 {
        self.written.total
    }

    fn left(&self, segments: Option<&[Segment]>, cursor: Cursor) -> u32 {
        // Cannot wrap: the walk saw that the sum fits.
        let all = segments.unwrap_or_default().iter().fold(0_u32, |sum, s| sum.wrapping_add(s.len));
        all.saturating_sub(cursor.total)
    }

    /// Passes over up to `count` readable bytes; for a chain that was read in part before.
    pub fn skip(&mut self, count: u32) {
        let mut left = count;
        while left > 0 {
            let Some((_, len)) = next(&self.segments, self.readable, &mut self.read) else { return };
            let step = len.min(left);
            advance(&mut self.read, step);
            left = left.saturating_sub(step);
        }
    }

    /// Reads up to `buf.len()` bytes and returns how many there were.
    pub fn read(&mut self, buf: &mut [u8]) -> usize {
        // Writing to a slice takes all that is asked, and a slice is no place for an error to come from.
        let mut sink = &mut *buf;
        let max = u32::try_from(sink.len()).unwrap_or(u32::MAX);
        self.drain(&mut sink, max).unwrap_or_default()
    }

    /// Writes up to `bytes.len()` bytes and returns how many found room.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut source = bytes;
        let max = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.fill(&mut source, max).unwrap_or_default()
    }

    /// Moves up to `max` readable bytes to `sink`, straight from guest memory. Returns how many.
    ///
    /// # Errors
    ///
    /// The sink's error, if it came before the first byte; [`io::ErrorKind::WouldBlock`] is one.
    pub fn drain<W: WriteVolatile>(&mut self, sink: &mut W, max: u32) -> io::Result<usize> {
        transfer(
            self.memory,
            &self.segments,
            self.readable,
            &mut self.read,
            max,
            Permissions::Read,
            |slice| sink.write_volatile(slice),
        )
    }

    /// Moves up to `max` bytes from `source` straight to guest memory. Returns how many; 0 is the source's end.
    ///
    /// # Errors
    ///
    /// The source's error, if it came before the first byte; [`io::ErrorKind::WouldBlock`] is one.
    pub fn fill<R: ReadVolatile>(&mut self, source: &mut R, max: u32) -> io::Result<usize> {
        let end = self.segments.len();
        transfer(self.memory, &self.segments, end, &mut self.written, max, Permissions::Write, |slice| {
            source.read_volatile(slice)
        })
    }
}

/// The table that an indirect descriptor points to (VIRTIO 1.3 §2.7.5.3). Its WRITE flag means nothing.
fn indirect(descriptor: &Descriptor, within: Table, negotiated: bool, head: u16) -> Result<Table, Fault> {
    let entries = descriptor.len / DESCRIPTOR_LEN;
    let is_sound = negotiated
        && !within.is_indirect
        && descriptor.flags & F_NEXT == 0
        && descriptor.len.is_multiple_of(DESCRIPTOR_LEN)
        && entries != 0
        && entries <= 1 << 16;
    if !is_sound {
        return Err(Fault::Indirect { head });
    }
    Ok(Table { addr: GuestAddress(descriptor.addr), entries, is_indirect: true })
}

/// The rest of the segment at the cursor; empty segments are passed over.
fn next(segments: &[Segment], end: usize, cursor: &mut Cursor) -> Option<(GuestAddress, u32)> {
    while cursor.segment < end {
        let segment = segments.get(cursor.segment)?;
        let left = segment.len.saturating_sub(cursor.offset);
        if left > 0 {
            return Some((GuestAddress(segment.addr.0.saturating_add(u64::from(cursor.offset))), left));
        }
        *cursor = Cursor { segment: cursor.segment.saturating_add(1), offset: 0, total: cursor.total };
    }
    None
}

fn advance(cursor: &mut Cursor, count: u32) {
    cursor.offset = cursor.offset.saturating_add(count);
    cursor.total = cursor.total.saturating_add(count);
}

/// Runs `step` over the guest memory at the cursor until `max` bytes are moved, it moves less than it could, or it fails.
fn transfer(
    memory: &Memory,
    segments: &[Segment],
    end: usize,
    cursor: &mut Cursor,
    max: u32,
    access: Permissions,
    mut step: impl FnMut(&mut VolatileSlice<'_>) -> Result<usize, vm_memory::VolatileMemoryError>,
) -> io::Result<usize> {
    let start = cursor.total;
    let stop = start.saturating_add(max);
    'segments: while cursor.total < stop {
        let Some((addr, len)) = next(segments, end, cursor) else { break };
        let len = len.min(stop.saturating_sub(cursor.total));
        let slices = memory.get_slices(addr, usize::try_from(len).unwrap_or(usize::MAX), access);
        for slice in slices.map_err(|e| io::Error::other(e.to_string()))? {
            // The walk saw that it is RAM, and RAM stays.
            let mut slice = slice.map_err(|e| io::Error::other(e.to_string()))?;
            let moved = loop {
                match step(&mut slice).map_err(into_io) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if cursor.total == start => return Err(e),
                    Err(_) => break 'segments,
                    Ok(n) => break n,
                }
            };
            advance(cursor, u32::try_from(moved).unwrap_or(u32::MAX));
            if moved < slice.len() {
                break 'segments;
            }
        }
    }
    Ok(usize::try_from(cursor.total.saturating_sub(start)).unwrap_or(usize::MAX))
}

fn into_io(error: vm_memory::VolatileMemoryError) -> io::Error {
    match error {
        vm_memory::VolatileMemoryError::IOError(e) => e,
        other => io::Error::other(other.to_string()),
    }
}
