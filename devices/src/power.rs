//! The registers by which a guest switches itself off or resets itself (ACPI 6.5 §4.8.3.6, §4.8.3.7).

use crate::vdev::{Access, Effect, Reason, Vdev};

/// Offset of the sleep control register from the first port.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register from the first port.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register from the first port.
pub const RESET: u16 = 2;
/// How many ports there are.
pub const PORTS: u16 = 3;
/// What the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;
/// The sleep type that means "off", as `\_S5` tells it.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// SLP_EN of the sleep control register: go to sleep now.
const SLEEP_ENABLE: u8 = 1 << 5;
/// SLP_TYPx of the sleep control register: three bits from bit 2 on.
const SLEEP_TYPE_SHIFT: u32 = 2;

/// The registers. They keep nothing.
#[derive(Debug, Default)]
pub struct Power;

impl Vdev for Power {
    fn name(&self) -> &str {
        "power"
    }

    fn vread(&self, _at: Access, data: &mut [u8]) {
        data.fill(0);
    }

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        let Some(&value) = data.first() else { return Effect::None };
        let sleep = SLEEP_ENABLE | SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT;
        match u16::try_from(at.offset) {
            Ok(SLEEP_CONTROL) if value & sleep == sleep => Effect::End(Reason::PowerOff),
            Ok(RESET) if value == RESET_VALUE => Effect::End(Reason::Reset),
            _ => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdev::Region;

    fn write(offset: u16, value: u8) -> Effect {
        Power.vwrite(Access { region: Region::Port, offset: offset.into() }, &[value])
    }

    #[test]
    fn the_sleep_type_off_with_sleep_enable_powers_off() {
        assert_eq!(write(SLEEP_CONTROL, 5 << 2 | 1 << 5), Effect::End(Reason::PowerOff));
    }

    #[test]
    fn a_sleep_type_without_sleep_enable_does_nothing() {
        assert_eq!(write(SLEEP_CONTROL, 5 << 2), Effect::None);
    }

    #[test]
    fn another_sleep_type_does_nothing() {
        assert_eq!(write(SLEEP_CONTROL, 1 << 5 | 1 << 2), Effect::None);
    }

    #[test]
    fn the_reset_value_resets_and_no_other_does() {
        assert_eq!(write(RESET, RESET_VALUE), Effect::End(Reason::Reset));
        assert_eq!(write(RESET, 0xff), Effect::None);
        assert_eq!(write(SLEEP_STATUS, RESET_VALUE), Effect::None);
    }
}
