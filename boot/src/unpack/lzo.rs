//! lzop's container: a file header with optional fields, then blocks of LZO1X with their sizes and checksums
//! (`lzop.h` and `conf.h` of lzop 1.04).

use std::io::{self, BufRead, Read};

use super::{Failure, Sink, array, invalid};

/// What starts the file.
const MAGIC: [u8; 9] = *b"\x89LZO\0\r\n\x1a\n";
/// From this version of the format on the header has a compression level and the high half of the time.
const VERSION_WITH_LEVEL: u16 = 0x0940;
/// What a block unpacks to at most.
const BLOCK_SIZE: usize = 256 << 10;

/// Blocks carry the Adler-32 of their unpacked bytes.
const ADLER_UNPACKED: u32 = 1 << 0;
/// Blocks carry the Adler-32 of their packed bytes.
const ADLER_PACKED: u32 = 1 << 1;
/// The header is followed by a field of extra bytes.
const EXTRA: u32 = 1 << 6;
/// Blocks carry the CRC-32 of their unpacked bytes.
const CRC_UNPACKED: u32 = 1 << 8;
/// Blocks carry the CRC-32 of their packed bytes.
const CRC_PACKED: u32 = 1 << 9;
/// The bytes went through a filter before they were packed.
const FILTER: u32 = 1 << 11;

pub(super) fn unpack(mut packed: impl BufRead, sink: Sink<'_>) -> Result<(), Failure> {
    let flags = header(&mut packed)?;
    let has = |flag| flags & flag != 0;
    let mut unpacked = vec![0; BLOCK_SIZE];
    let mut block = vec![0; BLOCK_SIZE];
    loop {
        let size = length(&mut packed)?;
        if size == 0 {
            return Ok(());
        }
        let packed_size = length(&mut packed)?;
        let (Some(unpacked), Some(block)) = (unpacked.get_mut(..size), block.get_mut(..packed_size)) else {
            return Err(invalid("a block is larger than blocks can be"));
        };
        let adler = if has(ADLER_UNPACKED) { Some(dword(&mut packed)?) } else { None };
        if has(CRC_UNPACKED) {
            dword(&mut packed)?;
        }
        if packed_size < size {
            for _ in [ADLER_PACKED, CRC_PACKED].into_iter().filter(|flag| has(*flag)) {
                dword(&mut packed)?;
            }
        }
        packed.read_exact(block)?;
        // A block that would not shrink is stored as it is.
        let unpacked = if packed_size < size {
            if lzokay::decompress::decompress(block, unpacked) != Ok(size) {
                return Err(invalid("a block is damaged"));
            }
            &*unpacked
        } else if packed_size == size {
            &*block
        } else {
            return Err(invalid("a block is larger packed than unpacked"));
        };
        if adler.is_some_and(|adler| adler != adler32(unpacked)) {
            return Err(invalid("the checksum of a block is wrong"));
        }
        sink(unpacked).map_err(Failure::Sink)?;
    }
}

/// Reads the header, and returns its flags.
fn header(packed: &mut impl BufRead) -> Result<u32, Failure> {
    if array(packed)? != MAGIC {
        return Err(invalid("it is no lzop file"));
    }
    let version = u16::from_be_bytes(array(packed)?);
    // The version of the library, and the one that is needed to unpack.
    let _: [u8; 2] = array(packed)?;
    if version < VERSION_WITH_LEVEL {
        return Err(invalid("it was made by an lzop that is too old"));
    }
    let _: [u8; 2] = array(packed)?;
    let [_method, _level] = array(packed)?;
    let flags = dword(packed)?;
    if flags & FILTER != 0 {
        return Err(invalid("it uses a filter"));
    }
    // Mode, both halves of the time, and the checksum that follows the name.
    let _: [u8; 12] = array(packed)?;
    let [name] = array(packed)?;
    skip(packed, name.into())?;
    let _: [u8; 4] = array(packed)?;
    if flags & EXTRA != 0 {
        let size = dword(packed)?;
        skip(packed, u64::from(size).saturating_add(4))?;
    }
    Ok(flags)
}

fn skip(packed: &mut impl Read, count: u64) -> io::Result<()> {
    io::copy(&mut packed.take(count), &mut io::sink()).map(|_| ())
}

fn dword(packed: &mut impl Read) -> io::Result<u32> {
    Ok(u32::from_be_bytes(array(packed)?))
}

fn length(packed: &mut impl Read) -> io::Result<usize> {
    Ok(usize::try_from(dword(packed)?).unwrap_or(usize::MAX))
}

/// Adler-32 (RFC 1950, 8.2).
fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65521;
    /// So many bytes do not overflow the sums.
    const RUN: usize = 5552;
    let (mut low, mut high) = (1u32, 0u32);
    for run in bytes.chunks(RUN) {
        for byte in run {
            low = low.wrapping_add(u32::from(*byte));
            high = high.wrapping_add(low);
        }
        low = low.checked_rem(MODULUS).unwrap_or_default();
        high = high.checked_rem(MODULUS).unwrap_or_default();
    }
    high << 16 | low
}
