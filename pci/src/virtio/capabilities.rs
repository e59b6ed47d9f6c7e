//! Where the parts of a virtio function lie in its memory BAR, and the capabilities that say so (VIRTIO 1.3 §4.1.4).
//!
//! Parts that differ in who may read them without leaving the guest lie on pages of their own.

use crate::config::ConfigSpace;
use crate::msix;

/// The capability's identifier: vendor-specific.
const VENDOR: u8 = 0x09;

/// The BAR of the legacy interface (VIRTIO 1.3 §4.1.4.10).
pub(crate) const LEGACY_BAR: u8 = 0;
/// The BAR of everything else.
pub(crate) const MEMORY_BAR: u8 = 2;
/// Its size in bytes.
pub(crate) const MEMORY_LEN: u32 = 0x8000;
/// The doorbells of two queues are this power of two of bytes apart.
pub(crate) const NOTIFY_SHIFT: u32 = 2;
/// Bytes between the doorbells of two queues.
pub(crate) const NOTIFY_MULTIPLIER: u32 = 1 << NOTIFY_SHIFT;

const PAGE: u64 = 0x1000;

/// The parts of the memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Common,
    Device,
    InterruptStatus,
    Notify,
    MsixTable,
    MsixPending,
}

/// Every part with its offset and length in bytes.
const PARTS: &[(Part, u64, u64)] = &[
    (Part::Common, 0, 0x40),
    (Part::Device, 0x40, PAGE - 0x40),
    (Part::InterruptStatus, PAGE, PAGE),
    (Part::Notify, 2 * PAGE, PAGE),
    (Part::MsixTable, 3 * PAGE, PAGE),
    (Part::MsixPending, 4 * PAGE, PAGE),
];

impl Part {
    /// Where the part begins in the memory BAR.
    pub(crate) fn offset(self) -> u64 {
        PARTS.iter().find(|(part, ..)| *part == self).map_or(0, |(_, offset, _)| *offset)
    }

    /// The part that `offset` falls into, and the offset in it.
    pub(crate) fn at(offset: u64) -> Option<(Self, u64)> {
        PARTS.iter().find_map(|(part, start, len)| {
            let within = offset.checked_sub(*start).filter(|within| within < len)?;
            Some((*part, within))
        })
    }
}

/// Offsets in the PCI_CFG capability (VIRTIO 1.3 §4.1.4.9).
pub(crate) mod window {
    pub(crate) const BAR: usize = 4;
    pub(crate) const OFFSET: usize = 8;
    pub(crate) const LENGTH: usize = 12;
    pub(crate) const DATA: usize = 16;
    pub(crate) const END: usize = 20;
}

/// `struct virtio_pci_cap` behind its id and link: length, type, BAR, id, padding, offset, length.
fn body(len: u8, kind: u8, part: Option<Part>, bytes: u32) -> Vec<u8> {
    let (bar, offset) = part.map_or((0, 0), |part| (MEMORY_BAR, part.offset()));
    let offset = u32::try_from(offset).unwrap_or(u32::MAX);
    let mut body = vec![len, kind, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(bytes.to_le_bytes());
    body
}

/// Adds the modern interface's capabilities, the ones that a driver looks for first at the front. Returns the offset of
/// the PCI_CFG capability.
pub(crate) fn add_modern(space: &mut ConfigSpace, queues: u16, config_len: usize) -> u16 {
    space.add_capability(VENDOR, &body(16, 1, Some(Part::Common), 0x40), &[]);
    let bells = u32::from(queues).saturating_mul(NOTIFY_MULTIPLIER);
    let mut notify = body(20, 2, Some(Part::Notify), bells);
    notify.extend(NOTIFY_MULTIPLIER.to_le_bytes());
    space.add_capability(VENDOR, &notify, &[]);
    space.add_capability(VENDOR, &body(16, 3, Some(Part::InterruptStatus), 1), &[]);
    if config_len > 0 {
        let len = u32::try_from(config_len).unwrap_or(u32::MAX);
        space.add_capability(VENDOR, &body(16, 4, Some(Part::Device), len), &[]);
    }
    let mut access = body(20, 5, None, 0);
    access.extend([0; 4]);
    // The guest may write the BAR, the offset, the length and the data.
    let writable =
        [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    space.add_capability(VENDOR, &access, &writable)
}

/// Adds the MSI-X capability and returns the offset of its message control word (PCI 3.0 §6.8.2).
pub(crate) fn add_msix(space: &mut ConfigSpace, vectors: u16) -> u16 {
    let place = |part: Part| u32::try_from(part.offset()).unwrap_or(u32::MAX) | u32::from(MEMORY_BAR);
    let mut body = vectors.saturating_sub(1).to_le_bytes().to_vec();
    body.extend(place(Part::MsixTable).to_le_bytes());
    body.extend(place(Part::MsixPending).to_le_bytes());
    space.add_capability(msix::CAPABILITY, &body, &msix::CONTROL_WRITABLE.to_le_bytes()).saturating_add(2)
}
