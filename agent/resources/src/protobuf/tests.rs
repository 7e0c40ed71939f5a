use super::*;
use proptest::prelude::*;
use serde_json::json;

/// A message by hand.
#[derive(Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut number: u64) -> Self {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    fn int(self, tag: u64, number: i64) -> Self {
        self.varint(tag << 3).varint(number as u64)
    }

    fn bytes(self, tag: u64, bytes: &[u8]) -> Self {
        let mut message = self.varint(tag << 3 | 2).varint(bytes.len() as u64);
        message.0.extend_from_slice(bytes);
        message
    }

    fn text(self, tag: u64, text: &str) -> Self {
        self.bytes(tag, text.as_bytes())
    }

    fn of(self, tag: u64, inner: Self) -> Self {
        self.bytes(tag, &inner.0)
    }

    fn body(self, api_version: &str, kind: &str) -> Vec<u8> {
        let kind = message().text(1, api_version).text(2, kind);
        let envelope = message().of(1, kind).of(2, self).text(3, "").text(4, "");
        [MAGIC, &envelope.0].concat()
    }
}

fn message() -> Message {
    Message::default()
}

fn entry(key: &str, value: Message) -> Message {
    message().text(1, key).of(2, value)
}

/// Metadata as a Go client writes it: what is not said is said to be empty.
fn metadata(name: &str) -> Message {
    let empty = [(2, ""), (3, ""), (4, ""), (5, ""), (6, "")];
    let named = empty.iter().fold(message().text(1, name), |m, (tag, text)| m.text(*tag, text));
    named.int(7, 0).of(8, message()).bytes(11, &message().text(1, "app").text(2, name).0)
}

#[test]
fn a_namespace_is_read() {
    let namespace = message().of(1, metadata("home")).of(2, message()).of(3, message().text(1, ""));
    let expected = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "home", "labels": {"app": "home"}}, "spec": {}, "status": {}});
    assert_eq!(decode(&namespace.body("v1", "Namespace")), Ok(expected));
}

#[test]
fn a_deployment_is_read() {
    let quantity = message().text(1, "100m");
    let port = message().text(1, "").int(2, 0).int(3, 80).text(4, "").text(5, "");
    let get = message().text(1, "/").of(2, message().int(1, 0).int(2, 80).text(3, ""));
    let probe = message().of(1, message().of(2, get)).int(2, 0).int(3, 0).int(4, 5);
    let container = message()
        .text(1, "web")
        .text(2, "nginx")
        .of(6, port)
        .of(8, message().of(1, entry("cpu", quantity)))
        .of(10, probe)
        .int(17, 0);
    let volume = message().text(1, "v").of(2, message().of(2, message().text(1, "")));
    let pod = message().of(1, volume).of(2, container).int(4, 0).int(11, 0);
    let template = message().of(1, metadata("web")).of(2, pod);
    let rolling = message().of(1, message().int(1, 1).int(2, 0).text(3, "25%"));
    let spec = message()
        .int(1, 0)
        .of(2, message().bytes(1, &message().text(1, "app").text(2, "web").0))
        .of(3, template)
        .of(4, message().text(1, "").of(2, rolling))
        .int(5, 0);
    let body = message().of(1, metadata("web")).of(2, spec).of(3, message().int(1, 0));
    let expected = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"rollingUpdate": {"maxUnavailable": "25%"}},
            "template": {
                "metadata": {"name": "web", "labels": {"app": "web"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "volumes": [{"name": "v", "emptyDir": {}}],
                    "containers": [{"name": "web", "image": "nginx", "ports": [{"containerPort": 80}],
                        "resources": {"limits": {"cpu": "100m"}},
                        "livenessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 5}}],
                },
            },
        },
    });
    let mut decoded = decode(&body.body("apps/v1", "Deployment")).expect("deployment");
    // What the status counts is not of interest here.
    decoded.as_object_mut().expect("object").remove("status");
    assert_eq!(decoded, expected);
}

#[test]
fn values_of_all_kinds_are_read() {
    let secret =
        message().of(1, metadata("s")).bytes(2, &message().text(1, "k").bytes(2, b"hi").0).text(3, "Opaque");
    let decoded = decode(&secret.body("v1", "Secret")).expect("secret");
    assert_eq!(decoded["data"]["k"], "aGk=");
    let spec = message().text(1, "pi-1").int(2, 40).of(4, message().int(1, 1_458_594_360).int(2, 5_000));
    let lease = message().of(1, metadata("l")).of(2, spec);
    let decoded = decode(&lease.body("coordination.k8s.io/v1", "Lease")).expect("lease");
    assert_eq!(decoded["spec"]["renewTime"], "2016-03-21T21:06:00.000005Z");
    assert_eq!(decoded["spec"]["leaseDurationSeconds"], 40);
    let options = message().int(1, 0).text(4, "Foreground").text(5, "All");
    let decoded = decode(&options.body("apps/v1", "DeleteOptions")).expect("options");
    assert_eq!(decoded["gracePeriodSeconds"], 0);
    assert_eq!(decoded["propagationPolicy"], "Foreground");
    assert_eq!(decoded["dryRun"], json!(["All"]));
    let condition = message().text(1, "Ready").of(4, message().int(1, 60).int(2, 0));
    let pod = message().of(1, metadata("p")).of(3, message().of(2, condition));
    let decoded = decode(&pod.body("v1", "Pod")).expect("pod");
    assert_eq!(decoded["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:01:00Z");
    let fields = message().text(1, "kubectl").of(7, message().bytes(1, br#"{"f:spec":{}}"#));
    let meta = metadata("p").of(17, fields);
    let decoded = decode(&message().of(1, meta).body("v1", "Pod")).expect("pod");
    assert_eq!(decoded["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:spec": {}}));
}

#[test]
fn bad_bodies_are_refused() {
    assert_eq!(decode(b"{}"), Err(DecodeError::NotProtobuf));
    assert_eq!(decode(b"k8s\0\x0a\x7f"), Err(DecodeError::Truncated));
    let unknown = message().body("example.com/v1", "Thing");
    assert!(matches!(decode(&unknown), Err(DecodeError::UnknownKind { .. })));
    let wrong = message().int(1, 5).body("v1", "Pod");
    assert!(matches!(decode(&wrong), Err(DecodeError::Malformed(_))));
    let text = message().of(1, message().bytes(1, &[0xff])).body("v1", "Pod");
    assert_eq!(decode(&text), Err(DecodeError::Malformed("a text is not UTF-8")));
    let many = (0..200_001).fold(message(), |m, _| m.of(1, message()));
    assert_eq!(decode(&message().of(2, many).body("v1", "Pod")), Err(DecodeError::TooBig));
}

#[test]
fn json_in_the_envelope_is_read() {
    let kind = message().text(1, "v1").text(2, "Pod");
    let envelope = message().of(1, kind).bytes(2, br#"{"kind":"Pod"}"#).text(4, "application/json");
    assert_eq!(decode(&[MAGIC, &envelope.0].concat()), Ok(json!({"kind": "Pod"})));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&[MAGIC, &bytes].concat());
        for d in crate::all() {
            let _ = decode(&Message(bytes.clone()).body(&d.api_version(), &d.kind));
        }
    }

    #[test]
    fn damaged_bodies_never_panic(at in 0usize..400, byte: u8, cut in 0usize..400) {
        let container = message().text(1, "web").text(2, "nginx").of(6, message().int(3, 80));
        let pod = message().of(1, metadata("p")).of(2, message().of(2, container));
        let mut body = pod.body("v1", "Pod");
        if let Some(place) = body.get_mut(at) {
            *place = byte;
        }
        body.truncate(cut.max(4));
        let _ = decode(&body);
    }
}
