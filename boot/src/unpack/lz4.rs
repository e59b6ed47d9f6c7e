//! lz4's legacy frame, as `lz4 -l` makes it: a magic number, then blocks that each start with their packed
//! size and unpack by themselves (LZ4 frame format description, "Legacy frame").

use std::io::{BufRead, Read};

use lz4_flex::block::{decompress_into, get_maximum_output_size};

use super::{Failure, Sink, array, invalid};

/// What each block unpacks to, but the last, which may be shorter.
const BLOCK_SIZE: usize = 8 << 20;
/// Starts the frame, and may start another one that continues it.
const MAGIC: u32 = 0x184c_2102;

pub(super) fn unpack(mut packed: impl BufRead, sink: Sink<'_>) -> Result<(), Failure> {
    let mut unpacked = vec![0; BLOCK_SIZE];
    let mut block = Vec::new();
    while !packed.fill_buf()?.is_empty() {
        let size = u32::from_le_bytes(array(&mut packed)?);
        if size == MAGIC {
            continue;
        }
        if usize::try_from(size).unwrap_or(usize::MAX) > get_maximum_output_size(BLOCK_SIZE) {
            return Err(invalid("a block is larger than blocks can be"));
        }
        block.clear();
        let read = packed.by_ref().take(size.into()).read_to_end(&mut block)?;
        if u32::try_from(read) != Ok(size) {
            return Err(invalid("the last block is cut off"));
        }
        let count = decompress_into(&block, &mut unpacked).map_err(|_| invalid("a block is damaged"))?;
        sink(unpacked.get(..count).unwrap_or_default()).map_err(Failure::Sink)?;
    }
    Ok(())
}
