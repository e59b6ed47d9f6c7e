//! A split virtqueue from the driver's side (VIRTIO 1.3 §2.7).

use std::cell::{Cell, RefCell};
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress};

use super::feature;
use super::machine::{Machine, patiently};

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A buffer of a request.
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    pub addr: u64,
    pub len: u32,
    pub is_writable: bool,
}

impl Buf {
    /// For the device to read.
    pub fn out(addr: u64, len: u32) -> Self {
        Self { addr, len, is_writable: false }
    }

    /// For the device to write.
    pub fn room(addr: u64, len: u32) -> Self {
        Self { addr, len, is_writable: true }
    }
}

/// A ring. Descriptors are handed out from a free list, like a real driver does.
pub struct Ring<'m> {
    machine: &'m Machine,
    pub queue: u16,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub has_event_idx: bool,
    free: RefCell<Vec<u16>>,
    /// Descriptors of each outstanding head.
    outstanding: RefCell<Vec<Option<Vec<u16>>>>,
    next_avail: Cell<u16>,
    next_used: Cell<u16>,
}

impl<'m> Ring<'m> {
    /// A ring at these addresses.
    pub fn at(machine: &'m Machine, queue: u16, size: u16, places: [u64; 3], bits: u128) -> Self {
        let [desc, avail, used] = places;
        Self {
            machine,
            queue,
            size,
            desc,
            avail,
            used,
            has_event_idx: bits & feature::EVENT_IDX != 0,
            free: RefCell::new((0..size).rev().collect()),
            outstanding: RefCell::new(vec![None; size.into()]),
            next_avail: Cell::new(0),
            next_used: Cell::new(0),
        }
    }

    /// Three parts that have nothing to do with each other, at the least alignment.
    pub fn scattered(machine: &'m Machine, queue: u16, size: u16, bits: u128) -> Self {
        let n = u64::from(size);
        let desc = machine.ram(16 * n, 16);
        let avail = machine.ram(6 + 2 * n, 2);
        let used = machine.ram(6 + 8 * n, 4);
        Self::at(machine, queue, size, [desc, avail, used], bits)
    }

    /// The one block of the legacy interface (VIRTIO 1.3 §2.7.2).
    pub fn legacy(machine: &'m Machine, queue: u16, size: u16, bits: u128) -> Self {
        let n = u64::from(size);
        let used = (16 * n + 6 + 2 * n).next_multiple_of(4096);
        let block = machine.ram(used + (6 + 8 * n).next_multiple_of(4096), 4096);
        Self::at(machine, queue, size, [block, block + 16 * n, block + used], bits)
    }

    fn get16(&self, at: u64) -> u16 {
        u16::from_le(self.machine.memory.load(GuestAddress(at), Ordering::Acquire).unwrap())
    }

    fn set16(&self, at: u64, value: u16) {
        self.machine.memory.store(value.to_le(), GuestAddress(at), Ordering::Release).unwrap();
    }

    /// Writes one descriptor of a table.
    pub fn write_descriptor(machine: &Machine, at: u64, buf: Buf, flags: u16, next: u16) {
        let mut bytes = buf.addr.to_le_bytes().to_vec();
        bytes.extend(buf.len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        machine.set_bytes(at, &bytes);
    }

    /// Writes one descriptor of the ring.
    pub fn set_descriptor(&self, index: u16, buf: Buf, flags: u16, next: u16) {
        Self::write_descriptor(self.machine, self.desc + 16 * u64::from(index), buf, flags, next);
    }

    /// Makes the chain at `head` available, whatever it is.
    pub fn offer(&self, head: u16) {
        let index = self.next_avail.get();
        self.set16(self.avail + 4 + 2 * u64::from(index % self.size), head);
        self.next_avail.set(index.wrapping_add(1));
        self.set16(self.avail + 2, index.wrapping_add(1));
    }

    /// Sets the available index to any value.
    pub fn set_avail_index(&self, index: u16) {
        self.set16(self.avail + 2, index);
    }

    fn chain(&self, bufs: &[Buf], last: Option<(Buf, u16)>) -> u16 {
        let len = bufs.len() + usize::from(last.is_some());
        let taken: Vec<u16> = {
            let mut free = self.free.borrow_mut();
            assert!(free.len() >= len, "the ring is full");
            let start = free.len() - len;
            free.drain(start..).rev().collect()
        };
        let all = bufs.iter().map(|buf| (*buf, if buf.is_writable { WRITE } else { 0 })).chain(last);
        for (n, (buf, flags)) in all.enumerate() {
            let next = taken.get(n + 1).copied();
            self.set_descriptor(taken[n], buf, flags | next.map_or(0, |_| NEXT), next.unwrap_or(0));
        }
        let head = taken[0];
        self.outstanding.borrow_mut()[usize::from(head)] = Some(taken);
        self.offer(head);
        head
    }

    /// Makes a request of direct descriptors available.
    pub fn post(&self, bufs: &[Buf]) -> u16 {
        self.chain(bufs, None)
    }

    /// Makes a request available that is one indirect table.
    pub fn post_indirect(&self, bufs: &[Buf]) -> u16 {
        self.post_mixed(&[], bufs, 0)
    }

    /// Makes a request available of direct descriptors and a table behind them, with `flags` beside INDIRECT.
    pub fn post_mixed(&self, direct: &[Buf], table: &[Buf], flags: u16) -> u16 {
        let at = self.machine.ram(16 * table.len() as u64, 16);
        for (n, buf) in (0_u16..).zip(table) {
            let is_last = usize::from(n) + 1 == table.len();
            let flags = if buf.is_writable { WRITE } else { 0 } | if is_last { 0 } else { NEXT };
            Self::write_descriptor(self.machine, at + 16 * u64::from(n), *buf, flags, n + 1);
        }
        let len = u32::try_from(16 * table.len()).unwrap();
        self.chain(direct, Some((Buf::out(at, len), INDIRECT | flags)))
    }

    /// The used index, as the device wrote it.
    pub fn used_index(&self) -> u16 {
        self.get16(self.used + 2)
    }

    /// Takes a used buffer, if there is one: its head and the length that the device says. The head must be one that
    /// the driver waits for.
    pub fn take(&self) -> Option<(u16, u32)> {
        let index = self.next_used.get();
        if index == self.used_index() {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(index % self.size);
        let bytes = self.machine.bytes(at, 8);
        let id = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let len = u32::from_le_bytes(bytes[4..].try_into().unwrap());
        let head = u16::try_from(id).expect("a head is an index");
        let taken = self.outstanding.borrow_mut()[usize::from(head)].take();
        let taken = taken.unwrap_or_else(|| panic!("head {head} is used once, after it was made available"));
        self.free.borrow_mut().extend(taken);
        self.next_used.set(index.wrapping_add(1));
        Some((head, len))
    }

    /// Waits for the next used buffer.
    pub fn wait(&self) -> (u16, u32) {
        let mut taken = None;
        patiently("a used buffer", || {
            taken = self.take();
            taken.is_some()
        });
        taken.unwrap()
    }

    /// How many requests the driver waits for.
    pub fn in_flight(&self) -> usize {
        self.outstanding.borrow().iter().flatten().count()
    }

    /// Asks for an interrupt when the used index passes `index` (with EVENT_IDX).
    pub fn set_used_event(&self, index: u16) {
        self.set16(self.avail + 4 + 2 * u64::from(self.size), index);
        fence(Ordering::SeqCst);
    }

    /// Asks for an interrupt for the next buffer that the driver has not taken.
    pub fn arm(&self) {
        self.set_used_event(self.next_used.get());
    }

    /// Sets the available ring's flags; bit 0 asks for no interrupts (without EVENT_IDX).
    pub fn set_avail_flags(&self, flags: u16) {
        self.set16(self.avail, flags);
        fence(Ordering::SeqCst);
    }

    /// The used ring's flags; bit 0 asks for no doorbells.
    pub fn used_flags(&self) -> u16 {
        self.get16(self.used)
    }

    /// From which index on the device wants to hear the doorbell (with EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        self.get16(self.used + 4 + 8 * u64::from(self.size))
    }

    /// Whether a driver that follows the specification would ring the doorbell, having added one buffer.
    pub fn wants_kick(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.has_event_idx {
            self.avail_event() == self.next_avail.get().wrapping_sub(1)
        } else {
            self.used_flags() & 1 == 0
        }
    }
}
