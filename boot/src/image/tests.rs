//! Which files are kernels, and what they say.

use super::*;
use std::os::unix::fs::FileExt;
use vmm_sys_util::tempfile::TempFile;

/// The size of the protected-mode part of [`bzimage`].
pub(crate) const PROTECTED_SIZE: usize = 0x3000;

/// A bzImage of one setup sector with a header as current kernels have it. Its code is a pattern.
pub(crate) fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0xcc; 2 * 512];
    bytes.extend((0..PROTECTED_SIZE).map(|n| (n % 251) as u8));
    let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    put(0x1f1, &[0; 0x26c - 0x1f1]);
    put(0x1f1, &[1]);
    put(0x1f4, &(PROTECTED_SIZE as u32 / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &[0x0f, 0x02]);
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21, 0x7f, 0]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x248, &0x2ccu32.to_le_bytes());
    put(0x24c, &0x1000u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x200_0000u32.to_le_bytes());
    bytes
}

/// An image of `bytes`, as if from a file.
pub(crate) fn image(bytes: &[u8]) -> Result<Image> {
    let file = TempFile::new().unwrap();
    file.as_file().write_all_at(bytes, 0).unwrap();
    Image::open(file.as_path())
}

impl Image {
    /// The payload to be unpacked here.
    pub(crate) fn payload(&self) -> Option<&Payload> {
        match &self.content {
            Content::Payload(payload) => Some(payload),
            _ => None,
        }
    }
}

/// [`bzimage`] with `value` at `offset`.
pub(crate) fn with(offset: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = bzimage();
    bytes[offset..offset + value.len()].copy_from_slice(value);
    bytes
}

fn reason(bytes: &[u8]) -> &'static str {
    match image(bytes) {
        Err(Error::NotBzImage { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bzimage_tells_its_facts() {
    let image = image(&bzimage()).unwrap();
    let facts = Header {
        version: 0x20f,
        setup_sects: 1,
        protected_offset: 1024,
        protected_size: 0x3000,
        init_size: 0x200_0000,
        kernel_alignment: 0x20_0000,
        pref_address: 0x100_0000,
        is_relocatable: true,
        cmdline_size: 2047,
        initrd_addr_max: 0x7fff_ffff,
        payload_offset: 0x2cc,
        payload_length: 0x1000,
        can_be_loaded_above_4g: true,
    };
    assert_eq!(image.header(), &facts);
    assert_eq!(image.head().len(), 0x26c);
}

#[test]
fn no_setup_sectors_means_four() {
    let mut bytes = with(0x1f1, &[0]);
    bytes.resize(5 * 512 + PROTECTED_SIZE, 0);
    let image = image(&bytes).unwrap();
    assert_eq!((image.header().setup_sects, image.header().protected_offset), (4, 5 * 512));
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    assert_eq!(reason(b""), "it has no boot sector");
    assert_eq!(reason(&[0; 4096]), "it has no boot sector");
    assert_eq!(reason(&bzimage()[..0x1ff]), "it has no boot sector");
    assert_eq!(reason(&bzimage()[..0x204]), "it has no Linux setup header (HdrS)");
    assert_eq!(reason(&with(0x202, b"hdrs")), "it has no Linux setup header (HdrS)");
}

#[test]
fn a_kernel_that_is_too_old_or_not_64_bit_is_refused() {
    let error = image(&with(0x206, &[0x0b, 0x02])).unwrap_err();
    assert!(matches!(error, Error::OldProtocol { version: 0x20b, .. }), "{error}");
    assert!(error.to_string().ends_with("speaks boot protocol 2.11; 2.12 (Linux 3.8) or later is needed"));
    assert!(image(&with(0x206, &[0x0c, 0x02])).is_ok());
    assert!(matches!(image(&with(0x236, &[0x7e, 0])), Err(Error::No64BitEntry { .. })));
    assert_eq!(reason(&with(0x211, &[0])), "it is a zImage, to be loaded below 1 MiB");
}

#[test]
fn a_kernel_whose_end_is_missing_is_truncated() {
    let bytes = bzimage();
    let error = image(&bytes[..bytes.len() - 1]).unwrap_err();
    assert!(matches!(error, Error::Truncated { expected: 13312, actual: 13311, .. }), "{error}");
    let error = image(&with(0x1f4, &[0xff; 4])).unwrap_err();
    assert!(matches!(error, Error::Truncated { .. }), "{error}");
}

#[test]
fn what_follows_the_protected_mode_part_does_not_matter() {
    let mut bytes = bzimage();
    bytes.extend([1; 1000]);
    assert_eq!(image(&bytes).unwrap().header().protected_size, 0x3000);
}

#[test]
fn a_header_whose_length_cannot_be_is_refused() {
    let impossible = "its setup header has an impossible length";
    assert_eq!(reason(&with(0x201, &[0x61])), impossible);
    assert_eq!(reason(&with(0x201, &[0x8f])), impossible);
    assert_eq!(image(&with(0x201, &[0x62])).unwrap().head().len(), 0x264);
    assert_eq!(image(&with(0x201, &[0x7f])).unwrap().head().len(), 0x281);
}

#[test]
fn addresses_that_no_kernel_has_are_refused() {
    assert_eq!(reason(&with(0x230, &[0; 4])), "its kernel_alignment is not a power of two");
    assert_eq!(reason(&with(0x230, &[3, 0, 0, 0])), "its kernel_alignment is not a power of two");
    let mut fixed = with(0x234, &[0]);
    fixed[0x258..0x260].copy_from_slice(&0xf_ffffu64.to_le_bytes());
    assert_eq!(reason(&fixed), "its pref_address lies below 1 MiB");
}

/// [`bzimage`] with `packed` as its payload, its size included.
pub(crate) fn bzimage_of(packed: &[u8]) -> Vec<u8> {
    let mut bytes = bzimage();
    bytes.truncate(1024 + 0x2cc);
    bytes.extend(packed);
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let size = (bytes.len() - 1024) as u32;
    bytes[0x1f4..0x1f8].copy_from_slice(&(size / 16).to_le_bytes());
    bytes[0x24c..0x250].copy_from_slice(&(packed.len() as u32).to_le_bytes());
    bytes
}

#[test]
fn a_payload_that_nobody_knows_is_left_to_the_guest() {
    let reason = |bytes: &[u8]| match image(bytes).unwrap().content() {
        Content::SelfUnpacking(reason) => *reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(&bzimage()), "its payload is in an unknown format");
    assert_eq!(reason(&with(0x24c, &[0; 4])), "its header names no payload");
    assert_eq!(reason(&with(0x248, &[0xff; 4])), "its header names no payload");
    assert_eq!(reason(&with(0x24c, &[0xff; 4])), "its header names no payload");
}

#[test]
fn a_kernel_with_addresses_that_linux_cannot_have_is_left_to_the_guest() {
    let gzip = bzimage_of(&[&[0x1f, 0x8b], [0; 30].as_slice()].concat());
    let is_unpacked = |offset: usize, value: &[u8]| {
        let mut bytes = gzip.clone();
        bytes[offset..offset + value.len()].copy_from_slice(value);
        matches!(image(&bytes).unwrap().content(), Content::Payload(_))
    };
    assert!(is_unpacked(0x258, &0x100_0000u64.to_le_bytes()));
    assert!(!is_unpacked(0x258, &0x110_0000u64.to_le_bytes()));
    assert!(!is_unpacked(0x258, &0u64.to_le_bytes()));
    assert!(!is_unpacked(0x230, &0x1000u32.to_le_bytes()));
}
