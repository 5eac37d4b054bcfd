//! overlayctl
fn main() {}
