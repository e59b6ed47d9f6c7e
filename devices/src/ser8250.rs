//! `ser8250`: a PC's serial port on the terminal, or wherever its user wants it. The registers are vm-superio's.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use acpi_tables::{Aml, aml};
use log::{error, warn};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vm_superio::serial::{NoEvents, Serial};

use crate::console::{DELAYED, HOSTDEV, setup};
use crate::hostdev::{HostDevice, Place, Setup, Spec};
use crate::interrupt::Line;
use crate::options::Options;
use crate::poller::Poller;
use crate::stream::Way;
use crate::thread::named;
use crate::vdev::{Access, Effect, Vdev};
use crate::{Built, Context, Error, Kind, OptionHelp, Platform};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "ser8250",
    about: "the serial port ttyS0, on the terminal by default",
    options: &[crate::LOC_PORT, crate::INTR, HOSTDEV, DELAYED, EARLY],
    is_virtio: false,
    build,
};

/// For messages that come before there is another console.
const EARLY: OptionHelp = OptionHelp {
    name: "early",
    value: "",
    about: "show the kernel's first messages, until another console takes over; hostdev is >- by default",
};

const PORTS: u16 = 8;
/// The places that a PC's serial ports have, COM1 to COM4, each with its interrupt.
const PLACES: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// Output that the host has not taken yet. A UART cannot make its guest wait, so beyond this it is dropped.
const MAX_PENDING: usize = 1 << 20;

/// The interrupt output: an edge for each event.
struct Edge(Arc<dyn Line>);

impl vm_superio::Trigger for Edge {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.set(true)?;
        self.0.set(false)
    }
}

/// The host's end, and what waits here while the host is slow.
struct Output {
    host: HostDevice,
    pending: VecDeque<u8>,
    dropped: u64,
}

impl Output {
    /// Writes what the host takes now.
    fn drain(&mut self) {
        while !self.pending.is_empty() {
            let taken = self.host.send(self.pending.as_slices().0);
            self.pending.drain(..taken.min(self.pending.len()));
            if taken == 0 {
                return;
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.pending.len() >= MAX_PENDING {
            self.dropped = self.dropped.saturating_add(1);
            return Ok(bytes.len());
        }
        self.pending.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.drain();
        Ok(())
    }
}

/// All that the lock holds.
struct State {
    uart: Serial<Edge, NoEvents, Output>,
    /// The thread waits for the guest to make room for input.
    is_full: bool,
    thread: Option<JoinHandle<()>>,
}

struct Ser8250 {
    name: &'static str,
    state: Mutex<State>,
    poller: Arc<Poller>,
    control: rustix::fd::OwnedFd,
    is_stopping: AtomicBool,
}

fn build(options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let vdev = if context.name.is_empty() { KIND.name } else { context.name };
    let worker = |source| Error::Worker { vdev, source };
    let poller = Arc::new(Poller::new().map_err(worker)?);
    let host = HostDevice::open(host(options, context, vdev)?, Arc::clone(&poller), 0);
    let host = host.map_err(|(what, source)| Error::Open { vdev, path: what.into(), source })?;
    if let Some(pty) = host.pty() {
        context.machine.add_pty(vdev, None, pty);
    }
    let output = Output { host, pending: VecDeque::new(), dropped: 0 };
    let control = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
    let control = control.map_err(|e| worker(e.into()))?;
    let port = context.place.port_or(0x3f8);
    let ports =
        port..port.checked_add(PORTS).ok_or_else(|| options.bad_value("loc", "ports end at 0xffff"))?;
    let usual = PLACES.iter().find(|place| place.0 == port).map_or(4, |place| place.1);
    let interrupt = context.place.interrupt_or(usual);
    let uart = Serial::new(Edge((context.line)(interrupt)), output);
    let state = Mutex::new(State { uart, is_full: false, thread: None });
    let is_stopping = AtomicBool::new(false);
    let vdev = Arc::new(Ser8250 { name: vdev, state, poller, control, is_stopping });
    let aml = describe(port, interrupt);
    Ok(Built::Platform(Platform {
        vdev,
        ports: vec![ports],
        memory: Vec::new(),
        interrupt: Some(interrupt),
        aml,
    }))
}

/// The host's end that the options describe.
fn host(options: &Options, context: &Context<'_>, vdev: &'static str) -> Result<Setup, Error> {
    let mut host = Setup {
        vdev,
        specs: Vec::new(),
        delayed: None,
        has_backpressure: true,
        has_replay: true,
        terminal: Arc::clone(&context.terminal),
    };
    for (name, value) in &options.options {
        let value = value.as_deref().unwrap_or_default();
        setup::set(&mut host, name, value).map_err(|problem| options.bad_value(name, problem))?;
    }
    if host.specs.is_empty() {
        let way = options.has("early").then_some(Way::Out);
        host.specs.push(Spec { way, place: Place::Stdio });
    }
    setup::claim_input(&mut host, context);
    if context.is_check {
        host.specs.clear();
    }
    Ok(host)
}

/// The port for the guest's ACPI namespace: a 16550A, edge-triggered and active high (ACPI 6.5 §19.6).
fn describe(port: u16, interrupt: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml::Device::new(
        // No other has these ports, so no other has this name.
        format!("S{port:03X}").get(..4).unwrap_or("S000").into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &port),
            &aml::Name::new("_STA".into(), &0xf_u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(port, port, 1, 8),
                    &aml::Interrupt::new(true, true, false, false, interrupt),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}

impl Ser8250 {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.control, &1_u64.to_ne_bytes());
    }

    /// The thread: waits for the host.
    fn run(&self) {
        // From here on input is waited for.
        self.state().receive(self.name);
        while !self.is_stopping.load(Ordering::Acquire) {
            let mut fds =
                [PollFd::new(&self.control, PollFlags::IN), PollFd::new(&self.poller, PollFlags::IN)];
            if let Err(error) = poll(&mut fds, None)
                && error != rustix::io::Errno::INTR
            {
                return error!("{}: cannot wait for input: {error}", self.name);
            }
            let _ = rustix::io::read(&self.control, &mut [0; 8]);
            let mut state = self.state();
            for token in self.poller.take() {
                state.uart.writer_mut().host.handle(token);
            }
            state.receive(self.name);
            state.uart.writer_mut().drain();
        }
    }
}

impl State {
    /// Moves input to the UART, as much as it has room for.
    fn receive(&mut self, name: &str) {
        let mut buffer = [0; 64];
        loop {
            let room = self.uart.fifo_capacity().min(buffer.len());
            self.is_full = room == 0;
            let Some(buffer) = buffer.get_mut(..room).filter(|b| !b.is_empty()) else {
                return self.uart.writer_mut().host.await_input(false);
            };
            let count = self.uart.writer_mut().host.read(buffer);
            if count == 0 {
                return;
            }
            if let Err(error) = self.uart.enqueue_raw_bytes(buffer.get(..count).unwrap_or_default()) {
                warn!("{name}: input lost: {error:?}");
            }
        }
    }
}

impl Vdev for Ser8250 {
    fn name(&self) -> &str {
        self.name
    }

    fn guest_configured(self: Arc<Self>) -> Result<(), Error> {
        let this = Arc::clone(&self);
        let thread = named(self.name).spawn(move || this.run());
        let thread = thread.map_err(|source| Error::Worker { vdev: self.name, source })?;
        self.state().thread = Some(thread);
        Ok(())
    }

    fn vread(&self, at: Access, data: &mut [u8]) {
        let mut state = self.state();
        state.uart.writer_mut().host.touch();
        // The registers are bytes; wider accesses are as many of them.
        for (offset, byte) in (at.offset..u64::from(PORTS)).zip(data) {
            *byte = state.uart.read(u8::try_from(offset).unwrap_or(u8::MAX));
        }
        if state.is_full && state.uart.fifo_capacity() > 0 {
            state.is_full = false;
            self.wake();
        }
    }

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        let mut state = self.state();
        state.uart.writer_mut().host.touch();
        for (offset, byte) in (at.offset..u64::from(PORTS)).zip(data) {
            // What can fail is the interrupt, and then the guest polls.
            let _ = state.uart.write(u8::try_from(offset).unwrap_or(u8::MAX), *byte);
        }
        Effect::None
    }

    fn status(&self) -> String {
        let state = self.state();
        let output = state.uart.writer();
        let host = output.host.status();
        format!("{host}; {} bytes of output wait, {} lost", output.pending.len(), output.dropped)
    }

    fn terminate(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.wake();
        let thread = self.state().thread.take();
        if thread.is_some_and(|t| t.join().is_err()) {
            error!("{}: the device's thread panicked", self.name);
        }
        self.state().uart.writer_mut().drain();
    }
}
