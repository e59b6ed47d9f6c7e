//! MSI-X: the vector table, the pending bits, and what may be sent when (PCI 3.0 §6.8.2).

use crate::read_bytes;

/// The capability's identifier.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry.
pub const ENTRY_LEN: usize = 16;

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
    /// The table, as the guest sees it.
    table: Vec<u8>,
    /// The pending bits, as the guest sees them.
    pending: Vec<u8>,
}

impl Msix {
    /// `vectors` vectors, all masked, MSI-X itself off.
    pub fn new(vectors: u16) -> Self {
        let vectors = usize::from(vectors);
        let mut table = vec![0; vectors.saturating_mul(ENTRY_LEN)];
        table
            .chunks_exact_mut(ENTRY_LEN)
            .filter_map(|entry| entry.get_mut(12))
            .for_each(|control| *control = 1);
        Self { control: 0, table, pending: vec![0; vectors.div_ceil(64).saturating_mul(8)] }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.table.len() / ENTRY_LEN).unwrap_or(u16::MAX)
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
        read_bytes(&self.table, offset, data);
    }

    /// The guest writes the table.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        let table = usize::try_from(offset).ok().and_then(|at| self.table.get_mut(at..)).unwrap_or_default();
        table.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
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
        let vector = (0..self.vectors()).find(|v| self.is_pending(*v) && !self.is_masked(*v))?;
        self.set_pending(vector, false);
        let entry = self.entry(vector)?;
        Some(Message { address: u64::from(entry[0]) | u64::from(entry[1]) << 32, data: entry[2] })
    }

    /// Forgets what is pending.
    pub fn clear_pending(&mut self) {
        self.pending.fill(0);
    }

    fn entry(&self, vector: u16) -> Option<[u32; 4]> {
        let entry = self.table.chunks_exact(ENTRY_LEN).nth(vector.into())?;
        let mut words = entry.chunks_exact(4).filter_map(|w| w.try_into().ok()).map(u32::from_le_bytes);
        Some([words.next()?, words.next()?, words.next()?, words.next()?])
    }

    fn is_masked(&self, vector: u16) -> bool {
        self.entry(vector).is_none_or(|[.., control]| control & 1 != 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn program(msix: &mut Msix, vector: u64, address: u64, data: u32, mask: u32) {
        let at = vector * 16;
        msix.write_table(at, &address.to_le_bytes());
        msix.write_table(at + 8, &data.to_le_bytes());
        msix.write_table(at + 12, &mask.to_le_bytes());
    }

    #[test]
    fn every_vector_is_masked_at_first() {
        let msix = Msix::new(3);
        let mut control = [0; 4];
        for vector in 0..3 {
            msix.read_table(vector * 16 + 12, &mut control);
            assert_eq!(control, [1, 0, 0, 0]);
        }
    }

    #[test]
    fn a_masked_vector_pends_and_is_delivered_once_on_unmask() {
        let mut msix = Msix::new(2);
        msix.set_control(ENABLE);
        program(&mut msix, 1, 0xfee0_0000, 0x41, 1);
        msix.fire(1);
        msix.fire(1);
        assert_eq!(msix.take_deliverable(), None);
        let mut pending = [0; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!(pending[0], 2);
        program(&mut msix, 1, 0xfee0_0000, 0x41, 0);
        assert_eq!(msix.take_deliverable(), Some(Message { address: 0xfee0_0000, data: 0x41 }));
        assert_eq!(msix.take_deliverable(), None);
    }

    #[test]
    fn the_function_mask_holds_all_vectors() {
        let mut msix = Msix::new(1);
        msix.set_control(ENABLE | FUNCTION_MASK);
        program(&mut msix, 0, 0xfee0_1000, 7, 0);
        msix.fire(0);
        assert_eq!(msix.take_deliverable(), None);
        msix.set_control(ENABLE);
        assert!(msix.take_deliverable().is_some());
    }

    #[test]
    fn a_vector_beyond_the_table_is_nothing() {
        let mut msix = Msix::new(1);
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
