//! The interrupt of a virtio function: MSI-X or INTx, chosen when it is sent (VIRTIO 1.3 §4.1.5.3, §4.1.5.4).

use std::io;
use std::sync::{Arc, Mutex};

use devices::interrupt::{Cause, Interrupt};

use crate::config::{self, command};
use crate::host::{Host, Pages, Sight};
use crate::line::Pin;
use crate::lock;
use crate::msix::{Msix, Unseen};

/// No vector: the event is not to interrupt (VIRTIO 1.3 §4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Hiding a page costs the whole guest, so a guest that keeps making it necessary loses the favour.
const MAX_HIDINGS: u32 = 16;

/// Bits of the interrupt status register (VIRTIO 1.3 §4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// The interrupt of one function.
pub(crate) struct FunctionInterrupt {
    host: Arc<dyn Host>,
    /// Without bus mastering nothing is sent; a legacy function does not care (VIRTIO 1.3 §4.1.4.10, and practice).
    needs_bus_master: bool,
    wires: Mutex<Wires>,
}

/// The flags and the wires that they drive, under one lock.
struct Wires {
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    msix: Msix,
    /// Where the vector table is decoded now.
    table_at: Option<u64>,
    /// The guest sees the table there without an exit.
    is_table_shown: bool,
    /// How often the table had to be hidden.
    hidings: u32,
    /// The page in which the guest sees configuration space without an exit.
    config_page: Option<Arc<dyn Pages>>,
    /// The command register, as it was written last.
    command: u16,
    pin: Pin,
}

impl FunctionInterrupt {
    /// One vector for the configuration and one for each queue.
    pub(crate) fn new(host: Arc<dyn Host>, pin: Pin, queues: u16, needs_bus_master: bool) -> Self {
        let table = host.pages(Sight::Write, 1).unwrap_or_else(|_| Box::new(Unseen::default()));
        let wires = Wires {
            isr: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues.into()],
            msix: Msix::new(queues.saturating_add(1), table),
            table_at: None,
            is_table_shown: false,
            hidings: 0,
            config_page: None,
            command: 0,
            pin,
        };
        Self { host, needs_bus_master, wires: Mutex::new(wires) }
    }

    /// Runs `change` on the wires, then sends what is due and sets the line to what the flags say.
    fn change<T>(&self, change: impl FnOnce(&mut Wires) -> T) -> (T, io::Result<()>) {
        let mut wires = lock(&self.wires);
        let value = change(&mut wires);
        (value, self.drive(&mut wires))
    }

    fn drive(&self, wires: &mut Wires) -> io::Result<()> {
        let mut result = self.send(wires);
        if wires.settle_table(self.may_send(wires)) {
            // The guest may have unmasked a vector between the last look at the table and its hiding.
            result = result.and(self.send(wires));
        }
        let is_asserted = wires.isr != 0 && !wires.msix.is_enabled();
        if let Some(page) = &wires.config_page {
            page.write(config::STATUS as u64, &[config::status(is_asserted)]);
        }
        let is_disabled = wires.command & command::INTX_DISABLE != 0;
        result.and(wires.pin.set(is_asserted && !is_disabled))
    }

    fn may_send(&self, wires: &Wires) -> bool {
        !self.needs_bus_master || wires.command & command::BUS_MASTER != 0
    }

    /// Sends the messages that are due.
    fn send(&self, wires: &mut Wires) -> io::Result<()> {
        let mut result = Ok(());
        if self.may_send(wires) {
            while let Some(message) = wires.msix.take_deliverable() {
                result = result.and(self.host.send_msi(message.address, message.data));
            }
        }
        result
    }

    /// The vector table is decoded at this address from now on, or nowhere.
    pub(crate) fn place_table(&self, at: Option<u64>) {
        let _ = self.change(|wires| {
            if wires.table_at != at {
                wires.table_at = at;
                wires.is_table_shown = false;
                let _ = wires.msix.show_table(None);
            }
        });
    }

    /// The guest sees configuration space in `page` from now on; this half of the status register is written here.
    pub(crate) fn set_config_page(&self, page: Option<Arc<dyn Pages>>) {
        let _ = self.change(|wires| wires.config_page = page);
    }

    /// The guest reads the interrupt status: it becomes 0 and the line goes low (VIRTIO 1.3 §4.1.4.5.1).
    pub(crate) fn take_status(&self) -> u8 {
        self.change(|wires| std::mem::take(&mut wires.isr)).0
    }

    /// Whether the function would assert its pin if it were allowed to: status bit 3 of configuration space.
    pub(crate) fn is_asserted(&self) -> bool {
        let wires = lock(&self.wires);
        wires.isr != 0 && !wires.msix.is_enabled()
    }

    pub(crate) fn is_msix_enabled(&self) -> bool {
        lock(&self.wires).msix.is_enabled()
    }

    /// The guest wrote the command register or the message control word.
    pub(crate) fn set_control(&self, command: u16, message_control: u16) {
        let _ = self.change(|wires| {
            wires.command = command;
            wires.msix.set_control(message_control);
        });
    }

    /// The vector of the configuration, or of a queue; [`NO_VECTOR`] where there is none.
    pub(crate) fn vector(&self, cause: Cause) -> u16 {
        let wires = lock(&self.wires);
        match cause {
            Cause::Config => wires.config_vector,
            Cause::Queue(index) => wires.queue_vectors.get(usize::from(index)).copied().unwrap_or(NO_VECTOR),
        }
    }

    /// The guest maps an event to a vector; one that does not exist maps it to none (VIRTIO 1.3 §4.1.5.1.2.1).
    pub(crate) fn set_vector(&self, cause: Cause, vector: u16) {
        let mut wires = lock(&self.wires);
        let vector = if vector < wires.msix.vectors() { vector } else { NO_VECTOR };
        match cause {
            Cause::Config => wires.config_vector = vector,
            Cause::Queue(index) => {
                if let Some(slot) = wires.queue_vectors.get_mut(usize::from(index)) {
                    *slot = vector;
                }
            }
        }
    }

    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        lock(&self.wires).msix.read_table(offset, data);
    }

    pub(crate) fn write_table(&self, offset: u64, data: &[u8]) {
        let _ = self.change(|wires| wires.msix.write_table(offset, data));
    }

    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        lock(&self.wires).msix.read_pending(offset, data);
    }

    /// The device was reset: nothing is mapped, nothing is due, the line is low.
    pub(crate) fn reset(&self) {
        let _ = self.change(|wires| {
            let Wires { isr, config_vector, queue_vectors, msix, .. } = wires;
            *isr = 0;
            *config_vector = NO_VECTOR;
            queue_vectors.fill(NO_VECTOR);
            msix.clear_pending();
        });
    }
}

impl Wires {
    /// Shows the vector table to the guest, so that it can be programmed without an exit, unless the next write to it may
    /// release something. Says whether it was hidden just now.
    fn settle_table(&mut self, may_send: bool) -> bool {
        let awaits_unmask = may_send && self.msix.awaits_unmask();
        let is_seen = self.table_at.is_some() && self.hidings < MAX_HIDINGS && !awaits_unmask;
        if is_seen == self.is_table_shown {
            return false;
        }
        let at = self.table_at.filter(|_| is_seen);
        // Where the machine cannot show it, it is not tried again.
        let is_done = self.msix.show_table(at).is_ok();
        self.is_table_shown = is_seen && is_done;
        self.hidings = if is_done { self.hidings.saturating_add((!is_seen).into()) } else { MAX_HIDINGS };
        !is_seen
    }
}

impl Interrupt for FunctionInterrupt {
    fn signal(&self, cause: Cause) -> io::Result<()> {
        let sent = self.change(|wires| {
            let bit = match cause {
                Cause::Config => ISR_CONFIG,
                Cause::Queue(_) => ISR_QUEUE,
            };
            if !wires.msix.is_enabled() {
                wires.isr |= bit;
                return;
            }
            // The configuration's bit is set with MSI-X too (VIRTIO 1.3 §4.1.4.5.1).
            wires.isr |= bit & ISR_CONFIG;
            let vector = match cause {
                Cause::Config => wires.config_vector,
                Cause::Queue(index) => {
                    wires.queue_vectors.get(usize::from(index)).copied().unwrap_or(NO_VECTOR)
                }
            };
            wires.msix.fire(vector);
        });
        sent.1
    }
}
