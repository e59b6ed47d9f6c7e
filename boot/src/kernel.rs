//! Putting the kernel itself into guest memory, by the fastest way that it allows.
//!
//! A kernel that is unpacked here is entered at `startup_64` of its ELF file instead of at that of the code that
//! unpacks it (Linux, `arch/x86/boot/compressed`). What that code does besides is done here or need not be: it
//! moves and relocates the kernel and sets KASLR_FLAG; clears what a careless loader left in the boot parameters,
//! where there is nothing but the header; looks for the RSDP, which is handed over; and maps itself, the boot
//! parameters and the command line, which the page tables at entry do. Two things stay undone. It switches to
//! five levels of page tables where the processor has them, so a kernel that is entered here uses four, enough
//! for 64 TiB. And it takes part in the attestation of encrypted guests (SEV, TDX), which these are not.

use std::fmt;
use std::ops::Range;

use vm_memory::GuestMemoryMmap;

use crate::cache::{Cache, Key};
use crate::image::Content;
use crate::kaslr::{Offsets, Shape};
use crate::locks::Locks;
use crate::payload::{Compressor, Payload};
use crate::relocs::Relocations;
use crate::scatter::{Keep, Scatter, Stop};
use crate::unpack::unpack_beside;
use crate::vmlinux::Vmlinux;
use crate::{Error, Image, Result};

/// The 64-bit entry of a bzImage, from the start of its protected-mode part (boot protocol, "64-bit Boot
/// Protocol").
const ENTRY_64: u64 = 0x200;

/// Section headers and names larger than this are not looked at.
const SECTIONS_LIMIT: u64 = 1 << 20;

/// How the kernel came into guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A bzImage, unpacked here.
    Unpacked(Compressor),
    /// A bzImage that was unpacked before and came from the [`Cache`].
    Cached(Compressor),
    /// A bzImage that the guest unpacks.
    SelfUnpacking,
    /// An ELF file, started at its 64-bit entry.
    Vmlinux,
    /// An ELF file, started at its PVH entry.
    Pvh,
}

impl Kernel {
    /// How far it is from where it is linked, physically and virtually. `None` if it decides that by itself.
    #[must_use]
    pub fn distance(&self) -> Option<[u64; 2]> {
        let Offsets { physical_offset, virtual_offset } = self.offsets;
        let distance = [physical_offset, virtual_offset].map(Option::unwrap_or_default);
        (self.method != Method::SelfUnpacking).then_some(distance)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, offsets, .. } = self;
        match method {
            // Where it goes after that is its own choice.
            Method::SelfUnpacking => write!(out, "{method}")?,
            _ => write!(out, "{method}, {offsets}")?,
        }
        match self.locks {
            0 => Ok(()),
            locks => write!(out, ", {locks} lock prefixes taken"),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpacked(compressor) => write!(out, "unpacked ({compressor})"),
            Self::Cached(compressor) => write!(out, "unpacked ({compressor}), from the cache"),
            Self::SelfUnpacking => out.write_str("unpacking itself"),
            Self::Vmlinux => out.write_str("ELF"),
            Self::Pvh => out.write_str("ELF, by its PVH entry"),
        }
    }
}

/// Something that the user may want to know, since it costs time or protection. It reads as a sentence.
#[derive(Debug, thiserror::Error)]
pub enum Note {
    /// The kernel is not unpacked here.
    #[error("the kernel unpacks itself: {0}")]
    SelfUnpacking(&'static str),
    /// The kernel's physical address is the usual one although KASLR is on.
    #[error("the kernel's physical address is not random: {0}")]
    NoPhysicalOffset(&'static str),
    /// The kernel's virtual address is the usual one although KASLR is on.
    #[error("the kernel's virtual address is not random: it {0}")]
    NoVirtualOffset(&'static str),
    /// The cache cannot be read or written.
    #[error("the kernel cache is of no use this time")]
    Cache(#[source] Error),
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Kernel {
    /// Where it starts.
    pub(crate) entry: u64,
    /// How it came there.
    pub method: Method,
    /// From its first byte to the end of what it needs until it can read the memory map.
    pub place: Range<u64>,
    /// How far it is from where it is linked, where that was chosen by chance here.
    pub offsets: Offsets,
    /// How many lock prefixes were taken from its code, which a guest with one processor does not need.
    pub locks: usize,
    /// What went otherwise than it might have.
    pub notes: Vec<Note>,
}

/// An unpacked kernel as one piece of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flat {
    /// From the first to the last byte that the file fills, in physical addresses as linked.
    pub(crate) image: Range<u64>,
    /// The end of the memory that its segments take.
    pub(crate) memory_end: u64,
    /// Where it starts, as linked.
    pub(crate) entry: u64,
    /// What changes with its virtual address, or why that is not known.
    pub(crate) relocations: Result<Relocations, &'static str>,
    /// Its lock prefixes, where they are known.
    pub(crate) locks: Option<Locks>,
}

/// Everything that decides how the kernel is loaded.
pub(crate) struct Loader<'a> {
    pub(crate) image: &'a Image,
    pub(crate) place: Range<u64>,
    /// Whether [`Loader::place`] was chosen by chance.
    pub(crate) is_moved: bool,
    /// The number to choose the virtual address with.
    pub(crate) random: Option<u64>,
    /// Whether one processor runs it, so that its lock prefixes can go.
    pub(crate) is_alone: bool,
    pub(crate) cache: Option<&'a Cache>,
    pub(crate) notes: Vec<Note>,
}

impl Loader<'_> {
    pub(crate) fn load(mut self, memory: &GuestMemoryMmap) -> Result<Kernel> {
        match self.image.content() {
            Content::Payload(payload) => {
                let (flat, method) = self.load_payload(memory, payload)?;
                self.start_flat(memory, &flat, method)
            }
            Content::SelfUnpacking(reason) => {
                self.notes.push(Note::SelfUnpacking(reason));
                let header = self.image.header();
                let input = self.image.input();
                input.load(header.protected_offset, header.protected_size, memory, self.place.start)?;
                let entry = self.place.start.saturating_add(ENTRY_64);
                Ok(self.finish(entry, Method::SelfUnpacking, None))
            }
            Content::Vmlinux(vmlinux) => {
                let flat = self.load_segments(memory, vmlinux)?;
                self.start_flat(memory, &flat, Method::Vmlinux)
            }
            Content::Pvh(vmlinux, entry) => {
                self.load_segments(memory, vmlinux)?;
                Ok(self.finish(u64::from(*entry), Method::Pvh, None))
            }
        }
    }

    /// How far the kernel is from where it is linked, modulo 2^64.
    fn shift(&self) -> u64 {
        self.place.start.wrapping_sub(self.image.header().pref_address)
    }

    /// The memory that the kernel may use, as linked.
    fn room(&self) -> Range<u64> {
        let start = self.image.header().pref_address;
        let size = self.place.end.saturating_sub(self.place.start);
        start..start.saturating_add(size)
    }

    fn load_payload(&mut self, memory: &GuestMemoryMmap, payload: &Payload) -> Result<(Flat, Method)> {
        let Some(cache) = self.cache else {
            return Ok((self.unpack(memory, payload, &mut |_, _| ())?, Method::Unpacked(payload.compressor)));
        };
        let key = Key::of(self.image.input(), payload)?;
        match self.load_cached(memory, cache, &key) {
            Ok(Some(flat)) => return Ok((flat, Method::Cached(payload.compressor))),
            Ok(None) => {}
            Err(error @ Error::Memory { .. }) => return Err(error),
            Err(error) => self.notes.push(Note::Cache(error)),
        }
        let mut draft = cache.begin(&key).unwrap_or_else(|error| {
            self.notes.push(Note::Cache(error));
            None
        });
        let mut keep = |offset, bytes: &[u8]| draft.iter_mut().for_each(|draft| draft.put(offset, bytes));
        let flat = self.unpack(memory, payload, &mut keep)?;
        if let Some(draft) = draft
            && let Err(error) = draft.finish(&flat)
        {
            self.notes.push(Note::Cache(error));
        }
        Ok((flat, Method::Unpacked(payload.compressor)))
    }

    fn load_cached(&self, memory: &GuestMemoryMmap, cache: &Cache, key: &Key) -> Result<Option<Flat>> {
        let Some(cached) = cache.lookup(key)? else { return Ok(None) };
        let (room, needs) = (self.room(), cached.memory());
        if needs.start < room.start || room.end < needs.end {
            return Ok(None);
        }
        cached.load(memory, self.shift()).map(Some)
    }

    fn unpack(&self, memory: &GuestMemoryMmap, payload: &Payload, keep: Keep<'_>) -> Result<Flat> {
        let input = self.image.input();
        let stopped = |stop| match stop {
            Stop::Memory(error) => error,
            Stop::Refused(reason) => {
                Error::Payload { path: input.path(), compressor: payload.compressor, reason }
            }
        };
        let mut scatter = Scatter::new(memory, self.shift(), self.room(), keep);
        unpack_beside(input, payload, &mut |piece| scatter.take(piece).map_err(stopped))?;
        let (elf, rest) = scatter.finish().map_err(stopped)?;
        if !elf.has_64_bit_entry() {
            return Err(stopped(Stop::Refused("its ELF file has no 64-bit entry")));
        }
        let image = elf.filled();
        // Of a file that does not fit into memory there would have been an error.
        let at = |offset: u64| usize::try_from(offset.checked_sub(elf.loaded_end())?).ok();
        let tail = at(elf.end).and_then(|start| rest.get(start..)).unwrap_or_default();
        let relocations = Relocations::parse(tail, &image);
        let locks = Locks::find(&elf, |offset, size| {
            rest.get(at(offset)?..at(offset.checked_add(size)?)?).map(<[u8]>::to_vec)
        });
        Ok(Flat { memory_end: elf.memory().end, entry: elf.entry, relocations, locks, image })
    }

    /// Loads an ELF file, straight from the file into guest memory.
    fn load_segments(&self, memory: &GuestMemoryMmap, vmlinux: &Vmlinux) -> Result<Flat> {
        let (input, elf) = (self.image.input(), &vmlinux.elf);
        for segment in &elf.segments {
            let size = segment.file.end.saturating_sub(segment.file.start);
            input.load(segment.file.start, size, memory, segment.memory.start.wrapping_add(self.shift()))?;
        }
        let image = elf.filled();
        let relocations = match self.random {
            Some(_) => Relocations::parse(&vmlinux.tail(input)?, &image),
            None => Err("has no relocations that matter"),
        };
        let locks = Locks::find(elf, |offset, size| {
            let end = offset.checked_add(size)?;
            (size <= SECTIONS_LIMIT && end <= input.length()).then(|| input.bytes(offset, size).ok())?
        });
        Ok(Flat { memory_end: elf.memory().end, entry: elf.entry, relocations, locks, image })
    }

    /// Gives the kernel its virtual address.
    fn start_flat(mut self, memory: &GuestMemoryMmap, flat: &Flat, method: Method) -> Result<Kernel> {
        let header = self.image.header();
        let shape = Shape {
            linked: header.pref_address,
            size: self.place.end.saturating_sub(self.place.start),
            alignment: header.kernel_alignment,
        };
        let shift = self.shift();
        let locks = match &flat.locks {
            Some(locks) if self.is_alone => locks.take(memory, &flat.image, shift)?,
            _ => 0,
        };
        let offset = match (self.random, &flat.relocations) {
            (None, _) => None,
            (Some(_), Err(reason)) => {
                self.notes.push(Note::NoVirtualOffset(reason));
                None
            }
            (Some(random), Ok(relocations)) => {
                let offset = shape.virtual_offset(random);
                match offset {
                    Some(offset) => relocations.apply(memory, &flat.image, shift, offset)?,
                    None => self.notes.push(Note::NoVirtualOffset("is too large to be moved")),
                }
                offset
            }
        };
        Ok(Kernel { locks, ..self.finish(flat.entry.wrapping_add(shift), method, offset) })
    }

    fn finish(self, entry: u64, method: Method, virtual_offset: Option<u64>) -> Kernel {
        let physical_offset = self.is_moved.then(|| self.shift());
        let Self { place, notes, .. } = self;
        Kernel { entry, method, place, offsets: Offsets { physical_offset, virtual_offset }, locks: 0, notes }
    }
}
