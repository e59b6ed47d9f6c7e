//! The console device with several ports (VIRTIO 1.3 §5.3.2, §5.3.6.2), sizes, and the emergency write.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::console_hosts::{Scratch, console};
use crate::driver::way::{MODERN, every_way, legacy_ways};
use crate::driver::{Buf, Driver, Machine, Ring, Way, feature, patiently};

const SIZE: u128 = 1;
pub const MULTIPORT: u128 = 2;
pub const CONTROL_RECEIVE: u16 = 2;
pub const CONTROL_TRANSMIT: u16 = 3;

pub const DEVICE_READY: u16 = 0;
pub const PORT_ADD: u16 = 1;
pub const PORT_READY: u16 = 3;
pub const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
pub const PORT_OPEN: u16 = 6;
pub const PORT_NAME: u16 = 7;

/// A driver of a console with several ports, and its rings.
pub struct Ports<'m> {
    pub driver: Driver<'m>,
    pub rings: Vec<Ring<'m>>,
}

impl<'m> Ports<'m> {
    pub fn start(machine: &'m Machine, way: Way) -> Self {
        let driver = Driver::find(machine, 1, way);
        let rings = driver.start(SIZE & driver.offered() | MULTIPORT);
        Self { driver, rings }
    }

    /// Gives the device room for one message.
    pub fn room(&self, len: u32) -> u64 {
        let at = self.driver.machine.ram(len.into(), 4);
        self.rings[usize::from(CONTROL_RECEIVE)].post(&[Buf::room(at, len)]);
        self.driver.kick(CONTROL_RECEIVE);
        at
    }

    /// The next message: port, event, value, and what follows.
    pub fn hear(&self) -> (u32, u16, u16, Vec<u8>) {
        let at = self.room(64);
        self.heard(at)
    }

    pub fn heard(&self, at: u64) -> (u32, u16, u16, Vec<u8>) {
        let (_, len) = self.rings[usize::from(CONTROL_RECEIVE)].wait();
        let bytes = self.driver.machine.bytes(at, usize::try_from(len).unwrap());
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (u32::from(half(0)) | u32::from(half(2)) << 16, half(4), half(6), bytes[8..].to_vec())
    }

    /// Sends bytes on the control queue; they come back at once, whatever they are.
    fn say_raw(&self, bytes: &[u8]) {
        let at = self.driver.machine.ram(bytes.len() as u64, 1);
        self.driver.machine.set_bytes(at, bytes);
        let ring = &self.rings[usize::from(CONTROL_TRANSMIT)];
        ring.post(&[Buf::out(at, u32::try_from(bytes.len()).unwrap())]);
        self.driver.kick(CONTROL_TRANSMIT);
        assert_eq!(ring.wait().1, 0);
    }

    pub fn say(&self, port: u32, event: u16, value: u16) {
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        self.say_raw(&bytes);
    }

    /// Nothing is to be heard now. Who asks leaves room for the next message.
    pub fn expect_silence(&self) -> u64 {
        let at = self.room(64);
        self.driver.settle();
        assert_eq!(self.rings[usize::from(CONTROL_RECEIVE)].take(), None);
        at
    }

    /// The whole handshake as Linux has it, without looking.
    pub fn introduce(&self, ports: u32) {
        self.say(u32::MAX, DEVICE_READY, 1);
        (0..ports).for_each(|port| assert_eq!(self.hear(), (port, PORT_ADD, 0, vec![])));
    }
}

pub fn text(machine: &Machine, text: &[u8]) -> Buf {
    let at = machine.ram(text.len() as u64, 1);
    machine.set_bytes(at, text);
    Buf::out(at, u32::try_from(text.len()).unwrap())
}

pub const THREE: &str = "hostdev=</dev/null,hostdev=>/dev/null,console=second,hostdev=</dev/null,hostdev=>/dev/null,\
                     port=org.mote.test,hostdev=</dev/null,hostdev=>/dev/null";

#[test]
fn con_01_there_are_two_queues_for_each_port_and_two_for_control() {
    every_way(|way| {
        let machine = console(THREE, way);
        let ports = Ports::start(&machine, way);
        assert_eq!(ports.rings.len(), 8);
        assert_eq!(ports.driver.read_config(4, 4), 3, "max_nr_ports");
        assert_eq!(ports.driver.offered() & 7, MULTIPORT | 4);
    });
}

#[test]
fn con_10_a_driver_that_refuses_multiport_has_port_0() {
    every_way(|way| {
        let scratch = Scratch::new();
        let out = scratch.path("out");
        let machine = console(&format!("hostdev=>{out},port=p,hostdev=>/dev/null"), way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        rings[1].post(&[text(&machine, b"plain")]);
        driver.kick(1);
        rings[1].wait();
        assert_eq!(fs::read(&out).unwrap(), b"plain");
        // The other queues lead nowhere.
        rings[3].post(&[text(&machine, &[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0])]);
        rings[5].post(&[text(&machine, b"nowhere")]);
        [2, 3, 4, 5].into_iter().for_each(|queue| driver.kick(queue));
        driver.settle();
        assert_eq!((rings[3].used_index(), rings[5].used_index()), (0, 0));
        assert!(!driver.needs_reset());
    });
}

#[test]
fn con_12_every_port_is_added_when_the_driver_is_ready_and_not_before() {
    every_way(|way| {
        let machine = console(THREE, way);
        let ports = Ports::start(&machine, way);
        let room = ports.expect_silence();
        ports.say(u32::MAX, DEVICE_READY, 1);
        assert_eq!(ports.heard(room), (0, PORT_ADD, 0, vec![]));
        assert_eq!(ports.hear(), (1, PORT_ADD, 0, vec![]));
        assert_eq!(ports.hear(), (2, PORT_ADD, 0, vec![]));
        ports.expect_silence();
    });
}

#[test]
fn con_13_a_port_is_not_added_twice() {
    every_way(|way| {
        let machine = console(THREE, way);
        let ports = Ports::start(&machine, way);
        ports.introduce(3);
        ports.say(u32::MAX, DEVICE_READY, 1);
        ports.expect_silence();
    });
}

#[test]
fn con_11_a_driver_that_is_not_ready_is_told_nothing() {
    let machine = console(THREE, MODERN);
    let ports = Ports::start(&machine, MODERN);
    ports.say(u32::MAX, DEVICE_READY, 0);
    ports.expect_silence();
}

#[test]
fn con_15_a_port_is_described_when_the_driver_is_ready_for_it() {
    every_way(|way| {
        let machine = console(THREE, way);
        let ports = Ports::start(&machine, way);
        ports.introduce(3);
        ports.say(1, PORT_READY, 1);
        assert_eq!([0; 3].map(|_| ports.hear().1), [CONSOLE_PORT, PORT_NAME, PORT_OPEN]);
        // Said twice, it is heard once; the driver that failed to add a port forgets it.
        ports.say(1, PORT_READY, 1);
        let room = ports.expect_silence();
        ports.say(1, PORT_READY, 0);
        ports.say(1, PORT_READY, 1);
        assert_eq!(ports.heard(room).1, CONSOLE_PORT);
    });
}

#[test]
fn con_16_consoles_are_told_from_other_ports() {
    every_way(|way| {
        let machine = console(THREE, way);
        let ports = Ports::start(&machine, way);
        ports.introduce(3);
        ports.say(0, PORT_READY, 1);
        assert_eq!(ports.hear(), (0, CONSOLE_PORT, 1, vec![]), "Linux wants a value other than 0");
        assert_eq!(ports.hear(), (0, PORT_OPEN, 1, vec![]));
        ports.say(2, PORT_READY, 1);
        assert_eq!([0; 2].map(|_| ports.hear().1), [PORT_NAME, PORT_OPEN]);
    });
}

#[test]
fn con_19_a_name_is_as_long_as_its_message_and_has_no_nul() {
    every_way(|way| {
        let machine = console(THREE, way);
        let ports = Ports::start(&machine, way);
        ports.introduce(3);
        ports.say(2, PORT_READY, 1);
        assert_eq!(ports.hear(), (2, PORT_NAME, 1, b"org.mote.test".to_vec()));
        assert_eq!(ports.hear(), (2, PORT_OPEN, 1, vec![]));
    });
}

#[test]
fn con_24_a_legacy_driver_finds_configuration_and_control_in_its_byte_order() {
    legacy_ways(|way| {
        let machine = console(THREE, way);
        let ports = Ports::start(&machine, way);
        let bytes: Vec<u64> = (4..8).map(|at| ports.driver.read_config(at, 1)).collect();
        assert_eq!(bytes, [3, 0, 0, 0], "an x86 guest's");
        ports.say_raw(&[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0]);
        ports.hear();
        assert_eq!(ports.hear(), (1, PORT_ADD, 0, vec![]));
    });
}

#[test]
fn con_18_what_opens_and_closes_is_seen_on_both_sides() {
    every_way(|way| {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let machine = console(&format!("hostdev=>/dev/null,port=p,hostdev=unix:{socket}"), way);
        let ports = Ports::start(&machine, way);
        ports.introduce(2);
        ports.say(1, PORT_READY, 1);
        assert_eq!(ports.hear(), (1, PORT_NAME, 1, b"p".to_vec()));
        let room = ports.expect_silence();
        let mut client = UnixStream::connect(&socket).unwrap();
        assert_eq!(ports.heard(room), (1, PORT_OPEN, 1, vec![]));
        // Nothing is for a guest that has not opened it.
        client.write_all(b"early").unwrap();
        let at = machine.ram(16, 1);
        ports.rings[4].post(&[Buf::room(at, 16)]);
        ports.driver.kick(4);
        ports.driver.settle();
        assert_eq!(ports.rings[4].take(), None);
        ports.say(1, PORT_OPEN, 1);
        assert_eq!(ports.rings[4].wait().1, 5);
        assert_eq!(machine.bytes(at, 5), b"early");
        ports.rings[5].post(&[text(&machine, b"answer")]);
        ports.driver.kick(5);
        ports.rings[5].wait();
        // The guest hangs up, and the host sees the end.
        ports.say(1, PORT_OPEN, 0);
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"answer");
        assert_eq!(ports.hear(), (1, PORT_OPEN, 0, vec![]));
        // The next one, who hangs up first.
        ports.say(1, PORT_OPEN, 1);
        let client = UnixStream::connect(&socket).unwrap();
        assert_eq!(ports.hear(), (1, PORT_OPEN, 1, vec![]));
        ports.rings[4].post(&[Buf::room(at, 16)]);
        ports.driver.kick(4);
        drop(client);
        assert_eq!(ports.hear(), (1, PORT_OPEN, 0, vec![]));
    });
}

#[test]
fn con_18_clients_come_and_go_while_the_guest_has_the_port_closed() {
    every_way(|way| {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let machine = console(&format!("hostdev=>/dev/null,port=p,hostdev=unix:{socket}"), way);
        let ports = Ports::start(&machine, way);
        ports.introduce(2);
        ports.say(1, PORT_READY, 1);
        assert_eq!(ports.hear(), (1, PORT_NAME, 1, b"p".to_vec()));
        for _ in 0..2 {
            let client = UnixStream::connect(&socket).unwrap();
            assert_eq!(ports.hear(), (1, PORT_OPEN, 1, vec![]));
            drop(client);
            assert_eq!(ports.hear(), (1, PORT_OPEN, 0, vec![]));
        }
        // What one has left is the guest's, however late it opens the port; the next one waits.
        let mut client = UnixStream::connect(&socket).unwrap();
        assert_eq!(ports.hear(), (1, PORT_OPEN, 1, vec![]));
        client.write_all(b"left").unwrap();
        drop(client);
        let mut next = UnixStream::connect(&socket).unwrap();
        next.write_all(b"next").unwrap();
        let room = ports.expect_silence();
        let buffers = [machine.ram(16, 1), machine.ram(16, 1)];
        for at in buffers {
            ports.rings[4].post(&[Buf::room(at, 16)]);
        }
        ports.say(1, PORT_OPEN, 1);
        assert_eq!(ports.rings[4].wait().1, 4);
        assert_eq!(machine.bytes(buffers[0], 4), b"left");
        assert_eq!(ports.rings[4].wait().1, 4);
        assert_eq!(machine.bytes(buffers[1], 4), b"next");
        drop(next);
        // One went and one came at once, or the driver was told of both: the last news counts.
        let mut heard = ports.heard(room);
        while heard != (1, PORT_OPEN, 0, vec![]) {
            heard = ports.hear();
        }
    });
}

#[test]
fn con_18_a_port_that_the_guest_has_closed_is_connected_again() {
    every_way(|way| {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let machine = console(&format!("hostdev=>/dev/null,port=p,hostdev=unix-connect:{socket}"), way);
        let ports = Ports::start(&machine, way);
        ports.introduce(2);
        ports.say(1, PORT_READY, 1);
        assert_eq!(ports.hear(), (1, PORT_NAME, 1, b"p".to_vec()));
        assert_eq!(ports.hear(), (1, PORT_OPEN, 1, vec![]));
        drop(listener.accept().unwrap());
        assert_eq!(ports.hear(), (1, PORT_OPEN, 0, vec![]));
        let _again = listener.accept().unwrap();
        assert_eq!(ports.hear(), (1, PORT_OPEN, 1, vec![]));
    });
}

#[test]
fn con_20_messages_come_one_a_buffer_in_order_however_late_the_buffers_are() {
    every_way(|way| {
        let machine = console(THREE, way);
        let ports = Ports::start(&machine, way);
        ports.say(u32::MAX, DEVICE_READY, 1);
        (0..3).for_each(|port| ports.say(port, PORT_READY, 1));
        ports.say(2, PORT_OPEN, 1);
        let heard: Vec<_> = (0..10).map(|_| ports.hear()).map(|(port, event, ..)| (port, event)).collect();
        let expected = [
            (0, PORT_ADD),
            (1, PORT_ADD),
            (2, PORT_ADD),
            (0, CONSOLE_PORT),
            (0, PORT_OPEN),
            (1, CONSOLE_PORT),
            (1, PORT_NAME),
            (1, PORT_OPEN),
            (2, PORT_NAME),
            (2, PORT_OPEN),
        ];
        assert_eq!(heard, expected);
    });
}

#[test]
fn con_21_control_messages_without_meaning_do_no_harm() {
    every_way(|way| {
        let machine = console(THREE, way);
        let ports = Ports::start(&machine, way);
        for len in 0..8 {
            ports.say_raw(&vec![0xff; len]);
        }
        ports.say_raw(&[0xff; 4000]);
        // A port that was never added, one that does not exist, events of the device and of nobody.
        for port in [0, 1, 2, 3, 0x8000, u32::MAX] {
            for event in (1..12).chain([0x100, u16::MAX]) {
                ports.say(port, event, 1);
            }
        }
        ports.expect_silence();
        assert!(!ports.driver.needs_reset());
    });
}

#[test]
fn con_21_a_driver_that_talks_and_does_not_listen_is_heard_no_more() {
    let machine = console(THREE, MODERN);
    let ports = Ports::start(&machine, MODERN);
    ports.say(u32::MAX, DEVICE_READY, 1);
    let ring = &ports.rings[usize::from(CONTROL_TRANSMIT)];
    let bytes: Vec<u8> = [[1, 0, 0, 0, 3, 0, 0, 0], [1, 0, 0, 0, 3, 0, 1, 0]].concat();
    let (off, on) = (text(&machine, &bytes[..8]), text(&machine, &bytes[8..]));
    let mut answered = 0;
    for _ in 0..400 {
        ring.post(&[off]);
        ring.post(&[on]);
        ports.driver.kick(CONTROL_TRANSMIT);
        ports.driver.settle();
        while ring.take().is_some() {
            answered += 1;
        }
        if ring.in_flight() > 2 {
            break;
        }
    }
    assert!(ring.in_flight() > 0 && answered < 700, "{answered} messages were heard");
    // As soon as it listens, it is heard again.
    while ring.in_flight() > 0 {
        ports.hear();
        while ring.take().is_some() {}
    }
}

#[test]
fn con_22_control_buffers_of_the_wrong_direction_are_a_drivers_error() {
    for (queue, buf) in
        [(CONTROL_RECEIVE, Buf::out(0x10_0000, 8)), (CONTROL_TRANSMIT, Buf::room(0x10_0000, 8))]
    {
        let machine = console(THREE, MODERN);
        let ports = Ports::start(&machine, MODERN);
        ports.say(u32::MAX, DEVICE_READY, 1);
        ports.rings[usize::from(queue)].post(&[buf]);
        ports.driver.kick(queue);
        patiently("NEEDS_RESET", || ports.driver.needs_reset());
    }
}

#[test]
fn con_23_after_a_reset_the_handshake_starts_over() {
    every_way(|way| {
        let machine = console(THREE, way);
        let ports = Ports::start(&machine, way);
        ports.introduce(3);
        ports.say(0, PORT_READY, 1);
        let ports = Ports::start(&machine, way);
        let room = ports.expect_silence();
        ports.say(u32::MAX, DEVICE_READY, 1);
        assert_eq!(ports.heard(room), (0, PORT_ADD, 0, vec![]));
    });
}

fn resize(link: &str, columns: u16, rows: u16) {
    let slave = fs::File::options().read(true).write(true).open(link).unwrap();
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size).unwrap();
}

#[test]
fn con_05_the_size_of_port_0_is_in_the_configuration_and_its_change_is_told() {
    every_way(|way| {
        let scratch = Scratch::new();
        let link = scratch.path("pty");
        let machine = console(&format!("hostdev=pty:{link}"), way);
        let driver = Driver::find(&machine, 1, way);
        assert_eq!(driver.offered() & SIZE, SIZE);
        driver.start(SIZE);
        machine.host.take_messages();
        resize(&link, 100, 30);
        driver.expect_config();
        assert_eq!((driver.read_config(0, 2), driver.read_config(2, 2)), (100, 30));
    });
}

#[test]
fn con_17_the_size_of_a_port_is_told_by_a_message_of_12_bytes() {
    let scratch = Scratch::new();
    let links = ["one", "two"].map(|name| scratch.path(name));
    let machine = console(&format!("hostdev=pty:{},console=c,hostdev=pty:{}", links[0], links[1]), MODERN);
    let ports = Ports::start(&machine, MODERN);
    ports.introduce(2);
    ports.say(1, PORT_READY, 1);
    assert_eq!(ports.hear().1, CONSOLE_PORT);
    assert_eq!(ports.hear().1, PORT_NAME);
    assert_eq!(ports.hear(), (1, RESIZE, 0, vec![0; 4]));
    assert_eq!(ports.hear().1, PORT_OPEN);
    resize(&links[1], 132, 43);
    assert_eq!(ports.hear(), (1, RESIZE, 0, vec![132, 0, 43, 0]), "columns come first");
}

#[test]
fn con_03_an_emergency_write_is_taken_in_any_state() {
    every_way(|way| {
        let scratch = Scratch::new();
        let out = scratch.path("out");
        let machine = console(&format!("hostdev=>{out}"), way);
        let driver = Driver::find(&machine, 1, way);
        driver.write_config(8, 4, u64::from(b'A'));
        driver.set_status(crate::driver::status::FAILED);
        driver.write_config(8, 4, u64::from(b'B'));
        driver.start(feature::EVENT_IDX);
        driver.write_config(8, 1, u64::from(b'C'));
        assert_eq!(fs::read(&out).unwrap(), b"ABC");
    });
}

#[test]
fn con_04_the_low_byte_of_an_emergency_write_is_printed() {
    every_way(|way| {
        let scratch = Scratch::new();
        let out = scratch.path("out");
        let machine = console(&format!("hostdev=>{out}"), way);
        let driver = Driver::find(&machine, 1, way);
        driver.write_config(8, 4, 0x1234_5641);
        [0, 4].into_iter().for_each(|at| driver.write_config(at, 4, u64::from(b'-')));
        assert_eq!(fs::read(&out).unwrap(), b"A");
        assert_eq!(driver.read_config(8, 4), 0);
    });
}
