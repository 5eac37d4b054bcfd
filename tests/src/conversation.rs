//! Conversations that stay open, in which either side can send at any time.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::Namespace;
use crate::traffic::{PATIENCE, pattern};
use crate::wait::wait_for;

/// The transport of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A connection.
    Tcp,
    /// Datagrams; the client accepts only those from the address that it sends to.
    Udp,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The transport's name in packet filters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Number of bytes that one side sends at a time: several segments, or one packet.
    fn speech(self) -> usize {
        match self {
            Self::Tcp => 20_000,
            Self::Udp => 1_200,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The answering end, which waits for the client.
#[derive(Clone)]
pub struct Server(Listening);

#[derive(Clone)]
enum Listening {
    Tcp(Arc<TcpListener>),
    Udp(Arc<UdpSocket>),
}

impl Server {
    /// Listens on `address` in `place`; port 0 stands for any port.
    ///
    /// # Errors
    /// When the address does not exist in `place`, or is in use.
    pub fn open(place: &Namespace, transport: Transport, address: SocketAddrV4) -> Result<Self> {
        let listening = place.inside(|| -> std::io::Result<Listening> {
            Ok(match transport {
                Transport::Tcp => {
                    let listener = TcpListener::bind(address)?;
                    listener.set_nonblocking(true)?;
                    Listening::Tcp(Arc::new(listener))
                }
                Transport::Udp => {
                    let socket = UdpSocket::bind(address)?;
                    socket.set_nonblocking(true)?;
                    Listening::Udp(Arc::new(socket))
                }
            })
        })?;
        let context = || format!("listen on {transport} {address} in {}", place.name());
        listening.map(Self).with_context(context)
    }

    /// Accepts the client that has arrived, if any.
    fn accept(&self, greeting: &[u8]) -> Result<Option<(Side, SocketAddr)>> {
        let accepted = match &self.0 {
            Listening::Tcp(listener) => listener.accept().map(|(stream, peer)| {
                stream.set_nonblocking(false)?;
                Ok((Side::tcp(stream)?, peer))
            }),
            Listening::Udp(socket) => {
                let mut buffer = [0; 2048];
                socket.recv_from(&mut buffer).map(|(length, peer)| {
                    ensure!(
                        &buffer[..length] == greeting,
                        "the greeting arrived changed"
                    );
                    Ok((Side::Answering(Arc::clone(socket), peer), peer))
                })
            }
        };
        match accepted {
            Ok(accepted) => accepted.map(Some),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("accept"),
        }
    }
}

/// One end of a conversation.
enum Side {
    Tcp(TcpStream),
    /// A connected socket, which receives only from the other end.
    Udp(UdpSocket),
    /// A server's socket, which all its clients share.
    Answering(Arc<UdpSocket>, SocketAddr),
}

impl Side {
    fn tcp(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::Tcp(stream))
    }

    fn say(&self, words: &[u8]) -> Result<()> {
        match self {
            Self::Tcp(stream) => (&*stream).write_all(words).context("write"),
            Self::Udp(socket) => socket.send(words).map(drop).context("send"),
            Self::Answering(socket, peer) => socket.send_to(words, peer).map(drop).context("send"),
        }
    }

    fn hear(&self, expected: &[u8]) -> Result<()> {
        let mut words = vec![0; expected.len()];
        match self {
            Self::Tcp(stream) => (&*stream).read_exact(&mut words).context("read")?,
            Self::Udp(socket) => {
                socket.recv(&mut words).context("receive")?;
            }
            Self::Answering(socket, peer) => {
                let from = wait_for("a datagram", PATIENCE, || {
                    socket.recv_from(&mut words).ok().map(|(_, from)| from)
                })?;
                ensure!(from == *peer, "{from} speaks instead of {peer}");
            }
        }
        ensure!(words == expected, "the words arrived changed");
        Ok(())
    }
}

/// A socket of the thread's network namespace, connected to `target` from a port that may be shared
/// with other sockets.
fn connected(transport: Transport, port: u16, target: SocketAddrV4) -> nix::Result<OwnedFd> {
    let kind = match transport {
        Transport::Tcp => SockType::Stream,
        Transport::Udp => SockType::Datagram,
    };
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // On Linux this timeout limits connect(2), too.
    let patience = TimeVal::milliseconds(PATIENCE.as_millis() as i64);
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(target))?;
    Ok(socket)
}

/// An open conversation.
pub struct Conversation {
    client: Side,
    server: Side,
    transport: Transport,
    /// The client's address as the server sees it.
    seen: IpAddr,
    /// Number of the server that answers.
    answered_by: usize,
}

impl Conversation {
    /// Opens a conversation from `place` with `target`, which leads to one of `servers`.
    ///
    /// # Errors
    /// When no server answers in time.
    pub fn open(
        place: &Namespace,
        transport: Transport,
        target: SocketAddrV4,
        servers: &[Server],
    ) -> Result<Self> {
        Self::open_from(place, 0, transport, target, servers)
    }

    /// Opens a conversation from a port that the caller chooses, and that other sockets of `place`
    /// may use too.
    ///
    /// # Errors
    /// When no server answers in time.
    pub fn open_from(
        place: &Namespace,
        port: u16,
        transport: Transport,
        target: SocketAddrV4,
        servers: &[Server],
    ) -> Result<Self> {
        let greeting = pattern(transport.speech());
        let connected = place.inside(|| connected(transport, port, target))?;
        let connected = connected.with_context(|| format!("connect to {target}"))?;
        let client = match transport {
            Transport::Tcp => Side::tcp(TcpStream::from(connected))?,
            Transport::Udp => {
                let socket = UdpSocket::from(connected);
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send(&greeting).context("send the greeting")?;
                Side::Udp(socket)
            }
        };
        let (answered_by, accepted) = wait_for("somebody to answer", PATIENCE, || {
            servers
                .iter()
                .enumerate()
                .find_map(|(i, server)| Some((i, server.accept(&greeting).transpose()?)))
        })?;
        let (server, peer) = accepted?;
        Ok(Self {
            client,
            server,
            transport,
            seen: peer.ip(),
            answered_by,
        })
    }

    /// The client's address as the server sees it.
    pub fn seen(&self) -> IpAddr {
        self.seen
    }

    /// Number of the server that answers, counted from 0.
    pub fn answered_by(&self) -> usize {
        self.answered_by
    }

    /// Sends from the client to the server.
    ///
    /// # Errors
    /// When the bytes do not arrive unchanged.
    pub fn client_speaks(&self) -> Result<()> {
        self.speak(&self.client, &self.server)
            .context("the client speaks")
    }

    /// Sends from the server to the client.
    ///
    /// # Errors
    /// When the bytes do not arrive unchanged.
    pub fn server_speaks(&self) -> Result<()> {
        self.speak(&self.server, &self.client)
            .context("the server speaks")
    }

    fn speak(&self, from: &Side, to: &Side) -> Result<()> {
        let words = pattern(self.transport.speech());
        thread::scope(|scope| {
            let said = scope.spawn(|| from.say(&words));
            to.hear(&words)?;
            said.join().map_err(|_| anyhow!("the speaker panicked"))?
        })
    }
}
