use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::Request;
use hyper::body::Frame;
use skep_model::limits::{HTTP_ANSWER_BYTES_MAX, HTTP_SENT_BYTES_MAX};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// Answers from a list, another at each question where there are several.
#[derive(Debug, Default)]
struct Names {
    known: HashMap<&'static str, Vec<Vec<&'static str>>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut asked = self.asked.lock().unwrap();
        let before = asked.iter().filter(|known| *known == name).count();
        asked.push(name.to_owned());
        let answers = self.known.get(name).ok_or(io::ErrorKind::NotFound)?;
        let answer = &answers[before.min(answers.len() - 1)];
        Ok(answer.iter().map(|address| address.parse().unwrap()).collect())
    }
}

fn names(known: &[(&'static str, &[&[&'static str]])]) -> Arc<Names> {
    let known = known
        .iter()
        .map(|(name, answers)| (*name, answers.iter().map(|a| a.to_vec()).collect()));
    Arc::new(Names {
        known: known.collect(),
        asked: Mutex::default(),
    })
}

/// A Bee of the tenant `default`.
fn outgoing(grants: &[&str], names: Arc<Names>) -> Outgoing {
    let grants = grants.iter().map(|grant| grant.parse().unwrap()).collect();
    let mut out = Outgoing::new(Some(Egress::new(grants, true, names, Arc::default())), Log::default());
    out.begin_call(None);
    out
}

fn get(url: &str) -> Request<WasiBody> {
    Request::get(url).body(empty()).unwrap()
}

fn empty() -> WasiBody {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

struct Answer {
    status: u16,
    headers: hyper::HeaderMap,
    body: Result<Bytes, Error>,
}

async fn ask(out: &mut Outgoing, request: Request<WasiBody>) -> Result<Answer, Error> {
    let sent = Box::into_pin(out.hooks.send_request(request, None, Box::new(async { Ok(()) })));
    let (response, io) = sent.await?;
    let io = tokio::spawn(Box::into_pin(io));
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes);
    io.abort();
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body,
    })
}

/// What was refused, and the words of the log.
async fn refused(out: &mut Outgoing, url: &str) -> (String, String) {
    let request = Request::get(url).body(empty());
    let Ok(request) = request else {
        return ("not a URL".to_owned(), String::new());
    };
    match ask(out, request).await {
        Ok(answer) => (format!("answered {}", answer.status), String::new()),
        Err(e) => {
            let said = out.hooks.log.take();
            (
                format!("{e:?}"),
                said.lines.last().map(|line| line.text.clone()).unwrap_or_default(),
            )
        }
    }
}

/// Serves each connection by what `answer` writes after the request's head.
async fn server(answer: impl Fn(String) -> Vec<u8> + Send + Sync + 'static) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (answer, count) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                    let mut some = [0; 4_096];
                    match stream.read(&mut some).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => head.extend_from_slice(&some[..n]),
                    }
                }
                let _ = stream
                    .write_all(&answer(String::from_utf8_lossy(&head).into_owned()))
                    .await;
                // What else is sent is read, so that it does not break the answer.
                let mut rest = [0; 4_096];
                while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut rest)).await {}
            });
        }
    });
    (port, count)
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn what_is_listed_is_reached_and_nothing_else() {
    let (port, count) = server(|head| ok(&head)).await;
    let mut out = outgoing(
        &[&format!("http://svc.test:{port}"), &format!("http://127.0.0.1:{port}")],
        names(&[("svc.test", &[&["127.0.0.1"]]), ("other.test", &[&["127.0.0.1"]])]),
    );
    let answer = ask(&mut out, get(&format!("http://svc.test:{port}/a?b")))
        .await
        .unwrap();
    let head = String::from_utf8(answer.body.unwrap().to_vec()).unwrap();
    assert!(head.starts_with("GET /a?b HTTP/1.1\r\n"), "{head}");
    assert_eq!(
        ask(&mut out, get(&format!("http://127.0.0.1:{port}")))
            .await
            .unwrap()
            .status,
        200
    );
    assert_eq!(count.load(Ordering::Relaxed), 2);
    for url in [
        format!("http://other.test:{port}"),
        format!("https://svc.test:{port}"),
        "http://svc.test".to_owned(),
        format!("http://127.0.0.2:{port}"),
        format!("http://[::ffff:127.0.0.1]:{port}"),
    ] {
        let (error, said) = refused(&mut out, &url).await;
        assert_eq!(error, "HttpRequestDenied", "{url}");
        assert!(
            said.contains("the manifest does not list") && said.contains("`http:`"),
            "{said}"
        );
    }
    let connect = Request::connect(format!("http://svc.test:{port}"))
        .body(empty())
        .unwrap();
    assert!(matches!(
        ask(&mut out, connect).await,
        Err(Error::HttpRequestMethodInvalid)
    ));
    // Not granted at all.
    let mut none = Outgoing::new(None, Log::default());
    none.begin_call(None);
    let (error, said) = refused(&mut none, &format!("http://127.0.0.1:{port}")).await;
    assert!(
        error == "HttpRequestDenied" && said.contains("http: [api.example.com]"),
        "{said}"
    );
    assert_eq!(count.load(Ordering::Relaxed), 2, "nobody else was connected to");
}

/// Whoever resolves or compares in another spelling than we do would be fooled by one of these.
#[tokio::test]
async fn other_spellings_of_a_host_are_refused() {
    let mut out = outgoing(&["http://127.0.0.1", "http://svc.test", "api.example.com"], names(&[]));
    for url in [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://svc.test./",
        "http://SVC.test/",
        "http://user@svc.test/",
        "http://svc.test:80@evil.org/",
        "http://svc.test%2eevil.org/",
        "http://ex\u{0430}mple.com/",
        "http://api\u{3002}example.com/",
        "http://svc.test:/",
        "http://svc.test:0/",
        "http://svc.test:99999/",
        "http://svc.test:+80/",
        "http://svc.test\\@evil.org/",
        "http:///",
    ] {
        let (error, _) = refused(&mut out, url).await;
        assert!(
            ["HttpRequestUriInvalid", "HttpRequestDenied", "not a URL"].contains(&error.as_str()),
            "{url}: {error}"
        );
    }
}

#[tokio::test]
async fn no_name_leads_home_but_one_of_home() {
    let (port, count) = server(|_| ok("inside")).await;
    let port80 = |host: &str| format!("http://{host}:{port}");
    let bad: &[(&'static str, &[&[&'static str]])] = &[
        ("loop.example.com", &[&["127.0.0.1"]]),
        ("mixed.example.com", &[&["93.184.216.34", "127.0.0.1"]]),
        ("meta.example.com", &[&["169.254.169.254"]]),
        ("mapped.example.com", &[&["::ffff:127.0.0.1"]]),
        ("nat.example.com", &[&["64:ff9b::7f00:1"]]),
        ("any.example.com", &[&["0.0.0.0"]]),
        ("many.example.com", &[&["224.0.0.1"]]),
        ("meta.internal", &[&["169.254.169.254"]]),
        ("any.internal", &[&["0.0.0.0"]]),
        ("none.example.com", &[&[]]),
    ];
    let grants: Vec<String> = bad.iter().map(|(name, _)| port80(name)).collect();
    let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
    let mut out = outgoing(&grants, names(bad));
    for (name, _) in bad {
        let (error, said) = refused(&mut out, &port80(name)).await;
        let wanted = if *name == "none.example.com" {
            "DestinationNotFound"
        } else {
            "DestinationIpProhibited"
        };
        assert_eq!(error, wanted, "{name}: {said}");
        assert!(said.contains(&format!("GET http://{name}:{port}: ")), "{said}");
    }
    // A stranger's Bee does not reach the operator's network by whatever it lists.
    let grants = [port80("127.0.0.1"), port80("svc.test")].map(|grant| grant.parse().unwrap());
    let egress = Egress::new(
        grants.to_vec(),
        false,
        names(&[("svc.test", &[&["127.0.0.1"]])]),
        Arc::default(),
    );
    let mut stranger = Outgoing::new(Some(egress), Log::default());
    stranger.begin_call(None);
    for host in ["127.0.0.1", "svc.test"] {
        let (error, said) = refused(&mut stranger, &port80(host)).await;
        assert!(
            error == "DestinationIpProhibited" && said.contains("tenant `default`"),
            "{said}"
        );
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

/// The name leads to a good place while it is looked at, and home a moment later.
#[tokio::test]
async fn a_name_that_changes_between_look_and_connection_changes_nothing() {
    let (port, count) = server(|_| ok("inside")).await;
    let grant = format!("http://two.example.com:{port}");
    // 192.0.0.0/24 would be private; this one is public and answers nobody, so the request fails at the connection.
    let resolver = names(&[("two.example.com", &[&["203.0.114.1"], &["127.0.0.1"]])]);
    let mut out = outgoing(&[&grant], Arc::clone(&resolver));
    let options = RequestOptions {
        connect_timeout: Some(Duration::from_millis(200)),
        ..RequestOptions::default()
    };
    let sent = out
        .hooks
        .send_request(get(&grant), Some(options), Box::new(async { Ok(()) }));
    assert!(Box::into_pin(sent).await.is_err());
    assert_eq!(resolver.asked.lock().unwrap().len(), 1, "it is looked up once");
    assert_eq!(count.load(Ordering::Relaxed), 0);
    // Asked for again, it is looked at again.
    assert_eq!(refused(&mut out, &grant).await.0, "DestinationIpProhibited");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_where_it_leads_is_looked_at_anew() {
    let (inside, reached) = server(|_| ok("secret")).await;
    let location = format!("http://127.0.0.1:{inside}/latest/meta-data");
    let moved = format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    let (port, _) = server(move |_| moved.clone().into_bytes()).await;
    let grant = format!("http://svc.test:{port}");
    let mut out = outgoing(&[&grant], names(&[("svc.test", &[&["127.0.0.1"]])]));
    let answer = ask(&mut out, get(&grant)).await.unwrap();
    assert_eq!(
        (answer.status, answer.headers["location"].to_str().unwrap()),
        (302, location.as_str())
    );
    assert_eq!(refused(&mut out, &location).await.0, "HttpRequestDenied");
    assert_eq!(reached.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_key_of_a_request_is_the_same_at_each_attempt() {
    let (port, _) = server(|head| ok(&head)).await;
    let grant = format!("http://127.0.0.1:{port}");
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut out = outgoing(&[&grant], names(&[]));
        out.begin_input(Uid([7; 16]));
        let mut keys = Vec::new();
        for (method, own) in [("POST", None), ("GET", None), ("POST", None), ("POST", Some("mine"))] {
            let mut request = Request::builder().method(method).uri(&grant);
            if let Some(own) = own {
                request = request.header("idempotency-key", own);
            }
            let answer = ask(&mut out, request.body(empty()).unwrap()).await.unwrap();
            let head = String::from_utf8(answer.body.unwrap().to_vec()).unwrap();
            keys.push(
                head.lines()
                    .find_map(|line| line.strip_prefix("idempotency-key: ").map(str::to_owned)),
            );
        }
        seen.push(keys);
    }
    let uid = Uid([7; 16]);
    assert_eq!(
        seen[0],
        [
            Some(format!("{uid}-0")),
            None,
            Some(format!("{uid}-2")),
            Some("mine".to_owned())
        ]
    );
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn answers_without_an_end_and_heads_without_a_measure_are_cut() {
    let (endless, _) = server(|_| {
        let mut all = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        all.resize(all.len() + HTTP_ANSWER_BYTES_MAX + 1, b'x');
        all
    })
    .await;
    let (wide, _) = server(|_| format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).into_bytes()).await;
    let (many, _) = server(|_| format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(1_000)).into_bytes()).await;
    let (noise, _) = server(|_| b"SSH-2.0-OpenSSH\r\n".to_vec()).await;
    let grant = |port: u16| format!("http://127.0.0.1:{port}");
    let grants = [endless, wide, many, noise].map(grant);
    let mut out = outgoing(&grants.each_ref().map(String::as_str), names(&[]));
    let answer = ask(&mut out, get(&grants[0])).await.unwrap();
    assert!(
        matches!(answer.body, Err(Error::HttpResponseBodySize(Some(_)))),
        "{:?}",
        answer.body
    );
    for grant in &grants[1..] {
        let (error, said) = refused(&mut out, grant).await;
        assert!(
            error.starts_with("HttpResponseHeader") || error.starts_with("HttpProtocol"),
            "{error}: {said}"
        );
    }
}

#[tokio::test]
async fn silence_ends_and_so_does_all_with_the_call() {
    let (mute, _) = server(|_| Vec::new()).await;
    let (slow, _) = server(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf".to_vec()).await;
    let grants = [mute, slow].map(|port| format!("http://127.0.0.1:{port}"));
    let mut out = outgoing(&grants.each_ref().map(String::as_str), names(&[]));
    let short = Some(Duration::from_millis(100));
    let options = RequestOptions {
        connect_timeout: None,
        first_byte_timeout: short,
        between_bytes_timeout: short,
    };
    let sent = out
        .hooks
        .send_request(get(&grants[0]), Some(options), Box::new(async { Ok(()) }));
    assert!(matches!(Box::into_pin(sent).await, Err(Error::ConnectionReadTimeout)));
    let sent = out
        .hooks
        .send_request(get(&grants[1]), Some(options), Box::new(async { Ok(()) }));
    let (response, io) = Box::into_pin(sent).await.unwrap();
    let io = tokio::spawn(Box::into_pin(io));
    assert!(matches!(
        response.into_body().collect().await,
        Err(Error::ConnectionReadTimeout)
    ));
    io.abort();
    // Without times of its own it ends with the call.
    let sent = Box::into_pin(
        out.hooks
            .send_request(get(&grants[0]), None, Box::new(async { Ok(()) })),
    );
    let began = Instant::now();
    let sent = tokio::spawn(sent);
    tokio::time::sleep(Duration::from_millis(50)).await;
    out.end_call();
    assert!(matches!(sent.await.unwrap(), Err(Error::ConnectionTerminated)));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_call_has_so_many_requests_under_way_and_so_many_in_all() {
    let (mute, _) = server(|_| Vec::new()).await;
    let grant = format!("http://127.0.0.1:{mute}");
    let mut out = outgoing(&[&grant], names(&[]));
    let mut under_way = Vec::new();
    for _ in 0..HTTP_PER_CALL_MAX {
        under_way.push(out.hooks.send_request(get(&grant), None, Box::new(async { Ok(()) })));
    }
    let (error, said) = refused(&mut out, &grant).await;
    assert!(
        error == "ConnectionLimitReached" && said.contains("under way at most"),
        "{said}"
    );
    drop(under_way);
    for _ in 0..HTTP_REQUESTS_PER_CALL_MAX {
        drop(out.hooks.send_request(get(&grant), None, Box::new(async { Ok(()) })));
    }
    let (error, said) = refused(&mut out, &grant).await;
    assert!(
        error == "ConnectionLimitReached" && said.contains("smaller batches"),
        "{said}"
    );
    // Another call begins with all of it.
    out.begin_call(None);
    assert!(out.hooks.check(&get(&grant)).is_ok());
}

#[tokio::test]
async fn a_body_beyond_its_bound_is_not_sent_to_its_end() {
    let (port, _) = server(|_| Vec::new()).await;
    let grant = format!("http://127.0.0.1:{port}");
    let mut out = outgoing(&[&grant], names(&[]));
    let piece = Bytes::from(vec![0; 1 << 20]);
    let pieces = (0..=HTTP_SENT_BYTES_MAX >> 20).map(move |_| Ok::<_, Error>(Frame::data(piece.clone())));
    let body = StreamBody::new(futures::stream::iter(pieces)).boxed_unsync();
    let request = Request::post(&grant).body(body).unwrap();
    assert!(matches!(
        ask(&mut out, request).await,
        Err(Error::HttpRequestBodySize(_))
    ));
}

#[tokio::test]
async fn this_machine_s_own_public_addresses_are_the_operator_s_alone() {
    assert!(is_own("127.0.0.1".parse().unwrap()) && !is_own("203.0.114.1".parse().unwrap()));
    let grants = ["http://203.0.114.7", "http://own.example.com"];
    let known = names(&[("own.example.com", &[&["203.0.114.7"]])]);
    for (private, url, allowed) in [
        (false, "http://203.0.114.7/", false),
        (false, "http://own.example.com/", false),
        (true, "http://own.example.com/", false),
        (true, "http://203.0.114.7/", true),
    ] {
        let listed = grants.map(|grant| grant.parse().unwrap()).to_vec();
        let egress = Egress::new(listed, private, Arc::clone(&known) as Arc<dyn Resolver>, Arc::default());
        let mut egress = Arc::into_inner(egress).unwrap();
        egress.own = |address| address == IpAddr::from([203, 0, 114, 7]);
        let host = grants[usize::from(url.contains("own"))]
            .parse::<HttpGrant>()
            .unwrap()
            .host;
        let found = egress.addresses(&host).await;
        assert_eq!(found.is_ok(), allowed, "{url}");
        if let Err(refused) = found {
            assert!(refused.words.contains("this machine's own"), "{}", refused.words);
        }
    }
}

#[tokio::test]
async fn one_tenant_s_connections_leave_some_to_another() {
    let lines = Lines::new(20, |share| &share.connections);
    let (many, other): (Arc<Share>, Arc<Share>) = Default::default();
    let mut held: Vec<_> = std::iter::from_fn(|| lines.try_take(&many)).collect();
    assert_eq!(held.len(), 16);
    let waits = tokio::spawn({
        let (lines, many) = (Arc::clone(&lines), Arc::clone(&many));
        async move { lines.take(&many).await }
    });
    tokio::task::yield_now().await;
    let beside = lines.try_take(&other).expect("a fifth is left to others");
    assert!(!waits.is_finished());
    drop(beside);
    held.pop();
    let late = tokio::time::timeout(Duration::from_secs(5), waits)
        .await
        .unwrap()
        .unwrap();
    drop((held, late));
    assert_eq!((*lines.free(), many.connections.load(Ordering::Relaxed)), (20, 0));
}

/// Dials as a node does for the process of a tenant.
#[derive(Debug)]
struct ByNode(Arc<Egress>);

#[async_trait]
impl Dialler for ByNode {
    async fn dial(&self, scheme: Scheme, host: &str, port: u16) -> Result<tokio::net::UnixStream, DialError> {
        let dialled = self.0.dial(scheme, host, port).await?;
        let (own, its) = tokio::net::UnixStream::pair().unwrap();
        tokio::spawn(dialled.carry(own));
        Ok(its)
    }
}

#[tokio::test]
async fn what_another_process_sends_through_the_node_goes_where_the_node_lets_it() {
    let (port, count) = server(|head| ok(&head)).await;
    let (other, unasked) = server(|head| ok(&head)).await;
    let (listed, lied) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{other}"));
    let by_node = Egress::new(vec![listed.parse().unwrap()], true, names(&[]), Arc::default());
    let grants = vec![listed.parse().unwrap(), lied.parse().unwrap()];
    let guest = Egress::through(grants, Arc::new(ByNode(Arc::clone(&by_node))));
    let mut out = Outgoing::new(Some(guest), Log::default());
    out.begin_call(None);
    for n in 0..3 {
        let answer = ask(&mut out, get(&format!("{listed}/{n}"))).await.unwrap();
        assert_eq!(answer.status, 200);
        let body = answer.body.unwrap();
        assert!(body.starts_with(format!("GET /{n} HTTP/1.1").as_bytes()), "{body:?}");
    }
    assert_eq!(count.load(Ordering::Relaxed), 3);
    // The process says that it may; the node knows better.
    let (error, words) = refused(&mut out, &format!("{lied}/")).await;
    assert!(
        error.contains("Denied") && words.contains("does not list"),
        "{error}: {words}"
    );
    let (error, _) = refused(&mut out, "http://169.254.169.254/").await;
    assert!(error.contains("Denied"), "{error}");
    assert_eq!(unasked.load(Ordering::Relaxed), 0);
}
