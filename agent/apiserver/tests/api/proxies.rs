//! What pods, services and nodes serve, reached through the API.

use super::webhooks::{Certificate, tls};
use super::*;
use hyper::service::service_fn;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

const SERVICES: &str = "/api/v1/namespaces/default/services";

/// An address of this host's that is not its loopback's, which may not be reached. Nothing is sent.
fn own_address() -> IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("203.0.113.1:9").expect("this host has a route");
    socket.local_addr().unwrap().ip()
}

/// Tells what it was asked, or echoes an upgraded stream.
async fn answer(mut request: Request<hyper::body::Incoming>) -> Result<http::Response<Body>, Infallible> {
    if let Some(protocol) = request.headers().get(header::UPGRADE).cloned() {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 4];
            stream.read_exact(&mut word).await.unwrap();
            stream.write_all(&word).await.unwrap();
        });
        let response = http::Response::builder().status(101).header(header::UPGRADE, protocol);
        return Ok(response.header(header::CONNECTION, "Upgrade").body(Body::empty()).unwrap());
    }
    let headers = request.headers();
    let header = |name: &str| headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
    let told = format!(
        "{} {} {} {} {} ",
        request.method(),
        request.uri(),
        header("authorization"),
        header("impersonate-user"),
        header("x-forwarded-uri")
    );
    let location = format!("http://{}/elsewhere", header("host"));
    let sent = request.into_body().collect().await.unwrap().to_bytes();
    let body = format!("{told}{}", String::from_utf8_lossy(&sent));
    Ok(http::Response::builder()
        .status(202)
        .header(header::LOCATION, location)
        .body(Body::from(body))
        .unwrap())
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let served =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
    let _ = served.with_upgrades().await;
}

/// A server on this host, with TLS or without.
async fn server(secure: bool) -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let (config, _) = tls(Certificate::Own, "somebody.else");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if !secure {
                    serve(stream).await;
                } else if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream).await;
                }
            });
        }
    });
    at
}

/// A pod that says it listens there.
async fn listening(world: &World, name: &str, at: SocketAddr) {
    let mut pod = pod(name);
    pod["spec"]["nodeName"] = "n1".into();
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": at.port()}]);
    world.made(PODS, pod).await;
    let status = json!({"status": {"phase": "Running", "podIP": at.ip().to_string()}});
    world.patch(&format!("{PODS}/{name}/status"), "merge", status).await.ok(200);
}

#[tokio::test]
async fn a_pod_is_asked_as_it_would_be_by_itself() {
    let world = World::new().await;
    let at = server(false).await;
    listening(&world, "web", at).await;
    let prefix = format!("{PODS}/web/proxy");
    for (method, verb) in
        [(Method::GET, "GET"), (Method::PUT, "PUT"), (Method::DELETE, "DELETE"), (Method::OPTIONS, "OPTIONS")]
    {
        let path = format!("{prefix}/a//b%2F?c=d%20e");
        let mut asked = request(method, &path, Body::from("body"));
        asked.headers_mut().insert(header::HOST, "api".parse().unwrap());
        asked.headers_mut().insert("authorization", "Basic c2VjcmV0".parse().unwrap());
        asked.headers_mut().insert("impersonate-user", "system:admin".parse().unwrap());
        asked.headers_mut().insert("impersonate-group", "system:masters".parse().unwrap());
        let answer = world.send(asked).await;
        assert_eq!(answer.headers[header::LOCATION], format!("{prefix}/elsewhere"));
        let told = format!("{verb} /a//b%2F?c=d%20e - - {prefix}/a//b%2F body");
        assert_eq!(answer.ok(202), told);
    }
    let moved = world.get(&format!("{prefix}?a=b")).await;
    assert_eq!(
        (moved.code, moved.headers[header::LOCATION].to_str().unwrap()),
        (301, format!("{prefix}/?a=b").as_str())
    );
    let named = world.get(&format!("{PODS}/web:{}/proxy/x", at.port())).await.ok(202);
    assert!(text(&named).starts_with("GET /x "));
    let secure = server(true).await;
    let path = format!("{PODS}/https:web:{}/proxy/s", secure.port());
    assert!(text(&world.get(&path).await.ok(202)).starts_with("GET /s "));
}

#[tokio::test]
async fn a_service_is_reached_at_a_ready_endpoint() {
    let world = World::new().await;
    let at = server(false).await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [
        {"name": "http", "port": 80, "targetPort": at.port()}, {"name": "other", "port": 81}]}});
    world.made(SERVICES, service).await;
    let (reason, message) = world.get(&format!("{SERVICES}/web:80/proxy/")).await.failure(503);
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("ServiceUnavailable", "no endpoints available for service \"web\"")
    );
    let slice = json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "endpoints": [{"addresses": [at.ip().to_string()]}], "ports": [{"name": "http", "port": at.port(), "protocol": "TCP"}]});
    world.made("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    for name in ["web:80", "web:http", "http:web:http"] {
        let told = text(&world.get(&format!("{SERVICES}/{name}/proxy/a")).await.ok(202));
        assert!(told.starts_with("GET /a "), "{told}");
    }
    let (_, message) = world.get(&format!("{SERVICES}/web:82/proxy/")).await.failure(503);
    assert_eq!(message, "no service port 82 found for service \"web\"");
    world.get(&format!("{SERVICES}/none/proxy/")).await.failure(404);
}

#[tokio::test]
async fn a_stream_is_upgraded() {
    let world = World::new().await;
    listening(&world, "web", server(false).await).await;
    let mut sender = world.connection().await;
    let request = Request::builder()
        .uri(format!("{PODS}/web/proxy/socket"))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .body(Body::empty())
        .unwrap();
    let mut answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    stream.write_all(b"ping").await.unwrap();
    let mut word = [0; 4];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"ping");
}

#[tokio::test]
async fn what_cannot_be_reached_is_said() {
    let world = World::new().await;
    let closed = TcpListener::bind((own_address(), 0)).await.unwrap().local_addr().unwrap();
    listening(&world, "down", closed).await;
    let (reason, message) = world.get(&format!("{PODS}/down/proxy/")).await.failure(503);
    assert_eq!(reason, "ServiceUnavailable");
    assert!(
        message.starts_with(&format!("error trying to reach service: dial tcp {closed}: Connection refused")),
        "{message}"
    );
    // What this host serves to itself is nobody's.
    listening(&world, "sly", "127.0.0.1:6443".parse().unwrap()).await;
    assert_eq!(world.get(&format!("{PODS}/sly/proxy/")).await.failure(400).1, "address not allowed");
    world.made(PODS, pod("young")).await;
    assert_eq!(world.get(&format!("{PODS}/young:80/proxy/")).await.failure(400).1, "address not allowed");
    assert_eq!(
        world.get(&format!("{PODS}/ftp:x:1/proxy/")).await.failure(400).1,
        "invalid pod request \"ftp:x:1\""
    );
    // Who may not look at it may not ask it.
    let mut asked = request(Method::GET, &format!("{PODS}/down/proxy/"), Body::empty());
    asked.extensions_mut().insert(User { name: "eve".into(), ..User::default() });
    let (_, message) = world.send(asked).await.failure(403);
    assert!(message.contains("cannot get resource \"pods/proxy\" in API group \"\""), "{message}");
    world.made("/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await;
    let (_, message) = world.get("/api/v1/nodes/n1/proxy/healthz").await.failure(503);
    assert_eq!(message, "error trying to reach service: no route to host");
}

#[tokio::test]
async fn what_a_kubelet_serves_is_reached_with_its_own_path() {
    let world = World::with(Arc::new(Served), 64).await;
    world.made("/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await;
    for name in ["n1", "n1:10250", "https:n1:10250"] {
        let told = text(&world.get(&format!("/api/v1/nodes/{name}/proxy/stats/summary?a=b")).await.ok(202));
        assert!(told.starts_with("GET /stats/summary?a=b "), "{told}");
    }
}

/// Kubelets that tell what they are asked.
struct Served;

#[async_trait::async_trait]
impl Kubelets for Served {
    async fn connect(&self, node: &Value) -> std::io::Result<Box<dyn Stream>> {
        assert_eq!(node["metadata"]["name"], "n1");
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(serve(theirs));
        Ok(Box::new(ours))
    }
}
