//! `mc146818`: the PC's clock with its battery-backed memory (Motorola MC146818), as far as the time of day goes.
//!
//! It shows the host's time in UTC, and keeps the difference if the guest sets another. Alarms, the periodic interrupt
//! and the square wave are left out: it raises no interrupt, and says so to the guest by having none in ACPI.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use acpi_tables::{Aml, aml};

use crate::options::Options;
use crate::vdev::{Access, Effect, Vdev};
use crate::{Built, Context, Error, Kind, Platform};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "mc146818",
    about: "the CMOS clock: the time of day, without alarms and interrupts",
    options: &[crate::loc_at("io:0x70")],
    is_virtio: false,
    build,
};

/// The index port; the data port follows.
const PORT: u16 = 0x70;
const PORTS: u16 = 2;

/// The registers that are not mere memory.
mod register {
    pub(super) const SECONDS: u8 = 0;
    pub(super) const MINUTES: u8 = 2;
    pub(super) const HOURS: u8 = 4;
    pub(super) const WEEKDAY: u8 = 6;
    pub(super) const DAY: u8 = 7;
    pub(super) const MONTH: u8 = 8;
    pub(super) const YEAR: u8 = 9;
    pub(super) const A: u8 = 0x0a;
    pub(super) const B: u8 = 0x0b;
    pub(super) const C: u8 = 0x0c;
    pub(super) const D: u8 = 0x0d;
    /// Where PCs keep the century.
    pub(super) const CENTURY: u8 = 0x32;
}

/// Register B: the clock is being set, binary numbers, 24 hours.
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Register A: the usual divider and rate; never an update in progress.
const DIVIDER: u8 = 0x26;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;
/// The afternoon's bit of the hour on a clock of 12 hours.
const AFTERNOON: u8 = 1 << 7;

/// A moment, in the civil calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    /// Days since 1970-01-01.
    days: i64,
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

const DAY: i64 = 86_400;

impl Moment {
    /// From seconds since 1970. The calendar repeats itself every 400 years, which are 146,097 days.
    fn of(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // Years that begin in March have their leap day at the end.
        let shifted = days.saturating_add(719_468);
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let leaps = (of_era / 1_460).saturating_sub(of_era / 36_524).saturating_add(of_era / 146_096);
        let year_of_era = of_era.saturating_sub(leaps) / 365;
        let leap_days = (year_of_era / 4).saturating_sub(year_of_era / 100);
        let of_year = of_era.saturating_sub(year_of_era.saturating_mul(365).saturating_add(leap_days));
        let from_march = of_year.saturating_mul(5).saturating_add(2) / 153;
        let before = from_march.saturating_mul(153).saturating_add(2) / 5;
        let month = if from_march < 10 { from_march.saturating_add(3) } else { from_march.saturating_sub(9) };
        let year = era.saturating_mul(400).saturating_add(year_of_era);
        Self {
            days,
            year: if month <= 2 { year.saturating_add(1) } else { year },
            month,
            day: of_year.saturating_sub(before).saturating_add(1),
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    /// Seconds since 1970. Months, days and times beyond their ends run over into what follows.
    fn seconds(&self) -> i64 {
        let year = if self.month <= 2 { self.year.saturating_sub(1) } else { self.year };
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let from_march = self.month.saturating_add(9).rem_euclid(12);
        let before = from_march.saturating_mul(153).saturating_add(2) / 5;
        let of_year = before.saturating_add(self.day).saturating_sub(1);
        let leap_days = (of_era / 4).saturating_sub(of_era / 100);
        let of_era = of_era.saturating_mul(365).saturating_add(leap_days).saturating_add(of_year);
        let days = era.saturating_mul(146_097).saturating_add(of_era).saturating_sub(719_468);
        let minutes = self.hour.saturating_mul(60).saturating_add(self.minute);
        days.saturating_mul(DAY).saturating_add(minutes.saturating_mul(60)).saturating_add(self.second)
    }
}

struct State {
    index: u8,
    /// Seconds that the guest's clock is ahead of the host's.
    ahead: i64,
    /// The clock while the guest sets it.
    held: Option<Moment>,
    /// Register B.
    mode: u8,
    /// What is mere memory, alarms included.
    memory: [u8; 128],
}

struct Clock {
    name: &'static str,
    state: Mutex<State>,
}

fn build(_options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let state = State { index: 0, ahead: 0, held: None, mode: HOURS_24, memory: [0; 128] };
    Ok(Built::Platform(Platform {
        vdev: Arc::new(Clock { name: context.name, state: Mutex::new(state) }),
        ports: std::iter::once(PORT..PORT.saturating_add(PORTS)).collect(),
        memory: Vec::new(),
        interrupt: None,
        aml: describe(),
    }))
}

/// The clock for the guest's ACPI namespace, without an interrupt.
fn describe() -> Vec<u8> {
    let mut bytes = Vec::new();
    aml::Device::new(
        "RTC0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0B00")),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(PORT, PORT, 1, 2)]),
            ),
        ],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}

/// Seconds since 1970 on the host.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

impl State {
    fn moment(&self) -> Moment {
        self.held.unwrap_or_else(|| Moment::of(now().saturating_add(self.ahead)))
    }

    /// A number as the guest wants numbers.
    fn encode(&self, number: i64) -> u8 {
        let number = u8::try_from(number).unwrap_or(0);
        match self.mode & BINARY {
            0 => ((number / 10 % 10) << 4) | (number % 10),
            _ => number,
        }
    }

    fn decode(&self, value: u8) -> i64 {
        match self.mode & BINARY {
            0 => i64::from(value >> 4).saturating_mul(10).saturating_add(i64::from(value & 0xf)),
            _ => value.into(),
        }
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.mode & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let twelfth = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelfth) | if hour >= 12 { AFTERNOON } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> i64 {
        if self.mode & HOURS_24 != 0 {
            return self.decode(value);
        }
        let morning = self.decode(value & !AFTERNOON) % 12;
        if value & AFTERNOON == 0 { morning } else { morning.saturating_add(12) }
    }

    fn read(&self) -> u8 {
        let moment = self.moment();
        match self.index {
            register::SECONDS => self.encode(moment.second),
            register::MINUTES => self.encode(moment.minute),
            register::HOURS => self.encode_hour(moment.hour),
            // Sunday is 1; the first of January 1970 was a Thursday.
            register::WEEKDAY => self.encode(moment.days.saturating_add(4).rem_euclid(7).saturating_add(1)),
            register::DAY => self.encode(moment.day),
            register::MONTH => self.encode(moment.month),
            register::YEAR => self.encode(moment.year.rem_euclid(100)),
            register::CENTURY => self.encode(moment.year.div_euclid(100)),
            register::A => DIVIDER,
            register::B => self.mode,
            // Nothing interrupts.
            register::C => 0,
            register::D => VALID,
            index => self.memory.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }

    fn write(&mut self, value: u8) {
        if self.index == register::B {
            return self.set_mode(value);
        }
        let mut moment = self.moment();
        let number = self.decode(value);
        match self.index {
            register::SECONDS => moment.second = number,
            register::MINUTES => moment.minute = number,
            register::HOURS => moment.hour = self.decode_hour(value),
            register::DAY => moment.day = number,
            register::MONTH => moment.month = number.clamp(1, 12),
            register::YEAR => {
                let century = moment.year.div_euclid(100).saturating_mul(100);
                moment.year = century.saturating_add(number);
            }
            register::CENTURY => {
                let year = moment.year.rem_euclid(100);
                moment.year = number.saturating_mul(100).saturating_add(year);
            }
            register::WEEKDAY | register::A | register::C | register::D => return,
            index => {
                if let Some(byte) = self.memory.get_mut(usize::from(index)) {
                    *byte = value;
                }
                return;
            }
        }
        match &mut self.held {
            Some(held) => *held = moment,
            None => self.ahead = moment.seconds().saturating_sub(now()),
        }
    }

    /// The clock stands while the guest sets it. The enable bits of interrupts stay clear: there are none.
    fn set_mode(&mut self, value: u8) {
        match (value & SET != 0, self.held) {
            (true, None) => self.held = Some(self.moment()),
            (false, Some(held)) => {
                self.ahead = held.seconds().saturating_sub(now());
                self.held = None;
            }
            _ => {}
        }
        self.mode = value & (SET | BINARY | HOURS_24);
    }
}

impl Clock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vdev for Clock {
    fn name(&self) -> &str {
        self.name
    }

    fn vread(&self, at: Access, data: &mut [u8]) {
        // The index port is write-only.
        if let (1, Some(byte)) = (at.offset, data.first_mut()) {
            *byte = self.state().read();
        }
    }

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        for (offset, value) in (at.offset..u64::from(PORTS)).zip(data) {
            match offset {
                // Bit 7 masks the non-maskable interrupt, of which there is none.
                0 => self.state().index = value & 0x7f,
                _ => self.state().write(*value),
            }
        }
        Effect::None
    }

    fn status(&self) -> String {
        format!("{} s ahead of the host", self.state().ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdev::Region;

    fn clock() -> Clock {
        let state = State { index: 0, ahead: 0, held: None, mode: HOURS_24, memory: [0; 128] };
        Clock { name: "mc146818", state: Mutex::new(state) }
    }

    fn write(clock: &Clock, register: u8, value: u8) {
        let _ = clock.vwrite(Access { region: Region::Port, offset: 0 }, &[register, value]);
    }

    fn read(clock: &Clock, register: u8) -> u8 {
        let _ = clock.vwrite(Access { region: Region::Port, offset: 0 }, &[register]);
        let mut data = [0xff];
        clock.vread(Access { region: Region::Port, offset: 1 }, &mut data);
        data[0]
    }

    #[test]
    fn the_calendar_is_the_civil_one() {
        for (seconds, date) in [
            (0, (1970, 1, 1)),
            (951_782_400, (2000, 2, 29)),
            (1_709_164_800, (2024, 2, 29)),
            (4_107_542_400, (2100, 3, 1)),
            (-1, (1969, 12, 31)),
        ] {
            let moment = Moment::of(seconds);
            assert_eq!((moment.year, moment.month, moment.day), date);
        }
        for seconds in (-4_000_000_000_i64..8_000_000_000).step_by(86_400 * 13 + 12_345) {
            assert_eq!(Moment::of(seconds).seconds(), seconds);
        }
    }

    #[test]
    fn it_shows_the_hosts_time_in_the_numbers_that_the_guest_wants() {
        let clock = clock();
        let moment = Moment::of(now());
        let year = u8::try_from(moment.year % 100).unwrap();
        assert_eq!(read(&clock, 9), ((year / 10) << 4) | (year % 10));
        assert_eq!(read(&clock, 0x32), 0x20);
        write(&clock, 0x0b, BINARY | HOURS_24);
        assert_eq!(read(&clock, 9), year);
        assert_eq!((read(&clock, 0x0a) & 0x80, read(&clock, 0x0d)), (0, 0x80));
    }

    #[test]
    fn the_guest_can_set_it() {
        let clock = clock();
        write(&clock, 0x0b, SET | HOURS_24);
        for (register, value) in [(0x32, 0x20), (9, 0x31), (8, 0x12), (7, 0x24), (4, 0x18), (2, 0x30), (0, 0)]
        {
            write(&clock, register, value);
        }
        write(&clock, 0x0b, HOURS_24);
        let seen: Vec<u8> = [9, 8, 7, 4, 2].map(|register| read(&clock, register)).into();
        assert_eq!(seen, [0x31, 0x12, 0x24, 0x18, 0x30]);
        assert_eq!(read(&clock, 6), 4, "a Wednesday");
    }

    #[test]
    fn noon_and_midnight_are_twelve_on_a_clock_of_twelve_hours() {
        let state = |mode| State { index: 0, ahead: 0, held: None, mode, memory: [0; 128] };
        for (hour, shown) in [(0, 0x12), (1, 0x01), (12, 0x92), (23, 0x91)] {
            assert_eq!(state(0).encode_hour(hour), shown);
            assert_eq!(state(0).decode_hour(shown), hour);
            assert_eq!(state(HOURS_24 | BINARY).encode_hour(hour), u8::try_from(hour).unwrap());
        }
    }

    #[test]
    fn alarms_are_mere_memory_and_nothing_interrupts() {
        let clock = clock();
        write(&clock, 5, 0x07);
        write(&clock, 0x0b, 0x72 | HOURS_24);
        assert_eq!((read(&clock, 5), read(&clock, 0x0b), read(&clock, 0x0c)), (7, HOURS_24, 0));
    }
}
