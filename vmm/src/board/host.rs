//! What a board's vdevs are wired to: the lines of a host, and a host that leads nowhere.

use std::io;
use std::sync::Arc;

use devices::interrupt;
use pci::host::{Bell, Host};
use vmm_sys_util::eventfd::EventFd;

/// A machine without KVM: everything can be put into it, and nothing comes of it.
pub(crate) struct Unplugged;

impl Host for Unplugged {
    fn send_msi(&self, _address: u64, _data: u32) -> io::Result<()> {
        Ok(())
    }

    fn set_line(&self, _gsi: u32, _is_high: bool) -> io::Result<()> {
        Ok(())
    }

    fn bind_doorbell(&self, _bell: Bell, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn unbind_doorbell(&self, _bell: Bell, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

/// An input of the I/O APIC.
struct Input {
    host: Arc<dyn Host>,
    gsi: u32,
}

impl interrupt::Line for Input {
    fn set(&self, is_high: bool) -> io::Result<()> {
        self.host.set_line(self.gsi, is_high)
    }
}

/// Input `gsi` of the I/O APIC of `host`, for a device that drives no other.
pub(super) fn line(host: &Arc<dyn Host>, gsi: u32) -> Arc<dyn interrupt::Line> {
    Arc::new(Input { host: Arc::clone(host), gsi })
}
