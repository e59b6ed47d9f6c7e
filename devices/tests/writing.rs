//! The pieces of code in docs/writing-a-vdev.md are those of the device that it is about.

#[test]
fn the_page_shows_the_code_as_it_is() {
    let page = include_str!("../../docs/writing-a-vdev.md");
    let code = include_str!("../src/counter.rs");
    let pieces: Vec<&str> =
        page.split("```rust\n").skip(1).map(|piece| piece.split("```").next().unwrap_or_default()).collect();
    assert!(pieces.len() >= 4, "{}", pieces.len());
    for piece in pieces {
        assert!(code.contains(piece), "this is no longer in counter.rs:\n{piece}");
    }
}
