//! overlay-cni
fn main() {}
