//! `pckeyboard`: as much of the PC's keyboard controller (Intel 8042) as a guest needs to reset itself by it.
//!
//! There is no keyboard and no mouse behind it: it passes its self-test, says that its buffers are empty, and pulses the
//! reset line when asked. It raises no interrupt.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::options::Options;
use crate::vdev::{Access, Effect, Reason, Vdev};
use crate::{Built, Context, Error, Kind, Platform};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "pckeyboard",
    about: "a keyboard controller without keyboard, for guests that reset by it",
    options: &[crate::loc_at("io:0x60")],
    is_virtio: false,
    build,
};

/// The data port, and where the command port is from there. Port 0x61 between them belongs to the timer.
const DATA: u16 = 0x60;
const COMMAND: u64 = 4;

/// Bits of the status register.
mod status {
    pub(super) const OUTPUT_FULL: u8 = 1 << 0;
    pub(super) const SELF_TESTED: u8 = 1 << 2;
    pub(super) const LAST_WAS_COMMAND: u8 = 1 << 3;
    pub(super) const UNLOCKED: u8 = 1 << 4;
}

/// Commands.
mod command {
    pub(super) const READ_CONFIG: u8 = 0x20;
    pub(super) const WRITE_CONFIG: u8 = 0x60;
    pub(super) const TEST_MOUSE: u8 = 0xa9;
    pub(super) const SELF_TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    /// Gives the next byte back as if the mouse had sent it.
    pub(super) const LOOP_MOUSE: u8 = 0xd3;
    /// Pulses those of the output port's low bits that are clear in the command; bit 0 is the reset line.
    pub(super) const PULSE: u8 = 0xf0;
}

/// The configuration byte after reset: keyboard and mouse off, scan codes not translated.
const CONFIG: u8 = 0x30;
/// The output port: the reset line high, the A20 gate open.
const OUTPUT_PORT: u8 = 0x03;

#[derive(Default)]
struct State {
    config: u8,
    /// A byte for the guest to read.
    output: Option<u8>,
    /// The command whose data byte comes next.
    expects: Option<u8>,
    was_command: bool,
}

struct Keyboard {
    name: &'static str,
    state: Mutex<State>,
}

fn build(_options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let state = Mutex::new(State { config: CONFIG, ..State::default() });
    let command = DATA.saturating_add(4);
    Ok(Built::Platform(Platform {
        vdev: Arc::new(Keyboard { name: context.name, state }),
        ports: vec![DATA..DATA.saturating_add(1), command..command.saturating_add(1)],
        memory: Vec::new(),
        interrupt: None,
        // Without a description Linux probes the ports if the FADT says that there is a controller.
        aml: Vec::new(),
    }))
}

impl Keyboard {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn status(&self) -> u8 {
        let output = if self.output.is_some() { status::OUTPUT_FULL } else { 0 };
        let last = if self.was_command { status::LAST_WAS_COMMAND } else { 0 };
        status::SELF_TESTED | status::UNLOCKED | output | last
    }

    fn command(&mut self, value: u8) -> Effect {
        self.was_command = true;
        self.expects = None;
        match value {
            command::READ_CONFIG => self.output = Some(self.config),
            command::WRITE_CONFIG | command::WRITE_OUTPUT_PORT | command::LOOP_MOUSE => {
                self.expects = Some(value);
            }
            // That its clock line is stuck. A driver that gets no answer would ask 10,000 times.
            command::TEST_MOUSE => self.output = Some(1),
            command::SELF_TEST => self.output = Some(0x55),
            command::TEST_KEYBOARD => self.output = Some(0),
            command::READ_OUTPUT_PORT => self.output = Some(OUTPUT_PORT),
            _ if value & command::PULSE == command::PULSE && value & 1 == 0 => {
                return Effect::End(Reason::Reset);
            }
            _ => {}
        }
        Effect::None
    }

    fn data(&mut self, value: u8) -> Effect {
        self.was_command = false;
        match self.expects.take() {
            Some(command::WRITE_CONFIG) => self.config = value,
            // The processor runs only while the reset line is high.
            Some(command::WRITE_OUTPUT_PORT) if value & 1 == 0 => return Effect::End(Reason::Reset),
            // But as if the keyboard had sent it: there is no mouse.
            Some(command::LOOP_MOUSE) => self.output = Some(value),
            // For the keyboard, which is not there and does not answer.
            _ => {}
        }
        Effect::None
    }
}

impl Vdev for Keyboard {
    fn name(&self) -> &str {
        self.name
    }

    fn vread(&self, at: Access, data: &mut [u8]) {
        let mut state = self.state();
        if let Some(byte) = data.first_mut() {
            *byte = match at.offset {
                COMMAND => state.status(),
                _ => state.output.take().unwrap_or(0),
            };
        }
    }

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        let Some(&value) = data.first() else { return Effect::None };
        match at.offset {
            COMMAND => self.state().command(value),
            _ => self.state().data(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdev::Region;

    fn keyboard() -> Keyboard {
        Keyboard { name: "pckeyboard", state: Mutex::new(State { config: CONFIG, ..State::default() }) }
    }

    fn write(keyboard: &Keyboard, offset: u64, value: u8) -> Effect {
        keyboard.vwrite(Access { region: Region::Port, offset }, &[value])
    }

    fn read(keyboard: &Keyboard, offset: u64) -> u8 {
        let mut data = [0xff];
        keyboard.vread(Access { region: Region::Port, offset }, &mut data);
        data[0]
    }

    #[test]
    fn the_reset_line_resets() {
        assert_eq!(write(&keyboard(), COMMAND, 0xfe), Effect::End(Reason::Reset));
        let keyboard = keyboard();
        assert_eq!(write(&keyboard, COMMAND, 0xd1), Effect::None);
        assert_eq!(write(&keyboard, 0, 0x02), Effect::End(Reason::Reset));
    }

    #[test]
    fn other_pulses_do_not() {
        assert_eq!(write(&keyboard(), COMMAND, 0xff), Effect::None);
        assert_eq!(write(&keyboard(), 0, 0xfe), Effect::None);
    }

    #[test]
    fn a_driver_finds_a_controller_with_nothing_behind_it() {
        let keyboard = keyboard();
        assert_eq!(read(&keyboard, COMMAND) & 3, 0, "both buffers are empty");
        let _ = write(&keyboard, COMMAND, 0xaa);
        assert_eq!((read(&keyboard, COMMAND) & 1, read(&keyboard, 0)), (1, 0x55));
        let _ = write(&keyboard, COMMAND, 0x60);
        let _ = write(&keyboard, 0, 0x65);
        let _ = write(&keyboard, COMMAND, 0x20);
        assert_eq!(read(&keyboard, 0), 0x65);
        let _ = write(&keyboard, 0, 0xf2);
        assert_eq!(read(&keyboard, COMMAND) & 1, 0, "no keyboard answers");
    }
}
