//! Whatever is sent, the server answers, and never with a fault of its own: real requests, damaged.
//!
//! `PROPTEST_CASES=100000 cargo nextest run -p apiserver fuzz` looks longer.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};

/// What numbers, texts and lists are damaged with.
const ODD: &[&str] = &[
    "null",
    "true",
    "0",
    "-1",
    "1",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "1e308",
    "0.1",
    "\"\"",
    "\" \"",
    "\"a\"",
    "\"-1\"",
    "\"100%\"",
    "\"1e400\"",
    "\"999999999999999999999Gi\"",
    "\"\u{0}\"",
    "\"é\"",
    "\"../..\"",
    "\"*\"",
    "\"$(X)\"",
    "\"{{\"",
    "\"2016-02-30T00:00:00Z\"",
    "\"a/b/c\"",
    "[]",
    "{}",
    "[null]",
    "[[[[]]]]",
    "{\"a\":{\"a\":{}}}",
    "[1,\"a\",{}]",
    "{\"\":null}",
    "{\"$patch\":\"delete\"}",
    "{\"$patch\":\"replace\"}",
    "{\"matchLabels\":null}",
    "[\"a\",\"a\"]",
    "\"^(a+)+$\"",
    "\"self.a.b.c\"",
    "{\"$ref\":\"#\"}",
];

/// One thing that happens to a body: where, and what.
#[derive(Clone, Debug)]
struct Damage {
    at: prop::sample::Index,
    with: prop::sample::Index,
    how: u8,
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let damage = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..6_u8);
    prop::collection::vec(damage.prop_map(|(at, with, how)| Damage { at, with, how }), 1..4)
}

/// Damages one value within another.
fn damage_value(root: &mut Value, damage: &Damage) {
    let mut paths = Vec::new();
    paths_of(root, String::new(), &mut paths);
    let Some(target) = root.pointer_mut(damage.at.get::<String>(&paths)) else { return };
    let odd: Value = serde_json::from_str(damage.with.get::<&str>(ODD)).unwrap_or(Value::Null);
    match (damage.how, target) {
        (0, Value::Object(fields)) => {
            let key = fields.keys().nth(damage.with.index(fields.len().max(1))).cloned();
            key.map(|key| fields.remove(&key));
        }
        (1, Value::Object(fields)) => {
            let key = fields.keys().nth(damage.with.index(fields.len().max(1))).cloned();
            let value = key.and_then(|key| fields.remove(&key)).unwrap_or(odd);
            fields.insert("name".to_owned(), value);
        }
        (2, Value::Array(items)) => {
            let again = items.clone();
            items.extend(again);
        }
        (3, Value::Array(items)) => items.push(odd),
        (4, Value::String(text)) => *text = text.repeat(damage.with.index(300)),
        (_, target) => *target = odd,
    }
}

fn paths_of(value: &Value, path: String, paths: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                paths_of(value, format!("{path}/{name}"), paths);
            }
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| paths_of(item, format!("{path}/{i}"), paths));
        }
        _ => {}
    }
    paths.push(path);
}

/// Damages bytes: one is another, some are gone, some come twice, the rest is cut off.
fn damage_bytes(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let (at, with) = (damage.at.index(bytes.len()), damage.with.index(bytes.len()));
    let (from, to) = (at.min(with), at.max(with));
    match damage.how {
        0 => bytes[at] ^= 1 << (with % 8),
        1 => bytes[at] = with as u8,
        2 => drop(bytes.drain(from..to.min(from + 16))),
        3 => {
            let again = bytes[from..to.min(from + 64)].to_vec();
            bytes.splice(at..at, again);
        }
        4 => bytes.truncate(at),
        _ => bytes.insert(at, 0xff),
    }
}

/// A good object of each kind, with its collection's path.
fn samples() -> Vec<(String, Value)> {
    let pod = json!({"containers": [{"name": "web", "image": "nginx:1", "ports": [{"containerPort": 80}],
        "resources": {"limits": {"cpu": "0.5"}}, "env": [{"name": "A", "value": "b"}],
        "livenessProbe": {"httpGet": {"port": 80}}, "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "emptyDir": {}}], "tolerations": [{"key": "a", "operator": "Exists"}]});
    let mut once = pod.clone();
    once["restartPolicy"] = "Never".into();
    let text = include_str!("../../../resources/src/kinds/samples.json")
        .replace("\"$POD\"", &pod.to_string())
        .replace("\"$TEMPLATE\"", &json!({"metadata": {"labels": {"app": "web"}}, "spec": pod}).to_string())
        .replace("\"home\"", "\"default\"")
        .replace("\"$ONCE\"", &json!({"spec": once}).to_string())
        .replace("\"$SELECTOR\"", &json!({"matchLabels": {"app": "web"}}).to_string());
    let samples: Vec<Value> = serde_json::from_str(&text).unwrap();
    let named = samples.into_iter().map(|mut sample| {
        let (version, kind) = (text_of(&sample, "apiVersion"), text_of(&sample, "kind"));
        let kind = resources::find_kind(&version, &kind).unwrap();
        if sample["metadata"].is_null() {
            sample["metadata"] = json!({"generateName": "web-"});
        }
        (collection(kind), sample)
    });
    named.collect()
}

fn text_of(value: &Value, field: &str) -> String {
    text(&value[field])
}

fn collection(kind: &resources::Descriptor) -> String {
    let base = if kind.group.is_empty() { "api" } else { "apis" };
    let scope = if kind.namespaced { "/namespaces/default" } else { "" };
    format!("/{base}/{}{scope}/{}", kind.api_version(), kind.plural)
}

/// A server, and a way to wait for it where nothing waits.
struct Fuzzed {
    runtime: tokio::runtime::Runtime,
    world: World,
}

impl Fuzzed {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let world = runtime.block_on(World::new());
        Self { runtime, world }
    }

    /// Sends a request; its answer must not be a fault of the server's.
    fn send(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: Vec<u8>,
    ) -> Result<Answer, TestCaseError> {
        let Ok(uri) = path.parse::<http::Uri>() else { return Err(TestCaseError::reject("no URI")) };
        let mut asked = Request::new(Body::from(body));
        (*asked.method_mut(), *asked.uri_mut()) = (method, uri);
        asked.extensions_mut().insert(User::admin());
        let accept = if path.len().is_multiple_of(3) {
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
        } else {
            "application/json"
        };
        asked.headers_mut().insert(header::ACCEPT, accept.parse().unwrap());
        if !media_type.is_empty() {
            asked.headers_mut().insert(header::CONTENT_TYPE, media_type.parse().unwrap());
        }
        let answer = self.runtime.block_on(self.world.send(asked));
        // What an apply cannot be read as is upstream's own fault, too, by its answer.
        let upstreams = text(&answer.body["message"]).starts_with("failed to create typed patch object");
        prop_assert!(answer.code < 500 || upstreams, "{path}: {:#}", answer.body);
        Ok(answer)
    }

    fn run<S: Strategy>(&self, strategy: &S, test: impl Fn(&Self, S::Value) -> Result<(), TestCaseError>) {
        let mut runner = TestRunner::new(Cases { failure_persistence: None, ..Cases::default() });
        runner.run(strategy, |case| test(self, case)).unwrap();
    }
}

#[test]
fn damaged_objects_of_every_kind() {
    let fuzzed = Fuzzed::new();
    let samples = samples();
    for (path, sample) in &samples {
        let answer =
            fuzzed.send(Method::POST, path, "application/json", sample.to_string().into_bytes()).unwrap();
        assert!([201, 409].contains(&answer.code), "{path}: {}", answer.body);
    }
    // What has a say in others' writes would have the last one.
    for (path, _) in
        samples.iter().filter(|(path, _)| path.contains("admissionregistration") || path.ends_with("quotas"))
    {
        fuzzed.send(Method::DELETE, path, "", Vec::new()).unwrap();
    }
    let strategy = (any::<prop::sample::Index>(), damages(), any::<bool>());
    fuzzed.run(&strategy, |fuzzed, (which, damages, yaml)| {
        let (path, sample) = which.get(&samples);
        let mut sample = sample.clone();
        damages.iter().for_each(|damage| damage_value(&mut sample, damage));
        let (media_type, body) = if yaml {
            ("application/yaml", serde_yaml_ng::to_string(&sample).unwrap_or_default())
        } else {
            ("application/json", sample.to_string())
        };
        let made = fuzzed.send(Method::POST, path, media_type, body.into_bytes())?;
        if made.code != 201 {
            return Ok(());
        }
        let name = [&made.body["metadata"]["name"], &made.body["rows"][0]["object"]["metadata"]["name"]];
        let name = name.iter().find_map(|name| name.as_str()).unwrap_or_default();
        let own = format!("{path}/{name}");
        let read = fuzzed.send(Method::GET, &own, "", Vec::new())?;
        prop_assert_eq!(read.code, 200);
        fuzzed.send(Method::PUT, &own, media_type, sample.to_string().into_bytes())?;
        fuzzed.send(Method::GET, path, "", Vec::new())?;
        fuzzed.send(Method::DELETE, &format!("{own}?gracePeriodSeconds=0"), "", Vec::new())?;
        Ok(())
    });
}

#[test]
fn damaged_patches_of_every_form() {
    let fuzzed = Fuzzed::new();
    let path = format!("{DEPLOYMENTS}/web");
    fuzzed.runtime.block_on(fuzzed.world.made(DEPLOYMENTS, deployment("web")));
    let applied = deployment("web");
    let merged = json!({"metadata": {"labels": {"a": "b"}, "annotations": null}, "spec": {"replicas": 2, "template": {"spec":
        {"containers": [{"name": "main", "env": [{"name": "A", "value": "b"}], "$setElementOrder/ports": []}],
        "$retainKeys": ["containers"]}}}});
    let operations = json!([{"op": "test", "path": "/spec/replicas", "value": 3}, {"op": "add", "path": "/metadata/labels",
        "value": {"a": "b"}}, {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "x"},
        {"op": "copy", "from": "/spec/selector", "path": "/metadata/annotations"}, {"op": "remove", "path": "/spec/replicas"}]);
    let forms = [
        ("application/apply-patch+yaml", applied),
        ("application/merge-patch+json", merged.clone()),
        ("application/strategic-merge-patch+json", merged),
        ("application/json-patch+json", operations),
    ];
    let subs = ["", "/status", "/scale"];
    let strategy = (0..forms.len(), 0..subs.len(), damages());
    fuzzed.run(&strategy, |fuzzed, (form, sub, damages)| {
        let (media_type, mut patch) = forms[form].clone();
        damages.iter().for_each(|damage| damage_value(&mut patch, damage));
        let path = format!("{path}{}?fieldManager=fuzz&force=true", subs[sub]);
        let path = if form == 0 { path } else { path.replace("&force=true", "") };
        fuzzed.send(Method::PATCH, &path, media_type, patch.to_string().into_bytes())?;
        let kept = fuzzed.send(Method::GET, DEPLOYMENTS, "", Vec::new())?;
        prop_assert_eq!(kept.code, 200);
        Ok(())
    });
}

#[test]
fn damaged_bytes_in_every_encoding() {
    let fuzzed = Fuzzed::new();
    let mut bodies: Vec<(String, &str, Vec<u8>)> = Vec::new();
    for block in include_str!("../../../resources/tests/kubectl-bodies.txt").split("\n\n") {
        let lines: Vec<&str> = block.trim().lines().collect();
        let sent: Value = serde_json::from_str(lines[2]).unwrap();
        if let Some(kind) = resources::find_kind(&text_of(&sent, "apiVersion"), &text_of(&sent, "kind")) {
            let yaml = serde_yaml_ng::to_string(&sent).unwrap();
            let path = collection(kind);
            bodies.push((
                path.clone(),
                "application/vnd.kubernetes.protobuf",
                STANDARD.decode(lines[1]).unwrap(),
            ));
            bodies.push((path.clone(), "application/json", sent.to_string().into_bytes()));
            bodies.push((path, "application/yaml", yaml.into_bytes()));
        }
    }
    let strategy = (any::<prop::sample::Index>(), damages());
    fuzzed.run(&strategy, |fuzzed, (which, damages)| {
        let (path, media_type, body) = which.get(&bodies);
        let mut body = body.clone();
        damages.iter().for_each(|damage| damage_bytes(&mut body, damage));
        fuzzed.send(Method::POST, path, media_type, body).map(drop)
    });
}

#[test]
fn damaged_definitions_of_kinds_and_their_objects() {
    let fuzzed = Fuzzed::new();
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
        "additionalPrinterColumns": [{"name": "N", "type": "integer", "jsonPath": ".spec.n"}],
        "selectableFields": [{"jsonPath": ".spec.s"}],
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [{"rule": "self.n < 9 || self.l.all(x, x.k != '')", "message": "no"}],
            "properties": {"n": {"type": "integer", "minimum": 1, "default": 2}, "s": {"type": "string", "pattern": "^a", "maxLength": 9},
            "l": {"type": "array", "maxItems": 4, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}},
            "m": {"type": "object", "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "integer"}], "x-kubernetes-int-or-string": true}}}},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}});
    let object = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"generateName": "t-"},
        "spec": {"n": 3, "s": "abc", "l": [{"k": "a"}], "m": {"a": 1, "b": "c"}}});
    let things = "/apis/example.com/v1/namespaces/default/things";
    let strategy = (damages(), prop::collection::vec(damages(), 0..4), any::<bool>());
    fuzzed.run(&strategy, |fuzzed, (damages, objects, broken)| {
        let mut changed = definition.clone();
        if broken {
            damages.iter().for_each(|damage| damage_value(&mut changed["spec"], damage));
        }
        let body = changed.to_string().into_bytes();
        let made = fuzzed.send(Method::POST, definitions, "application/json", body)?;
        for damages in objects.iter().filter(|_| made.code == 201) {
            let mut object = object.clone();
            damages.iter().for_each(|damage| damage_value(&mut object, damage));
            fuzzed.send(Method::POST, things, "application/json", object.to_string().into_bytes())?;
        }
        if made.code == 201 {
            fuzzed.send(Method::GET, things, "", Vec::new())?;
            fuzzed.send(Method::GET, "/openapi/v3/apis/example.com/v1", "", Vec::new())?;
            fuzzed.send(Method::GET, "/openapi/v2", "", Vec::new())?;
            fuzzed.send(Method::DELETE, things, "", Vec::new())?;
            fuzzed.send(Method::DELETE, &format!("{definitions}/things.example.com"), "", Vec::new())?;
        }
        Ok(())
    });
}

#[test]
fn odd_paths_and_parameters() {
    let fuzzed = Fuzzed::new();
    fuzzed.runtime.block_on(fuzzed.world.made(PODS, pod("web")));
    let word = "(api|apis|apps|v1|namespaces|default|pods|nodes|services|web|https:web:80|deployments|status|scale|log|proxy|exec|%2e%2e|%00|%ff|[a-z:%*~]{0,6})";
    let path = prop::collection::vec(word, 0..9).prop_map(|words| format!("/{}", words.join("/")));
    let near = prop_oneof![
        path,
        Just(PODS.to_owned()),
        Just(format!("{PODS}/web")),
        Just("/api/v1/pods".to_owned())
    ];
    let name = "(labelSelector|fieldSelector|limit|continue|resourceVersion|resourceVersionMatch|sendInitialEvents|\
        timeoutSeconds|dryRun|fieldManager|fieldValidation|propagationPolicy|gracePeriodSeconds|container|command|pretty|force|includeObject)";
    let value = "(true|false|0|-1|1|99999999999999999999|All|Exact|NotOlderThan|Strict|Orphan|a%3Db|a|a%20in%20(b,c)|!a|metadata.name%3Dweb|\
        spec.nodeName!%3D|eyJ2IjoiYnJhbWJsZS92MSJ9|[a-z0-9=!,()%2]{0,12})";
    let query = prop::collection::vec((name, value), 0..4).prop_map(|all| {
        all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    });
    let methods = [
        Method::GET,
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
    ];
    let strategy = (near, query, 0..methods.len());
    fuzzed.run(&strategy, |fuzzed, (path, query, method)| {
        // What is taken away would be missed by the next ones; a gateway's faults are those of others.
        let method = if path == PODS && methods[method] == Method::DELETE {
            Method::GET
        } else {
            methods[method].clone()
        };
        if path.contains("/proxy") || path.contains("/log") || path.contains("/exec") {
            return Ok(());
        }
        let path = format!("{path}?{query}");
        let Ok(uri) = path.parse::<http::Uri>() else { return Ok(()) };
        let mut asked = request(method, "/", Body::empty());
        *asked.uri_mut() = uri;
        // An answer may go on for ever (a watch): its head is enough.
        let answer = fuzzed.runtime.block_on(fuzzed.world.api.handle(asked));
        let code = answer.status().as_u16();
        // A revision that is not there yet is waited for, and then asked for again.
        prop_assert!(code < 500 || code == 504 && path.contains("resourceVersion="), "{path}: {code}");
        Ok(())
    });
}

#[test]
fn odd_credentials() {
    let fuzzed = Fuzzed::new();
    let part = prop_oneof![
        "[A-Za-z0-9_-]{0,40}",
        "(\\{\"alg\":\"(ES256|none|RS256|)\"\\}|\\{\"sub\":\"system:serviceaccount:default:default\",\"exp\":[0-9]{1,20}\\}|null|\\[\\])"
            .prop_map(|json| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(json)),
    ];
    let token = prop::collection::vec(part, 0..5).prop_map(|parts| parts.join("."));
    let strategy = ("(Bearer |bearer |Basic |Bearer|)", token);
    fuzzed.run(&strategy, |fuzzed, (scheme, token)| {
        let mut asked = Request::builder().uri(PODS).body(Body::empty()).unwrap();
        let Ok(value) = format!("{scheme}{token}").parse() else { return Ok(()) };
        asked.headers_mut().insert(header::AUTHORIZATION, value);
        let answer = fuzzed.runtime.block_on(fuzzed.world.send(asked));
        prop_assert_eq!(answer.code, 401);
        Ok(())
    });
}
