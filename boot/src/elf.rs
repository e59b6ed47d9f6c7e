//! The ELF file that a kernel is (System V ABI, "Object Files" and "Program Loading"): which parts of it go
//! where, and where it starts. Every number in it is checked here, once.

use std::ops::Range;

use crate::layout::HIGH_RAM_START;
use crate::zero_page::field;

/// Headers lie within so many bytes at the start of the file.
pub(crate) const HEAD_SIZE: usize = 4096;

const MAGIC: [u8; 4] = *b"\x7fELF";
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;

/// Where Linux maps its image: physical address 0 is linked here (`__START_KERNEL_map`).
pub(crate) const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// Width of addresses, and with it the layout of the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Bits32,
    Bits64,
}

/// A part of the file that belongs into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where it is in the file.
    pub(crate) file: Range<u64>,
    /// Where it goes, in physical addresses as linked. What the file does not fill is zero.
    pub(crate) memory: Range<u64>,
    /// The virtual address of its start.
    pub(crate) linked: u64,
}

impl Segment {
    /// The part of [`Segment::memory`] that the file fills.
    pub(crate) fn filled(&self) -> Range<u64> {
        let size = self.file.end.saturating_sub(self.file.start);
        self.memory.start..self.memory.start.saturating_add(size)
    }
}

/// What the headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elf {
    pub(crate) class: Class,
    /// Where it starts: a physical address for Linux, anything for others.
    pub(crate) entry: u64,
    /// At least one, none of them empty, all of them above 1 MiB.
    pub(crate) segments: Vec<Segment>,
    /// Where notes are in the file.
    pub(crate) notes: Vec<Range<u64>>,
    /// The end of what the headers describe, in the file. Linux's relocations follow.
    pub(crate) end: u64,
    /// Where the section headers are, and the number of the one with the sections' names.
    sections: (Table, u16),
}

/// Why something is no ELF file that can be loaded.
type Refusal = &'static str;

impl Elf {
    pub(crate) fn is_elf(head: &[u8]) -> bool {
        head.starts_with(&MAGIC)
    }

    /// Reads the headers from the first [`HEAD_SIZE`] bytes of a file, or all of them if there are less.
    pub(crate) fn parse(head: &[u8]) -> Result<Self, Refusal> {
        if !Self::is_elf(head) {
            return Err("it is no ELF file");
        }
        let [class, encoding] = field(head, 4);
        let class = match class {
            1 => Class::Bits32,
            2 => Class::Bits64,
            _ => return Err("it is an ELF file of an unknown class"),
        };
        let half = |offset| u16::from_le_bytes(field(head, offset));
        let is_x86 = match class {
            Class::Bits32 => half(18) == MACHINE_386,
            Class::Bits64 => half(18) == MACHINE_X86_64,
        };
        if encoding != LITTLE_ENDIAN || !is_x86 {
            return Err("it is an ELF file for another processor");
        }
        if !matches!(half(16), TYPE_EXECUTABLE | TYPE_SHARED) {
            return Err("it is an ELF file that cannot be executed");
        }
        let header = FileHeader::read(head, class);
        let mut elf = Self {
            class,
            entry: header.entry,
            segments: Vec::new(),
            notes: Vec::new(),
            end: header.sections.end().ok_or("its ELF section headers lie beyond all bounds")?,
            sections: (header.sections, header.names),
        };
        for index in 0..header.programs.count {
            elf.add(ProgramHeader::read(head, class, &header.programs, index)?)?;
        }
        if elf.segments.is_empty() { Err("it is an ELF file with nothing to load") } else { Ok(elf) }
    }

    fn add(&mut self, header: ProgramHeader) -> Result<(), Refusal> {
        let ProgramHeader { kind, offset, linked, physical, file_size, memory_size } = header;
        let range = |start: u64, size| Some(start..start.checked_add(size)?);
        let file = range(offset, file_size).ok_or("an ELF segment lies beyond all bounds in the file")?;
        match kind {
            SEGMENT_NOTE => self.notes.push(file),
            SEGMENT_LOAD if memory_size > 0 || file_size > 0 => {
                let memory = range(physical, memory_size).ok_or("an ELF segment lies beyond all memory")?;
                if file_size > memory_size {
                    return Err("an ELF segment is larger in the file than in memory");
                }
                if memory.start < HIGH_RAM_START {
                    return Err("an ELF segment lies below 1 MiB");
                }
                self.end = self.end.max(file.end);
                self.segments.push(Segment { file, memory, linked });
            }
            _ => {}
        }
        Ok(())
    }

    /// The memory from the first segment to the end of the last one.
    pub(crate) fn memory(&self) -> Range<u64> {
        self.span(|segment| segment.memory.clone())
    }

    /// The memory from the first segment to the end of the last one that the file fills.
    pub(crate) fn filled(&self) -> Range<u64> {
        self.span(Segment::filled)
    }

    /// The end of what belongs into memory, in the file.
    pub(crate) fn loaded_end(&self) -> u64 {
        self.segments.iter().map(|segment| segment.file.end).max().unwrap_or_default()
    }

    /// The virtual addresses of those sections with these names that there are, in a 64-bit file of which `read` gets so
    /// many bytes at an offset. `None` if the headers cannot be read.
    pub(crate) fn sections<const N: usize>(
        &self,
        read: impl Fn(u64, u64) -> Option<Vec<u8>>,
        wanted: [&[u8]; N],
    ) -> Option<[Option<Range<u64>>; N]> {
        const SIZE: usize = 64;
        let (table, names) = &self.sections;
        if usize::from(table.entry_size) != SIZE {
            return None;
        }
        let headers = read(table.offset, table.end()?.checked_sub(table.offset)?)?;
        let headers = headers.as_chunks::<SIZE>().0;
        let names = headers.get(usize::from(*names))?;
        let names = read(quad(names, 24), quad(names, 32))?;
        let range = |wanted: &[u8]| {
            let header = headers.iter().find(|header| {
                let name = usize::try_from(word(*header, 0)).ok().and_then(|name| names.get(name..));
                name.is_some_and(|name| name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(&[0])))
            })?;
            let start = quad(header, 16);
            Some(start..start.checked_add(quad(header, 32))?)
        };
        Some(wanted.map(range))
    }

    fn span(&self, of: impl Fn(&Segment) -> Range<u64>) -> Range<u64> {
        let ranges = || self.segments.iter().map(&of);
        let start = ranges().map(|range| range.start).min().unwrap_or_default();
        start..ranges().map(|range| range.end).max().unwrap_or_default().max(start)
    }

    /// Whether it can start in 64-bit mode at a physical address.
    pub(crate) fn has_64_bit_entry(&self) -> bool {
        self.class == Class::Bits64 && self.entry_segment().is_some()
    }

    /// Whether it is linked as Linux is: then it runs at any physical address that is a multiple of 2 MiB.
    pub(crate) fn is_linked_as_linux(&self) -> bool {
        self.entry_segment()
            .is_some_and(|segment| segment.memory.start.checked_add(KERNEL_MAP) == Some(segment.linked))
    }

    fn entry_segment(&self) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.filled().contains(&self.entry))
    }
}

/// A table in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    offset: u64,
    entry_size: u16,
    count: u16,
}

impl Table {
    fn end(&self) -> Option<u64> {
        self.offset.checked_add(u64::from(self.entry_size).saturating_mul(self.count.into()))
    }
}

/// The fields of the file's header that matter.
struct FileHeader {
    entry: u64,
    programs: Table,
    sections: Table,
    /// The number of the section that has the sections' names.
    names: u16,
}

impl FileHeader {
    fn read(head: &[u8], class: Class) -> Self {
        let half = |offset| u16::from_le_bytes(field(head, offset));
        let (entry, programs, sections, sizes) = match class {
            Class::Bits32 => (word(head, 24), word(head, 28), word(head, 32), 42),
            Class::Bits64 => (quad(head, 24), quad(head, 32), quad(head, 40), 54),
        };
        let table =
            |offset, at: usize| Table { offset, entry_size: half(at), count: half(at.saturating_add(2)) };
        let at = |distance: usize| distance.saturating_add(sizes);
        Self { entry, programs: table(programs, sizes), sections: table(sections, at(4)), names: half(at(8)) }
    }
}

/// A program header.
struct ProgramHeader {
    kind: u32,
    offset: u64,
    linked: u64,
    physical: u64,
    file_size: u64,
    memory_size: u64,
}

impl ProgramHeader {
    fn read(head: &[u8], class: Class, table: &Table, index: u16) -> Result<Self, Refusal> {
        let size = match class {
            Class::Bits32 => 32,
            Class::Bits64 => 56,
        };
        if usize::from(table.entry_size) != size {
            return Err("its ELF program headers have an unknown size");
        }
        let start = usize::from(index).checked_mul(size).and_then(|offset| {
            let table = usize::try_from(table.offset).ok()?;
            table.checked_add(offset)
        });
        let bytes = start
            .and_then(|start| head.get(start..start.checked_add(size)?))
            .ok_or("its ELF program headers are not at its start")?;
        let kind = u32::from_le_bytes(field(bytes, 0));
        Ok(match class {
            Class::Bits32 => Self {
                kind,
                offset: word(bytes, 4),
                linked: word(bytes, 8),
                physical: word(bytes, 12),
                file_size: word(bytes, 16),
                memory_size: word(bytes, 20),
            },
            Class::Bits64 => Self {
                kind,
                offset: quad(bytes, 8),
                linked: quad(bytes, 16),
                physical: quad(bytes, 24),
                file_size: quad(bytes, 32),
                memory_size: quad(bytes, 40),
            },
        })
    }
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    u32::from_le_bytes(field(bytes, offset)).into()
}

fn quad(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(field(bytes, offset))
}

#[cfg(test)]
pub(crate) mod tests;
