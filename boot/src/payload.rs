//! The compressed kernel inside a bzImage: where it is, how it is packed, how large it gets (boot protocol,
//! `payload_offset` and `payload_length`).

use std::fmt;

use crate::input::Input;
use crate::{Error, Header, Result};

/// What a kernel can be packed with, each recognised by the first bytes of its format (boot protocol,
/// `payload_offset`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressor {
    /// gzip, a deflate stream with a checksum.
    Gzip,
    /// xz, as a rule with the filter for x86 code.
    Xz,
    /// lzma in its older container.
    Lzma,
    /// lzop.
    Lzo,
    /// lz4 in its legacy frame.
    Lz4,
    /// Zstandard.
    Zstd,
    /// bzip2.
    Bzip2,
}

/// The first bytes of each format.
const MAGICS: [(Compressor, &[u8]); 7] = [
    (Compressor::Gzip, &[0x1f, 0x8b]),
    (Compressor::Xz, b"\xfd7zXZ\0"),
    (Compressor::Lzma, &[0x5d, 0x00]),
    (Compressor::Lzo, b"\x89LZO\0\r\n\x1a\n"),
    (Compressor::Lz4, &0x184c_2102u32.to_le_bytes()),
    (Compressor::Zstd, &0xfd2f_b528u32.to_le_bytes()),
    (Compressor::Bzip2, b"BZh"),
];

/// Bytes that tell all formats apart.
const MAGIC_SIZE: usize = 9;
/// The size of the unpacked payload, the last bytes of the packed one.
const SIZE_FIELD: u64 = 4;

impl Compressor {
    fn recognise(bytes: &[u8]) -> Option<Self> {
        MAGICS.into_iter().find(|(_, magic)| bytes.starts_with(magic)).map(|(compressor, _)| compressor)
    }
}

impl fmt::Display for Compressor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// The payload of a bzImage that this crate can unpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) compressor: Compressor,
    /// Where the packed bytes start in the file.
    pub(crate) offset: u64,
    /// How many there are, without the size that the kernel's build appends.
    pub(crate) length: u64,
    /// Bytes of the unpacked payload, at most the header's `init_size`.
    pub(crate) size: u64,
}

impl Payload {
    /// Finds the payload. The inner error is why the kernel has to unpack itself.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if the file cannot be read, [`Error::Payload`] if the payload says that it is larger
    /// than the memory that the kernel sets aside for it.
    pub(crate) fn find(input: &Input, header: &Header) -> Result<Result<Self, &'static str>> {
        let start = u64::from(header.payload_offset);
        let length = u64::from(header.payload_length);
        if length < SIZE_FIELD || start.saturating_add(length) > header.protected_size {
            return Ok(Err("its header names no payload"));
        }
        let offset = header.protected_offset.saturating_add(start);
        let Some(compressor) = Compressor::recognise(&input.array::<MAGIC_SIZE>(offset)?) else {
            return Ok(Err("its payload is in an unknown format"));
        };
        let packed = length.saturating_sub(SIZE_FIELD);
        let size = u32::from_le_bytes(input.array(offset.saturating_add(packed))?).into();
        // gzip has the field in its own format, for the others the kernel's build appends it.
        let length = if compressor == Compressor::Gzip { length } else { packed };
        if size > header.init_size {
            return Err(Error::Payload {
                path: input.path(),
                compressor,
                reason: "it unpacks to more than the kernel's init_size",
            });
        }
        Ok(Ok(Self { compressor, offset, length, size }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::tests::{bzimage_of, image};

    #[test]
    fn every_format_is_recognised_by_its_first_bytes() {
        for (compressor, magic) in MAGICS {
            assert_eq!(Compressor::recognise(&[magic, &[0; 9]].concat()), Some(compressor));
            assert_eq!(Compressor::recognise(&magic[..magic.len() - 1]), None);
        }
        assert_eq!(Compressor::recognise(b"\x7fELF\x02\x01\x01\0\0"), None);
    }

    #[test]
    fn the_size_at_the_end_belongs_to_gzip_and_follows_the_others() {
        let size = 0x1234u32.to_le_bytes();
        let find = |packed: &[u8]| {
            let image = image(&bzimage_of(packed)).unwrap();
            *image.payload().unwrap()
        };
        let gzip = find(&[&[0x1f, 0x8b], [0u8; 18].as_slice(), &size].concat());
        assert_eq!((gzip.compressor, gzip.length, gzip.size), (Compressor::Gzip, 24, 0x1234));
        let zstd = find(&[&[0x28, 0xb5, 0x2f, 0xfd], [0u8; 16].as_slice(), &size].concat());
        assert_eq!((zstd.compressor, zstd.length, zstd.size), (Compressor::Zstd, 20, 0x1234));
        assert_eq!(zstd.offset, 1024 + 0x2cc);
    }

    #[test]
    fn a_payload_larger_than_init_size_is_refused() {
        let packed = [&[0x28, 0xb5, 0x2f, 0xfd], [0xff; 4].as_slice()].concat();
        let error = image(&bzimage_of(&packed)).unwrap_err();
        assert!(matches!(error, Error::Payload { compressor: Compressor::Zstd, .. }), "{error}");
    }
}
