//! The kernel image: which file is a bzImage that can be booted, and what its setup header says (boot
//! protocol, "The Real-Mode Kernel Header").

use std::fs::File;
use std::path::Path;

use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64};

use crate::input::Input;
use crate::layout::HIGH_RAM_START;
use crate::zero_page::{HEADER_MAX_END, field, header_field};
use crate::{Error, Result};

/// `boot_flag` of every boot sector.
const BOOT_FLAG: u16 = 0xaa55;
/// `header` of every kernel since boot protocol 2.00.
const HDRS: [u8; 4] = *b"HdrS";
/// The first protocol with `xloadflags`, and so with a 64-bit entry.
const OLDEST_PROTOCOL: u16 = 0x020c;
/// The unit of `setup_sects`, in bytes.
const SECTOR: u64 = 512;
/// The unit of `syssize`, in bytes.
const PARAGRAPH: u64 = 16;
/// What `setup_sects` means when it is 0.
const DEFAULT_SETUP_SECTS: u8 = 4;
/// Where an ELF file says that it is one.
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// The header ends here at least: after `init_size`, the last field that is read.
const HEADER_MIN_END: usize = header_field!(handover_offset);

/// What a kernel's setup header says. Addresses are guest physical, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `version` of the boot protocol, major number in the high byte.
    pub version: u16,
    /// `setup_sects`: sectors of real-mode code after the boot sector, 4 where the file says 0.
    pub setup_sects: u8,
    /// Where the protected-mode part starts in the file.
    pub protected_offset: u64,
    /// `syssize`: the protected-mode part's size. The file may go on after it, with a signature for example.
    pub protected_size: u64,
    /// `init_size`: the memory that the kernel needs from where it runs until it can read the memory map.
    pub init_size: u64,
    /// `kernel_alignment`, a power of two.
    pub kernel_alignment: u64,
    /// `pref_address`: where it wants to be loaded.
    pub pref_address: u64,
    /// `relocatable_kernel`: can run elsewhere than at `pref_address`.
    pub is_relocatable: bool,
    /// `cmdline_size`: the longest command line, without its terminating zero.
    pub cmdline_size: u32,
    /// `initrd_addr_max`: the last address that an initrd may occupy.
    pub initrd_addr_max: u32,
    /// `payload_offset`: where the compressed kernel starts, from the start of the protected-mode part. Not
    /// checked.
    pub payload_offset: u32,
    /// `payload_length`, 0 where there is none. Not checked.
    pub payload_length: u32,
    /// `XLF_CAN_BE_LOADED_ABOVE_4G`.
    pub can_be_loaded_above_4g: bool,
}

/// A bzImage with a 64-bit entry, whole.
#[derive(Debug)]
pub struct Image {
    input: Input,
    /// The file up to the end of its setup header.
    head: Vec<u8>,
    header: Header,
}

impl Image {
    /// Opens the file at `path` and checks that it is a kernel that can be booted.
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::NotRegular`] for the file, [`Error::NotBzImage`], [`Error::OldProtocol`],
    /// [`Error::No64BitEntry`] and [`Error::Truncated`] for what is in it.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Input::open(path)?)
    }

    /// Takes a file that is open already; `path` is its name in errors.
    ///
    /// # Errors
    ///
    /// As [`Image::open`].
    pub fn read(file: File, path: &Path) -> Result<Self> {
        Self::new(Input::read(file, path)?)
    }

    /// What the setup header says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file up to the end of its setup header.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    pub(crate) fn input(&self) -> &Input {
        &self.input
    }

    fn new(input: Input) -> Result<Self> {
        let bytes: [u8; HEADER_MAX_END] = input.head()?;
        let not_bzimage = |reason| Err(Error::NotBzImage { path: input.path(), reason });
        if bytes.starts_with(&ELF_MAGIC) {
            return not_bzimage("it is an ELF file; give the compressed kernel (vmlinuz), not vmlinux");
        }
        if u16::from_le_bytes(field(&bytes, header_field!(boot_flag))) != BOOT_FLAG {
            return not_bzimage("it has no boot sector");
        }
        if field(&bytes, header_field!(header)) != HDRS {
            return not_bzimage("it has no Linux setup header (HdrS)");
        }
        let version = u16::from_le_bytes(field(&bytes, header_field!(version)));
        if version < OLDEST_PROTOCOL {
            return Err(Error::OldProtocol { path: input.path(), version });
        }
        let [loadflags] = field(&bytes, header_field!(loadflags));
        if loadflags & LOADED_HIGH == 0 {
            return not_bzimage("it is a zImage, to be loaded below 1 MiB");
        }
        let xloadflags = u16::from_le_bytes(field(&bytes, header_field!(xloadflags)));
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(Error::No64BitEntry { path: input.path() });
        }
        let Some(head) = header_end(&bytes).and_then(|end| bytes.get(..end)) else {
            return not_bzimage("its setup header has an impossible length");
        };
        let header = Header::new(&bytes, version, xloadflags);
        if !header.kernel_alignment.is_power_of_two() {
            return not_bzimage("its kernel_alignment is not a power of two");
        }
        if !header.is_relocatable && header.pref_address < HIGH_RAM_START {
            return not_bzimage("its pref_address lies below 1 MiB");
        }
        let expected = header.protected_offset.saturating_add(header.protected_size);
        if input.length() < expected {
            return Err(Error::Truncated { path: input.path(), expected, actual: input.length() });
        }
        Ok(Self { head: head.to_vec(), header, input })
    }
}

impl Header {
    fn new(bytes: &[u8], version: u16, xloadflags: u16) -> Self {
        let dword = |offset| u32::from_le_bytes(field(bytes, offset));
        let [setup_sects] = field(bytes, header_field!(setup_sects));
        let setup_sects = if setup_sects == 0 { DEFAULT_SETUP_SECTS } else { setup_sects };
        let [relocatable_kernel] = field(bytes, header_field!(relocatable_kernel));
        Self {
            version,
            setup_sects,
            protected_offset: u64::from(setup_sects).saturating_add(1).saturating_mul(SECTOR),
            protected_size: u64::from(dword(header_field!(syssize))).saturating_mul(PARAGRAPH),
            init_size: dword(header_field!(init_size)).into(),
            kernel_alignment: dword(header_field!(kernel_alignment)).into(),
            pref_address: u64::from_le_bytes(field(bytes, header_field!(pref_address))),
            is_relocatable: relocatable_kernel != 0,
            cmdline_size: dword(header_field!(cmdline_size)),
            initrd_addr_max: dword(header_field!(initrd_addr_max)),
            payload_offset: dword(header_field!(payload_offset)),
            payload_length: dword(header_field!(payload_length)),
            can_be_loaded_above_4g: xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
        }
    }
}

/// The end of the setup header: the jump at 0x200 leads over it, and counts from its own end.
fn header_end(bytes: &[u8]) -> Option<usize> {
    let [_, distance] = field(bytes, header_field!(jump));
    let end = header_field!(header).checked_add(distance.into())?;
    (HEADER_MIN_END..=HEADER_MAX_END).contains(&end).then_some(end)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use vmm_sys_util::tempfile::TempFile;

    /// The size of the protected-mode part of [`bzimage`].
    pub(crate) const PROTECTED_SIZE: usize = 0x3000;

    /// A bzImage of one setup sector with a header as current kernels have it. Its code is a pattern.
    pub(crate) fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0xcc; 2 * 512];
        bytes.extend((0..PROTECTED_SIZE).map(|n| (n % 251) as u8));
        let mut put =
            |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
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
        assert_eq!(
            reason(b"\x7fELF\x02\x01\x01"),
            "it is an ELF file; give the compressed kernel (vmlinuz), not vmlinux"
        );
    }

    #[test]
    fn a_kernel_that_is_too_old_or_not_64_bit_is_refused() {
        let error = image(&with(0x206, &[0x0b, 0x02])).unwrap_err();
        assert!(matches!(error, Error::OldProtocol { version: 0x20b, .. }), "{error}");
        assert!(
            error.to_string().ends_with("speaks boot protocol 2.11; 2.12 (Linux 3.8) or later is needed")
        );
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
}
