//! Every compressor with whole, damaged, cut off and oversized payloads.

use super::*;
use crate::image::tests::{bzimage_of, image};
use crate::sample::{self, COMPRESSORS, pack, pattern};

/// Unpacks the payload that a bzImage has, and says what came out. Two threads make the same of it as one.
fn unpacked(packed: &[u8]) -> (Vec<u8>, Result<()>) {
    let image = image(&bzimage_of(packed)).unwrap();
    let payload = image.payload().unwrap();
    let [one, two] = [unpack, unpack_beside].map(|unpack: fn(&Input, &Payload, Sink<'_>) -> Result<()>| {
        let mut bytes = Vec::new();
        let result = unpack(image.input(), payload, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        assert!(bytes.len() as u64 <= payload.size, "more than the payload says");
        (bytes, result)
    });
    assert!(one.0 == two.0);
    let text = |result: &Result<()>| result.as_ref().map_err(ToString::to_string).copied();
    assert_eq!(text(&one.1), text(&two.1));
    two
}

/// What an error is about, if it is one about a payload.
fn compressor_of(error: &Error) -> Option<Compressor> {
    match error {
        Error::Unpack { compressor, .. } | Error::Payload { compressor, .. } => Some(*compressor),
        _ => None,
    }
}

/// Replaces the size at the end.
fn with_size(mut packed: Vec<u8>, size: u32) -> Vec<u8> {
    let end = packed.len();
    packed[end - 4..].copy_from_slice(&size.to_le_bytes());
    packed
}

#[test]
fn every_compressor_gives_back_what_was_packed() {
    for compressor in COMPRESSORS {
        for size in [1, 4096, 700_000] {
            let bytes = pattern(size, 3);
            let (seen, result) = unpacked(&pack(compressor, &bytes));
            result.unwrap();
            assert!(seen == bytes, "{compressor}, {size} bytes");
        }
    }
}

#[test]
fn bytes_that_do_not_shrink_are_stored() {
    let bytes: Vec<u8> = pattern(1 << 20, 7).chunks(8).flat_map(|c| c[5..].to_vec()).collect();
    for compressor in COMPRESSORS {
        let (seen, result) = unpacked(&pack(compressor, &bytes));
        result.unwrap();
        assert!(seen == bytes, "{compressor}");
    }
}

#[test]
fn lz4_has_blocks_of_eight_mebibytes() {
    let bytes = vec![7; (16 << 20) + 1];
    let (seen, result) = unpacked(&pack(Compressor::Lz4, &bytes));
    result.unwrap();
    assert!(seen == bytes);
}

#[test]
fn a_payload_that_is_cut_off_is_an_error_that_names_the_compressor() {
    let bytes = pattern(100_000, 5);
    for compressor in COMPRESSORS {
        let packed = pack(compressor, &bytes);
        for keep in [16, 64, packed.len() / 2, packed.len() - 12] {
            let mut cut = packed[..keep].to_vec();
            cut.extend((bytes.len() as u32).to_le_bytes());
            let error = unpacked(&cut).1.unwrap_err();
            assert_eq!(compressor_of(&error), Some(compressor), "{keep} of {}: {error}", packed.len());
            assert!(error.to_string().contains(&compressor.to_string()), "{error}");
        }
    }
}

#[test]
fn a_damaged_payload_is_an_error_that_names_the_compressor() {
    let bytes = pattern(60_000, 9);
    for compressor in COMPRESSORS {
        let packed = pack(compressor, &bytes);
        let has_checksum = !matches!(compressor, Compressor::Lz4 | Compressor::Lzma);
        for position in (20..packed.len() - 4).step_by(997) {
            let mut damaged = packed.clone();
            damaged[position] ^= 0x55;
            match unpacked(&damaged) {
                (_, Err(error)) => assert_eq!(compressor_of(&error), Some(compressor), "{error}"),
                (seen, Ok(())) if has_checksum => {
                    assert!(seen == bytes, "{compressor}: damage at {position} was not seen");
                }
                (seen, Ok(())) => assert_eq!(seen.len(), bytes.len()),
            }
        }
    }
}

#[test]
fn a_payload_of_random_bytes_is_an_error() {
    for compressor in COMPRESSORS {
        let magic = &pack(compressor, b"x")[..9];
        for seed in 1..50 {
            let packed = [magic, &pattern(5000, seed), &5000u32.to_le_bytes()].concat();
            if let (_, Err(error)) = unpacked(&packed) {
                assert_eq!(compressor_of(&error), Some(compressor), "{error}");
            }
        }
    }
}

#[test]
fn a_bomb_goes_off_in_no_more_bytes_than_it_says() {
    let bomb = vec![0; 4 << 20];
    for compressor in COMPRESSORS {
        let packed = pack(compressor, &bomb);
        for size in [0, 1, 4096, 1 << 20] {
            let (seen, result) = unpacked(&with_size(packed.clone(), size));
            let error = result.unwrap_err();
            assert_eq!(compressor_of(&error), Some(compressor), "{error}");
            assert!(seen.len() <= size as usize);
        }
    }
}

#[test]
fn a_payload_with_less_than_it_says_is_refused() {
    for compressor in COMPRESSORS.into_iter().filter(|c| *c != Compressor::Gzip) {
        let error = unpacked(&with_size(pack(compressor, b"kernel"), 7)).1.unwrap_err();
        assert!(error.to_string().ends_with("it unpacks to fewer bytes than it says"), "{error}");
    }
}

#[test]
fn what_the_sink_says_comes_back() {
    let image = sample::image(Compressor::Gzip, b"kernel");
    let result = unpack(image.input(), image.payload().unwrap(), &mut |_| Err(Error::CommandLineNul));
    assert!(matches!(result, Err(Error::CommandLineNul)));
}

/// `seq 1 40 | lzop -9` of lzop 1.04.
const LZOP: &[u8] = &[
    0x89, 0x4c, 0x5a, 0x4f, 0x00, 0x0d, 0x0a, 0x1a, 0x0a, 0x10, 0x40, 0x20, 0xa0, 0x09, 0x40, 0x03, 0x09,
    0x03, 0x00, 0x00, 0x0d, 0x00, 0x00, 0x00, 0x00, 0x6b, 0x04, 0x45, 0x0c, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x25, 0xd8, 0x02, 0x36, 0x00, 0x00, 0x00, 0x6f, 0x00, 0x00, 0x00, 0x6f, 0x63, 0xca, 0x0f, 0xd5, 0x31,
    0x0a, 0x32, 0x0a, 0x33, 0x0a, 0x34, 0x0a, 0x35, 0x0a, 0x36, 0x0a, 0x37, 0x0a, 0x38, 0x0a, 0x39, 0x0a,
    0x31, 0x30, 0x0a, 0x31, 0x31, 0x0a, 0x31, 0x32, 0x0a, 0x31, 0x33, 0x0a, 0x31, 0x34, 0x0a, 0x31, 0x35,
    0x0a, 0x31, 0x36, 0x0a, 0x31, 0x37, 0x0a, 0x31, 0x38, 0x0a, 0x31, 0x39, 0x0a, 0x32, 0x30, 0x0a, 0x32,
    0x31, 0x0a, 0x32, 0x32, 0x0a, 0x32, 0x33, 0x0a, 0x32, 0x34, 0x0a, 0x32, 0x35, 0x0a, 0x32, 0x36, 0x0a,
    0x32, 0x37, 0x0a, 0x32, 0x38, 0x0a, 0x32, 0x39, 0x0a, 0x33, 0x30, 0x0a, 0x33, 0x31, 0x0a, 0x33, 0x32,
    0x0a, 0x33, 0x33, 0x0a, 0x33, 0x34, 0x0a, 0x33, 0x35, 0x0a, 0x33, 0x36, 0x0a, 0x33, 0x37, 0x0a, 0x33,
    0x38, 0x0a, 0x33, 0x39, 0x0a, 0x34, 0x30, 0x0a, 0x00, 0x00, 0x00, 0x00,
];
/// `seq 1 40 | lz4 -l -9` of lz4 1.9.4.
const LZ4: &[u8] = &[
    0x02, 0x21, 0x4c, 0x18, 0x71, 0x00, 0x00, 0x00, 0xf0, 0x60, 0x31, 0x0a, 0x32, 0x0a, 0x33, 0x0a, 0x34,
    0x0a, 0x35, 0x0a, 0x36, 0x0a, 0x37, 0x0a, 0x38, 0x0a, 0x39, 0x0a, 0x31, 0x30, 0x0a, 0x31, 0x31, 0x0a,
    0x31, 0x32, 0x0a, 0x31, 0x33, 0x0a, 0x31, 0x34, 0x0a, 0x31, 0x35, 0x0a, 0x31, 0x36, 0x0a, 0x31, 0x37,
    0x0a, 0x31, 0x38, 0x0a, 0x31, 0x39, 0x0a, 0x32, 0x30, 0x0a, 0x32, 0x31, 0x0a, 0x32, 0x32, 0x0a, 0x32,
    0x33, 0x0a, 0x32, 0x34, 0x0a, 0x32, 0x35, 0x0a, 0x32, 0x36, 0x0a, 0x32, 0x37, 0x0a, 0x32, 0x38, 0x0a,
    0x32, 0x39, 0x0a, 0x33, 0x30, 0x0a, 0x33, 0x31, 0x0a, 0x33, 0x32, 0x0a, 0x33, 0x33, 0x0a, 0x33, 0x34,
    0x0a, 0x33, 0x35, 0x0a, 0x33, 0x36, 0x0a, 0x33, 0x37, 0x0a, 0x33, 0x38, 0x0a, 0x33, 0x39, 0x0a, 0x34,
    0x30, 0x0a,
];

#[test]
fn what_lzop_and_lz4_themselves_make_is_understood() {
    let text: String = (1..=40).map(|n| format!("{n}\n")).collect();
    for tool in [LZOP, LZ4] {
        let (seen, result) = unpacked(&[tool, &(text.len() as u32).to_le_bytes()].concat());
        result.unwrap();
        assert_eq!(String::from_utf8(seen).unwrap(), text);
    }
}

#[test]
fn a_sink_that_fails_ends_both_threads_with_its_error() {
    let image = image(&bzimage_of(&pack(Compressor::Gzip, &pattern(8 << 20, 3)))).unwrap();
    let payload = image.payload().unwrap();
    let mut pieces = 0;
    let result = unpack_beside(image.input(), payload, &mut |_| {
        pieces += 1;
        if pieces == 3 { Err(Error::CommandLineNul) } else { Ok(()) }
    });
    assert!(matches!(result, Err(Error::CommandLineNul)), "{result:?}");
    assert_eq!(pieces, 3);
}
