//! The kernel image: which file can be booted, in which way, and what its setup header says (boot protocol,
//! "The Real-Mode Kernel Header").

use std::fs::File;
use std::path::Path;

use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64};

use crate::elf::Elf;
use crate::input::Input;
use crate::layout::HIGH_RAM_START;
use crate::payload::Payload;
use crate::unpack::unpack;
use crate::vmlinux::{self, Start, Vmlinux};
use crate::zero_page::{HEADER_MAX_END, field, header_field};
use crate::{Error, Result};

/// `boot_flag` of every boot sector.
const BOOT_FLAG: u16 = 0xaa55;
/// `header` of every kernel since boot protocol 2.00.
const HDRS: [u8; 4] = *b"HdrS";
/// The first protocol with `xloadflags`, and so with a 64-bit entry.
const OLDEST_PROTOCOL: u16 = 0x020c;
/// The unit of `setup_sects`, in bytes.
const SECTOR: u64 = 512;
/// The unit of `syssize`, in bytes.
const PARAGRAPH: u64 = 16;
/// What `setup_sects` means when it is 0.
const DEFAULT_SETUP_SECTS: u8 = 4;
/// What the page tables that Linux brings want its address to be a multiple of.
const LARGE_PAGE: u64 = 2 << 20;
/// The header ends here at least: after `init_size`, the last field that is read.
const HEADER_MIN_END: usize = header_field!(handover_offset);

/// What a kernel's setup header says, or would say if an ELF file had one. Addresses are guest physical, sizes
/// in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `version` of the boot protocol, major number in the high byte.
    pub version: u16,
    /// `setup_sects`: sectors of real-mode code after the boot sector, 4 where the file says 0.
    pub setup_sects: u8,
    /// Where the protected-mode part starts in the file.
    pub protected_offset: u64,
    /// `syssize`: the protected-mode part's size. The file may go on after it, with a signature for example.
    pub protected_size: u64,
    /// `init_size`: the memory that the kernel needs from where it runs until it can read the memory map.
    pub init_size: u64,
    /// `kernel_alignment`, a power of two.
    pub kernel_alignment: u64,
    /// `pref_address`: where it wants to be loaded.
    pub pref_address: u64,
    /// `relocatable_kernel`: can run elsewhere than at `pref_address`.
    pub is_relocatable: bool,
    /// `cmdline_size`: the longest command line, without its terminating zero.
    pub cmdline_size: u32,
    /// `initrd_addr_max`: the last address that an initrd may occupy.
    pub initrd_addr_max: u32,
    /// `payload_offset`: where the compressed kernel starts, from the start of the protected-mode part. Not
    /// checked.
    pub payload_offset: u32,
    /// `payload_length`, 0 where there is none. Not checked.
    pub payload_length: u32,
    /// `XLF_CAN_BE_LOADED_ABOVE_4G`.
    pub can_be_loaded_above_4g: bool,
}

/// A kernel that can be booted: a bzImage with a 64-bit entry, or an ELF file.
#[derive(Debug)]
pub struct Image {
    input: Input,
    /// A bzImage up to the end of its setup header.
    head: Vec<u8>,
    header: Header,
    content: Content,
}

/// What is in the file, and so how it is loaded.
#[derive(Debug)]
pub(crate) enum Content {
    /// A bzImage, to be unpacked here.
    Payload(Payload),
    /// A bzImage that only the guest can unpack, and why.
    SelfUnpacking(&'static str),
    /// An ELF file with a 64-bit entry.
    Vmlinux(Vmlinux),
    /// An ELF file, and its PVH entry.
    Pvh(Vmlinux, u32),
}

impl Image {
    /// Opens the file at `path` and checks that it is a kernel that can be booted.
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::NotRegular`] for the file, [`Error::NotBzImage`], [`Error::OldProtocol`],
    /// [`Error::No64BitEntry`], [`Error::NotBootable`], [`Error::Payload`] and [`Error::Truncated`] for what is
    /// in it.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Input::open(path)?)
    }

    /// Takes a file that is open already; `path` is its name in errors.
    ///
    /// # Errors
    ///
    /// As [`Image::open`].
    pub fn read(file: File, path: &Path) -> Result<Self> {
        Self::new(Input::read(file, path)?)
    }

    /// What the setup header says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Hands on what a bzImage's payload unpacks to, piece by piece: an ELF file, as a rule with relocations after its end.
    /// `false` if there is no payload that can be unpacked here.
    ///
    /// # Errors
    ///
    /// [`Error::Unpack`] and [`Error::Payload`] if it is damaged, and what `sink` returns.
    pub fn unpack(&self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        let Content::Payload(payload) = &self.content else { return Ok(false) };
        unpack(&self.input, payload, sink).map(|()| true)
    }

    /// The file up to the end of its setup header.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    pub(crate) fn input(&self) -> &Input {
        &self.input
    }

    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    fn new(input: Input) -> Result<Self> {
        let bytes: [u8; HEADER_MAX_END] = input.head()?;
        if Elf::is_elf(&bytes) { Self::elf(input) } else { Self::bzimage(input, &bytes) }
    }

    fn elf(input: Input) -> Result<Self> {
        let (vmlinux, start) = Vmlinux::open(&input)?;
        let header = vmlinux.header(start);
        let content = match start {
            Start::Linux => Content::Vmlinux(vmlinux),
            Start::Pvh(entry) => Content::Pvh(vmlinux, entry),
        };
        Ok(Self { head: vmlinux::head(), header, content, input })
    }

    fn bzimage(input: Input, bytes: &[u8; HEADER_MAX_END]) -> Result<Self> {
        let not_bzimage = |reason| Err(Error::NotBzImage { path: input.path(), reason });
        if u16::from_le_bytes(field(bytes, header_field!(boot_flag))) != BOOT_FLAG {
            return not_bzimage("it has no boot sector");
        }
        if field(bytes, header_field!(header)) != HDRS {
            return not_bzimage("it has no Linux setup header (HdrS)");
        }
        let version = u16::from_le_bytes(field(bytes, header_field!(version)));
        if version < OLDEST_PROTOCOL {
            return Err(Error::OldProtocol { path: input.path(), version });
        }
        let [loadflags] = field(bytes, header_field!(loadflags));
        if loadflags & LOADED_HIGH == 0 {
            return not_bzimage("it is a zImage, to be loaded below 1 MiB");
        }
        let xloadflags = u16::from_le_bytes(field(bytes, header_field!(xloadflags)));
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(Error::No64BitEntry { path: input.path() });
        }
        let Some(head) = header_end(bytes).and_then(|end| bytes.get(..end)) else {
            return not_bzimage("its setup header has an impossible length");
        };
        let header = Header::new(bytes, version, xloadflags);
        if !header.kernel_alignment.is_power_of_two() {
            return not_bzimage("its kernel_alignment is not a power of two");
        }
        if !header.is_relocatable && header.pref_address < HIGH_RAM_START {
            return not_bzimage("its pref_address lies below 1 MiB");
        }
        let expected = header.protected_offset.saturating_add(header.protected_size);
        if input.length() < expected {
            return Err(Error::Truncated { path: input.path(), expected, actual: input.length() });
        }
        let content = match Payload::find(&input, &header)? {
            Ok(payload) if header.has_linux_addresses() => Content::Payload(payload),
            Ok(_) => Content::SelfUnpacking("its header asks for addresses that Linux cannot have"),
            Err(reason) => Content::SelfUnpacking(reason),
        };
        Ok(Self { head: head.to_vec(), header, content, input })
    }
}

impl Header {
    fn new(bytes: &[u8], version: u16, xloadflags: u16) -> Self {
        let dword = |offset| u32::from_le_bytes(field(bytes, offset));
        let [setup_sects] = field(bytes, header_field!(setup_sects));
        let setup_sects = if setup_sects == 0 { DEFAULT_SETUP_SECTS } else { setup_sects };
        let [relocatable_kernel] = field(bytes, header_field!(relocatable_kernel));
        Self {
            version,
            setup_sects,
            protected_offset: u64::from(setup_sects).saturating_add(1).saturating_mul(SECTOR),
            protected_size: u64::from(dword(header_field!(syssize))).saturating_mul(PARAGRAPH),
            init_size: dword(header_field!(init_size)).into(),
            kernel_alignment: dword(header_field!(kernel_alignment)).into(),
            pref_address: u64::from_le_bytes(field(bytes, header_field!(pref_address))),
            is_relocatable: relocatable_kernel != 0,
            cmdline_size: dword(header_field!(cmdline_size)),
            initrd_addr_max: dword(header_field!(initrd_addr_max)),
            payload_offset: dword(header_field!(payload_offset)),
            payload_length: dword(header_field!(payload_length)),
            can_be_loaded_above_4g: xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
        }
    }

    /// Whether the kernel in the payload gets along with the addresses that its header leads to. The code that
    /// unpacks it is content with less.
    fn has_linux_addresses(&self) -> bool {
        let is_aligned = self.kernel_alignment.is_multiple_of(LARGE_PAGE)
            && self.pref_address.is_multiple_of(self.kernel_alignment);
        self.pref_address >= HIGH_RAM_START && (is_aligned || !self.is_relocatable)
    }
}

/// The end of the setup header: the jump at 0x200 leads over it, and counts from its own end.
fn header_end(bytes: &[u8]) -> Option<usize> {
    let [_, distance] = field(bytes, header_field!(jump));
    let end = header_field!(header).checked_add(distance.into())?;
    (HEADER_MIN_END..=HEADER_MAX_END).contains(&end).then_some(end)
}

#[cfg(test)]
pub(crate) mod tests;
