//! Servers in pods that the API server itself reaches, on another node than the one that leads: an admission webhook, and
//! what `proxy` carries to a service, a pod and a kubelet.

use tests::Lab;

/// A webhook made of nginx: the uid that its answer needs is read out of the question, which it passes to itself.
const NGINX: &str = r#"
user www-data;
worker_processes 1;
daemon off;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
    access_log /dev/stdout;
    client_body_buffer_size 1m;
    map $request_body $uid { "~\"uid\":\"(?<found>[0-9a-f-]{36})\",\"userInfo\"" $found; }
    server {
        listen 443 ssl;
        ssl_certificate /tls/tls.crt;
        ssl_certificate_key /tls/tls.key;
        location = /ask {
            proxy_set_header X-Uid $uid;
            proxy_pass http://127.0.0.1:81/answer;
        }
    }
    server {
        listen 127.0.0.1:81;
        location = /answer {
            default_type application/json;
            return 200 '{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":"$http_x_uid","allowed":false,"status":{"code":403,"reason":"Forbidden","message":"not in this cluster"}}}';
        }
    }
    server {
        listen 80;
        location = /hello { return 200 "hello\n"; }
        location = /away { return 302 /hello; }
    }
}
"#;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: judge}
spec:
  selector: {app: judge}
  ports: [{name: https, port: 443}, {name: web, port: 8080, targetPort: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: judge, labels: {app: judge}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: luxas/nginx-test
    args: [-c, /conf/nginx.conf]
    ports: [{containerPort: 80}]
    readinessProbe: {tcpSocket: {port: 443}, periodSeconds: 1}
    volumeMounts: [{name: conf, mountPath: /conf}, {name: tls, mountPath: /tls}]
  volumes:
  - {name: conf, configMap: {name: judge}}
  - {name: tls, secret: {secretName: judge}}
"#;

const CONFIGURATION: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: judge}
webhooks:
- name: judge.example.com
  clientConfig:
    service: {name: judge, namespace: default, path: /ask}
    caBundle: BUNDLE
  rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [configmaps]}]
  objectSelector: {matchLabels: {judged: "yes"}}
  sideEffects: None
  admissionReviewVersions: [v1]
"#;

#[test]
fn the_leader_reaches_what_pods_serve() {
    let lab = Lab::up("reach", "--nodes 2");
    let nodes = lab.ok(1, "kubectl get nodes -o jsonpath={.items[*].metadata.name}");
    let node = nodes.split_whitespace().last().expect("two nodes").to_owned();
    lab.ok(
        1,
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=judge \
         -addext subjectAltName=DNS:judge.default.svc -keyout /root/tls.key -out /root/tls.crt 2>&1",
    );
    lab.write("nginx.conf", NGINX);
    lab.write("all.yaml", &MANIFESTS.replace("NODE", &node));
    lab.ok(1, "kubectl create secret tls judge --cert /root/tls.crt --key /root/tls.key");
    lab.ok(1, "kubectl create configmap judge --from-file /root/nginx.conf");
    lab.ok(1, "kubectl apply -f /root/all.yaml");
    lab.ok(1, "kubectl wait pod judge --for=condition=Ready --timeout=90s");
    webhook(&lab);
    proxies(&lab, &node);
}

fn webhook(lab: &Lab) {
    let bundle = lab.ok(1, "base64 -w0 /root/tls.crt");
    lab.write("judge.yaml", &CONFIGURATION.replace("BUNDLE", bundle.trim()));
    lab.ok(1, "kubectl apply -f /root/judge.yaml");
    lab.write(
        "map.yaml",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: m, labels: {judged: \"yes\"}}}",
    );
    let error = lab.until("the endpoint to be known", 20, |lab| {
        let said = lab.types(1, "kubectl create -f /root/map.yaml");
        assert_ne!(said.code, 0, "{}", said.out);
        (!said.err.contains("no endpoints available")).then_some(said.err)
    });
    let denied = "admission webhook \"judge.example.com\" denied the request: not in this cluster";
    assert!(error.contains(denied), "{error}");
    lab.ok(1, "kubectl create configmap other");
    // Without its server nothing passes that it should be asked about.
    lab.ok(1, "kubectl patch validatingwebhookconfiguration judge --type json -p '[{\"op\":\"replace\",\"path\":\"/webhooks/0/clientConfig/service/name\",\"value\":\"gone\"}]'");
    let error = lab.fails(1, "kubectl create -f /root/map.yaml");
    assert!(
        error.contains("failed calling webhook \"judge.example.com\"")
            && error.contains("service \"gone\" not found"),
        "{error}"
    );
    lab.ok(1, "kubectl delete validatingwebhookconfiguration judge");
    lab.ok(1, "kubectl create -f /root/map.yaml");
}

fn proxies(lab: &Lab, node: &str) {
    for below in [
        "namespaces/default/services/judge:web/proxy/hello",
        "namespaces/default/services/judge:8080/proxy/hello",
        "namespaces/default/pods/judge/proxy/hello",
        "namespaces/default/pods/judge:80/proxy/away",
    ] {
        assert_eq!(lab.ok(1, &format!("kubectl get --raw /api/v1/{below}")), "hello\n", "{below}");
    }
    assert_eq!(lab.ok(1, &format!("kubectl get --raw /api/v1/nodes/{node}/proxy/healthz")), "ok");
    let error = lab.fails(1, "kubectl get --raw /api/v1/namespaces/default/pods/judge:82/proxy/");
    assert!(error.contains("error trying to reach service: dial tcp"), "{error}");
    let told = lab.ok(1, "kubectl cluster-info");
    assert!(told.contains("is running at"), "{told}");
    // A browser on somebody's machine, through kubectl.
    let line = "kubectl proxy --port 8001 >/dev/null & P=$!; \
        for i in 1 2 3 4 5 6 7 8 9; do curl -s 127.0.0.1:8001/version >/dev/null && break; sleep 1; done; \
        curl -sL 127.0.0.1:8001/api/v1/namespaces/default/services/judge:web/proxy/away; kill $P";
    assert_eq!(lab.ok(1, line), "hello\n");
}
