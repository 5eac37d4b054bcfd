//! What glibc's allocator is told, so that an agent in a large cluster keeps no more memory than it
//! uses. Other allocators are left as they are.

#[cfg(target_env = "gnu")]
use nix::libc;

/// Has threads share one heap, and large pieces returned as soon as they are free. To be called
/// before there is a second thread.
///
/// By itself glibc makes a heap for each thread, of which every one keeps what it once needed; and
/// it puts ever larger pieces, such as the pages of a list of nodes, among small ones.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "mallopt(3) has no safe form")
)]
pub fn share() {
    /// glibc's own value at the start, which it raises with every larger piece unless it is told.
    #[cfg(target_env = "gnu")]
    const LARGE: i32 = 128 * 1024;
    // SAFETY: both take plain numbers, and change nothing where they fail.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Gives free pages back to the kernel, after something that will not be needed again: glibc does
/// so by itself at the end of its heap only.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "malloc_trim(3) has no safe form")
)]
pub fn give_back() {
    // SAFETY: the allocator may be asked at any time, by any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
