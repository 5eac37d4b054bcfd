//! The holder of an address: the content of the address's file.

use std::fmt;
use std::fs;
use std::path::Path;

/// One interface of one container: the unit that CNI adds to a network and deletes from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attachment {
    /// The runtime's identifier of the container (`CNI_CONTAINERID`).
    pub container: String,
    /// The name of the interface in the container (`CNI_IFNAME`).
    pub interface: String,
}

impl Attachment {
    /// The content that `host-local` writes to the file of an address.
    #[must_use]
    pub fn file_content(&self) -> String {
        format!("{}\r\n{}", self.container, self.interface)
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.interface, self.container)
    }
}

/// What the file of an address says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An interface of a container.
    Attachment(Attachment),
    /// A container without an interface, because `host-local` before version 0.7 did not name it.
    Container(String),
    /// The file is empty, not text, or cannot be read: the result of a crash or a broken disk.
    Unreadable,
}

impl Holder {
    /// Reads the file of an address; a file with any fault is [`Holder::Unreadable`].
    #[must_use]
    pub fn read(path: &Path) -> Self {
        fs::read_to_string(path).map_or(Self::Unreadable, |text| Self::parse(&text))
    }

    /// Reads the content of an address's file.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let is_word = |text: &str| {
            !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        match text.trim_end().split_once("\r\n") {
            Some((container, interface)) if is_word(container) && is_word(interface) => {
                Self::Attachment(Attachment {
                    container: container.to_owned(),
                    interface: interface.to_owned(),
                })
            }
            None if is_word(text.trim_end()) => Self::Container(text.trim_end().to_owned()),
            _ => Self::Unreadable,
        }
    }

    /// Whether the holder is `attachment`.
    #[must_use]
    pub fn is(&self, attachment: &Attachment) -> bool {
        match self {
            Self::Attachment(holder) => holder == attachment,
            Self::Container(container) => *container == attachment.container,
            Self::Unreadable => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_round_trips() {
        let attachment = Attachment {
            container: "c0ffee".into(),
            interface: "eth0".into(),
        };
        assert_eq!(attachment.file_content(), "c0ffee\r\neth0");
        assert_eq!(
            Holder::parse(&attachment.file_content()),
            Holder::Attachment(attachment)
        );
    }

    #[test]
    fn errors_name_container_and_interface() {
        let attachment = Attachment {
            container: "c0ffee".into(),
            interface: "eth0".into(),
        };
        assert_eq!(attachment.to_string(), "eth0 of container c0ffee");
    }

    #[test]
    fn old_files_name_the_container_only() {
        let attachment = Attachment {
            container: "c0ffee".into(),
            interface: "eth0".into(),
        };
        assert_eq!(Holder::parse("c0ffee"), Holder::Container("c0ffee".into()));
        assert!(Holder::parse("c0ffee\n").is(&attachment));
    }

    #[test]
    fn rubbish_is_nobody() {
        for text in [
            "",
            "\r\n",
            "\r\neth0",
            "a b\r\neth0",
            "\0\0\0\0",
            "a\r\nb\r\nc",
        ] {
            assert_eq!(Holder::parse(text), Holder::Unreadable, "{text:?}");
        }
    }
}
