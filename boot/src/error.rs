//! What can go wrong between a kernel image and a guest that can be started.

use std::io;
use std::path::PathBuf;

use vm_memory::GuestMemoryError;

use crate::payload::Compressor;

/// Why a guest cannot be booted. All but [`Error::Memory`], a damaged payload and a file that changes under our
/// hands are found before a VM is made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused an operation on an input file.
    #[error("cannot {attempt} {}", path.display())]
    File {
        /// What was attempted: `open`, `read` ...
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// An input is a directory, a pipe or a device: its length is unknown, so it cannot be placed.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// The initrd has no bytes.
    #[error("the initrd {} is empty", path.display())]
    EmptyInitrd {
        /// The file.
        path: PathBuf,
    },
    /// The kernel file is something else than a bzImage.
    #[error("{} is not a bzImage: {reason}", path.display())]
    NotBzImage {
        /// The file.
        path: PathBuf,
        /// Which property it lacks.
        reason: &'static str,
    },
    /// The kernel file is an ELF file that cannot be booted.
    #[error("{} cannot be booted: {reason}", path.display())]
    NotBootable {
        /// The file.
        path: PathBuf,
        /// Which property it lacks, or which is broken.
        reason: &'static str,
    },
    /// The kernel's payload is damaged.
    #[error("cannot unpack {}, which is packed with {compressor}", path.display())]
    Unpack {
        /// The file.
        path: PathBuf,
        /// What it is packed with.
        compressor: Compressor,
        /// What the unpacker says.
        source: io::Error,
    },
    /// The kernel's payload can be unpacked, but not to a kernel.
    #[error("the payload of {}, packed with {compressor}, cannot be used: {reason}", path.display())]
    Payload {
        /// The file.
        path: PathBuf,
        /// What it is packed with.
        compressor: Compressor,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file in the kernel cache might be anybody's.
    #[error("{} belongs to another user, or others may write to it", path.display())]
    CacheOwner {
        /// The file.
        path: PathBuf,
    },
    /// The kernel speaks a boot protocol from before 2.12 (Linux 3.8).
    #[error(
        "{} speaks boot protocol {}.{}; 2.12 (Linux 3.8) or later is needed",
        path.display(), version >> 8, version & 0xff
    )]
    OldProtocol {
        /// The file.
        path: PathBuf,
        /// The header's `version`, major number in the high byte.
        version: u16,
    },
    /// The kernel is a 32-bit one.
    #[error("{} has no 64-bit entry point; give a kernel built for x86-64", path.display())]
    No64BitEntry {
        /// The file.
        path: PathBuf,
    },
    /// A file has fewer bytes than it promised.
    #[error("{} is truncated: {expected} bytes are needed, it has {actual}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes needed, from the start of the file.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// A NUL byte would end the command line early.
    #[error("the kernel command line contains a NUL byte")]
    CommandLineNul,
    /// The kernel would cut the command line off.
    #[error("the kernel command line has {length} bytes; this kernel takes at most {limit}")]
    CommandLineTooLong {
        /// Bytes without the terminating zero.
        length: u64,
        /// Bytes that the kernel takes (`cmdline_size`).
        limit: u64,
    },
    /// The RAM or the reserved ranges make no memory map that a PC can have.
    #[error("the guest's memory map is not usable: {reason}")]
    MemoryMap {
        /// Which rule is broken.
        reason: &'static str,
    },
    /// The kernel needs more memory to start than there is below the hole.
    #[error(
        "the kernel needs {start:#x} to {end:#x} to start, but RAM ends at {ram_end:#x}; give the guest at \
         least {} MiB",
        end.div_ceil(1 << 20)
    )]
    KernelDoesNotFit {
        /// Where it is loaded.
        start: u64,
        /// The end of what it needs (`init_size`).
        end: u64,
        /// The end of the RAM below the hole.
        ram_end: u64,
    },
    /// There is no room for the initrd beside the kernel.
    #[error(
        "the initrd of {size} bytes does not fit below {limit:#x} beside the kernel at {start:#x} to \
         {end:#x}; give the guest more memory or use a smaller initrd"
    )]
    InitrdDoesNotFit {
        /// Bytes of the initrd.
        size: u64,
        /// The end of the RAM that it can use (`initrd_addr_max`, the hole).
        limit: u64,
        /// Start of the kernel.
        start: u64,
        /// End of what the kernel needs.
        end: u64,
    },
    /// The description of the machine cannot be put into ACPI's words.
    #[error("the machine cannot be described in ACPI: {reason}")]
    Machine {
        /// Which rule is broken.
        reason: &'static str,
    },
    /// The ACPI tables are larger than their place below 1 MiB.
    #[error("the ACPI tables have {size} bytes; there is room for {room}")]
    TablesTooLarge {
        /// Bytes of all tables.
        size: usize,
        /// Bytes of [`crate::layout::ACPI`].
        room: usize,
    },
    /// The guest's memory did not take what was planned for it.
    #[error("cannot write {what} to guest memory at {address:#x}")]
    Memory {
        /// What was being written.
        what: &'static str,
        /// Where to.
        address: u64,
        /// The cause.
        source: GuestMemoryError,
    },
}

/// [`std::result::Result`] with this crate's [`Error`], if nothing else is said.
pub type Result<T, E = Error> = std::result::Result<T, E>;
