//! The names of the features that these programs were built without, in the object itself, so that
//! every loader can see that the object is for measuring only, wherever its file came from.
//!
//! Section `overlay.without`: the names of the features that are set, each ended by a zero byte. No
//! program refers to the section, so no part of it is loaded.

/// Notes each of the features that is set.
macro_rules! note {
    ($($name:ident: $feature:literal),* $(,)?) => {$(
        #[cfg(feature = $feature)]
        #[unsafe(link_section = "overlay.without")]
        #[unsafe(no_mangle)]
        static $name: [u8; $feature.len() + 1] =
            *concat!($feature, "\0").as_bytes().first_chunk().expect("as long");
    )*};
}

note! {
    WITHOUT_INNER_SOURCE: "without-inner-source",
    WITHOUT_HEADER_CHECKSUMS: "without-header-checksums",
    WITHOUT_STACK_OWNED: "without-stack-owned",
    WITHOUT_COUNTERS: "without-counters",
    WITHOUT_PREPARED_NEXT_HOP: "without-prepared-next-hop",
    WITHOUT_FLOW_NEWS: "without-flow-news",
}
