//! Constants that `cargo xtask vmtest` and the first process of its machines share.

/// The serial port that results go to, as the guest sees it.
pub const OUTPUT: &str = "/dev/ttyS1";
/// Where the initramfs has the paths of the kernel modules, one a line, in loading order.
pub const MODULES: &str = "/vm/modules";
/// Where the initramfs has the commands to run, one a line, words separated by spaces.
pub const COMMANDS: &str = "/vm/commands";
/// The line that says that the kernel has booted and the commands begin.
pub const BEGIN: &str = "vm-init: begin";
/// What the last line begins with; the exit status follows.
pub const END: &str = "vm-init: exit ";
/// What [`SLOWNESS_ENV`](crate::wait::SLOWNESS_ENV) is in an emulated machine, whatever its clock
/// goes by.
pub const SLOWNESS: u32 = 5;
/// Environment variable that makes the tests print what they would compare with a checked-in table.
pub const RECORD_ENV: &str = "OVERLAY_RECORD";
/// What a line begins with that tells a program's size: its name and the count follow.
pub const SIZE: &str = "size of ";
