//! Feature bits: which are offered, to whom, and what may be accepted (VIRTIO 1.3 §2.2, §6).

use crate::driver::way::{MODERN, every_way, legacy_ways, modern_ways};
use crate::driver::{Driver, Machine, Reg, Way, feature, status};
use crate::{echo, inline};

/// What the probe offers through the modern interface: its own bit and what the core implements.
const MODERN_BITS: u128 =
    1 | feature::INDIRECT | feature::EVENT_IDX | feature::VERSION_1 | feature::RING_RESET;
/// What it offers through the legacy interface.
const LEGACY_BITS: u128 = 1 | feature::ANY_LAYOUT | feature::INDIRECT | feature::EVENT_IDX;

fn offered(way: Way) -> u128 {
    let machine = inline(way);
    Driver::find(&machine, 1, way).offered()
}

fn is_never_offered(bit: u32) {
    every_way(|way| assert_eq!(offered(way) >> bit & 1, 0, "bit {bit}"));
}

#[test]
fn rf_01_notify_on_empty_is_not_offered() {
    is_never_offered(24);
}

#[test]
fn rf_02_any_layout_shows_on_the_legacy_interface_alone() {
    every_way(|way| assert_eq!(offered(way) & feature::ANY_LAYOUT == 0, way.is_modern()));
}

#[test]
fn rf_03_indirect_descriptors_are_offered() {
    every_way(|way| assert_ne!(offered(way) & feature::INDIRECT, 0));
}

#[test]
fn rf_04_event_idx_is_offered() {
    every_way(|way| assert_ne!(offered(way) & feature::EVENT_IDX, 0));
}

#[test]
fn rf_05_bit_30_is_not_offered() {
    is_never_offered(30);
}

#[test]
fn rf_06_version_1_is_offered_and_insisted_on() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.set(Reg::DeviceFeatureSelect, 1);
        assert_eq!(driver.get(Reg::DeviceFeature) & 1, 1);
        driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
        driver.accept(feature::INDIRECT);
        driver.set_status(driver.status() | status::FEATURES_OK);
        assert_eq!(driver.status() & status::FEATURES_OK, 0);
    });
}

#[test]
fn rf_07_access_platform_is_not_offered() {
    is_never_offered(33);
}

#[test]
fn rf_08_packed_rings_are_not_offered() {
    is_never_offered(34);
}

#[test]
fn rf_09_in_order_is_not_offered() {
    is_never_offered(35);
}

#[test]
fn rf_10_order_platform_is_not_offered() {
    is_never_offered(36);
}

#[test]
fn rf_11_sr_iov_is_not_offered() {
    is_never_offered(37);
}

#[test]
fn rf_12_notification_data_is_not_offered() {
    is_never_offered(38);
}

#[test]
fn rf_13_notification_config_data_is_not_offered() {
    is_never_offered(39);
    modern_ways(|way| {
        let machine = inline(way);
        assert_eq!(Driver::find(&machine, 1, way).common(0x38, 2), 0);
    });
}

#[test]
fn rf_14_ring_reset_is_offered_on_the_modern_interface_alone() {
    every_way(|way| assert_eq!(offered(way) & feature::RING_RESET != 0, way.is_modern()));
}

#[test]
fn rf_15_admin_queues_are_not_offered() {
    is_never_offered(41);
    modern_ways(|way| {
        let machine = inline(way);
        assert_eq!(Driver::find(&machine, 1, way).common(0x3c, 4), 0);
    });
}

#[test]
fn rf_16_suspend_is_not_offered_and_its_status_bit_stays_clear() {
    is_never_offered(43);
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        driver.set_status(driver.status() | 16);
        assert_eq!(driver.status() & 16, 0);
    });
}

#[test]
fn ft_01_exactly_the_bits_that_can_be_honoured_are_offered() {
    every_way(|way| {
        assert_eq!(offered(way), if way.is_modern() { MODERN_BITS } else { LEGACY_BITS });
    });
}

#[test]
fn ft_02_every_offered_bit_can_be_accepted_without_the_others() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let offered = driver.offered();
        for bit in (0..128).map(|n| 1 << n).filter(|bit| offered & bit != 0) {
            let rings = driver.start(bit);
            echo(&driver, &rings[0], b"alone");
        }
    });
}

#[test]
fn ft_03_selects_beyond_the_offered_bits_show_zero() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        for select in [2, 3, 4, 31, 32, 0x7fff_ffff, 0xffff_ffff] {
            driver.set(Reg::DeviceFeatureSelect, select);
            assert_eq!(driver.get(Reg::DeviceFeatureSelect), select);
            assert_eq!(driver.get(Reg::DeviceFeature), 0, "select {select:#x}");
        }
    });
}

#[test]
fn ft_04_the_drivers_bits_read_back_per_select() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.accept(feature::INDIRECT | feature::VERSION_1 | feature::RING_RESET);
        for (select, word) in [(1, 1 | 1 << 8), (0, 1 << 28), (2, 0), (0xffff_ffff, 0)] {
            driver.set(Reg::DriverFeatureSelect, select);
            assert_eq!(driver.get(Reg::DriverFeature), word, "select {select:#x}");
        }
    });
    legacy_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.accept(feature::EVENT_IDX);
        assert_eq!(u128::from(driver.get(Reg::DriverFeature)), feature::EVENT_IDX);
    });
}

#[test]
fn ft_05_bits_that_are_not_offered_may_be_written_but_not_agreed_on() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        for bit in [1, 24, 27, 30, 33, 34, 35, 41, 63, 64, 127] {
            driver.reset();
            driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
            driver.accept(feature::VERSION_1 | 1 << bit);
            driver.set_status(driver.status() | status::FEATURES_OK);
            assert_eq!(driver.status() & status::FEATURES_OK, 0, "bit {bit}");
        }
    });
}

#[test]
fn ft_05_bits_above_127_cannot_be_agreed_on() {
    let machine = inline(MODERN);
    let driver = Driver::find(&machine, 1, MODERN);
    driver.accept(feature::VERSION_1);
    driver.set(Reg::DriverFeatureSelect, 4);
    driver.set(Reg::DriverFeature, 1);
    driver.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    assert_eq!(driver.status() & status::FEATURES_OK, 0);
}

#[test]
fn ft_06_without_version_1_the_legacy_rules_hold() {
    legacy_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        // No FEATURES_OK, no DRIVER_OK, the legacy ring: and yet it serves.
        driver.reset();
        let ring = driver.ring(0, driver.queue_size(0), 0);
        driver.enable(&ring);
        echo(&driver, &ring, b"0.9.5");
    });
}

#[test]
fn ft_06_a_driver_of_one_interface_can_follow_one_of_the_other() {
    let legacy = Way { face: crate::driver::way::Face::Legacy, ..TRANSITIONAL };
    let machine: Machine = inline(TRANSITIONAL);
    for way in [TRANSITIONAL, legacy, TRANSITIONAL] {
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::INDIRECT);
        echo(&driver, &rings[1], b"one after the other");
    }
}

const TRANSITIONAL: Way = Way { faces: pci::virtio::Faces::Transitional, ..MODERN };
