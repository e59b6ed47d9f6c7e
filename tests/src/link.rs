//! The test's end of a link to an agent: hands each session what arrives for it.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::command::Command;
use crate::session::{Session, Shared};
use crate::wire::{self, CHUNK, Id, Message};

/// A link to an agent that answers.
pub struct Link {
    outbox: Mutex<Sender<(Id, Message)>>,
    sessions: Arc<Mutex<Sessions>>,
    next: AtomicU32,
}

/// Who waits for what arrives, or why nothing more will.
type Sessions = Result<HashMap<Id, Arc<Shared>>, String>;

impl Link {
    /// Waits for the agent's greeting and then serves the link on threads of its own. Where it ends while sessions
    /// are open, `explain` is asked what is known of the reason.
    ///
    /// # Errors
    /// Those of the streams, and an agent that says anything else first.
    pub fn open(
        from: impl Read + Send + 'static,
        mut to: impl Write + Send + 'static,
        explain: impl Fn() -> String + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let mut from = BufReader::with_capacity(CHUNK, from);
        match wire::receive(&mut from)? {
            Some((0, Message::Hello)) => {}
            other => return Err(io::Error::other(format!("no agent: {other:?}"))),
        }
        let (outbox, messages) = mpsc::channel::<(Id, Message)>();
        // A broken link is found out by the reader.
        thread::spawn(move || {
            messages.iter().try_for_each(|(id, message)| wire::send(&mut to, id, &message))
        });
        let sessions: Arc<Mutex<Sessions>> = Arc::new(Mutex::new(Ok(HashMap::new())));
        let readers = sessions.clone();
        let credits = outbox.clone();
        thread::spawn(move || {
            let why = format!("{}{}", deliver(&mut from, &readers, &credits), explain());
            let mut sessions = readers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(open) = std::mem::replace(&mut *sessions, Err(why.clone())) {
                open.values().for_each(|session| session.fail(&why));
            }
        });
        Ok(Arc::new(Self { outbox: Mutex::new(outbox), sessions, next: AtomicU32::new(1) }))
    }

    /// Starts a program; what becomes of it is for the session to tell.
    pub fn spawn(self: &Arc<Self>, command: &Command) -> Session {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared::new(command));
        match self.sessions.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Ok(sessions) => {
                sessions.insert(id, shared.clone());
            }
            Err(why) => shared.fail(why),
        }
        self.send(id, Message::Spawn(command.0.clone()));
        Session::new(id, shared, self.clone())
    }

    pub(crate) fn send(&self, id: Id, message: Message) {
        // Where the link has ended, its sessions have been told.
        let _ = self.outbox.lock().unwrap_or_else(PoisonError::into_inner).send((id, message));
    }

    pub(crate) fn close(&self, id: Id) {
        if let Ok(sessions) = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            sessions.remove(&id);
        }
        self.send(id, Message::Close);
    }
}

/// Delivers until the link ends, and says why it did.
fn deliver(from: &mut impl Read, sessions: &Mutex<Sessions>, credits: &Sender<(Id, Message)>) -> String {
    loop {
        let (id, message) = match wire::receive(from) {
            Ok(Some(frame)) => frame,
            Ok(None) => return "the link to the machine has ended".into(),
            Err(error) => return format!("the link to the machine is broken: {error}"),
        };
        let session = match sessions.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Ok(sessions) => sessions.get(&id).cloned(),
            Err(why) => return why.clone(),
        };
        if let Some(credit) = session.and_then(|session| session.take(message)) {
            // As above: a broken link is found out by the reader.
            let _ = credits.send((id, credit));
        }
    }
}
