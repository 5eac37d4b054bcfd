//! Constants that `cargo xtask vmtest` and the first process of its machines share.

/// The serial port for results, by its name in the guest.
pub const OUTPUT: &str = "/dev/ttyS1";
/// The file in the initramfs with the paths of the kernel modules, one a line, in loading order.
pub const MODULES: &str = "/vm/modules";
/// The file in the initramfs with the commands to run, one a line, words separated by spaces.
pub const COMMANDS: &str = "/vm/commands";
/// The line that reports that the kernel has booted and the commands begin.
pub const BEGIN: &str = "vm-init: begin";
/// Prefix of the last line; the exit status follows.
pub const END: &str = "vm-init: exit ";
/// The value of [`SLOWNESS_ENV`](crate::wait::SLOWNESS_ENV) in an emulated machine, whatever the
/// source of its clock.
pub const SLOWNESS: u32 = 5;
/// Environment variable that makes the tests print the values that are otherwise compared with a
/// checked-in table.
pub const RECORD_ENV: &str = "OVERLAY_RECORD";
/// Prefix of a line with a program's size: the program's name and the count follow.
pub const SIZE: &str = "size of ";
