//! The last of what a guest printed, for who comes later.

use std::collections::VecDeque;

/// The most bytes that are kept.
const CAPACITY: usize = 64 << 10;

/// A bounded memory of output: the oldest bytes make room for the newest.
#[derive(Debug, Default)]
pub(crate) struct Replay(VecDeque<u8>);

impl Replay {
    /// Keeps `bytes`, and returns how many older ones were given up.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let kept = bytes.get(bytes.len().saturating_sub(CAPACITY)..).unwrap_or(bytes);
        let excess = self.0.len().saturating_add(kept.len()).saturating_sub(CAPACITY);
        self.0.drain(..excess.min(self.0.len()));
        self.0.extend(kept);
        excess.saturating_add(bytes.len().saturating_sub(kept.len()))
    }

    /// All that is kept, oldest first.
    pub(crate) fn bytes(&self) -> VecDeque<u8> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept() {
        let mut replay = Replay::default();
        assert_eq!(replay.push(b"begin"), 0);
        assert_eq!(replay.bytes(), b"begin");
        assert_eq!(replay.push(&[b'x'; CAPACITY - 2]), 3);
        assert_eq!(replay.bytes().range(..3).copied().collect::<Vec<_>>(), b"inx");
        assert_eq!(replay.push(&[b'y'; CAPACITY + 10]), CAPACITY + 10);
        assert!(replay.bytes().iter().all(|byte| *byte == b'y') && replay.bytes().len() == CAPACITY);
    }
}
