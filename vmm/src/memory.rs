//! Guest RAM: host memory at addresses that let the host and the processor use 2 MiB pages for it.

use std::io;
use std::ops::Range;
use std::ptr;
use std::thread::{JoinHandle, available_parallelism};

use devices::thread;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::kvm::Error;
use crate::layout::{GIB, MIB, PAGE};

/// The least RAM that a guest gets: what a distribution's kernel needs to reach its init.
pub const LEAST: u64 = 64 * MIB;
/// A large page. The host's and the guest's addresses of RAM agree modulo this, so that it can be made of large pages.
pub const UNIT: u64 = 2 * MIB;

/// How much RAM a guest has to each byte of Linux's descriptions of its pages: 64 bytes for 4 KiB.
const RAM_TO_DESCRIPTORS: u64 = 64;
/// Less RAM than this has so few of them that a thread costs more than it spares.
const MANY_DESCRIPTORS: u64 = GIB;

/// The host pages that RAM is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// Large pages where the host has them at hand when the guest first touches one, small ones elsewhere.
    #[default]
    Transparent,
    /// What the host does by default.
    Plain,
    /// Large pages from the host's reserve (`vm.nr_hugepages`), all of them set aside at once.
    Reserved,
}

/// Looks whether a guest can have memory in `ranges`, and tells how much it is, in bytes.
///
/// # Errors
///
/// [`Error::MemorySize`] if it is too little or not in whole pages.
pub fn check(ranges: &[Range<u64>], pages: Pages) -> Result<u64, Error> {
    let size = ranges.iter().map(|range| range.end - range.start).sum();
    let unit = if pages == Pages::Reserved { UNIT } else { PAGE };
    let is_whole = |range: &Range<u64>| range.start.is_multiple_of(unit) && range.end.is_multiple_of(unit);
    if size < LEAST || !ranges.iter().all(is_whole) {
        return Err(Error::MemorySize { size });
    }
    Ok(size)
}

/// The guest's RAM, mapped for as long as the process lives.
///
/// The mapping is never undone: KVM's slots, the devices' workers and every clone of [`Ram::guest`] stay valid without
/// anyone counting, and the process ends with its guest. It costs nothing before the guest touches it.
#[derive(Clone, Debug)]
pub struct Ram {
    guest: GuestMemoryMmap,
}

impl Ram {
    /// Maps memory for `ranges` of guest-physical addresses, which are in ascending order and apart. Nothing is touched
    /// yet unless `is_prefaulted` asks for every page at once.
    ///
    /// # Errors
    ///
    /// A size that no guest can have ([`Error::MemorySize`]), or that the host refuses ([`Error::Memory`]).
    pub fn new(ranges: &[Range<u64>], pages: Pages, is_prefaulted: bool) -> Result<Self, Error> {
        let size = check(ranges, pages)?;
        let refused = |source| Error::Memory { size, pages, source };
        let regions = ranges
            .iter()
            .map(|range| {
                let length =
                    usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::OutOfMemory)?;
                region(range.start, length, pages, is_prefaulted)
            })
            .collect::<Result<Vec<_>, io::Error>>()
            .map_err(refused)?;
        let guest = GuestMemoryMmap::from_regions(regions).map_err(io::Error::other).map_err(refused)?;
        Ok(Self { guest })
    }

    /// Has a thread take the pages of what Linux fills first where there is much RAM: the descriptions of all its pages, at
    /// the top. For the guest, which runs meanwhile, each would be an exit and a large page to be zeroed. `None` where
    /// there is little, or no processor for it.
    pub fn take_descriptors(&self) -> Option<JoinHandle<()>> {
        let size: u64 = self.guest.iter().map(GuestMemoryRegion::len).sum();
        let top = self.guest.iter().last()?;
        if size < MANY_DESCRIPTORS || available_parallelism().is_ok_and(|count| count.get() == 1) {
            return None;
        }
        let length = (size / RAM_TO_DESCRIPTORS).min(top.len());
        let guest = self.guest.clone();
        let end = top.start_addr().0 + top.len();
        let take = move || {
            // One by one and upwards, as Linux does, so that nobody waits for the address space.
            for start in (end - length..end).step_by(UNIT as usize) {
                let length = UNIT.min(end - start) as usize;
                let Ok(page) = guest.get_slice(GuestAddress(start), length) else { return };
                #[expect(unsafe_code, reason = "advice on memory is a raw system call")]
                // SAFETY: RAM is never unmapped, and the advice changes nothing that it holds.
                let taken = unsafe {
                    mm::madvise(page.ptr_guard_mut().as_ptr().cast(), length, Advice::LinuxPopulateWrite)
                };
                // Hosts before Linux 5.14 cannot; a host without memory to spare leaves it to the guest.
                if taken.is_err() {
                    return;
                }
            }
        };
        thread::named("descriptors").spawn(take).ok()
    }

    /// The RAM by guest-physical addresses.
    #[must_use]
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }
}

/// The RAM of `length` bytes at the guest's address `start`.
fn region(start: u64, length: usize, pages: Pages, is_prefaulted: bool) -> io::Result<GuestRegionMmap> {
    let address = map(start, length, pages)?;
    advise(address, length, pages, is_prefaulted)?;
    if start == 0 && pages == Pages::Transparent {
        spare_first(address, length);
    }
    let builder = MmapRegionBuilder::<()>::new(length);
    #[expect(unsafe_code, reason = "vm-memory cannot know who mapped what it is handed")]
    // SAFETY: `map` mapped exactly these bytes readable and writable, and nothing ever unmaps them.
    let builder = unsafe { builder.with_raw_mmap_pointer(address.cast()) };
    let region = builder
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        .build()
        .map_err(io::Error::other)?;
    GuestRegionMmap::new(region, GuestAddress(start)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Maps `length` bytes of private memory so that host and guest address, which is `start`, agree modulo [`UNIT`]: a large
/// page of the one is a large page of the other.
fn map(start: u64, length: usize, pages: Pages) -> io::Result<*mut libc::c_void> {
    const UNIT: usize = self::UNIT as usize;
    // The remainder is less than `UNIT`.
    let offset = usize::try_from(start % self::UNIT).unwrap_or(0);
    // Most kernels since 6.7 align a large mapping by themselves, and reserved large pages can't be elsewhere.
    let address = map_anywhere(length, pages)?;
    if address.addr() % UNIT == offset {
        return Ok(address);
    }
    unmap(address, length)?;
    // Else map more, and give back what sticks out on both sides.
    let address = map_anywhere(length.checked_add(UNIT).ok_or(io::ErrorKind::OutOfMemory)?, pages)?;
    let before = (offset + UNIT - address.addr() % UNIT) % UNIT;
    let aligned = address.wrapping_byte_add(before);
    unmap(address, before)?;
    unmap(aligned.wrapping_byte_add(length), UNIT - before)?;
    Ok(aligned)
}

fn map_anywhere(length: usize, pages: Pages) -> io::Result<*mut libc::c_void> {
    let flags = MapFlags::PRIVATE
        | match pages {
            Pages::Transparent | Pages::Plain => MapFlags::NORESERVE,
            // Without a reservation a lack of large pages would be a SIGBUS under the guest.
            Pages::Reserved => MapFlags::HUGETLB | MapFlags::HUGE_2MB,
        };
    #[expect(unsafe_code, reason = "mapping memory is a raw system call")]
    // SAFETY: an anonymous mapping at an address of the kernel's choice changes no memory that exists.
    let address =
        unsafe { mm::mmap_anonymous(ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags) };
    Ok(address?)
}

/// Gives back a part of what [`map`] just mapped and told nobody of.
fn unmap(address: *mut libc::c_void, length: usize) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "unmapping memory is a raw system call")]
    // SAFETY: the only caller is `map`, for ranges of its own that nothing refers to.
    unsafe {
        mm::munmap(address, length)?;
    }
    Ok(())
}

/// Keeps RAM out of core dumps, and asks for the pages that are wanted.
fn advise(address: *mut libc::c_void, length: usize, pages: Pages, is_prefaulted: bool) -> io::Result<()> {
    let advise = |advice| {
        #[expect(unsafe_code, reason = "advice on memory is a raw system call")]
        // SAFETY: the range is `map`'s, and no advice given here changes what it holds.
        unsafe {
            mm::madvise(address, length, advice)
        }
    };
    advise(Advice::LinuxDontDump)?;
    if pages == Pages::Transparent {
        // A host kernel without transparent large pages refuses: then small ones it is.
        let _ = advise(Advice::LinuxHugepage);
    }
    if is_prefaulted {
        advise(Advice::LinuxPopulateWrite)?;
    }
    Ok(())
}

/// Takes small pages for the first [`UNIT`] of RAM. A guest is handed a dozen of them before it starts, and uses few more:
/// to zero a large one takes longer than to find those.
fn spare_first(address: *mut libc::c_void, length: usize) {
    let first = length.min(UNIT as usize);
    #[expect(unsafe_code, reason = "advice on memory is a raw system call")]
    // SAFETY: the range is `map`'s, and the advice changes nothing that it holds.
    let _ = unsafe { mm::madvise(address, first, Advice::LinuxNoHugepage) };
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::layout::{self, GIB};

    fn ram(size: u64, pages: Pages, is_prefaulted: bool) -> Result<Ram, Error> {
        Ram::new(&layout::ram(size), pages, is_prefaulted)
    }

    #[test]
    fn host_and_guest_addresses_agree_modulo_a_large_page() {
        for size in [LEAST, 64 * MIB + UNIT, 5 * GIB] {
            let ram = ram(size, Pages::Transparent, false).unwrap();
            let mut sum = 0;
            for region in ram.guest().iter() {
                let host = ram.guest().get_host_address(region.start_addr()).unwrap();
                assert_eq!(host.addr() as u64 % UNIT, region.start_addr().0 % UNIT);
                sum += region.len();
            }
            assert_eq!(sum, size);
        }
    }

    #[test]
    fn ranges_of_any_pages_agree_with_their_addresses_too() {
        let ranges = [0..0xa_0000, 0xc_0000..LEAST, LEAST + 3 * PAGE..LEAST + 300 * PAGE];
        let ram = Ram::new(&ranges, Pages::Transparent, false).unwrap();
        for range in ranges {
            let host = ram.guest().get_host_address(GuestAddress(range.start)).unwrap();
            assert_eq!(host.addr() as u64 % UNIT, range.start % UNIT);
            ram.guest().write_obj(range.end, GuestAddress(range.end - 8)).unwrap();
        }
        assert!(!ram.guest().address_in_range(GuestAddress(0xb_0000)));
    }

    #[test]
    fn ram_is_readable_and_writable_up_to_its_last_byte_on_both_sides_of_the_hole() {
        let ram = ram(3 * GIB + UNIT, Pages::Transparent, false).unwrap();
        for address in [0, 0xa_0000, 3 * GIB - 8, 4 * GIB, 4 * GIB + UNIT - 8] {
            ram.guest().write_obj(address, GuestAddress(address)).unwrap();
            assert_eq!(ram.guest().read_obj::<u64>(GuestAddress(address)).unwrap(), address);
        }
        assert!(!ram.guest().address_in_range(GuestAddress(3 * GIB)));
        assert!(!ram.guest().address_in_range(GuestAddress(4 * GIB + UNIT)));
    }

    #[test]
    fn prefaulted_ram_is_there() {
        let ram = ram(LEAST, Pages::Plain, true).unwrap();
        assert_eq!(ram.guest().read_obj::<u8>(GuestAddress(LEAST - 1)).unwrap(), 0);
    }

    #[test]
    fn the_top_of_much_ram_is_taken_and_no_more() {
        let size = 2 * GIB;
        let ram = ram(size, Pages::Plain, false).unwrap();
        let Some(thread) = ram.take_descriptors() else {
            assert_eq!(available_parallelism().unwrap().get(), 1);
            return;
        };
        thread.join().unwrap();
        let start = ram.guest().get_host_address(GuestAddress(0)).unwrap().addr();
        let mut taken = vec![0_u8; (size / PAGE) as usize];
        #[expect(unsafe_code, reason = "which pages are there is told by a raw system call")]
        // SAFETY: the kernel writes one byte for each page.
        let told = unsafe { libc::mincore(start as *mut libc::c_void, size as usize, taken.as_mut_ptr()) };
        assert_eq!(told, 0);
        let first = ((size - size / 64) / PAGE) as usize;
        assert!(taken[..first].iter().all(|page| page & 1 == 0));
        assert!(taken[first..].iter().all(|page| page & 1 == 1));
    }

    #[test]
    fn little_ram_is_left_alone() {
        assert!(ram(LEAST, Pages::Plain, false).unwrap().take_descriptors().is_none());
    }

    #[test]
    fn sizes_that_no_guest_can_have_are_refused() {
        for size in [0, LEAST - UNIT, LEAST + 1, LEAST + 512] {
            assert!(matches!(
                ram(size, Pages::Transparent, false),
                Err(Error::MemorySize { size: refused }) if refused == size
            ));
        }
    }

    #[test]
    fn what_the_host_refuses_is_named_with_its_size() {
        let error = ram(1 << 50, Pages::Transparent, false).unwrap_err();
        assert!(error.to_string().contains("1073741824 MiB"), "{error}");
    }
}
