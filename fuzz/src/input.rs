//! The fuzzer's bytes, as choices.

/// What is left of an input. At its end everything is 0.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn below(&mut self, end: u8) -> u8 {
        self.byte() % end
    }

    pub fn word(&mut self) -> u64 {
        u64::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    /// 1, 2, 4 or 8.
    pub fn width(&mut self) -> usize {
        1 << self.below(4)
    }

    /// A value of `width` bytes; often a small one, or one of all ones.
    pub fn value(&mut self, width: usize) -> u64 {
        match self.byte() {
            0xff => u64::MAX,
            0xfe => (0..width).fold(0, |value, n| value | u64::from(self.byte()) << (8 * n)),
            0xfd => 1 << self.below(64),
            small => small.into(),
        }
    }

    pub fn bytes(&mut self, count: u8) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }
}
