//! Booting a bzImage by its 64-bit entry: first where everything goes, which needs no memory, then putting it
//! there.

use std::ops::Range;

use linux_loader::loader::bootparam::SETUP_RNG_SEED;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::acpi::Tables;
use crate::e820::MemoryMap;
use crate::layout::{BOOT_PARAMS, COMMAND_LINE, HIGH_RAM_START, PAGE_SIZE, SETUP_DATA};
use crate::zero_page::ZeroPage;
use crate::{CommandLine, Entry, Error, Header, Image, Initrd, Result};

/// The 64-bit entry, from the start of the protected-mode part (boot protocol, "64-bit Boot Protocol").
const ENTRY_64: u64 = 0x200;

/// Bytes of the random seed that a guest is given.
pub const SEED_SIZE: usize = SEED_LENGTH as usize;
/// The same as the boot protocol has it.
const SEED_LENGTH: u32 = 64;

/// Where kernel, initrd and command line go. A plan fits: into the RAM that it was made for it can be loaded.
#[derive(Debug)]
pub struct Plan {
    image: Image,
    /// From the load address to the end of what the kernel needs to start.
    kernel: Range<u64>,
    initrd: Option<(Initrd, u64)>,
    command_line: CommandLine,
    memory_map: MemoryMap,
}

impl Plan {
    /// Decides where everything goes, in guest physical addresses and bytes.
    ///
    /// `ram` is what the guest has, in ascending order, on whole pages: from 0 to the hole below 4 GiB, then
    /// what lies above. `reserved` are ranges outside RAM that e820 shows as reserved, the PCI configuration
    /// window above all.
    ///
    /// # Errors
    ///
    /// [`Error::MemoryMap`] if RAM and reserved ranges are not as described, [`Error::CommandLineTooLong`],
    /// [`Error::KernelDoesNotFit`] and [`Error::InitrdDoesNotFit`] as they say.
    pub fn new(
        image: Image,
        initrd: Option<Initrd>,
        command_line: CommandLine,
        ram: &[Range<u64>],
        reserved: &[Range<u64>],
    ) -> Result<Self> {
        let memory_map = MemoryMap::new(ram, reserved)?;
        let ram_end = ram.first().map_or(0, |low| low.end);
        check_command_line(&command_line, image.header())?;
        let kernel = place_kernel(image.header(), ram_end)?;
        let initrd = match initrd {
            Some(initrd) => {
                let address = place_initrd(initrd.0.length(), image.header(), &kernel, ram_end)?;
                Some((initrd, address))
            }
            None => None,
        };
        Ok(Self { image, kernel, initrd, command_line, memory_map })
    }

    /// Where the kernel goes: from its load address to the end of what it needs until it can read the memory
    /// map.
    #[must_use]
    pub fn kernel(&self) -> Range<u64> {
        self.kernel.clone()
    }

    /// Where the initrd goes, if there is one.
    #[must_use]
    pub fn initrd(&self) -> Option<Range<u64>> {
        self.initrd.as_ref().map(|(initrd, address)| *address..address.saturating_add(initrd.0.length()))
    }

    /// Writes kernel, initrd, command line, boot parameters, ACPI tables, descriptor table and page tables to
    /// `memory`, which must be zero below 1 MiB, and returns the registers to start with.
    ///
    /// `seed` are bytes from a source that the guest may trust with its keys; they are overwritten with zeros
    /// here, as the guest's kernel does with its copy (boot protocol, `SETUP_RNG_SEED`).
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] if `memory` is smaller than the RAM that the plan was made for; [`Error::File`] or
    /// [`Error::Truncated`] if a file changed since it was opened.
    pub fn load(&self, memory: &GuestMemoryMmap, acpi: &Tables, seed: &mut [u8; SEED_SIZE]) -> Result<Entry> {
        let header = self.image.header();
        self.image.input().load(header.protected_offset, header.protected_size, memory, self.kernel.start)?;
        if let Some((initrd, address)) = &self.initrd {
            initrd.0.load(0, initrd.0.length(), memory, *address)?;
        }
        put(memory, "the ACPI tables", acpi.address(), acpi.bytes())?;
        self.put_command_line(memory)?;
        put_seed(memory, seed)?;
        put(memory, "the boot parameters", BOOT_PARAMS, self.zero_page(acpi).bytes())?;
        Entry::write(memory, self.kernel.start.saturating_add(ENTRY_64))
    }

    fn put_command_line(&self, memory: &GuestMemoryMmap) -> Result<()> {
        let mut bytes = self.command_line.as_str().as_bytes().to_vec();
        bytes.push(0);
        put(memory, "the command line", COMMAND_LINE.start, &bytes)
    }

    fn zero_page(&self, acpi: &Tables) -> ZeroPage {
        let mut page = ZeroPage::new(self.image.head());
        page.set_code32_start(low(self.kernel.start));
        page.set_cmd_line_ptr(low(COMMAND_LINE.start));
        if let Some((initrd, address)) = &self.initrd {
            page.set_ramdisk(low(*address), low(initrd.0.length()));
        }
        page.set_setup_data(SETUP_DATA.start);
        page.set_acpi_rsdp_addr(acpi.rsdp());
        page.set_e820(&self.memory_map);
        page
    }
}

/// An address or size below 4 GiB, where a plan puts everything that has a 32-bit field.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The command line and its terminating zero fit both the kernel's buffer and the place for them.
fn check_command_line(command_line: &CommandLine, header: &Header) -> Result<()> {
    const ROOM: u64 = COMMAND_LINE.end - COMMAND_LINE.start - 1;
    let length = u64::try_from(command_line.as_str().len()).unwrap_or(u64::MAX);
    let limit = u64::from(header.cmdline_size).min(ROOM);
    if length > limit { Err(Error::CommandLineTooLong { length, limit }) } else { Ok(()) }
}

/// The kernel goes to its preferred address, aligned.
///
/// There is no second choice: RAM starts at 0 in one piece, so what does not fit there fits nowhere above,
/// and a kernel that is loaded below its preferred address moves itself up to it before it unpacks.
fn place_kernel(header: &Header, ram_end: u64) -> Result<Range<u64>> {
    let start = if header.is_relocatable {
        header
            .pref_address
            .max(HIGH_RAM_START)
            .checked_next_multiple_of(header.kernel_alignment)
            .unwrap_or(u64::MAX)
    } else {
        header.pref_address
    };
    let end = start.saturating_add(header.init_size.max(header.protected_size));
    if end > ram_end { Err(Error::KernelDoesNotFit { start, end, ram_end }) } else { Ok(start..end) }
}

/// The initrd goes as high as it can, on a page: above the kernel, or between 1 MiB and the kernel in a small
/// guest.
fn place_initrd(size: u64, header: &Header, kernel: &Range<u64>, ram_end: u64) -> Result<u64> {
    let limit = u64::from(header.initrd_addr_max).saturating_add(1).min(ram_end);
    let highest = |room: Range<u64>| {
        let start = room.end.checked_sub(size)? & !PAGE_MASK;
        (start >= room.start).then_some(start)
    };
    highest(kernel.end..limit)
        .or_else(|| highest(HIGH_RAM_START..kernel.start.min(limit)))
        .ok_or(Error::InitrdDoesNotFit { size, limit, start: kernel.start, end: kernel.end })
}

const PAGE_MASK: u64 = PAGE_SIZE - 1;

/// Writes the one node of the list of `struct setup_data` (boot protocol, `setup_data`): next, type, length,
/// data.
fn put_seed(memory: &GuestMemoryMmap, seed: &mut [u8; SEED_SIZE]) -> Result<()> {
    const DATA: u64 = SETUP_DATA.start + 16;
    const _: () = assert!(DATA + SEED_LENGTH as u64 <= SETUP_DATA.end);
    let node = [0, u64::from(SEED_LENGTH) << 32 | u64::from(SETUP_RNG_SEED)].map(u64::to_le_bytes).concat();
    put(memory, "the random seed", SETUP_DATA.start, &node)?;
    let written = put(memory, "the random seed", DATA, seed);
    seed.fill(0);
    written
}

fn put(memory: &GuestMemoryMmap, what: &'static str, address: u64, bytes: &[u8]) -> Result<()> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|source| Error::Memory { what, address, source })
}

#[cfg(test)]
mod tests;
