//! `ser8250`: the PC's first serial port on standard input and output. The registers are vm-superio's.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use acpi_tables::{Aml, aml};
use log::{error, warn};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vm_superio::serial::{NoEvents, Serial};

use crate::interrupt::Line;
use crate::options::Options;
use crate::stream::{Stream, Way};
use crate::vdev::{Access, Effect, Vdev};
use crate::{Built, Context, Error, Kind, Platform};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "ser8250",
    about: "the serial port ttyS0 on standard input and output",
    options: &[],
    is_virtio: false,
    build,
};

const PORT: u16 = 0x3f8;
const PORTS: u16 = 8;
const INTERRUPT: u32 = 4;
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

/// What goes to the host, and waits here while the host is slow.
struct Output {
    stream: Option<Stream>,
    pending: VecDeque<u8>,
    dropped: u64,
}

impl Output {
    /// Writes what the host takes now.
    fn drain(&mut self) {
        while let (Some(stream), (bytes, _)) = (&mut self.stream, self.pending.as_slices()) {
            if bytes.is_empty() {
                return;
            }
            match stream.write(bytes) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn!("{}: cannot write output, so it is dropped from now on: {error}", KIND.name);
                    self.stream = None;
                    self.pending.clear();
                }
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stream.is_none() || self.pending.len() >= MAX_PENDING {
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
    input: Option<Stream>,
    /// The thread waits for the guest to make room for input.
    is_full: bool,
    thread: Option<JoinHandle<()>>,
}

struct Ser8250 {
    state: Mutex<State>,
    control: rustix::fd::OwnedFd,
    is_stopping: AtomicBool,
}

fn build(_options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let error = |path: &str| {
        let path = path.into();
        move |source: io::Error| Error::Open { vdev: KIND.name, path, source }
    };
    let input = context.claim_input.take();
    let input = input.then(|| Stream::of(io::stdin().as_fd(), Way::In)).transpose();
    let input = input.map_err(error("standard input"))?;
    let stream = Some(Stream::of(io::stdout().as_fd(), Way::Out).map_err(error("standard output"))?);
    let output = Output { stream, pending: VecDeque::new(), dropped: 0 };
    let control = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
    let control = control.map_err(|e| Error::Worker { vdev: KIND.name, source: e.into() })?;
    let uart = Serial::new(Edge((context.line)(INTERRUPT)), output);
    let state = Mutex::new(State { uart, input, is_full: false, thread: None });
    let vdev = Arc::new(Ser8250 { state, control, is_stopping: AtomicBool::new(false) });
    Ok(Built::Platform(Platform { vdev, port: PORT, ports: PORTS, aml: describe() }))
}

/// The port for the guest's ACPI namespace: a 16550A, edge-triggered and active high (ACPI 6.5 §19.6).
fn describe() -> Vec<u8> {
    let mut bytes = Vec::new();
    aml::Device::new(
        "COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &0_u8),
            &aml::Name::new("_STA".into(), &0xf_u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(PORT, PORT, 1, 8),
                    &aml::Interrupt::new(true, true, false, false, INTERRUPT),
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

    /// The thread: waits for input that the UART has room for, and for the host to take output.
    fn run(&self) {
        while !self.is_stopping.load(Ordering::Acquire) {
            // The streams stay open as long as the device, so waiting on duplicates of them needs no lock.
            let (input, output) = self.state().awaited();
            let mut fds = vec![PollFd::new(&self.control, PollFlags::IN)];
            fds.extend(input.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            fds.extend(output.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT)));
            if let Err(error) = poll(&mut fds, None)
                && error != rustix::io::Errno::INTR
            {
                return error!("{}: cannot wait for input: {error}", KIND.name);
            }
            let _ = rustix::io::read(&self.control, &mut [0; 8]);
            let mut state = self.state();
            state.receive();
            state.uart.writer_mut().drain();
        }
    }
}

impl State {
    /// Duplicates of the descriptors that there is reason to wait for.
    fn awaited(&self) -> (Option<rustix::fd::OwnedFd>, Option<rustix::fd::OwnedFd>) {
        let has_room = self.uart.fifo_capacity() > 0;
        let input = self.input.as_ref().filter(|_| has_room).and_then(Stream::duplicate);
        let output = self.uart.writer();
        let output =
            output.stream.as_ref().filter(|_| !output.pending.is_empty()).and_then(Stream::duplicate);
        (input, output)
    }

    /// Moves input to the UART, as much as it has room for.
    fn receive(&mut self) {
        let mut buffer = [0; 64];
        while let Some(input) = &mut self.input {
            let room = self.uart.fifo_capacity().min(buffer.len());
            self.is_full = room == 0;
            let Some(buffer) = buffer.get_mut(..room).filter(|b| !b.is_empty()) else { return };
            match input.read(buffer) {
                Ok(0) => self.input = None,
                Ok(count) => {
                    if let Err(error) = self.uart.enqueue_raw_bytes(buffer.get(..count).unwrap_or_default()) {
                        warn!("{}: input lost: {error:?}", KIND.name);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn!("{}: cannot read input, so there is none from now on: {error}", KIND.name);
                    self.input = None;
                }
            }
        }
    }
}

impl Vdev for Ser8250 {
    fn name(&self) -> &str {
        KIND.name
    }

    fn guest_configured(self: Arc<Self>) -> Result<(), Error> {
        let this = Arc::clone(&self);
        let thread = Builder::new().name(KIND.name.into()).spawn(move || this.run());
        let thread = thread.map_err(|source| Error::Worker { vdev: KIND.name, source })?;
        self.state().thread = Some(thread);
        Ok(())
    }

    fn vread(&self, at: Access, data: &mut [u8]) {
        let mut state = self.state();
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
        for (offset, byte) in (at.offset..u64::from(PORTS)).zip(data) {
            // What can fail is the interrupt, and then the guest polls.
            let _ = state.uart.write(u8::try_from(offset).unwrap_or(u8::MAX), *byte);
        }
        if !state.uart.writer().pending.is_empty() {
            self.wake();
        }
        Effect::None
    }

    fn status(&self) -> String {
        let state = self.state();
        let output = state.uart.writer();
        format!("{} bytes of output wait, {} dropped", output.pending.len(), output.dropped)
    }

    fn terminate(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.wake();
        let thread = self.state().thread.take();
        if thread.is_some_and(|t| t.join().is_err()) {
            error!("{}: the device's thread panicked", KIND.name);
        }
        self.state().uart.writer_mut().drain();
    }
}
