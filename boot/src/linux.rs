//! Booting a kernel: first where everything goes, which needs no memory, then putting it there.

use std::ops::Range;

use linux_loader::loader::bootparam::SETUP_RNG_SEED;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::acpi::Tables;
use crate::e820::MemoryMap;
use crate::image::Content;
use crate::kaslr::{Shape, Wish};
use crate::kernel::Loader;
use crate::layout::{BOOT_PARAMS, COMMAND_LINE, SETUP_DATA};
use crate::place::{check_command_line, place_initrd, place_kernel};
use crate::pvh::StartInfo;
use crate::zero_page::ZeroPage;
use crate::{Cache, CommandLine, Entry, Error, Image, Initrd, Kernel, Method, Note, Result};

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
    /// The end of the RAM below the hole.
    ram_end: u64,
    /// Whether the kernel's address was chosen by chance.
    is_moved: bool,
    /// The number to choose its virtual address with.
    random: Option<u64>,
    is_alone: bool,
    cache: Option<Cache>,
    /// Why there is no random address, if there is none.
    unmoved: Option<Note>,
}

/// A guest that can be started.
#[derive(Debug)]
pub struct Loaded {
    /// The registers to start with.
    pub entry: Entry,
    /// The kernel, and how it came into memory.
    pub kernel: Kernel,
}

impl Plan {
    /// Decides where everything goes, in guest physical addresses and bytes. The kernel goes where it wants to be.
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
        Ok(Self {
            image,
            kernel,
            initrd,
            command_line,
            memory_map,
            ram_end,
            is_moved: false,
            random: None,
            is_alone: false,
            cache: None,
            unmoved: None,
        })
    }

    /// The same with the kernel at a random place, as it would choose it itself (KASLR), by two independent
    /// numbers: one for its physical address, one for its virtual one. It stays clear of `taken`, where others
    /// will put something into RAM. Nothing changes for a kernel that unpacks itself, which does this too, or if
    /// the command line says `nokaslr`.
    #[must_use]
    pub fn randomised(mut self, random: [u64; 2], taken: &[Range<u64>]) -> Self {
        let [physical, virtual_address] = random;
        let header = self.image.header();
        let wish = Wish::of(&self.command_line);
        match self.image.content() {
            Content::SelfUnpacking(_) => return self,
            _ if wish == Wish::Off => return self,
            Content::Pvh(..) => self.unmoved = Some(Note::NoPhysicalOffset("it starts by its PVH entry")),
            _ if wish == Wish::VirtualOnly => {
                self.random = Some(virtual_address);
                self.unmoved = Some(Note::NoPhysicalOffset("the command line limits the guest's memory"));
            }
            _ if !header.is_relocatable => {
                self.random = Some(virtual_address);
                self.unmoved = Some(Note::NoPhysicalOffset("it can run at one address only"));
            }
            _ => {
                self.random = Some(virtual_address);
                let size = self.kernel.end.saturating_sub(self.kernel.start);
                let shape = Shape { linked: header.pref_address, size, alignment: header.kernel_alignment };
                // The usual place is one of those to choose from, so there is one as long as nothing is taken.
                let taken = taken.iter().cloned().chain(self.initrd()).collect();
                if let Some(start) = shape.physical(physical, self.ram_end, taken) {
                    self.kernel = start..start.saturating_add(size);
                    self.is_moved = true;
                }
            }
        }
        self
    }

    /// The same for a guest with one processor: the lock prefixes of Linux go before it starts, instead of one by one as
    /// it starts, unless the command line says `noreplace-smp`.
    #[must_use]
    pub fn alone(self) -> Self {
        let keeps = |word: &str| word.replace('_', "-").starts_with("noreplace-smp");
        let is_alone = !self.command_line.words().any(keeps);
        Self { is_alone, ..self }
    }

    /// The same with a cache, from which an unpacked kernel is taken, and in which it is put.
    #[must_use]
    pub fn cached(self, cache: Cache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// Whether the kernel is in memory sooner than a thread for it would have started.
    #[must_use]
    pub fn is_small(&self) -> bool {
        const SMALL: u64 = 1 << 20;
        !matches!(self.image.content(), Content::Payload(_)) && self.image.input().length() < SMALL
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

    /// Writes everything to `memory`: [`Plan::load_kernel`] and [`Plan::load_rest`] one after the other.
    ///
    /// # Errors
    ///
    /// As those two.
    pub fn load(self, memory: &GuestMemoryMmap, acpi: &Tables, seed: &mut [u8; SEED_SIZE]) -> Result<Loaded> {
        let kernel = self.load_kernel(memory)?;
        self.load_rest(memory, acpi, seed, kernel)
    }

    /// Puts the kernel into `memory`, which must be zero everywhere. This is what takes time if it has to be
    /// unpacked, and can be done on a thread while the machine is made.
    ///
    /// # Errors
    ///
    /// [`Error::Unpack`] and [`Error::Payload`] if it is damaged; [`Error::Memory`] if `memory` is smaller than
    /// the RAM that the plan was made for; [`Error::File`] or [`Error::Truncated`] if a file changed since it was
    /// opened. That the cache fails is no error but a [`Note`].
    pub fn load_kernel(&self, memory: &GuestMemoryMmap) -> Result<Kernel> {
        let loader = Loader {
            image: &self.image,
            place: self.kernel(),
            is_moved: self.is_moved,
            random: self.random,
            is_alone: self.is_alone,
            cache: self.cache.as_ref(),
            notes: Vec::new(),
        };
        loader.load(memory)
    }

    /// Writes initrd, command line, boot parameters, ACPI tables, descriptor table and page tables to `memory`,
    /// and says with which registers to start.
    ///
    /// `seed` are bytes from a source that the guest may trust with its keys; they are overwritten with zeros
    /// here, as the guest's kernel does with its copy (boot protocol, `SETUP_RNG_SEED`).
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] if `memory` is smaller than the RAM that the plan was made for; [`Error::File`] or
    /// [`Error::Truncated`] if the initrd changed since it was opened.
    pub fn load_rest(
        self,
        memory: &GuestMemoryMmap,
        acpi: &Tables,
        seed: &mut [u8; SEED_SIZE],
        mut kernel: Kernel,
    ) -> Result<Loaded> {
        if let Some((initrd, address)) = &self.initrd {
            initrd.0.load(0, initrd.0.length(), memory, *address)?;
        }
        put(memory, "the ACPI tables", acpi.address(), acpi.bytes())?;
        self.put_command_line(memory)?;
        let entry = match kernel.method {
            Method::Pvh => {
                let info = StartInfo {
                    command_line: COMMAND_LINE.start,
                    rsdp: acpi.rsdp(),
                    initrd: self.initrd(),
                    memory_map: &self.memory_map,
                };
                put(memory, "the start information", BOOT_PARAMS, &info.bytes())?;
                Entry::write_pvh(memory, kernel.entry)?
            }
            Method::Unpacked(_) | Method::Cached(_) | Method::SelfUnpacking | Method::Vmlinux => {
                put_seed(memory, seed)?;
                put(memory, "the boot parameters", BOOT_PARAMS, self.zero_page(acpi, &kernel).bytes())?;
                Entry::write(memory, kernel.entry)?
            }
        };
        seed.fill(0);
        kernel.notes.extend(self.unmoved);
        Ok(Loaded { entry, kernel })
    }

    fn put_command_line(&self, memory: &GuestMemoryMmap) -> Result<()> {
        let mut bytes = self.command_line.as_str().as_bytes().to_vec();
        bytes.push(0);
        put(memory, "the command line", COMMAND_LINE.start, &bytes)
    }

    fn zero_page(&self, acpi: &Tables, kernel: &Kernel) -> ZeroPage {
        let mut page = ZeroPage::new(self.image.head());
        if kernel.offsets.are_any() {
            page.set_kaslr();
        }
        page.set_code32_start(low(kernel.place.start));
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

/// Writes the one node of the list of `struct setup_data` (boot protocol, `setup_data`): next, type, length,
/// data.
fn put_seed(memory: &GuestMemoryMmap, seed: &[u8; SEED_SIZE]) -> Result<()> {
    const DATA: u64 = SETUP_DATA.start + 16;
    const _: () = assert!(DATA + SEED_LENGTH as u64 <= SETUP_DATA.end);
    let node = [0, u64::from(SEED_LENGTH) << 32 | u64::from(SETUP_RNG_SEED)].map(u64::to_le_bytes).concat();
    put(memory, "the random seed", SETUP_DATA.start, &node)?;
    put(memory, "the random seed", DATA, seed)
}

fn put(memory: &GuestMemoryMmap, what: &'static str, address: u64, bytes: &[u8]) -> Result<()> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|source| Error::Memory { what, address, source })
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod unpacked_tests;
