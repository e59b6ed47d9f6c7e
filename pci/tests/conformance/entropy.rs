//! The entropy device (VIRTIO 1.3 §5.4).

use std::fs::{File, OpenOptions};
use std::io::{Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use devices::entropy::Entropy;

use crate::driver::function::Kind;
use crate::driver::machine::LOW;
use crate::driver::way::{MODERN, every_way, modern_ways};
use crate::driver::{Buf, Driver, Machine, Reg, Ring, Way, feature, patiently};

fn machine_of(way: Way, source: &str) -> Machine {
    Machine::with(Entropy::new(File::open(source).unwrap()), way)
}

fn random(way: Way) -> Machine {
    machine_of(way, "/dev/urandom")
}

/// A source of bytes that are all 0xff: what is written shows.
fn ones() -> Entropy {
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(&[0xff; 4096]).unwrap();
    Entropy::new(open_again(&reader))
}

/// The same stream, without waiting.
fn open_again(fd: &impl AsRawFd) -> File {
    let nonblocking = OpenOptions::new().read(true).custom_flags(0o4000).clone();
    nonblocking.open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
}

fn request(driver: &Driver<'_>, ring: &Ring<'_>, bufs: &[Buf]) -> u32 {
    ring.post(bufs);
    driver.kick(0);
    ring.wait().1
}

#[test]
fn rng_01_one_queue_no_feature_no_configuration() {
    every_way(|way| {
        let machine = random(way);
        let driver = Driver::find(&machine, 1, way);
        let id = if way.faces == pci::virtio::Faces::Modern { 0x1044 } else { 0x1005 };
        assert_eq!(driver.function.config(2, 2), id);
        assert_ne!(driver.queue_size(0), 0);
        assert_eq!(driver.queue_size(1), 0);
        let ring_features = feature::INDIRECT
            | feature::EVENT_IDX
            | if way.is_modern() { feature::VERSION_1 | feature::RING_RESET } else { feature::ANY_LAYOUT };
        assert_eq!(driver.offered(), ring_features);
        if way.is_modern() {
            assert_eq!(driver.get(Reg::QueueCount), 1);
            assert!(driver.function.find_part(Kind::Device).is_none());
        } else {
            assert_eq!(driver.function.config(0x2e, 2), 4);
        }
    });
}

#[test]
fn rng_02_every_buffer_comes_back_with_at_least_one_byte() {
    every_way(|way| {
        let machine = random(way);
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(0)[0];
        for len in [1, 2, 64, 4096, 1 << 20] {
            let room = Buf::room(1 << 21, len);
            let given = request(&driver, ring, &[room]);
            assert!((1..=len).contains(&given), "{given} of {len}");
            driver.expect_queue(0);
        }
    });
}

#[test]
fn rng_03_the_length_is_exactly_the_random_prefix() {
    modern_ways(|way| {
        // 40 bytes are there, 64 are asked for.
        let (reader, mut writer) = pipe().unwrap();
        writer.write_all(&[0xff; 40]).unwrap();
        let machine = Machine::with(Entropy::new(open_again(&reader)), way);
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(0)[0];
        let at = machine.ram(64, 1);
        assert_eq!(request(&driver, ring, &[Buf::room(at, 64)]), 40);
        assert_eq!(machine.bytes(at, 64), [vec![0xff; 40], vec![0; 24]].concat());
    });
}

#[test]
fn rng_04_any_shape_of_chain_is_filled_in_order() {
    every_way(|way| {
        let machine = Machine::with(ones(), way);
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(feature::INDIRECT)[0];
        for lens in [&[1, 7, 64][..], &[3, 61], &[72], &[0, 8, 0, 64, 0]] {
            let at = machine.ram(200, 1);
            let sum: u32 = lens.iter().sum();
            let bufs: Vec<Buf> =
                lens.iter().zip(0..).map(|(len, n)| Buf::room(at + n * 64 + 1, *len)).collect();
            assert_eq!(request(&driver, ring, &bufs), sum);
            for buf in &bufs {
                let len = usize::try_from(buf.len).unwrap();
                assert_eq!(machine.bytes(buf.addr, len), vec![0xff; len]);
            }
            ring.post_indirect(&bufs);
            driver.kick(0);
            assert_eq!(ring.wait().1, sum);
        }
    });
}

#[test]
fn rng_05_a_readable_buffer_is_a_drivers_error_and_never_written() {
    every_way(|way| {
        let at = 0x10_0000;
        for bufs in [
            vec![Buf::out(at, 64)],
            vec![Buf::out(at, 8), Buf::room(at + 64, 8)],
            vec![Buf::out(at, 0)],
            vec![Buf::room(at, 0)],
        ] {
            let machine = Machine::with(ones(), way);
            let driver = Driver::find(&machine, 1, way);
            let ring = &driver.start(0)[0];
            ring.post(&bufs);
            driver.kick(0);
            assert!(driver.needs_reset());
            driver.expect_config();
            assert_eq!(ring.used_index(), 0, "not completed with nothing");
            assert_eq!(machine.bytes(at, 128), [0; 128]);
        }
    });
}

#[test]
fn rng_06_a_dry_source_keeps_the_buffer_until_there_is_something() {
    every_way(|way| {
        let (reader, mut writer) = pipe().unwrap();
        let machine = Machine::with(Entropy::new(open_again(&reader)), way);
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(0)[0];
        let at = machine.ram(64, 1);
        for round in 0..3 {
            ring.post(&[Buf::room(at, 64)]);
            driver.kick(0);
            driver.expect_quiet();
            assert_eq!(ring.used_index(), round);
            // Linux has one request in flight and no reason to ring again.
            writer.write_all(&[0xff; 10]).unwrap();
            assert_eq!(ring.wait().1, 10);
            driver.expect_queue(0);
        }
    });
}

#[test]
fn rng_06_a_source_that_has_ended_or_fails_never_completes_with_nothing() {
    // A directory is a file that cannot be read.
    for source in ["/dev/null", "/"] {
        let machine = machine_of(MODERN, source);
        let driver = Driver::find(&machine, 1, MODERN);
        let ring = &driver.start(0)[0];
        ring.post(&[Buf::room(machine.ram(64, 1), 64)]);
        (0..10).for_each(|_| driver.kick(0));
        driver.expect_quiet();
        assert_eq!(ring.used_index(), 0);
        assert!(!driver.needs_reset());
        driver.reset();
    }
}

#[test]
fn rng_07_many_large_buffers_may_be_outstanding() {
    every_way(|way| {
        let machine = random(way);
        machine.host.forget_messages();
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(0)[0];
        let size = driver.queue_size(0);
        for _ in 0..2 {
            for _ in 0..size {
                ring.post(&[Buf::room(LOW - (1 << 20), 1 << 20)]);
            }
            driver.kick(0);
            (0..size).for_each(|_| assert!(ring.wait().1 > 0));
        }
    });
}

#[test]
fn rng_08_no_two_requests_get_the_same_bytes() {
    let machine = random(MODERN);
    let driver = Driver::find(&machine, 1, MODERN);
    let ring = &driver.start(0)[0];
    let at = machine.ram(64, 1);
    let mut seen = Vec::new();
    for _ in 0..100 {
        assert_eq!(request(&driver, ring, &[Buf::room(at, 64)]), 64);
        let bytes = machine.bytes(at, 64);
        assert!(!seen.contains(&bytes));
        seen.push(bytes);
    }
}

/// What Linux does: one request of a cache line, always one pending, served again and again over a reset.
#[test]
fn a_driver_that_is_unbound_and_bound_again_finds_the_device_as_new() {
    every_way(|way| {
        let machine = random(way);
        let driver = Driver::find(&machine, 1, way);
        for _ in 0..20 {
            let ring = &driver.start(feature::INDIRECT | feature::EVENT_IDX)[0];
            for _ in 0..5 {
                ring.arm();
                assert_eq!(request(&driver, ring, &[Buf::room(machine.ram(64, 64), 64)]), 64);
                driver.expect_queue(0);
            }
            driver.reset();
        }
        patiently("counted", || machine.describe(1).contains("6400 bytes in 100 requests"));
    });
}
