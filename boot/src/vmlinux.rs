//! A kernel that is an ELF file, not packed: how it starts, and the setup header that a bzImage would have.

use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64};

use crate::elf::{Elf, HEAD_SIZE};
use crate::input::Input;
use crate::layout::HIGH_RAM_START;
use crate::zero_page::{field, header_field};
use crate::{Error, Header, Result};

/// The protocol that boot parameters made from nothing follow.
const PROTOCOL: u16 = 0x020f;
/// What the page tables that Linux brings want its address to be a multiple of.
const ALIGNMENT: u64 = 2 << 20;
/// The longest command line that Linux for x86 takes (`COMMAND_LINE_SIZE`), without its terminating zero.
const COMMAND_LINE_SIZE: u32 = 2047;
/// The last address of an initrd in every kernel's header since 2007.
const INITRD_ADDR_MAX: u32 = 0x7fff_ffff;
/// The end of the header as Linux 6.18 has it.
const HEADER_END: usize = header_field!(kernel_info_offset) + 4;

/// Notes larger than this are not looked at.
const NOTES_LIMIT: u64 = 64 << 10;
/// Relocations larger than this are none.
const TAIL_LIMIT: u64 = 16 << 20;

/// The owner of the note that names the PVH entry.
const XEN: [u8; 4] = *b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's `elfnote.h`: the physical address to start at in 32-bit mode.
const PHYS32_ENTRY: u32 = 18;

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct Vmlinux {
    pub(crate) elf: Elf,
}

/// How it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// In 64-bit mode with boot parameters, at the ELF file's entry.
    Linux,
    /// In 32-bit mode as the PVH protocol has it, at this address.
    Pvh(u32),
}

impl Vmlinux {
    /// Reads the headers, and decides how to start: as Linux where that is possible, since it is faster, gets a
    /// random seed and can be moved; by the PVH entry where there is nothing else.
    pub(crate) fn open(input: &Input) -> Result<(Self, Start)> {
        let refuse = |reason| Error::NotBootable { path: input.path(), reason };
        let elf = Elf::parse(&input.head::<HEAD_SIZE>()?).map_err(refuse)?;
        if elf.segments.iter().any(|segment| segment.file.end > input.length()) {
            return Err(Error::Truncated { path: input.path(), expected: elf.end, actual: input.length() });
        }
        let start = if elf.has_64_bit_entry() && elf.is_linked_as_linux() {
            Start::Linux
        } else {
            match pvh_entry(input, &elf)? {
                Some(entry) => Start::Pvh(entry),
                None if elf.has_64_bit_entry() => Start::Linux,
                None => return Err(refuse("it has neither a 64-bit entry nor a PVH note")),
            }
        };
        Ok((Self { elf }, start))
    }

    /// What a bzImage of it would say.
    pub(crate) fn header(&self, start: Start) -> Header {
        let memory = self.elf.memory();
        let can_move = start == Start::Linux
            && self.elf.is_linked_as_linux()
            && memory.start.is_multiple_of(ALIGNMENT)
            && memory.start >= HIGH_RAM_START;
        Header {
            version: PROTOCOL,
            setup_sects: 0,
            protected_offset: 0,
            protected_size: 0,
            init_size: memory.end.saturating_sub(memory.start),
            kernel_alignment: ALIGNMENT,
            pref_address: memory.start,
            is_relocatable: can_move,
            cmdline_size: COMMAND_LINE_SIZE,
            initrd_addr_max: INITRD_ADDR_MAX,
            payload_offset: 0,
            payload_length: 0,
            can_be_loaded_above_4g: false,
        }
    }

    /// What follows all that the headers describe, where `extract-vmlinux` leaves the relocations.
    pub(crate) fn tail(&self, input: &Input) -> Result<Vec<u8>> {
        let size = input.length().saturating_sub(self.elf.end);
        if size > TAIL_LIMIT { Ok(Vec::new()) } else { input.bytes(self.elf.end, size) }
    }
}

/// The start of a bzImage, as far as the kernel reads it from its boot parameters.
pub(crate) fn head() -> Vec<u8> {
    let mut head = vec![0; HEADER_END];
    let mut put = |offset: usize, bytes: &[u8]| {
        for (to, from) in head.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    };
    put(header_field!(boot_flag), &[0x55, 0xaa]);
    put(header_field!(header), b"HdrS");
    put(header_field!(version), &PROTOCOL.to_le_bytes());
    put(header_field!(loadflags), &LOADED_HIGH.to_le_bytes());
    put(header_field!(initrd_addr_max), &INITRD_ADDR_MAX.to_le_bytes());
    put(header_field!(cmdline_size), &COMMAND_LINE_SIZE.to_le_bytes());
    put(header_field!(xloadflags), &XLF_KERNEL_64.to_le_bytes());
    head
}

/// The entry that the PVH note names, if there is one that lies in the kernel.
fn pvh_entry(input: &Input, elf: &Elf) -> Result<Option<u32>> {
    for notes in &elf.notes {
        let size = notes.end.saturating_sub(notes.start);
        if size > NOTES_LIMIT || notes.end > input.length() {
            continue;
        }
        let entry = find_entry(&input.bytes(notes.start, size)?);
        let is_inside = |entry: u32| elf.segments.iter().any(|s| s.filled().contains(&entry.into()));
        if let Some(entry) = entry.filter(|entry| is_inside(*entry)) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Looks through notes (System V ABI, "Note Section"): sizes of name and description, type, both on 4 bytes.
fn find_entry(mut notes: &[u8]) -> Option<u32> {
    const HEADER_SIZE: usize = 12;
    loop {
        let header = notes.get(..HEADER_SIZE)?;
        let word = |offset| u32::from_le_bytes(field(header, offset));
        let size = |offset| usize::try_from(word(offset)).ok()?.checked_next_multiple_of(4);
        let name_end = HEADER_SIZE.checked_add(size(0)?)?;
        let end = name_end.checked_add(size(4)?)?;
        let (name, description) = (notes.get(HEADER_SIZE..name_end)?, notes.get(name_end..end)?);
        if word(8) == PHYS32_ENTRY && name == XEN {
            // A 64-bit kernel may write it with 8 bytes.
            return u64::from_le_bytes(field(&[description, &[0; 8]].concat(), 0)).try_into().ok();
        }
        notes = notes.get(end..)?;
    }
}

#[cfg(test)]
mod tests;
