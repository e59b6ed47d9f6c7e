//! mote's own heap, which is to stay small beside its guest's memory.

/// Has large pieces go back to the host as soon as they are freed, such as those that unpacking a kernel takes, and has all
/// threads share one heap: none of them allocates while its guest waits. To be called before there is a second thread.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        /// Bytes from which on a piece is mapped by itself. Left alone, the C library raises it with each that is freed.
        const LARGE: libc::c_int = 128 << 10;
        #[expect(unsafe_code, reason = "the C library's allocator is set by raw calls")]
        // SAFETY: they set numbers of the allocator, which checks them, and no other thread uses it yet.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
}

/// Gives back what loading the kernel has left free between pieces that stay.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "the C library's allocator is trimmed by a raw call")]
        // SAFETY: it touches nothing but free memory, under the allocator's own lock.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
