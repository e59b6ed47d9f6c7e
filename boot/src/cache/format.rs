//! The file of a cached kernel.
//!
//! | where | what |
//! | --- | --- |
//! | 0 | [`MAGIC`], which is also the version |
//! | 0x10 | the key |
//! | 0x30 | twelve 64-bit numbers, see [`Facts`] |
//! | 0x90 | BLAKE3 of all of the above and the relocations |
//! | 0x1000 | the image, from its first to its last byte that the ELF file fills |
//! | after it | the relocations: 32-bit words, three lists one after the other |
//!
//! All numbers are little-endian. The digest covers the last bytes of the file, and its length is checked, so
//! a file that was cut off or lost its end in a crash is not used. The image has no digest of its own: to
//! check one would take as long as to read it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::GuestMemoryMmap;

use super::Key;
use crate::Result;
use crate::input::Input;
use crate::kernel::Flat;
use crate::locks::Locks;
use crate::relocs::Relocations;
use crate::zero_page::field;

/// Another layout gets another number.
const MAGIC: [u8; 16] = *b"mote kernel 0002";
const KEY: usize = 0x10;
const FACTS: usize = 0x30;
const DIGEST: usize = 0x90;
/// Where the image starts: on a page.
const HEADER_SIZE: usize = 0x1000;
/// A relocation, in bytes.
const WORD: u64 = 4;

/// The numbers, in their order.
struct Facts {
    image: Range<u64>,
    memory_end: u64,
    entry: u64,
    /// 1 if the relocations were understood.
    has_relocations: u64,
    /// Of each list.
    counts: [u64; 3],
    /// Where the lock prefixes are. All is 0 where that is not known.
    locks: Locks,
}

impl Facts {
    fn of(flat: &Flat) -> Self {
        let count = |list: &Vec<u32>| u64::try_from(list.len()).unwrap_or(u64::MAX);
        let counts = |table: &Relocations| [&table.quads, &table.inverse, &table.words].map(count);
        Self {
            image: flat.image.clone(),
            memory_end: flat.memory_end,
            entry: flat.entry,
            has_relocations: flat.relocations.is_ok().into(),
            counts: flat.relocations.as_ref().map_or([0; 3], counts),
            locks: flat.locks.clone().unwrap_or(Locks { table: 0..0, text: 0..0 }),
        }
    }

    fn read(header: &[u8]) -> Self {
        let number = |index: usize| {
            let offset = index.saturating_mul(8).saturating_add(FACTS);
            u64::from_le_bytes(field(header, offset))
        };
        Self {
            image: number(0)..number(1),
            memory_end: number(2),
            entry: number(3),
            has_relocations: number(4),
            counts: [number(5), number(6), number(7)],
            locks: Locks { table: number(8)..number(9), text: number(10)..number(11) },
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { image, memory_end, entry, has_relocations, counts, locks: Locks { table, text } } = self;
        [image.start, image.end, *memory_end, *entry, *has_relocations]
            .into_iter()
            .chain(*counts)
            .chain([table.start, table.end, text.start, text.end])
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    fn image_size(&self) -> u64 {
        self.image.end.saturating_sub(self.image.start)
    }

    fn table_size(&self) -> u64 {
        self.counts.into_iter().fold(0, u64::saturating_add).saturating_mul(WORD)
    }

    fn table_offset(&self) -> u64 {
        self.image_size().saturating_add(HEADER_SIZE as u64)
    }

    fn file_size(&self) -> u64 {
        self.table_offset().saturating_add(self.table_size())
    }
}

/// Bytes of the file for `flat`.
pub(super) fn size(flat: &Flat) -> u64 {
    Facts::of(flat).file_size()
}

/// Writes `bytes` of the image, which are `offset` from its first one.
pub(super) fn put(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, offset.saturating_add(HEADER_SIZE as u64))
}

/// Writes what is around the image.
pub(super) fn complete(file: &File, key: &Key, flat: &Flat) -> io::Result<()> {
    let facts = Facts::of(flat);
    let table: Vec<u8> = flat
        .relocations
        .iter()
        .flat_map(|table| [&table.quads, &table.inverse, &table.words])
        .flatten()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let mut header = [MAGIC.as_slice(), key.0.as_bytes(), &facts.bytes()].concat();
    header.extend_from_slice(digest(&header, &table).as_bytes());
    header.resize(HEADER_SIZE, 0);
    file.write_all_at(&header, 0)?;
    file.write_all_at(&table, facts.table_offset())
}

fn digest(header: &[u8], table: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    hasher.update(table);
    hasher.finalize()
}

/// An entry, ready to be read.
pub(crate) struct Cached {
    input: Input,
    flat: Flat,
}

impl Cached {
    /// Reads all but the image. `None` if it is not a whole entry for `key`.
    pub(super) fn read(input: Input, key: &Key) -> Result<Option<Self>> {
        let header: [u8; HEADER_SIZE] = input.head()?;
        let facts = Facts::read(&header);
        if field(&header, 0) != MAGIC
            || field(&header, KEY) != *key.0.as_bytes()
            || facts.image.is_empty()
            || facts.file_size() != input.length()
        {
            return Ok(None);
        }
        let table = input.bytes(facts.table_offset(), facts.table_size())?;
        let known = blake3::Hash::from_bytes(field(&header, DIGEST));
        if digest(header.get(..DIGEST).unwrap_or_default(), &table) != known {
            return Ok(None);
        }
        let (words, _) = table.as_chunks();
        let mut words = words.iter().copied().map(u32::from_le_bytes);
        let [quads, inverse, words] = facts.counts.map(|count| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            words.by_ref().take(count).collect::<Vec<u32>>()
        });
        let table = Relocations { quads, inverse, words };
        if !table.is_within(&facts.image) {
            return Ok(None);
        }
        let relocations = match facts.has_relocations {
            1 => Ok(table),
            _ => Err("has no relocations that can be used"),
        };
        let Facts { image, memory_end, entry, locks, .. } = facts;
        let locks = Some(locks).filter(|locks| locks.is_within(&image));
        Ok(Some(Self { input, flat: Flat { image, memory_end, entry, relocations, locks } }))
    }

    /// The addresses as linked that it needs.
    pub(crate) fn memory(&self) -> Range<u64> {
        self.flat.image.start..self.flat.memory_end.max(self.flat.image.end)
    }

    /// Reads the image into `memory`, at `shift` from where it is linked.
    pub(crate) fn load(self, memory: &GuestMemoryMmap, shift: u64) -> Result<Flat> {
        let Self { input, flat } = self;
        let size = flat.image.end.saturating_sub(flat.image.start);
        input.load(HEADER_SIZE as u64, size, memory, flat.image.start.wrapping_add(shift))?;
        Ok(flat)
    }
}
