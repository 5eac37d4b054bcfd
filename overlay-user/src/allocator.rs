//! Settings of glibc's allocator, so that an agent in a large cluster keeps no more memory than it
//! uses. Other allocators are left unchanged.

#[cfg(target_env = "gnu")]
use nix::libc;

/// Makes all threads share one heap, and returns large blocks to the kernel as soon as they are
/// free. To be called before there is a second thread.
///
/// Without these settings glibc makes a heap for each thread, and each heap keeps the memory that
/// was once needed. Besides, glibc puts ever larger blocks, such as the pages of a list of nodes,
/// among small ones.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "mallopt(3) has no safe form")
)]
pub fn share() {
    /// glibc's initial value, which glibc raises with every larger block unless the value is set.
    #[cfg(target_env = "gnu")]
    const LARGE: i32 = 128 * 1024;
    // SAFETY: both calls take plain numbers, and change nothing where they fail.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Returns free pages to the kernel, after memory was freed that will not be needed again, because
/// glibc itself returns pages at the end of its heap only.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "malloc_trim(3) has no safe form")
)]
pub fn give_back() {
    // SAFETY: any thread may call this function of the allocator at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
