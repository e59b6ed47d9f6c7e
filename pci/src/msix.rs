//! MSI-X: the vector table, the pending bits, and what may be sent when (PCI 3.0 §6.8.2).

use std::io;
use std::sync::Mutex;

use crate::host::Pages;
use crate::{lock, read_bytes};

/// The capability's identifier.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry.
const ENTRY_LEN: u64 = 16;
/// Offset of the vector control word in an entry; its bit 0 is the mask.
const VECTOR_CONTROL: u64 = 12;
/// The most vectors: their table is a page.
const MAX_VECTORS: u16 = 256;

/// Bits of the message control word.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// The bits of the message control word that the guest may write.
pub const CONTROL_WRITABLE: u16 = ENABLE | FUNCTION_MASK;

/// A message to send: a write of `data` to `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Guest-physical address.
    pub address: u64,
    /// Value.
    pub data: u32,
}

/// The vectors of a function.
pub struct Msix {
    control: u16,
    vectors: u16,
    /// The table, as the guest sees it. It may be writing it at any time.
    table: Box<dyn Pages>,
    /// The pending bits, as the guest sees them.
    pending: Vec<u8>,
}

impl Msix {
    /// At most 256 vectors in `table`, all masked, MSI-X itself off.
    pub fn new(vectors: u16, table: Box<dyn Pages>) -> Self {
        let vectors = vectors.min(MAX_VECTORS);
        for vector in 0..vectors {
            table.write(entry_offset(vector).saturating_add(VECTOR_CONTROL), &[1]);
        }
        Self {
            control: 0,
            vectors,
            table,
            pending: vec![0; usize::from(vectors).div_ceil(64).saturating_mul(8)],
        }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Whether the guest has switched MSI-X on.
    pub fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// The guest writes the message control word.
    pub fn set_control(&mut self, control: u16) {
        self.control = control & CONTROL_WRITABLE;
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let len = clipped(offset, data.len(), entry_offset(self.vectors));
        if let Some(data) = data.get_mut(..len) {
            self.table.read(offset, data);
        }
    }

    /// The guest writes the table.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        let len = clipped(offset, data.len(), entry_offset(self.vectors));
        self.table.write(offset, data.get(..len).unwrap_or_default());
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        read_bytes(&self.pending, offset, data);
    }

    /// Something happened that `vector` stands for. [`take_deliverable`](Self::take_deliverable) says what to send.
    pub fn fire(&mut self, vector: u16) {
        if vector < self.vectors() {
            self.set_pending(vector, true);
        }
    }

    /// A message that is due and not masked; its pending bit is cleared.
    pub fn take_deliverable(&mut self) -> Option<Message> {
        if self.control & CONTROL_WRITABLE != ENABLE || self.pending.iter().all(|byte| *byte == 0) {
            return None;
        }
        let due = (0..self.vectors()).filter(|vector| self.is_pending(*vector));
        let (vector, message) = due.filter_map(|vector| Some((vector, self.unmasked(vector)?))).next()?;
        self.set_pending(vector, false);
        Some(message)
    }

    /// Forgets what is pending.
    pub fn clear_pending(&mut self) {
        self.pending.fill(0);
    }

    /// Shows the table to the guest at this address, or nowhere.
    ///
    /// # Errors
    ///
    /// The machine cannot show it there.
    pub fn show_table(&self, at: Option<u64>) -> io::Result<()> {
        self.table.show(at)
    }

    /// Whether what could not be delivered waits for a write to the table, so that the write must be seen. The masks
    /// themselves are not asked: the guest may have changed them since
    /// [`take_deliverable`](Self::take_deliverable) looked.
    pub fn awaits_unmask(&self) -> bool {
        self.control & CONTROL_WRITABLE == ENABLE && self.pending.iter().any(|byte| *byte != 0)
    }

    fn entry(&self, vector: u16) -> [u32; 4] {
        let at = entry_offset(vector);
        [0, 4, 8, VECTOR_CONTROL].map(|field| {
            let mut word = [0; 4];
            self.table.read(at.saturating_add(field), &mut word);
            u32::from_le_bytes(word)
        })
    }

    /// The message of a vector that is not masked. One that is written at this moment counts as masked: the guest masks an
    /// entry before it changes it, but that may have been after a look at the mask.
    fn unmasked(&self, vector: u16) -> Option<Message> {
        let entry = self.entry(vector);
        let [low, high, data, control] = entry;
        let is_steady = self.entry(vector) == entry;
        let message = Message { address: u64::from(low) | u64::from(high) << 32, data };
        (is_steady && control & 1 == 0).then_some(message)
    }

    fn is_pending(&self, vector: u16) -> bool {
        self.pending.get(usize::from(vector / 8)).is_some_and(|byte| byte >> (vector % 8) & 1 != 0)
    }

    fn set_pending(&mut self, vector: u16, is_pending: bool) {
        if let Some(byte) = self.pending.get_mut(usize::from(vector / 8)) {
            let bit = 1 << (vector % 8);
            *byte = if is_pending { *byte | bit } else { *byte & !bit };
        }
    }
}

/// Where the entry of `vector` begins in the table.
fn entry_offset(vector: u16) -> u64 {
    u64::from(vector).saturating_mul(ENTRY_LEN)
}

/// How many of `len` bytes from `offset` on lie before `end`.
fn clipped(offset: u64, len: usize, end: u64) -> usize {
    usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(len)
}

/// A table for a machine that shows no pages: every access to it comes as an access.
pub struct Unseen(Mutex<Vec<u8>>);

impl Default for Unseen {
    fn default() -> Self {
        Self(Mutex::new(vec![0; 4096]))
    }
}

impl Pages for Unseen {
    fn write(&self, offset: u64, bytes: &[u8]) {
        let mut page = lock(&self.0);
        let to = usize::try_from(offset).ok().and_then(|at| page.get_mut(at..)).unwrap_or_default();
        to.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        read_bytes(&lock(&self.0), offset, bytes);
    }

    fn show(&self, _at: Option<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msix(vectors: u16) -> Msix {
        Msix::new(vectors, Box::new(Unseen::default()))
    }

    fn program(msix: &mut Msix, vector: u64, address: u64, data: u32, mask: u32) {
        let at = vector * 16;
        msix.write_table(at, &address.to_le_bytes());
        msix.write_table(at + 8, &data.to_le_bytes());
        msix.write_table(at + 12, &mask.to_le_bytes());
    }

    #[test]
    fn every_vector_is_masked_at_first() {
        let msix = msix(3);
        let mut control = [0; 4];
        for vector in 0..3 {
            msix.read_table(vector * 16 + 12, &mut control);
            assert_eq!(control, [1, 0, 0, 0]);
        }
    }

    #[test]
    fn a_masked_vector_pends_and_is_delivered_once_on_unmask() {
        let mut msix = msix(2);
        msix.set_control(ENABLE);
        program(&mut msix, 1, 0xfee0_0000, 0x41, 1);
        msix.fire(1);
        msix.fire(1);
        assert_eq!(msix.take_deliverable(), None);
        assert!(msix.awaits_unmask());
        let mut pending = [0; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!(pending[0], 2);
        program(&mut msix, 1, 0xfee0_0000, 0x41, 0);
        assert_eq!(msix.take_deliverable(), Some(Message { address: 0xfee0_0000, data: 0x41 }));
        assert_eq!(msix.take_deliverable(), None);
    }

    #[test]
    fn the_function_mask_holds_all_vectors() {
        let mut msix = msix(1);
        msix.set_control(ENABLE | FUNCTION_MASK);
        program(&mut msix, 0, 0xfee0_1000, 7, 0);
        msix.fire(0);
        assert_eq!(msix.take_deliverable(), None);
        msix.set_control(ENABLE);
        assert!(msix.take_deliverable().is_some());
    }

    #[test]
    fn a_vector_beyond_the_table_is_nothing() {
        let mut msix = msix(1);
        msix.set_control(ENABLE);
        msix.fire(1);
        msix.fire(0x7ff);
        assert_eq!(msix.take_deliverable(), None);
        let mut data = [0xff; 8];
        msix.read_table(u64::MAX - 3, &mut data);
        assert_eq!(data, [0; 8]);
        msix.write_table(u64::MAX - 3, &data);
    }
}
