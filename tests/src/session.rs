//! A program that runs on a machine, as a test sees it.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::command::Command;
use crate::link::Link;
use crate::wire::{CHUNK, Id, Message, Size, Status, Stream, WINDOW};

/// How much of the output a failed expectation shows.
const TAIL: usize = 4096;

/// Asks mote for its status. A guest that stands still is the hardest to explain later.
const SIGUSR1: i32 = 10;
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// A running program. Dropping it kills what is left of it.
///
/// What it prints is collected as it comes, unless the session is on [`hold`](Session::hold). Methods that wait panic
/// at their deadline and show the end of the output.
pub struct Session {
    id: Id,
    shared: Arc<Shared>,
    link: Arc<Link>,
}

/// Everything that a program has printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its standard error; empty where it had a terminal.
    pub errors: Vec<u8>,
}

impl Output {
    /// The standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// The standard error as text.
    #[must_use]
    pub fn messages(&self) -> String {
        String::from_utf8_lossy(&self.errors).into_owned()
    }
}

/// A piece of what a program printed, taken by [`Session::read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of its standard output, or of its terminal.
    Output(Vec<u8>),
    /// Bytes of its standard error.
    Errors(Vec<u8>),
    /// It has ended, and nothing more comes.
    End(Status),
}

impl Session {
    pub(crate) fn new(id: Id, shared: Arc<Shared>, link: Arc<Link>) -> Self {
        Self { id, shared, link }
    }

    /// Types or pipes bytes in. Returns when the last of them are on their way to the program.
    ///
    /// # Panics
    /// When the program takes nothing for [`LATE`](crate::LATE), or could not be started.
    #[track_caller]
    pub fn send(&self, bytes: impl AsRef<[u8]>) {
        for chunk in bytes.as_ref().chunks(CHUNK) {
            let has_room = |state: &mut State| state.takes(chunk.len());
            self.pass(self.wait_until("room for input", crate::LATE, has_room), chunk);
        }
    }

    /// As [`send`](Session::send), for a person who types: waits for as long as the program takes nothing.
    ///
    /// # Errors
    /// Why the program could not be started, or the link that has ended.
    pub fn feed(&self, bytes: &[u8]) -> Result<(), String> {
        for chunk in bytes.chunks(CHUNK) {
            let mut state = self.shared.lock();
            while !state.takes(chunk.len()) {
                if let Some(why) = &state.failure {
                    return Err(why.clone());
                }
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            self.pass(state, chunk);
        }
        Ok(())
    }

    fn pass(&self, mut state: MutexGuard<'_, State>, chunk: &[u8]) {
        state.credit = state.credit.saturating_sub(chunk.len());
        drop(state);
        self.link.send(self.id, Message::Data(Stream::Input, chunk.to_vec()));
    }

    /// Ends the program's input. A terminal has no such end: there, send `"\x04"`.
    pub fn close_input(&self) {
        self.link.send(self.id, Message::Data(Stream::Input, Vec::new()));
    }

    /// Waits until the output has this text in it, after what the last expectation took; returns all up to its end.
    ///
    /// # Panics
    /// When it does not come in time, or the program ends without it.
    #[track_caller]
    pub fn expect(&self, text: &str, deadline: Duration) -> String {
        let mut found = None;
        let mut state = self.wait_until(&format!("{text:?}"), deadline, |state| {
            let fresh = &state.output[state.taken..];
            found = fresh.windows(text.len()).position(|window| window == text.as_bytes());
            found.is_some() || state.is_over()
        });
        let Some(at) = found else {
            let state = state.describe(&self.shared.name);
            panic!("expected {text:?}, which never came\n{state}");
        };
        let end = state.taken + at + text.len();
        let seen = String::from_utf8_lossy(&state.output[state.taken..end]).into_owned();
        state.taken = end;
        seen
    }

    /// As [`expect`](Session::expect), for the standard error; searches all of it each time.
    ///
    /// # Panics
    /// When it does not come in time, or the program ends without it.
    #[track_caller]
    pub fn expect_message(&self, text: &str, deadline: Duration) -> String {
        self.expect_messages(text, 1, deadline)
    }

    /// Waits until the standard error has this text in it so many times, and returns all of it.
    ///
    /// # Panics
    /// When it does not come in time, or the program ends without it.
    #[track_caller]
    pub fn expect_messages(&self, text: &str, times: usize, deadline: Duration) -> String {
        let is_there = |state: &State| String::from_utf8_lossy(&state.errors).matches(text).count() >= times;
        let is_met = |state: &mut State| is_there(state) || state.is_over();
        let state = self.wait_until(&format!("message {text:?}"), deadline, is_met);
        let described = state.describe(&self.shared.name);
        assert!(is_there(&state), "expected the message {text:?}, which never came\n{described}");
        String::from_utf8_lossy(&state.errors).into_owned()
    }

    /// Everything that was printed so far on the standard error.
    #[must_use]
    pub fn messages(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().errors).into_owned()
    }

    /// Waits until the program has ended and all of its output is here.
    ///
    /// # Panics
    /// When that takes too long, or the program could not be started.
    #[track_caller]
    pub fn wait(&self, deadline: Duration) -> Output {
        let state = self.wait_until("the end", deadline, |state| state.is_over());
        let Some(status) = state.status else { unreachable!("over, but without a status") };
        Output { status, output: state.output.clone(), errors: state.errors.clone() }
    }

    /// Everything that was printed so far, on standard output or the terminal.
    #[must_use]
    pub fn output(&self) -> Vec<u8> {
        self.shared.lock().output.clone()
    }

    /// Stops collecting output: once a window of it is under way, the program's writes block, as they do when nobody
    /// reads a pipe.
    pub fn hold(&self) {
        self.shared.lock().is_held = true;
    }

    /// Collects output again.
    pub fn release(&self) {
        let mut state = self.shared.lock();
        state.is_held = false;
        for (stream, owed) in
            [Stream::Output, Stream::Errors].into_iter().zip(std::mem::take(&mut state.owed))
        {
            self.link.send(self.id, Message::Credit(stream, owed));
        }
    }

    /// Waits for the next piece of output and takes it out, so that what is passed on is not kept. On
    /// [`hold`](Session::hold), only what is taken makes room for more.
    ///
    /// # Errors
    /// Why the program could not be started, or the link that has ended.
    pub fn read(&self) -> Result<Piece, String> {
        let mut state = self.shared.lock();
        loop {
            for (index, stream) in [Stream::Output, Stream::Errors].into_iter().enumerate() {
                let from = if index == 0 { &mut state.output } else { &mut state.errors };
                let bytes = std::mem::take(from);
                if bytes.is_empty() {
                    continue;
                }
                state.taken = 0;
                let owed = std::mem::take(&mut state.owed[index]);
                if owed > 0 {
                    self.link.send(self.id, Message::Credit(stream, owed));
                }
                return Ok(if index == 0 { Piece::Output(bytes) } else { Piece::Errors(bytes) });
            }
            if let Some(why) = &state.failure {
                return Err(why.clone());
            }
            if let (true, Some(status)) = (state.is_over(), state.status) {
                return Ok(Piece::End(status));
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// All that is printed up to `end` and what came with it, taken out as it comes: there may be too much of it to search again and again.
    ///
    /// # Panics
    /// When the program ends before that.
    #[must_use]
    #[track_caller]
    pub fn stream(&self, end: &str) -> String {
        let mut bytes = Vec::new();
        let mut fresh = 0;
        while !bytes[fresh..].windows(end.len()).any(|window| window == end.as_bytes()) {
            fresh = bytes.len().saturating_sub(end.len());
            match self.read() {
                Ok(Piece::Output(piece)) => bytes.extend(piece),
                Ok(Piece::Errors(_)) => {}
                other => panic!("{other:?} after {} bytes, and not {end:?}", bytes.len()),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for a condition; panics at the deadline, with what mote says of itself then, and where the program could
    /// not be started.
    #[track_caller]
    fn wait_until(
        &self,
        what: &str,
        deadline: Duration,
        is_met: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'_, State> {
        if let Some(state) = self.shared.wait(deadline, is_met) {
            return state;
        }
        // Twice, since what has changed in between tells whether the guest does anything.
        for _ in 0..2 {
            if self.shared.is_mote {
                self.signal(SIGUSR1);
                self.shared.wait(ANSWER, |_| false);
            }
        }
        let state = self.shared.lock().describe(&self.shared.name);
        panic!("waited for {what} (at most {deadline:?})\n{state}");
    }

    /// Gives the program's terminal a new size.
    pub fn resize(&self, rows: u16, columns: u16) {
        self.link.send(self.id, Message::Resize(Size { rows, columns }));
    }

    /// Sends the program a signal by its number.
    pub fn signal(&self, number: i32) {
        self.link.send(self.id, Message::Signal(number));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.link.close(self.id);
    }
}

/// What the link's reader and the test share of a session.
pub(crate) struct Shared {
    name: String,
    /// Whether the program is mote and runs a guest, and so answers `SIGUSR1`.
    is_mote: bool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    output: Vec<u8>,
    errors: Vec<u8>,
    /// How much of the output expectations have taken.
    taken: usize,
    has_ended: [bool; 2],
    status: Option<Status>,
    failure: Option<String>,
    /// How many bytes of input the agent takes.
    credit: usize,
    is_held: bool,
    /// Credit for output and errors that is held back.
    owed: [u32; 2],
}

impl State {
    fn is_over(&self) -> bool {
        self.status.is_some() && self.has_ended == [true; 2]
    }

    /// Tells whether input may be sent. What ends a program ends its input too, so that nobody waits for it.
    fn takes(&self, count: usize) -> bool {
        self.credit >= count || self.status.is_some()
    }

    fn describe(&self, name: &str) -> String {
        let mut text = format!("program: {name}\nended: {:?}", self.status);
        if let Some(why) = &self.failure {
            let _ = write!(text, "\nfailure: {why}");
        }
        for (what, bytes) in [("output", &self.output), ("errors", &self.errors)] {
            let tail = &bytes[bytes.len().saturating_sub(TAIL)..];
            let _ = write!(
                text,
                "\n--- last of {} bytes of {what}:\n{}",
                bytes.len(),
                String::from_utf8_lossy(tail)
            );
        }
        text.push_str("\n---");
        text
    }
}

impl Shared {
    pub(crate) fn new(command: &Command) -> Self {
        let words: Vec<_> = command.0.argv.iter().map(|word| word.to_string_lossy()).collect();
        let program = Path::new(words.first().map_or("", AsRef::as_ref)).file_name();
        Self {
            is_mote: program == Some("mote".as_ref()) && words.iter().any(|word| word == "run"),
            name: words.join(" "),
            state: Mutex::new(State {
                output: Vec::new(),
                errors: Vec::new(),
                taken: 0,
                has_ended: [false; 2],
                status: None,
                failure: None,
                credit: WINDOW,
                is_held: false,
                owed: [0; 2],
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn fail(&self, why: &str) {
        self.lock().failure = Some(why.to_owned());
        self.changed.notify_all();
    }

    /// Takes what arrived, and returns what to grant for it.
    pub(crate) fn take(&self, message: Message) -> Option<Message> {
        let mut state = self.lock();
        let mut answer = None;
        match message {
            Message::Data(stream, bytes) => {
                let index = usize::from(stream == Stream::Errors);
                let into = if index == 0 { &mut state.output } else { &mut state.errors };
                into.extend_from_slice(&bytes);
                if bytes.is_empty() {
                    state.has_ended[index] = true;
                } else if state.is_held {
                    state.owed[index] += bytes.len() as u32;
                } else {
                    answer = Some(Message::Credit(stream, bytes.len() as u32));
                }
            }
            Message::Credit(_, count) => state.credit += count as usize,
            Message::Exit(status) => state.status = Some(status),
            Message::Failed(why) => state.failure = Some(why),
            _ => {}
        }
        self.changed.notify_all();
        answer
    }

    /// Waits for a condition; `None` at the deadline and where the program could not be started.
    fn wait(
        &self,
        deadline: Duration,
        mut is_met: impl FnMut(&mut State) -> bool,
    ) -> Option<MutexGuard<'_, State>> {
        let end = Instant::now() + deadline;
        let mut state = self.lock();
        loop {
            if is_met(&mut state) {
                return Some(state);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.failure.is_some() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
