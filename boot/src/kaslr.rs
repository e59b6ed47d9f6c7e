//! Where a kernel goes when its place is random (KASLR): physically in the guest's RAM, and virtually in the
//! 1 GiB that Linux keeps for its image. The two have nothing to do with each other on x86-64.

use std::fmt;
use std::ops::Range;

use crate::CommandLine;
use crate::layout::HIGH_RAM_START;

/// What Linux maps its image into at most (`KERNEL_IMAGE_SIZE` of a kernel that can be randomised).
const KERNEL_IMAGE_SIZE: u64 = 1 << 30;
/// Linux itself starts no higher than this when it looks for a place, however high it was loaded.
const LOWEST_LIMIT: u64 = 512 << 20;

/// Which of the two offsets there is. In bytes from where the kernel is linked, modulo 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// Of the physical address.
    pub physical_offset: Option<u64>,
    /// Of the virtual address.
    pub virtual_offset: Option<u64>,
}

impl fmt::Display for Offsets {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.physical_offset, self.virtual_offset) {
            (Some(physical), Some(offset)) => write!(
                out,
                "at a random physical and virtual address, {physical:#x} and {offset:#x} from where it is linked"
            ),
            (Some(offset), None) => {
                write!(out, "at a random physical address, {offset:#x} from where it is linked")
            }
            (None, Some(offset)) => {
                write!(out, "at a random virtual address, {offset:#x} from where it is linked")
            }
            (None, None) => out.write_str("at its usual address"),
        }
    }
}

impl Offsets {
    /// Whether there is any, of which Linux wants to be told.
    pub(crate) fn are_any(self) -> bool {
        self.physical_offset.is_some() || self.virtual_offset.is_some()
    }
}

/// What the command line says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// No random place.
    Off,
    /// A random virtual address only: the guest's RAM will not be all that there is.
    VirtualOnly,
    /// Both.
    On,
}

impl Wish {
    pub(crate) fn of(command_line: &CommandLine) -> Self {
        /// With these the kernel uses less memory than e820 shows, and would lie outside of it.
        const LIMITS: [&str; 3] = ["mem=", "memmap=", "hugepagesz=1"];
        let mut words = command_line.words();
        if words.clone().any(|word| word == "nokaslr") {
            Self::Off
        } else if words.any(|word| LIMITS.iter().any(|limit| word.starts_with(limit))) {
            Self::VirtualOnly
        } else {
            Self::On
        }
    }
}

/// A kernel's size and what it asks of its address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Where it is linked.
    pub(crate) linked: u64,
    /// What it needs from there on.
    pub(crate) size: u64,
    /// What its address is a multiple of, a power of two.
    pub(crate) alignment: u64,
}

impl Shape {
    /// A physical address in the RAM up to `ram_end` that leaves `taken` alone. `None` if there is no place.
    pub(crate) fn physical(&self, random: u64, ram_end: u64, mut taken: Vec<Range<u64>>) -> Option<u64> {
        taken.sort_by_key(|range| range.start);
        let mut rooms = Vec::new();
        let mut start = self.linked.clamp(HIGH_RAM_START, LOWEST_LIMIT);
        for range in taken {
            rooms.push(start..range.start.min(ram_end));
            start = start.max(range.end);
        }
        rooms.push(start..ram_end);
        let all = rooms.iter().map(|room| self.places(room)).fold(0, u64::saturating_add);
        let mut index = random.checked_rem(all)?;
        for room in rooms {
            match index.checked_sub(self.places(&room)) {
                Some(rest) => index = rest,
                None => return self.place(&room, index),
            }
        }
        None
    }

    /// An offset from the virtual address that the kernel is linked at. `None` if it is too large.
    pub(crate) fn virtual_offset(&self, random: u64) -> Option<u64> {
        let room = self.linked..KERNEL_IMAGE_SIZE;
        let index = random.checked_rem(self.places(&room))?;
        self.place(&room, index)?.checked_sub(self.linked)
    }

    /// How many places there are in `room`.
    fn places(&self, room: &Range<u64>) -> u64 {
        let last = || {
            let first = room.start.checked_next_multiple_of(self.alignment)?;
            room.end.checked_sub(self.size)?.checked_sub(first)?.checked_div(self.alignment)
        };
        last().map_or(0, |last| last.saturating_add(1))
    }

    fn place(&self, room: &Range<u64>, index: u64) -> Option<u64> {
        room.start.checked_next_multiple_of(self.alignment)?.checked_add(index.checked_mul(self.alignment)?)
    }
}

#[cfg(test)]
mod tests;
