//! Split virtqueues (VIRTIO 1.3 §2.7): rust-vmm's ring state, with every index, address and length checked by us.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::chain::{Chain, Memory, Segment};
use crate::virtio::feature;

/// What a driver can break in a ring. Only a reset cures it (VIRTIO 1.3 §2.1.2).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// Size, alignment or place of a ring is wrong.
    #[error("a ring of {size} entries at {desc:#x}, {driver:#x}, {device:#x} is misaligned or not in RAM")]
    Ring {
        /// Entries.
        size: u16,
        /// Address of the descriptor table.
        desc: u64,
        /// Address of the available ring.
        driver: u64,
        /// Address of the used ring.
        device: u64,
    },
    /// The ring cannot be read or written although it was in RAM when it was set up.
    #[error("the ring is not accessible")]
    Inaccessible,
    /// More buffers are available than the ring has entries, or the index went back.
    #[error("the available index is {index}, {ahead} ahead in a ring of {size}")]
    AvailableIndex {
        /// What the driver wrote.
        index: u16,
        /// How far that is from what the device took.
        ahead: u16,
        /// Entries.
        size: u16,
    },
    /// A descriptor's index is outside of its table.
    #[error("descriptor {index} is outside of its table")]
    Descriptor {
        /// The index.
        index: u16,
    },
    /// A chain comes back to where it was.
    #[error("the chain at {head} is a loop")]
    Loop {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A chain has more descriptors than any driver needs, or 4 GiB or more.
    #[error("the chain at {head} is too long")]
    TooLong {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer is not in RAM.
    #[error("a buffer of {len} bytes at {addr:#x} is not in RAM")]
    Buffer {
        /// Its address.
        addr: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// An indirect table is nested, goes on after its table, is empty, cut short, or was not negotiated.
    #[error("the chain at {head} has an indirect descriptor that is not allowed")]
    Indirect {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A readable buffer behind a writable one, or a direction that the device has no use for.
    #[error("the chain at {head} has a buffer of the wrong direction")]
    Direction {
        /// The chain's first descriptor.
        head: u16,
    },
}

/// Where the three parts of a ring lie: descriptors, available ring, used ring (VIRTIO 1.3 §2.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Areas {
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring, the "driver area".
    pub driver: u64,
    /// Guest-physical address of the used ring, the "device area".
    pub device: u64,
}

impl Areas {
    /// The contiguous layout of the legacy interface, at a page number of 4096 bytes (VIRTIO 1.3 §2.7.2).
    pub fn legacy(page: u32, size: u16) -> Self {
        let desc = u64::from(page) << 12;
        let n = u64::from(size);
        // At most 2^44 + 2^20: no sum here can wrap.
        let driver = desc.saturating_add(n.saturating_mul(16));
        let end = driver.saturating_add(n.saturating_mul(2)).saturating_add(6);
        Self { desc, driver, device: end.saturating_add(4095) & !4095 }
    }
}

/// Where a driver says that it has made buffers available. To look there needs no lock: it is guest memory, and at worst
/// no longer a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    index: GuestAddress,
    /// The index that the device has come to.
    taken: u16,
}

impl Place {
    /// Whether there is something new.
    pub(crate) fn has_news(&self, memory: &Memory) -> bool {
        memory.load(self.index, Ordering::Acquire).map_or(true, |index| u16::from_le(index) != self.taken)
    }
}

/// One queue: what the driver wrote of it, and the state of its ring while it runs.
pub(crate) struct Ring {
    /// Entries that the driver chose, at most `state.max_size()`.
    pub(crate) size: u16,
    /// Addresses that the driver chose; they are checked when the queue is enabled.
    pub(crate) areas: Areas,
    /// Enabled through the legacy interface: runs without DRIVER_OK (VIRTIO 1.3 §3.1.2).
    pub(crate) is_legacy: bool,
    /// The driver enabled it and the addresses were good.
    pub(crate) is_enabled: bool,
    /// The last service ended before the queue was empty.
    pub(crate) has_more: bool,
    state: Queue,
    /// The used index up to which it has been decided whether to interrupt.
    announced: u16,
    /// The used index when the device's thread last looked.
    looked: u16,
    /// The device's thread looks for buffers by itself, so the driver need not ring.
    is_polled: bool,
    spare: Vec<Segment>,
}

impl Ring {
    /// A queue of at most `max` entries, which is a power of two.
    pub(crate) fn new(max: u16) -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            size: max,
            areas: Areas::default(),
            is_legacy: false,
            is_enabled: false,
            has_more: false,
            state: Queue::new(max)?,
            announced: 0,
            looked: 0,
            is_polled: false,
            spare: Vec::new(),
        })
    }

    pub(crate) fn max_size(&self) -> u16 {
        self.state.max_size()
    }

    /// Back to the state after power-on.
    pub(crate) fn reset(&mut self) {
        let Self {
            size,
            areas,
            is_legacy,
            is_enabled,
            has_more,
            state,
            announced,
            looked,
            is_polled,
            spare: _,
        } = self;
        state.reset();
        *size = state.max_size();
        *areas = Areas::default();
        *is_legacy = false;
        *is_enabled = false;
        *has_more = false;
        *announced = state.next_used();
        *looked = state.next_used();
        *is_polled = false;
    }

    /// Starts the queue with the size and the addresses that the driver wrote.
    pub(crate) fn enable(&mut self, memory: &Memory) -> Result<(), Fault> {
        let Areas { desc, driver, device } = self.areas;
        let fault = Fault::Ring { size: self.size, desc, driver, device };
        let n = usize::from(self.size);
        let parts = [
            (desc, 16, n.saturating_mul(16), Permissions::Read),
            (driver, 2, n.saturating_mul(2).saturating_add(6), Permissions::Read),
            (device, 4, n.saturating_mul(8).saturating_add(6), Permissions::ReadWrite),
        ];
        for (addr, align, len, access) in parts {
            if !addr.is_multiple_of(align) || !memory.check_range(GuestAddress(addr), len, access) {
                return Err(fault);
            }
        }
        let state = &mut self.state;
        state.try_set_size(self.size).map_err(|_| fault)?;
        state.try_set_desc_table_address(GuestAddress(desc)).map_err(|_| fault)?;
        state.try_set_avail_ring_address(GuestAddress(driver)).map_err(|_| fault)?;
        state.try_set_used_ring_address(GuestAddress(device)).map_err(|_| fault)?;
        state.set_ready(true);
        self.is_enabled = true;
        Ok(())
    }

    /// How many buffers the driver has made available that the device has not taken.
    fn available(&self, memory: &Memory) -> Result<u16, Fault> {
        let index = self.state.avail_idx(memory, Ordering::Acquire).map_err(|_| Fault::Inaccessible)?;
        let ahead = (index - Wrapping(self.state.next_avail())).0;
        if ahead > self.size {
            return Err(Fault::AvailableIndex { index: index.0, ahead, size: self.size });
        }
        Ok(ahead)
    }

    /// The next chain, or `None`; then the driver has been asked to ring when there is one, unless it is looked for.
    fn pop<'m>(
        &mut self,
        memory: &'m Memory,
        queue: u16,
        accepted: u128,
    ) -> Result<Option<Chain<'m>>, Fault> {
        self.state.set_event_idx(accepted & feature::EVENT_IDX != 0);
        if self.available(memory)? == 0 {
            if self.is_polled {
                return Ok(None);
            }
            let has_raced = self.state.enable_notification(memory).map_err(|_| Fault::Inaccessible)?;
            if !has_raced || self.available(memory)? == 0 {
                return Ok(None);
            }
        }
        let slot = u64::from(self.state.next_avail().checked_rem(self.size).unwrap_or(0));
        let at = self.areas.driver.saturating_add(4).saturating_add(slot.saturating_mul(2));
        let head = memory.load(GuestAddress(at), Ordering::Relaxed).map(u16::from_le);
        let head = head.map_err(|_| Fault::Inaccessible)?;
        let table = (GuestAddress(self.areas.desc), self.size);
        let indirect = accepted & feature::INDIRECT_DESC != 0;
        let chain = Chain::walk(memory, queue, table, head, indirect, std::mem::take(&mut self.spare))?;
        self.state.set_next_avail(self.state.next_avail().wrapping_add(1));
        Ok(Some(chain))
    }

    fn put_back(&mut self, chain: Chain<'_>) {
        self.spare = chain.segments;
        self.state.set_next_avail(self.state.next_avail().wrapping_sub(1));
    }

    fn complete(&mut self, memory: &Memory, chain: Chain<'_>) -> Result<(), Fault> {
        let len = chain.written_len();
        self.spare = chain.segments;
        self.state.add_used(memory, chain.head, len).map_err(|_| Fault::Inaccessible)
    }

    /// Whether something was used for which it has not been decided whether to interrupt.
    pub(crate) fn is_undecided(&self) -> bool {
        self.state.next_used() != self.announced
    }

    /// How many requests were used since the last look.
    pub(crate) fn look(&mut self) -> u16 {
        let used = self.state.next_used();
        used.wrapping_sub(std::mem::replace(&mut self.looked, used))
    }

    pub(crate) fn is_polled(&self) -> bool {
        self.is_polled
    }

    /// From now on the device's thread looks for buffers, or does so no more: then the queue is to be served once, which
    /// asks the driver to ring again.
    pub(crate) fn set_polled(&mut self, is_polled: bool) {
        self.is_polled = is_polled;
    }

    /// Where the next buffer will show.
    pub(crate) fn place(&self) -> Place {
        Place { index: GuestAddress(self.areas.driver.saturating_add(2)), taken: self.state.next_avail() }
    }

    /// Whether a service may find something: a buffer, or an index that is wrong.
    pub(crate) fn may_have_buffers(&self, memory: &Memory) -> bool {
        self.is_enabled && self.available(memory) != Ok(0)
    }

    /// Whether the driver is to be interrupted for what was used since the last call (VIRTIO 1.3 §2.7.7).
    pub(crate) fn take_interrupt(&mut self, memory: &Memory, accepted: u128) -> Result<bool, Fault> {
        let new = Wrapping(self.state.next_used());
        let old = Wrapping(std::mem::replace(&mut self.announced, new.0));
        if new == old {
            return Ok(false);
        }
        // The used index must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wish = |offset: u64| {
            let at = GuestAddress(self.areas.driver.saturating_add(offset));
            memory.load(at, Ordering::Relaxed).map(u16::from_le).map_err(|_| Fault::Inaccessible)
        };
        if accepted & feature::EVENT_IDX == 0 {
            return Ok(wish(0)? & 1 == 0);
        }
        // Whether `used_event` is one of the entries from `old` on.
        let event = Wrapping(wish(u64::from(self.size).saturating_mul(2).saturating_add(4))?);
        Ok(event - old < new - old)
    }
}

/// What a device may do with its queues while it is served. It is bounded: after 64 chains or 64 KiB the queues look
/// empty, the lock is given up once, and the device is served again.
pub struct Queues<'a> {
    memory: &'a Memory,
    rings: &'a mut [Ring],
    accepted: u128,
    running: Running,
    chains: u32,
    bytes: u32,
}

/// Which queues have requests to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Running {
    /// Those that are enabled.
    All,
    /// Those that were enabled through the legacy interface (VIRTIO 1.3 §3.1.2).
    Legacy,
    /// None: the function may not access memory.
    None,
}

/// The most chains of one service.
const MAX_CHAINS: u32 = 64;
/// The most bytes of one service, give or take the last request.
pub const MAX_BYTES: u32 = 64 << 10;

impl<'a> Queues<'a> {
    pub(crate) fn new(memory: &'a Memory, rings: &'a mut [Ring], accepted: u128, running: Running) -> Self {
        Self { memory, rings, accepted, running, chains: 0, bytes: 0 }
    }

    /// The feature bits that the driver accepted.
    pub fn accepted(&self) -> u128 {
        self.accepted
    }

    /// Takes the next request of queue `queue`, or `None` when there is none now.
    ///
    /// # Errors
    ///
    /// The ring is broken.
    pub fn pop(&mut self, queue: u16) -> Result<Option<Chain<'a>>, Fault> {
        let Some(ring) = self.rings.get_mut(usize::from(queue)) else { return Ok(None) };
        let is_running = match self.running {
            Running::All => true,
            Running::Legacy => ring.is_legacy,
            Running::None => false,
        };
        if !ring.is_enabled || !is_running {
            return Ok(None);
        }
        if self.chains >= MAX_CHAINS || self.bytes >= MAX_BYTES {
            ring.has_more = true;
            return Ok(None);
        }
        let chain = ring.pop(self.memory, queue, self.accepted)?;
        self.chains = self.chains.saturating_add(u32::from(chain.is_some()));
        Ok(chain)
    }

    /// Gives a request back to the driver.
    ///
    /// # Errors
    ///
    /// The ring is broken.
    pub fn complete(&mut self, chain: Chain<'_>) -> Result<(), Fault> {
        self.bytes = self.bytes.saturating_add(chain.read_len()).saturating_add(chain.written_len());
        match self.rings.get_mut(usize::from(chain.queue)) {
            Some(ring) => ring.complete(self.memory, chain),
            None => Ok(()),
        }
    }

    /// Leaves a request where it was, to be taken again later; it must be the one taken last.
    pub fn put_back(&mut self, chain: Chain<'_>) {
        self.bytes = self.bytes.saturating_add(chain.read_len());
        if let Some(ring) = self.rings.get_mut(usize::from(chain.queue)) {
            ring.put_back(chain);
        }
    }
}
