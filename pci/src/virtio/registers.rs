//! The register layouts of the virtio transport over PCI, as tables: an offset is never typed twice.

use std::ops::Range;

/// A register, whichever layout shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    QueueCount,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    QueueDesc,
    QueueDriver,
    QueueDevice,
    QueueNotifyData,
    QueueReset,
    AdminQueueIndex,
    AdminQueueCount,
    LegacyFeatures,
    LegacyDriverFeatures,
    QueuePage,
    LegacyQueueSize,
    QueueNotify,
    LegacyStatus,
    InterruptStatus,
}

/// Registers in their order, each with its width in bytes.
pub(crate) type Layout = &'static [(Register, u64)];

/// The common configuration structure (VIRTIO 1.3 §4.1.4.3).
pub(crate) const COMMON: Layout = &[
    (Register::DeviceFeatureSelect, 4),
    (Register::DeviceFeature, 4),
    (Register::DriverFeatureSelect, 4),
    (Register::DriverFeature, 4),
    (Register::ConfigVector, 2),
    (Register::QueueCount, 2),
    (Register::DeviceStatus, 1),
    (Register::ConfigGeneration, 1),
    (Register::QueueSelect, 2),
    (Register::QueueSize, 2),
    (Register::QueueVector, 2),
    (Register::QueueEnable, 2),
    (Register::QueueNotifyOffset, 2),
    (Register::QueueDesc, 8),
    (Register::QueueDriver, 8),
    (Register::QueueDevice, 8),
    (Register::QueueNotifyData, 2),
    (Register::QueueReset, 2),
    (Register::AdminQueueIndex, 2),
    (Register::AdminQueueCount, 2),
];

/// The legacy interface (VIRTIO 1.3 §4.1.4.10).
pub(crate) const LEGACY: Layout = &[
    (Register::LegacyFeatures, 4),
    (Register::LegacyDriverFeatures, 4),
    (Register::QueuePage, 4),
    (Register::LegacyQueueSize, 2),
    (Register::QueueSelect, 2),
    (Register::QueueNotify, 2),
    (Register::LegacyStatus, 1),
    (Register::InterruptStatus, 1),
];

/// What follows in the legacy interface while MSI-X is enabled.
pub(crate) const LEGACY_VECTORS: Layout = &[(Register::ConfigVector, 2), (Register::QueueVector, 2)];

/// Bytes that a layout takes.
pub(crate) fn len(layout: &[(Register, u64)]) -> u64 {
    layout.iter().fold(0, |sum, (_, width)| sum.saturating_add(*width))
}

/// Ranges of [`COMMON`] whose writes may come late: the device only takes note of them, and acts on a later access to
/// another register. Reads come at once, and with them what was written before.
pub(crate) fn notes() -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut start = 0_u64;
    for (register, width) in COMMON {
        let end = start.saturating_add(*width);
        let is_note = matches!(
            register,
            Register::DeviceFeatureSelect
                | Register::DeviceFeature
                | Register::DriverFeatureSelect
                | Register::DriverFeature
                | Register::QueueSelect
                | Register::QueueSize
                | Register::QueueDesc
                | Register::QueueDriver
                | Register::QueueDevice
        );
        match ranges.last_mut() {
            Some(last) if is_note && last.end == start => last.end = end,
            _ if is_note => ranges.push(start..end),
            _ => {}
        }
        start = end;
    }
    ranges
}

/// A value written to a register, or to one half of an eight-byte register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) register: Register,
    pub(crate) value: u64,
    /// The bits that were written.
    pub(crate) mask: u64,
}

/// Reads `data.len()` bytes at `offset`, whatever their alignment. `value` is asked for each register they touch.
pub(crate) fn read(
    layout: impl IntoIterator<Item = &'static (Register, u64)>,
    offset: u64,
    data: &mut [u8],
    mut value: impl FnMut(Register) -> u64,
) {
    let end = offset.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
    let mut start = 0_u64;
    for &(register, width) in layout {
        let stop = start.saturating_add(width);
        if start < end && offset < stop {
            let bytes = value(register).to_le_bytes();
            for (at, byte) in (start..stop).zip(bytes).filter(|(at, _)| (offset..end).contains(at)) {
                let index = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
                if let Some(to) = data.get_mut(index) {
                    *to = byte;
                }
            }
        }
        start = stop;
    }
}

/// The register that a write of `data` at `offset` is meant for. It has to be the whole register, or half of an
/// eight-byte one (VIRTIO 1.3 §4.1.3.1); other writes mean nothing.
pub(crate) fn written(
    layout: impl IntoIterator<Item = &'static (Register, u64)>,
    offset: u64,
    data: &[u8],
) -> Option<Written> {
    let len = u64::try_from(data.len()).ok()?;
    let mut start = 0_u64;
    for &(register, width) in layout {
        let within = offset.checked_sub(start)?;
        if within < width {
            let is_whole = within == 0 && len == width;
            let is_half = width == 8 && len == 4 && within.is_multiple_of(4);
            let mut bytes = [0; 8];
            bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
            let shift = u32::try_from(within.saturating_mul(8)).ok()?;
            let ones =
                u64::MAX.checked_shr(64_u32.saturating_sub(u32::try_from(len.saturating_mul(8)).ok()?))?;
            let value = u64::from_le_bytes(bytes).checked_shl(shift)?;
            return (is_whole || is_half).then_some(Written {
                register,
                value,
                mask: ones.checked_shl(shift)?,
            });
        }
        start = start.saturating_add(width);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets that the specification's tables give.
    #[test]
    fn the_common_configuration_lies_where_the_specification_says() {
        let offsets: Vec<u64> = (0..COMMON.len()).map(|n| len(&COMMON[..n])).collect();
        assert_eq!(
            offsets,
            [
                0, 4, 8, 0xc, 0x10, 0x12, 0x14, 0x15, 0x16, 0x18, 0x1a, 0x1c, 0x1e, 0x20, 0x28, 0x30, 0x38,
                0x3a, 0x3c, 0x3e
            ]
        );
        assert_eq!(len(COMMON), 0x40);
    }

    #[test]
    fn the_legacy_registers_lie_where_the_specification_says() {
        let offsets: Vec<u64> = (0..LEGACY.len()).map(|n| len(&LEGACY[..n])).collect();
        assert_eq!(offsets, [0, 4, 8, 0xc, 0xe, 0x10, 0x12, 0x13]);
        assert_eq!(len(LEGACY), 20);
        assert_eq!(len(LEGACY_VECTORS), 4);
    }

    #[test]
    fn what_may_come_late_are_features_selection_size_and_addresses() {
        assert_eq!(notes(), [0..0x10, 0x16..0x1a, 0x20..0x38]);
    }

    #[test]
    fn a_read_of_any_width_gives_the_same_bytes() {
        let value = |register| if register == Register::DeviceStatus { 0xab } else { 0x1122_3344_5566_7788 };
        let mut whole = [0; 0x40];
        read(COMMON, 0, &mut whole, value);
        for width in [1, 2, 3, 4, 8] {
            for offset in 0..0x40 {
                let mut part = vec![0xee; width];
                read(COMMON, offset as u64, &mut part, value);
                let expected: Vec<u8> =
                    (offset..offset + width).map(|at| *whole.get(at).unwrap_or(&0xee)).collect();
                assert_eq!(part, expected, "{width} bytes at {offset:#x}");
            }
        }
    }

    #[test]
    fn a_write_needs_a_whole_register_or_half_of_an_address() {
        let whole = written(COMMON, 0x16, &[1, 0]);
        assert_eq!(whole, Some(Written { register: Register::QueueSelect, value: 1, mask: 0xffff }));
        let high = written(COMMON, 0x24, &[1, 0, 0, 0]);
        assert_eq!(
            high,
            Some(Written { register: Register::QueueDesc, value: 1 << 32, mask: 0xffff_ffff << 32 })
        );
        let both = written(COMMON, 0x20, &[1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(both, Some(Written { register: Register::QueueDesc, value: 2 << 32 | 1, mask: u64::MAX }));
        assert_eq!(written(COMMON, 0x16, &[1]), None);
        assert_eq!(written(COMMON, 0x16, &[1, 0, 0, 0]), None);
        assert_eq!(written(COMMON, 0x22, &[1, 0, 0, 0]), None);
        assert_eq!(written(COMMON, 0x40, &[1]), None);
        assert_eq!(written(COMMON, u64::MAX, &[1, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
