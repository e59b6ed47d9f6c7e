//! How a virtio device tells its driver that something happened, whatever the wire.

use std::io;

/// What an interrupt is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The device used buffers of this queue.
    Queue(u16),
    /// The device's configuration or status changed.
    Config,
}

/// A transport's interrupt. The wire (MSI-X, INTx, ...) is chosen at the moment of sending.
pub trait Interrupt: Send + Sync {
    /// Notifies the driver, or remembers to do so where it has masked the cause.
    ///
    /// # Errors
    ///
    /// The machine refused to deliver it.
    fn signal(&self, cause: Cause) -> io::Result<()>;
}

/// An interrupt line of a platform device.
pub trait Line: Send + Sync {
    /// Drives the line high or low.
    ///
    /// # Errors
    ///
    /// The machine refused.
    fn set(&self, is_high: bool) -> io::Result<()>;
}
