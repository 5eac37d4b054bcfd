//! Names of Services, from a real DNS server (dnsmasq) behind a Service, like a cluster's own.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::kubernetes::{CLUSTER_DNS, CLUSTER_DOMAIN, Cluster, Names};
use overlay_tests::traffic::Endpoint;
use overlay_tests::wait_until;

use crate::PATIENCE;

/// The server's own Service.
const SERVER: &str = "names";
const PORT: u16 = 53;
const ANSWERED: Duration = Duration::from_secs(5);
/// A DNS header (RFC 1035, section 4.1.1): a number, "recursion desired", one question.
const HEADER: [u8; 12] = [0x0a, 0x0b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
/// Type A, class IN.
const ADDRESS: [u8; 4] = [0, 1, 0, 1];

/// A pod resolves names over UDP and TCP, and fetches a page by a short name.
pub fn resolve(cluster: &Cluster, client: &Endpoint) -> Result<()> {
    let full = format!("{SERVER}.default.svc.{CLUSTER_DOMAIN}");
    Names::serve(cluster, 2)?;

    let query = query(&full);
    let over_udp = || client.namespace.inside(|| udp(&query));
    let over_tcp = || client.namespace.inside(|| tcp(&query));
    // kube-proxy takes a moment until its rules are written.
    wait_until("an answer of the DNS server", PATIENCE, || {
        over_udp().is_ok_and(|answer| answer.is_ok())
    })
    .with_context(|| format!("{:?}\n{}", over_udp(), cluster.last_words(SERVER)))?;
    for (how, answer) in [("UDP", over_udp()??), ("TCP", over_tcp()??)] {
        ensure!(answer == CLUSTER_DNS, "over {how}: {answer}");
    }

    // Programs in pods do the same, with the kubelet's /etc/resolv.conf.
    let exec = |line: &str| {
        let words = ["exec", &client.name, "--"].into_iter();
        cluster.kubectl(words.chain(line.split(' ')))
    };
    let said = exec(&format!("nslookup {full}"))?;
    ensure!(said.contains(&CLUSTER_DNS.to_string()), "{said}");
    let page = exec(&format!("timeout 20 wget -q -O - http://{SERVER}/"))?;
    ensure!(page.trim() == "names", "{page}");
    Ok(())
}

fn query(name: &str) -> Vec<u8> {
    let mut query = HEADER.to_vec();
    for label in name.split('.') {
        query.extend(u8::try_from(label.len()));
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(ADDRESS);
    query
}

fn udp(query: &[u8]) -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(ANSWERED))?;
    socket.connect((CLUSTER_DNS, PORT))?;
    socket.send(query)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    address(&answer[..length])
}

/// A query as over UDP, with the length in front (RFC 1035, section 4.2.2).
fn tcp(query: &[u8]) -> Result<Ipv4Addr> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((CLUSTER_DNS, PORT)), ANSWERED)?;
    stream.set_read_timeout(Some(ANSWERED))?;
    stream.write_all(&u16::try_from(query.len())?.to_be_bytes())?;
    stream.write_all(query)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    address(&answer)
}

/// The address in an answer without further records.
fn address(answer: &[u8]) -> Result<Ipv4Addr> {
    let [.., 0, 4, a, b, c, d] = *answer else {
        anyhow::bail!("no address in {answer:?}");
    };
    let count = answer.get(6..8);
    ensure!(count == Some(&[0, 1][..]), "not one answer: {answer:?}");
    Ok(Ipv4Addr::new(a, b, c, d))
}
