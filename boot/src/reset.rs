//! The processor's reset vector, for kernels that reset a PC by jumping there.
//!
//! Linux does so where ACPI is hardware-reduced and it was not started by EFI, unless it is told `reboot=a`: EFI is
//! what it expects of such a machine, and the BIOS comes next (`arch/x86/kernel/reboot.c`).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::RESET_VECTOR;
use crate::{Error, Result};

/// Writes code to the reset vector that writes `value` to I/O port `port`, the reset register, and stops.
///
/// # Errors
///
/// [`Error::Memory`] if there is no RAM below 1 MiB.
pub fn write_reset_vector(memory: &GuestMemoryMmap, port: u16, value: u8) -> Result<()> {
    let [low, high] = port.to_le_bytes();
    // mov dx, port; mov al, value; out dx, al; hlt
    let code = [0xba, low, high, 0xb0, value, 0xee, 0xf4];
    let address = RESET_VECTOR.start;
    memory.write_slice(&code, GuestAddress(address)).map_err(|source| Error::Memory {
        what: "the reset vector",
        address,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_and_lies_where_a_processor_starts() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        write_reset_vector(&memory, 0x602, 1).unwrap();
        let mut code = [0; 8];
        memory.read_slice(&mut code, GuestAddress(0xf_fff0)).unwrap();
        assert_eq!(code, [0xba, 0x02, 0x06, 0xb0, 1, 0xee, 0xf4, 0]);
    }
}
