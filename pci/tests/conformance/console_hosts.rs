//! The console device and what its `hostdev` options name: files, FIFOs, commands, sockets, pseudo-terminals.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use devices::interrupt::Line;
use devices::location::Placement;
use devices::options::Options;
use devices::terminal::NoTerminal;
use devices::vdev::Reason;
use devices::virtio::VirtioDevice;
use devices::{Built, Context};

use crate::driver::way::MODERN;
use crate::driver::{Buf, Driver, Machine, Plug, Ring, Way, feature, patiently};

struct NoMachine;

impl devices::vdev::Machine for NoMachine {
    fn end(&self, reason: Reason) {
        panic!("no console ends the run: {reason}");
    }
}

impl Line for NoMachine {
    fn set(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a console as its user would.
pub fn build(options: &str) -> Result<Box<dyn VirtioDevice>, devices::Error> {
    let options: Options = format!("virtio-console,{options}").parse().unwrap();
    let context = Context {
        name: "console",
        place: Placement::default(),
        machine: Arc::new(NoMachine),
        is_check: false,
        claim_input: Cell::new(true),
        terminal: Arc::new(NoTerminal),
        line: &|_| Arc::new(NoMachine),
    };
    match devices::build(&options, &context)? {
        Built::Virtio(device) => Ok(device),
        _ => panic!("a console is a virtio device"),
    }
}

/// A machine with a console in slot 1.
pub fn console(options: &str, way: Way) -> Machine {
    let device = build(options).unwrap_or_else(|error| panic!("{error}"));
    Machine::new(vec![Plug { device, faces: way.faces, gsi: 16 }], way.is_showing)
}

/// A directory that goes with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mote-console-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        let mode = rustix::fs::Mode::from(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A driver with a page for each direction.
struct Talk<'m> {
    driver: Driver<'m>,
    rings: Vec<Ring<'m>>,
    page: u64,
}

const PAGE: u32 = 4096;

impl<'m> Talk<'m> {
    fn start(machine: &'m Machine) -> Self {
        let driver = Driver::find(machine, 1, MODERN);
        machine.host.forget_messages();
        let rings = driver.start(feature::EVENT_IDX);
        Self { driver, rings, page: machine.ram(u64::from(PAGE) * 2, 4096) }
    }

    /// Posts output that the device may hold on to.
    fn post(&self, text: &[u8]) {
        let at = self.driver.machine.ram(text.len() as u64, 1);
        self.driver.machine.set_bytes(at, text);
        self.rings[1].post(&[Buf::out(at, u32::try_from(text.len()).unwrap())]);
        self.driver.kick(1);
    }

    /// Prints, a page at a time, and waits for each.
    fn print(&self, text: &[u8]) {
        for chunk in text.chunks(PAGE as usize) {
            self.driver.machine.set_bytes(self.page, chunk);
            self.rings[1].post(&[Buf::out(self.page, u32::try_from(chunk.len()).unwrap())]);
            self.driver.kick(1);
            self.rings[1].wait();
        }
    }

    /// Takes what comes next.
    fn read(&self) -> Vec<u8> {
        let at = self.page + u64::from(PAGE);
        self.rings[0].post(&[Buf::room(at, PAGE)]);
        self.driver.kick(0);
        let (_, len) = self.rings[0].wait();
        self.driver.machine.bytes(at, usize::try_from(len).unwrap())
    }

    fn read_exact(&self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            bytes.extend(self.read());
        }
        assert_eq!(bytes.len(), len);
        bytes
    }
}

/// Ten megabytes that repeat nowhere near.
fn ten_megabytes() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    (0..10 << 18).flat_map(|_| next()).collect()
}

#[test]
fn a_file_is_written_anew_or_goes_on() {
    let scratch = Scratch::new();
    let file = scratch.path("log");
    for (option, expected) in [(">", "one"), (">>", "oneone"), (">", "one")] {
        let machine = console(&format!("hostdev={option}{file}"), MODERN);
        Talk::start(&machine).print(b"one");
        drop(machine);
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    }
}

#[test]
fn input_and_output_can_be_different_files() {
    let scratch = Scratch::new();
    let (input, output) = (scratch.path("in"), scratch.path("out"));
    fs::write(&input, "typed").unwrap();
    let machine = console(&format!("hostdev=<{input},hostdev=>{output}"), MODERN);
    let talk = Talk::start(&machine);
    assert_eq!(talk.read(), b"typed");
    talk.print(b"printed");
    assert_eq!(fs::read(&output).unwrap(), b"printed");
}

#[test]
fn a_back_end_that_cannot_be_opened_is_an_error() {
    for option in [
        "/no/such/device",
        "</no/such/file",
        ">/no/such/directory/file",
        "unix-connect:/no/socket",
        "/etc/passwd",
    ] {
        let error = build(&format!("hostdev={option}")).err().unwrap_or_else(|| panic!("{option} opens"));
        assert!(error.to_string().contains("console: cannot open"), "{error}");
    }
    for option in [
        "hostdev=>a,hostdev=>b",
        "hostdev=pty,hostdev=<a",
        "delayed=soon",
        "tx-backpressure=maybe",
        "port=a,port=a",
    ] {
        assert!(matches!(build(option), Err(devices::Error::Options(_))), "{option}");
    }
}

#[test]
fn a_command_gets_the_output_and_may_finish() {
    let scratch = Scratch::new();
    let file = scratch.path("copy");
    let machine = console(&format!("hostdev=>\"|sed s/one/two/ >{file}\""), MODERN);
    Talk::start(&machine).print(b"one\n");
    drop(machine);
    assert_eq!(fs::read(&file).unwrap(), b"two\n");
}

#[test]
fn ten_megabytes_go_through_fifos_each_way_unchanged() {
    let scratch = Scratch::new();
    let (input, output) = (scratch.fifo("in"), scratch.fifo("out"));
    let machine = console(&format!("hostdev=<{input},hostdev=>{output}"), MODERN);
    let talk = Talk::start(&machine);
    let bytes = ten_megabytes();
    thread::scope(|scope| {
        scope.spawn(|| File::create(&input).unwrap().write_all(&bytes).unwrap());
        let reader = scope.spawn(|| {
            let mut seen = vec![0; bytes.len()];
            File::open(&output).unwrap().read_exact(&mut seen).unwrap();
            seen
        });
        talk.print(&bytes);
        assert!(reader.join().unwrap() == bytes);
        assert!(talk.read_exact(bytes.len()) == bytes);
    });
}

#[test]
fn a_pty_carries_ten_megabytes_each_way_to_a_reader_that_stops_and_goes() {
    let scratch = Scratch::new();
    let link = scratch.path("pty");
    let machine = console(&format!("hostdev=pty:{link}"), MODERN);
    let talk = Talk::start(&machine);
    let mut user = File::options().read(true).write(true).open(&link).unwrap();
    let bytes = ten_megabytes();
    // The guest prints once somebody is there.
    user.write_all(b"!").unwrap();
    assert_eq!(talk.read(), b"!");
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = vec![0; bytes.len()];
            for (n, chunk) in seen.chunks_mut(1 << 20).enumerate() {
                (&user).read_exact(chunk).unwrap();
                // Others get their turn; nothing waits for this.
                (0..n * 100).for_each(|_| thread::yield_now());
            }
            seen
        });
        talk.print(&bytes);
        assert!(reader.join().unwrap() == bytes);
        scope.spawn(|| (&user).write_all(&bytes).unwrap());
        assert!(talk.read_exact(bytes.len()) == bytes);
    });
    drop(machine);
    assert!(fs::symlink_metadata(&link).is_err(), "the link goes with the console");
}

#[test]
fn output_waits_for_a_slow_reader_or_is_dropped_and_counted() {
    for is_kept in [true, false] {
        let scratch = Scratch::new();
        let output = scratch.fifo("out");
        let value = if is_kept { "on" } else { "off" };
        let machine = console(&format!("hostdev=>{output},tx-backpressure={value}"), MODERN);
        let talk = Talk::start(&machine);
        (0..32).for_each(|_| talk.post(&[b'x'; 8192]));
        talk.driver.settle();
        let status = machine.describe(1);
        if is_kept {
            assert!(status.contains(" 0 dropped"), "{status}");
            let mut seen = vec![0; 32 * 8192];
            File::open(&output).unwrap().read_exact(&mut seen).unwrap();
            (0..32).for_each(|_| assert_eq!(talk.rings[1].wait().1, 0));
        } else {
            (0..32).for_each(|_| assert_eq!(talk.rings[1].wait().1, 0));
            assert!(status.contains(&format!(" {} dropped", 32 * 8192 - 65536)), "{status}");
        }
    }
}

#[test]
fn a_socket_shows_who_comes_the_last_of_what_was_printed() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let machine = console(&format!("hostdev=unix:{socket}"), MODERN);
    let talk = Talk::start(&machine);
    let read = |client: &mut UnixStream, len: usize| {
        let mut bytes = vec![0; len];
        client.read_exact(&mut bytes).unwrap();
        bytes
    };
    // Nobody is there, and the guest is not held up.
    talk.print(&[b'a'; 100_000]);
    talk.print(b"last words");
    let mut client = UnixStream::connect(&socket).unwrap();
    let seen = read(&mut client, 64 << 10);
    assert!(seen.starts_with(b"aaa") && seen.ends_with(b"last words"));
    client.write_all(b"typed").unwrap();
    assert_eq!(talk.read(), b"typed");
    talk.print(b", and more");
    assert_eq!(read(&mut client, 10), b", and more");
    // The next client sees all of it again; what the first one typed before it left is not lost.
    client.write_all(b"bye").unwrap();
    drop(client);
    assert_eq!(talk.read(), b"bye");
    let mut client = UnixStream::connect(&socket).unwrap();
    talk.rings[0].post(&[Buf::room(talk.page, 8)]);
    talk.driver.kick(0);
    assert!(read(&mut client, 64 << 10).ends_with(b"last words, and more"));
    // Who has nothing more to say may still listen.
    client.shutdown(Shutdown::Write).unwrap();
    talk.print(b"!");
    assert_eq!(read(&mut client, 1), b"!");
    drop(machine);
    assert!(fs::symlink_metadata(&socket).is_err(), "the socket goes with the console");
}

#[test]
fn a_socket_that_somebody_left_behind_makes_way() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    assert!(build(&format!("hostdev=unix:{socket}")).is_err(), "somebody listens there");
    drop(listener);
    let machine = console(&format!("hostdev=unix:{socket}"), MODERN);
    UnixStream::connect(&socket).unwrap();
    drop(machine);
}

#[test]
fn a_connection_that_ends_is_made_again() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let machine = console(&format!("hostdev=unix-connect:{socket}"), MODERN);
    let talk = Talk::start(&machine);
    let (mut server, _) = listener.accept().unwrap();
    talk.print(b"one");
    let mut bytes = [0; 3];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"one");
    // The guest has room, so that the end is noticed.
    talk.rings[0].post(&[Buf::room(talk.page, 8)]);
    talk.driver.kick(0);
    drop(server);
    let (mut server, _) = listener.accept().unwrap();
    talk.print(b"two");
    let mut bytes = [0; 6];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"onetwo");
}

#[test]
fn what_is_delayed_is_opened_when_the_guest_uses_it() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let machine = console(&format!("hostdev=unix-connect:{socket},delayed=forever"), MODERN);
    let talk = Talk::start(&machine);
    talk.post(b"waits");
    talk.driver.settle();
    assert_eq!(talk.rings[1].take(), None);
    let listener = UnixListener::bind(&socket).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut bytes = [0; 5];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"waits");
    talk.rings[1].wait();
    // Once, and no more.
    let machine = console("hostdev=unix-connect:/no/such/socket,delayed=0", MODERN);
    let talk = Talk::start(&machine);
    talk.print(b"to nobody");
    patiently("dropped", || machine.describe(1).contains("9 dropped"));
}

#[test]
fn small_buffers_that_wait_together_go_out_together() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    // A datagram-like look at writes: a packet pipe tells them apart.
    let machine = console(&format!("hostdev=unix:{socket}"), MODERN);
    let talk = Talk::start(&machine);
    let at = machine.ram(64, 1);
    machine.set_bytes(at, &(b'0'..b'0' + 64).collect::<Vec<u8>>());
    for n in 0..64 {
        talk.rings[1].post(&[Buf::out(at + n, 1)]);
    }
    talk.driver.kick(1);
    (0..64).for_each(|_| assert_eq!(talk.rings[1].wait().1, 0));
    let mut client = UnixStream::connect(&socket).unwrap();
    let mut bytes = [0; 64];
    client.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().copied().eq(b'0'..b'0' + 64));
}
