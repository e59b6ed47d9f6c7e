//! Pages that the guest sees without an exit, as a machine with memory slots shows them.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pci::host::{Pages, Sight};

/// All pages of a machine, shown or not.
#[derive(Clone, Default)]
pub struct Slots(Arc<Mutex<Vec<Slot>>>);

struct Slot {
    bytes: Vec<u8>,
    sight: Sight,
    at: Option<u64>,
    /// How often it was taken away.
    hidings: u64,
}

impl Slot {
    fn range(&self) -> Option<Range<u64>> {
        self.at.map(|at| at..at + self.bytes.len() as u64)
    }
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// New pages.
    pub fn add(&self, sight: Sight, count: u64) -> Box<dyn Pages> {
        let mut slots = self.lock();
        let bytes = vec![0; usize::try_from(count * 4096).unwrap()];
        slots.push(Slot { bytes, sight, at: None, hidings: 0 });
        Box::new(Handle { slots: self.clone(), index: slots.len() - 1 })
    }

    fn with<T>(&self, at: u64, len: usize, act: impl FnOnce(&mut Slot, usize) -> Option<T>) -> Option<T> {
        let mut slots = self.lock();
        let end = at.checked_add(len as u64)?;
        let holds = |s: &&mut Slot| s.range().is_some_and(|r| r.start <= at && end <= r.end);
        let slot = slots.iter_mut().find(holds)?;
        let offset = usize::try_from(at - slot.at?).ok()?;
        act(slot, offset)
    }

    /// The guest reads; `false` if nothing is shown there.
    pub fn load(&self, at: u64, data: &mut [u8]) -> bool {
        let len = data.len();
        let copy = |slot: &mut Slot, offset: usize| {
            data.copy_from_slice(&slot.bytes[offset..offset + len]);
            Some(())
        };
        self.with(at, len, copy).is_some()
    }

    /// The guest writes; `false` if nothing is shown there that it may write.
    pub fn store(&self, at: u64, data: &[u8]) -> bool {
        let copy = |slot: &mut Slot, offset: usize| {
            let may = slot.sight == Sight::Write;
            may.then(|| slot.bytes[offset..offset + data.len()].copy_from_slice(data))
        };
        self.with(at, data.len(), copy).is_some()
    }

    /// Where pages are shown, in order.
    pub fn shown(&self) -> Vec<Range<u64>> {
        let mut shown: Vec<_> = self.lock().iter().filter_map(Slot::range).collect();
        shown.sort_unstable_by_key(|r| r.start);
        shown
    }

    /// How often pages were taken away in all.
    pub fn hidings(&self) -> u64 {
        self.lock().iter().map(|s| s.hidings).sum()
    }
}

struct Handle {
    slots: Slots,
    index: usize,
}

impl Pages for Handle {
    fn write(&self, offset: u64, bytes: &[u8]) {
        let page = &mut self.slots.lock()[self.index].bytes;
        let to = usize::try_from(offset).ok().and_then(|at| page.get_mut(at..)).unwrap_or_default();
        to.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let page = &self.slots.lock()[self.index].bytes;
        let from = usize::try_from(offset).ok().and_then(|at| page.get(at..)).unwrap_or_default();
        bytes.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn show(&self, at: Option<u64>) -> io::Result<()> {
        let mut slots = self.slots.lock();
        let len = slots[self.index].bytes.len() as u64;
        if at.is_none() && slots[self.index].at.is_some() {
            slots[self.index].hidings += 1;
        }
        slots[self.index].at = None;
        let Some(at) = at else { return Ok(()) };
        // KVM refuses a slot that is not page-aligned, or that overlaps another.
        let is_free = !slots.iter().filter_map(Slot::range).any(|r| at < r.end && r.start < at + len);
        if !at.is_multiple_of(4096) || !is_free {
            return Err(io::Error::from_raw_os_error(17));
        }
        slots[self.index].at = Some(at);
        Ok(())
    }
}
