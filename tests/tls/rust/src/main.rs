//! Rust inside TLS: HTTP/1.1 and HTTP/2 by rustls.
//!
//!     serve ADDRESS CERTIFICATE KEY LOG
//!     ask http1|http2|blocking ADDRESS COUNT CONNECTIONS
//!
//! Each call is a line of the log; "/size/N/..." is answered with N bytes. All connections of one
//! that asks are on a single thread, in turns.

use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream as Blocking};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use hyper::client::conn;
use hyper::rt::Executor;
use hyper::server::conn::Http;
use hyper::service::service_fn;
use hyper::{Body, Method, Request, Response};
use rustls::client::{ServerCertVerified, ServerCertVerifier};
use rustls::{Certificate, ClientConfig, ClientConnection, PrivateKey, ServerConfig, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[derive(Clone)]
struct Spawn;

impl<F> Executor<F> for Spawn
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        tokio::spawn(task);
    }
}

type Log = Arc<Mutex<File>>;

async fn answer(log: Log, port: u16, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let received = hyper::body::to_bytes(body).await.unwrap().len();
    let path = head.uri.path();
    let sent: usize = path.split('/').nth(2).unwrap().parse().unwrap();
    let line = format!(
        r#"{{"port":{},"method":"{}","path":"{}","received":{},"sent":{}}}"#,
        port, head.method, path, received, sent
    );
    writeln!(log.lock().unwrap(), "{}", line).unwrap();
    Ok(Response::new(Body::from(vec![b'a'; sent])))
}

async fn serve(address: &str, certificate: &str, key: &str, log: &str) {
    let open = |path| BufReader::new(File::open(path).unwrap());
    let shown = rustls_pemfile::certs(&mut open(certificate)).unwrap();
    let hidden = rustls_pemfile::pkcs8_private_keys(&mut open(key)).unwrap();
    let mut settings = ServerConfig::builder()
        .with_safe_defaults()
        .with_no_client_auth()
        .with_single_cert(
            shown.into_iter().map(Certificate).collect(),
            PrivateKey(hidden[0].clone()),
        )
        .unwrap();
    settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(settings));
    let log: Log = Arc::new(Mutex::new(File::create(log).unwrap()));
    let listener = TcpListener::bind(address).await.unwrap();
    println!("ready");
    loop {
        let (tcp, peer) = listener.accept().await.unwrap();
        let (acceptor, log) = (acceptor.clone(), log.clone());
        tokio::spawn(async move {
            if let Ok(tls) = acceptor.accept(tcp).await {
                let service = service_fn(move |request| answer(log.clone(), peer.port(), request));
                let _ = Http::new()
                    .with_executor(Spawn)
                    .serve_connection(tls, service)
                    .await;
            }
        });
    }
}

struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &Certificate,
        _: &[Certificate],
        _: &ServerName,
        _: &mut dyn Iterator<Item = &[u8]>,
        _: &[u8],
        _: SystemTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
}

fn settings(protocol: &str) -> Arc<ClientConfig> {
    let mut settings = ClientConfig::builder()
        .with_safe_defaults()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    settings.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Arc::new(settings)
}

fn name() -> ServerName {
    "localhost".try_into().unwrap()
}

async fn ask(is_http2: bool, address: SocketAddr, numbers: Vec<usize>) {
    let connector = TlsConnector::from(settings(if is_http2 { "h2" } else { "http/1.1" }));
    let tcp = TcpStream::connect(address).await.unwrap();
    let tls = connector.connect(name(), tcp).await.unwrap();
    let mut builder = conn::Builder::new();
    let (mut sender, connection) = builder
        .executor(Spawn)
        .http2_only(is_http2)
        .handshake(tls)
        .await
        .unwrap();
    tokio::spawn(connection);
    for number in numbers {
        let path = format!("/size/{}/rust{}", number * 1000, number);
        let uri = if is_http2 {
            format!("https://{}{}", address, path)
        } else {
            path
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header("host", address.to_string())
            .body(Body::from(vec![b'b'; number]))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let body = hyper::body::to_bytes(answer.into_body()).await.unwrap();
        assert_eq!(body.len(), number * 1000);
    }
}

fn ask_blocking(address: SocketAddr, count: usize, connections: usize) {
    let settings = settings("http/1.1");
    let mut sessions: Vec<(ClientConnection, Blocking)> = (0..connections)
        .map(|_| {
            let session = ClientConnection::new(settings.clone(), name()).unwrap();
            (session, Blocking::connect(address).unwrap())
        })
        .collect();
    for number in 0..count {
        let (session, tcp) = &mut sessions[number % connections];
        let mut tls = BufReader::new(rustls::Stream::new(session, tcp));
        let head = format!(
            "POST /size/{}/rust{} HTTP/1.1\r\nhost: a\r\n",
            number * 1000,
            number
        );
        write!(tls.get_mut(), "{}content-length: {}\r\n\r\n", head, number).unwrap();
        tls.get_mut().write_all(&vec![b'b'; number]).unwrap();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            tls.read_line(&mut line).unwrap();
        }
        tls.read_exact(&mut vec![0; number * 1000]).unwrap();
    }
}

fn numbers(first: usize, count: usize, connections: usize) -> Vec<usize> {
    (first..count).step_by(connections).collect()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(|each| each.as_str()).collect();
    match arguments[1..] {
        ["serve", address, certificate, key, log] => tokio::runtime::Runtime::new()
            .unwrap()
            .block_on(serve(address, certificate, key, log)),
        ["ask", protocol, address, count, connections] => {
            let address = address.parse().unwrap();
            let (count, connections) = (count.parse().unwrap(), connections.parse().unwrap());
            if protocol == "blocking" {
                return ask_blocking(address, count, connections);
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let tasks = tokio::task::LocalSet::new();
            tasks.block_on(&runtime.unwrap(), async {
                let each: Vec<_> = (0..connections)
                    .map(|first| numbers(first, count, connections))
                    .map(|each| tokio::task::spawn_local(ask(protocol == "http2", address, each)))
                    .collect();
                for one in each {
                    one.await.unwrap();
                }
            });
        }
        _ => panic!("see the source"),
    }
}
