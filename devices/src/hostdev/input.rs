//! What comes from the host: as it is, or, from the terminal, without the keys that are for mote.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::chain::Chain;
use crate::escape::Escape;
use crate::queue::MAX_BYTES;
use crate::stream::Stream;
use crate::terminal::Terminal;

/// How far typing is read ahead of a guest that does not take it, so that the escape key is heard.
const AHEAD: usize = 64 << 10;

/// One source of input.
pub(crate) struct Input {
    stream: Stream,
    keyboard: Option<Keyboard>,
}

/// What makes the terminal different.
struct Keyboard {
    terminal: Arc<dyn Terminal>,
    escape: Escape,
    ahead: VecDeque<u8>,
}

impl Input {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, keyboard: None }
    }

    /// Input from the terminal.
    pub(crate) fn typed(stream: Stream, terminal: Arc<dyn Terminal>) -> Self {
        let escape = Escape::new(terminal.escape_key());
        let ahead = VecDeque::new();
        Self { stream, keyboard: Some(Keyboard { terminal, escape, ahead }) }
    }

    /// Whether there is a reason to wait for the descriptor although the guest takes nothing.
    pub(crate) fn is_eager(&self) -> bool {
        self.keyboard.as_ref().is_some_and(|keyboard| keyboard.ahead.len() < AHEAD)
    }

    /// Whether the terminal belongs to another job for now. Nothing tells when that changes.
    pub(crate) fn is_background(&self) -> bool {
        self.keyboard.as_ref().is_some_and(|keyboard| !keyboard.terminal.is_foreground())
    }

    /// Reads what was typed, whether or not the guest has room. Returns whether the input has not ended.
    ///
    /// # Errors
    ///
    /// The terminal's; [`ErrorKind::WouldBlock`] is none here.
    pub(crate) fn look_ahead(&mut self) -> io::Result<bool> {
        let Some(keyboard) = &mut self.keyboard else { return Ok(true) };
        match keyboard.read(&mut self.stream) {
            Ok(count) => Ok(count != 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Moves input to the guest's buffers: straight there, but for what is typed. 0 is the end.
    ///
    /// # Errors
    ///
    /// The host's; [`ErrorKind::WouldBlock`] where there is nothing now.
    pub(crate) fn fill(&mut self, chain: &mut Chain<'_>) -> io::Result<usize> {
        let Some(keyboard) = &mut self.keyboard else { return chain.fill(&mut self.stream, MAX_BYTES) };
        keyboard.take(&mut self.stream, |bytes| chain.write(bytes))
    }
}

impl Keyboard {
    fn read(&mut self, stream: &mut Stream) -> io::Result<usize> {
        if self.ahead.len() >= AHEAD || !self.terminal.is_foreground() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut typed = [0; 4096];
        let count = loop {
            match stream.read(&mut typed) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        for key in self.escape.filter(typed.get(..count).unwrap_or_default(), &mut self.ahead) {
            self.terminal.press(key);
        }
        Ok(count)
    }

    /// Hands the oldest of what was typed to `sink`, which returns how much it took.
    fn take(&mut self, stream: &mut Stream, sink: impl FnOnce(&[u8]) -> usize) -> io::Result<usize> {
        if self.ahead.is_empty() && self.read(stream)? == 0 {
            return Ok(0);
        }
        if self.ahead.is_empty() {
            // It was all for mote.
            return Err(ErrorKind::WouldBlock.into());
        }
        let taken = sink(self.ahead.make_contiguous());
        self.ahead.drain(..taken.min(self.ahead.len()));
        Ok(taken)
    }
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(keyboard) = &mut self.keyboard else { return self.stream.read(buf) };
        keyboard.take(&mut self.stream, |bytes| {
            let count = bytes.len().min(buf.len());
            for (to, from) in buf.iter_mut().zip(bytes) {
                *to = *from;
            }
            count
        })
    }
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
