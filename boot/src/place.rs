//! Where things go in the guest's RAM if nothing is random.

use std::ops::Range;

use crate::layout::{COMMAND_LINE, HIGH_RAM_START, PAGE_SIZE};
use crate::{CommandLine, Error, Header, Result};

/// The command line and its terminating zero fit both the kernel's buffer and the place for them.
pub(crate) fn check_command_line(command_line: &CommandLine, header: &Header) -> Result<()> {
    const ROOM: u64 = COMMAND_LINE.end - COMMAND_LINE.start - 1;
    let length = u64::try_from(command_line.as_str().len()).unwrap_or(u64::MAX);
    let limit = u64::from(header.cmdline_size).min(ROOM);
    if length > limit { Err(Error::CommandLineTooLong { length, limit }) } else { Ok(()) }
}

/// The kernel goes to its preferred address, aligned.
///
/// There is no second choice: RAM starts at 0 in one piece, so what does not fit there fits nowhere above,
/// and a kernel that is loaded below its preferred address moves itself up to it before it unpacks.
pub(crate) fn place_kernel(header: &Header, ram_end: u64) -> Result<Range<u64>> {
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
pub(crate) fn place_initrd(size: u64, header: &Header, kernel: &Range<u64>, ram_end: u64) -> Result<u64> {
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
