//! The kernel path in real network namespaces. Needs root.

mod kernel_path {
    mod guard;
    mod guard_upkeep;
    mod heal;
    mod interface;
    mod monitor;
    mod namespace;
    mod pods;
    mod policies;
    mod rules;
}
