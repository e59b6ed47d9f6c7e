//! The console device (VIRTIO 1.3 §5.3) with one port, without SIZE and MULTIPORT.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;

use devices::console::Console;

use crate::driver::function::Kind;
use crate::driver::way::{MODERN, every_way, modern_ways};
use crate::driver::{Buf, Driver, Machine, Reg, Ring, Way, Wire, feature, patiently};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// A machine with a console, what its user types into, and what they read.
fn console(way: Way) -> (Machine, PipeWriter, PipeReader) {
    let (typed, keyboard) = pipe().unwrap();
    let (screen, shown) = pipe().unwrap();
    let console = Console::open(Some(typed.as_fd()), Some(shown.as_fd())).unwrap();
    (Machine::with(console, way), keyboard, screen)
}

fn read(screen: &mut PipeReader, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    screen.read_exact(&mut bytes).unwrap();
    bytes
}

/// A readable buffer with `text`.
fn text(machine: &Machine, text: &[u8]) -> Buf {
    let at = machine.ram(text.len() as u64, 1);
    machine.set_bytes(at, text);
    Buf::out(at, u32::try_from(text.len()).unwrap())
}

fn print(driver: &Driver<'_>, ring: &Ring<'_>, bufs: &[Buf]) {
    ring.post(bufs);
    driver.kick(TRANSMIT);
}

#[test]
fn con_01_the_first_queue_receives_and_the_second_transmits() {
    every_way(|way| {
        let (machine, mut keyboard, mut screen) = console(way);
        let driver = Driver::find(&machine, 1, way);
        let id = if way.faces == pci::virtio::Faces::Modern { 0x1043 } else { 0x1003 };
        assert_eq!(driver.function.config(2, 2), id);
        if way.is_modern() {
            assert_eq!(driver.get(Reg::QueueCount), 2);
        }
        let rings = driver.start(0);
        assert_eq!(rings.len(), 2);
        let room = machine.ram(16, 1);
        rings[0].post(&[Buf::room(room, 16)]);
        driver.kick(RECEIVE);
        keyboard.write_all(b"in").unwrap();
        assert_eq!(rings[0].wait().1, 2);
        assert_eq!(machine.bytes(room, 2), b"in");
        driver.expect_queue(RECEIVE);
        print(&driver, &rings[1], &[text(&machine, b"out")]);
        assert_eq!(read(&mut screen, 3), b"out");
        assert_eq!(rings[1].wait().1, 0);
        driver.expect_queue(TRANSMIT);
    });
}

#[test]
fn con_02_fields_of_features_that_are_not_offered_read_0() {
    every_way(|way| {
        let (machine, _keyboard, _screen) = console(way);
        let driver = Driver::find(&machine, 1, way);
        assert_eq!(driver.offered() & 7, 4, "EMERG_WRITE alone");
        assert_eq!([0, 4, 8].map(|at| driver.read_config(at, 4)), [0; 3]);
        if way.is_modern() {
            assert!(driver.function.part(Kind::Device).length >= 12, "Linux reads as far as that");
        }
    });
}

#[test]
fn con_06_output_comes_in_order_across_descriptors_and_returns_with_length_0() {
    every_way(|way| {
        let (machine, _keyboard, mut screen) = console(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::INDIRECT);
        let parts = [&b"one "[..], b"two ", b"three"].map(|part| text(&machine, part));
        print(&driver, &rings[1], &parts);
        assert_eq!(rings[1].wait().1, 0);
        rings[1].post_indirect(&parts);
        driver.kick(TRANSMIT);
        assert_eq!(rings[1].wait().1, 0);
        let empty = [Buf::out(0, 0), text(&machine, b"|"), Buf::out(0, 0)];
        print(&driver, &rings[1], &empty);
        assert_eq!(rings[1].wait().1, 0);
        assert_eq!(read(&mut screen, 27), b"one two threeone two three|");
    });
}

#[test]
fn con_07_nobody_waits_for_a_reader_and_nothing_is_lost() {
    every_way(|way| {
        let (machine, _keyboard, mut screen) = console(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let pattern: Vec<u8> = (0..=250).cycle().take(9 * 0x8000).collect();
        // More than a pipe holds; every doorbell returns although nobody reads.
        let chunks: Vec<Buf> = pattern.chunks(0x8000).map(|chunk| text(&machine, chunk)).collect();
        chunks.iter().for_each(|chunk| print(&driver, &rings[1], &[*chunk]));
        driver.settle();
        assert!(rings[1].in_flight() > 0);
        assert_eq!(read(&mut screen, pattern.len()), pattern);
        (0..chunks.len()).for_each(|_| assert_eq!(rings[1].wait().1, 0));
    });
}

#[test]
fn con_07_a_reader_that_is_gone_is_not_waited_for() {
    modern_ways(|way| {
        let (machine, _keyboard, screen) = console(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        drop(screen);
        for _ in 0..100 {
            print(&driver, &rings[1], &[text(&machine, b"to nobody")]);
            assert_eq!(rings[1].wait().1, 0);
        }
    });
}

#[test]
fn con_08_input_fills_what_buffers_there_are_and_the_rest_is_kept() {
    every_way(|way| {
        let (machine, mut keyboard, _screen) = console(way);
        machine.host.forget_messages();
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let at = machine.ram(16, 1);
        rings[0].post(&[Buf::room(at, 16)]);
        driver.kick(RECEIVE);
        keyboard.write_all(b"x").unwrap();
        assert_eq!(rings[0].wait().1, 1, "a buffer comes back with what there is");
        assert_eq!(machine.bytes(at, 2), b"x\0");
        // Much input, and one small buffer at a time.
        let typed: Vec<u8> = (0..=250).cycle().take(10_000).collect();
        keyboard.write_all(&typed).unwrap();
        let mut got = Vec::new();
        while got.len() < typed.len() {
            rings[0].post(&[Buf::room(at, 16)]);
            driver.kick(RECEIVE);
            let len = usize::try_from(rings[0].wait().1).unwrap();
            assert!((1..=16).contains(&len));
            got.extend(machine.bytes(at, len));
        }
        assert_eq!(got, typed);
    });
}

#[test]
fn con_08_the_end_of_input_is_no_empty_buffer() {
    modern_ways(|way| {
        let (machine, mut keyboard, mut screen) = console(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let at = machine.ram(16, 1);
        rings[0].post(&[Buf::room(at, 16)]);
        rings[0].post(&[Buf::room(at, 16)]);
        driver.kick(RECEIVE);
        keyboard.write_all(b"last words").unwrap();
        drop(keyboard);
        assert_eq!(rings[0].wait().1, 10);
        print(&driver, &rings[1], &[text(&machine, b"still printing")]);
        assert_eq!(read(&mut screen, 14), b"still printing");
        assert_eq!(rings[0].used_index(), 1);
    });
}

#[test]
fn con_09_transmit_completions_obey_suppression() {
    every_way(|way| {
        let (machine, _keyboard, _screen) = console(way);
        let driver = Driver::find(&machine, 1, way);
        let is_interrupted = |ring: &Ring<'_>| {
            print(&driver, ring, &[text(&machine, b".")]);
            ring.wait();
            driver.settle();
            match way.wire {
                Wire::Msix => !machine.host.take_messages().is_empty(),
                Wire::Intx => driver.isr() == 1,
            }
        };
        let rings = driver.start(0);
        rings[1].set_avail_flags(1);
        assert!(!is_interrupted(&rings[1]));
        rings[1].set_avail_flags(0);
        assert!(is_interrupted(&rings[1]));
        // With EVENT_IDX it is decided late: at the next doorbell at the latest.
        let rings = driver.start(feature::EVENT_IDX);
        rings[1].set_used_event(2);
        assert!(!is_interrupted(&rings[1]));
        assert!(!is_interrupted(&rings[1]));
        print(&driver, &rings[1], &[text(&machine, b".")]);
        rings[1].wait();
        driver.expect_queue(TRANSMIT);
        (0..2).for_each(|_| assert!(!is_interrupted(&rings[1])));
    });
}

#[test]
fn con_09_a_driver_that_polls_is_not_interrupted_and_one_that_waits_is() {
    every_way(|way| {
        let (machine, _keyboard, _screen) = console(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::EVENT_IDX);
        let dot = text(&machine, b".");
        let interrupts = || match way.wire {
            Wire::Msix => machine.host.take_messages().len(),
            Wire::Intx => usize::from(driver.isr() == 1),
        };
        let mut polled = 0;
        for _ in 0..500 {
            print(&driver, &rings[1], &[dot]);
            // As Linux does: it takes what was used and asks for an interrupt for the next.
            rings[1].wait();
            rings[1].arm();
            polled += interrupts();
        }
        // A host that lets the test stand for a millisecond makes it a driver that waits.
        assert!(polled < 50, "{polled} interrupts");
        print(&driver, &rings[1], &[dot]);
        rings[1].wait();
        rings[1].arm();
        driver.kick(TRANSMIT);
        interrupts();
        // Now it waits. The interrupt comes although no doorbell rings any more.
        print(&driver, &rings[1], &[dot]);
        driver.expect_queue(TRANSMIT);
        rings[1].wait();
    });
}

#[test]
fn con_09_a_burst_comes_to_need_no_doorbells_and_loses_nothing() {
    modern_ways(|way| {
        let (machine, _keyboard, mut screen) = console(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::EVENT_IDX);
        let at = machine.ram(4, 1);
        let (mut number, mut silent) = (0_u32, 0);
        let has_processors = std::thread::available_parallelism().unwrap().get() > 1;
        // Where the device's thread finds a processor to look from, it looks.
        patiently("a driver that need not ring", || {
            machine.set_bytes(at, &number.to_le_bytes());
            rings[1].post(&[Buf::out(at, 4)]);
            match rings[1].wants_kick() {
                true => driver.kick(TRANSMIT),
                false => silent += 1,
            }
            // As Linux does: it spins, and takes what was used. A doorbell too few would have it spin for ever.
            let mut looks = 0..20_000;
            if !looks.any(|_| rings[1].take().is_some()) {
                rings[1].wait();
            }
            rings[1].arm();
            assert_eq!(read(&mut screen, 4), number.to_le_bytes());
            number += 1;
            number >= 3_000 && (silent > 0 || !has_processors)
        });
        // The thread stops looking before long, and asks for the doorbell again.
        let next = u16::try_from(number % 65_536).unwrap();
        patiently("a ring that wants its doorbell", || rings[1].avail_event() == next);
    });
}

#[test]
fn con_22_a_buffer_of_the_wrong_direction_is_a_drivers_error() {
    every_way(|way| {
        for (queue, buf) in [
            (RECEIVE, Buf::out(0x10_0000, 8)),
            (RECEIVE, Buf::room(0x10_0000, 0)),
            (TRANSMIT, Buf::room(0x10_0000, 8)),
        ] {
            let (machine, mut keyboard, _screen) = console(way);
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            keyboard.write_all(b"typed").unwrap();
            rings[usize::from(queue)].post(&[buf]);
            driver.kick(queue);
            patiently("NEEDS_RESET", || driver.needs_reset());
            driver.expect_config();
            assert_eq!(machine.bytes(0x10_0000, 8), [0; 8]);
            // What was typed is there for the next driver.
            let rings = driver.start(0);
            let at = machine.ram(8, 1);
            rings[0].post(&[Buf::room(at, 8)]);
            driver.kick(RECEIVE);
            assert_eq!(rings[0].wait().1, 5);
            assert_eq!(machine.bytes(at, 5), b"typed");
        }
    });
}

#[test]
fn con_23_a_reset_forgets_a_message_that_is_half_sent() {
    modern_ways(|way| {
        let (machine, _keyboard, mut screen) = console(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::RING_RESET);
        // The pipe takes a part of it.
        let long = vec![b'a'; 0x2_0000];
        print(&driver, &rings[1], &[text(&machine, &long)]);
        driver.reset();
        let rings = driver.start(feature::RING_RESET);
        print(&driver, &rings[1], &[text(&machine, b"zero to nine")]);
        let mut seen = Vec::new();
        while !seen.ends_with(b"zero to nine") {
            seen.extend(read(&mut screen, 1));
        }
        assert!(seen.len() < long.len());
        // The same for the queue alone.
        print(&driver, &rings[1], &[text(&machine, &long)]);
        driver.set(Reg::QueueSelect, 1);
        driver.set(Reg::QueueReset, 1);
        let ring = driver.ring(1, 64, 0);
        driver.enable(&ring);
        print(&driver, &ring, &[text(&machine, b"nine to zero")]);
        seen.clear();
        while !seen.ends_with(b"nine to zero") {
            seen.extend(read(&mut screen, 1));
        }
    });
}

#[test]
fn con_23_input_goes_on_after_a_reset() {
    let (machine, mut keyboard, _screen) = console(MODERN);
    let driver = Driver::find(&machine, 1, MODERN);
    for round in 0..20_u8 {
        let rings = driver.start(0);
        let at = machine.ram(16, 1);
        for _ in 0..8 {
            rings[0].post(&[Buf::room(at, 16)]);
        }
        driver.kick(RECEIVE);
        keyboard.write_all(&[round]).unwrap();
        assert_eq!(rings[0].wait().1, 1);
        assert_eq!(machine.bytes(at, 1), [round]);
        driver.expect_queue(RECEIVE);
        driver.reset();
    }
}
