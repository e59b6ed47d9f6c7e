//! What the registers do: the modern and the legacy layout over one [`Core`] (VIRTIO 1.3 §4.1.4.3, §4.1.4.10).

use devices::core::{Core, Face, Meaning};
use devices::interrupt::Cause;
use devices::queue::Areas;
use devices::virtio::feature;

use super::interrupt::{FunctionInterrupt, NO_VECTOR};
use super::registers::{Register, Written};

/// The value of a register, in its low bytes.
pub(crate) fn read(core: &mut Core, interrupt: &FunctionInterrupt, register: Register) -> u64 {
    let select = core.select;
    let queue = select.queue;
    match register {
        Register::DeviceFeatureSelect => select.device_feature.into(),
        Register::DeviceFeature => core.device_features(select.device_feature).into(),
        Register::DriverFeatureSelect => select.driver_feature.into(),
        Register::DriverFeature => core.driver_features(select.driver_feature).into(),
        Register::ConfigVector => interrupt.vector(Cause::Config).into(),
        Register::QueueCount => core.queue_count().into(),
        Register::DeviceStatus | Register::LegacyStatus => core.status().into(),
        Register::ConfigGeneration => core.config_generation().into(),
        Register::QueueSelect => queue.into(),
        Register::QueueSize => core.queue_size(queue).into(),
        Register::QueueVector => interrupt.vector(Cause::Queue(queue)).into(),
        Register::QueueEnable => core.is_queue_enabled(queue).into(),
        Register::QueueNotifyOffset => core.queue_max_size(queue).map_or(0, |_| queue.into()),
        Register::QueueDesc => core.queue_areas(queue).desc,
        Register::QueueDriver => core.queue_areas(queue).driver,
        Register::QueueDevice => core.queue_areas(queue).device,
        Register::LegacyFeatures => legacy_features(core).into(),
        Register::LegacyDriverFeatures => core.driver_features(0).into(),
        Register::QueuePage if core.is_queue_enabled(queue) => core.queue_areas(queue).desc >> 12,
        Register::LegacyQueueSize => core.queue_max_size(queue).unwrap_or(0).into(),
        Register::InterruptStatus => interrupt.take_status().into(),
        // A queue reset is over when the write that asks for it returns; the other registers belong to features that
        // are not offered.
        Register::QueuePage
        | Register::QueueReset
        | Register::QueueNotify
        | Register::QueueNotifyData
        | Register::AdminQueueIndex
        | Register::AdminQueueCount => 0,
    }
}

/// What the legacy interface offers: the low bits, and ANY_LAYOUT, which shows nowhere else (VIRTIO 1.3 §6.3).
fn legacy_features(core: &Core) -> u32 {
    const ANY_LAYOUT: u32 = 1 << 27;
    core.device_features(0) | ANY_LAYOUT
}

/// Writes a register, and says what that meant.
pub(crate) fn write(core: &mut Core, interrupt: &FunctionInterrupt, written: Written) -> Meaning {
    let Written { register, value, mask } = written;
    let [b0, b1, b2, b3, ..] = value.to_le_bytes();
    let (byte, short, word) = (b0, u16::from_le_bytes([b0, b1]), u32::from_le_bytes([b0, b1, b2, b3]));
    let queue = core.select.queue;
    let place = |core: &mut Core, part: fn(&mut Areas) -> &mut u64| {
        let mut areas = core.queue_areas(queue);
        let address = part(&mut areas);
        *address = *address & !mask | value;
        core.set_queue_areas(queue, areas);
    };
    match register {
        Register::DeviceFeatureSelect => core.select.device_feature = word,
        Register::DriverFeatureSelect => core.select.driver_feature = word,
        Register::DriverFeature => core.set_driver_features(core.select.driver_feature, word),
        Register::ConfigVector => interrupt.set_vector(Cause::Config, short),
        Register::DeviceStatus => return core.set_status(byte, Face::Modern),
        Register::QueueSelect => core.select.queue = short,
        Register::QueueSize => core.set_queue_size(queue, short),
        Register::QueueVector => interrupt.set_vector(Cause::Queue(queue), short),
        // A driver never disables a queue this way (VIRTIO 1.3 §4.1.4.3.2).
        Register::QueueEnable if short == 1 => core.enable_queue(queue, Face::Modern),
        Register::QueueDesc => place(core, |areas| &mut areas.desc),
        Register::QueueDriver => place(core, |areas| &mut areas.driver),
        Register::QueueDevice => place(core, |areas| &mut areas.device),
        Register::QueueReset if short == 1 && core.has_accepted(feature::RING_RESET) => {
            interrupt.set_vector(Cause::Queue(queue), NO_VECTOR);
            return core.reset_queue(queue);
        }
        Register::LegacyDriverFeatures => core.set_legacy_features(word),
        Register::QueuePage => return set_queue_page(core, queue, word),
        Register::QueueNotify => return Meaning::Notify(short),
        Register::LegacyStatus => return core.set_status(byte, Face::Legacy),
        Register::QueueEnable
        | Register::QueueReset
        | Register::DeviceFeature
        | Register::QueueCount
        | Register::ConfigGeneration
        | Register::QueueNotifyOffset
        | Register::QueueNotifyData
        | Register::AdminQueueIndex
        | Register::AdminQueueCount
        | Register::LegacyFeatures
        | Register::LegacyQueueSize
        | Register::InterruptStatus => {}
    }
    Meaning::Nothing
}

/// A legacy driver places a queue, or takes its place away with 0.
fn set_queue_page(core: &mut Core, queue: u16, page: u32) -> Meaning {
    let meaning = if core.is_queue_enabled(queue) { core.reset_queue(queue) } else { Meaning::Nothing };
    if page == 0 {
        return meaning;
    }
    let size = core.queue_max_size(queue).unwrap_or(0);
    core.set_queue_size(queue, size);
    core.set_queue_areas(queue, Areas::legacy(page, size));
    core.enable_queue(queue, Face::Legacy);
    meaning
}
