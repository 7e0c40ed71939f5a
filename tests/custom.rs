//! Kinds that somebody made, with stock kubectl, the oldest and the newest: a definition applied, objects of it used as
//! any other, and the definition deleted with all of them.

use tests::{Lab, NEW_KUBECTL, OLD_KUBECTL};

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    additionalPrinterColumns:
    - {name: Spec, type: string, description: When it runs, jsonPath: .spec.cronSpec}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        description: A table of times.
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [cronSpec]
            properties:
              cronSpec: {type: string, pattern: '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$', description: When it runs.}
              image: {type: string}
              replicas: {type: integer, minimum: 1, maximum: 10, default: 1}
          status:
            type: object
            properties: {replicas: {type: integer}}
"#;

const OBJECT: &str = r#"
apiVersion: stable.example.com/v1
kind: CronTab
metadata: {name: mine}
spec: {cronSpec: "* * * * */5", image: my-image}
"#;

#[test]
fn a_kind_of_ones_own() {
    let mut lab = Lab::up("custom", "--nodes 2");
    lab.share_kubeconfig(2);
    lab.write("definition.yaml", DEFINITION);
    lab.write("object.yaml", OBJECT);
    lab.write("bad.yaml", &OBJECT.replace("* * * * */5", "at noon"));
    for kubectl in [NEW_KUBECTL, OLD_KUBECTL] {
        lab.with_kubectl(kubectl);
        let old = kubectl == OLD_KUBECTL;
        everyday(&lab, old);
        ownership(&lab);
        let gone = lab.ok(1, "kubectl delete crd crontabs.stable.example.com");
        assert!(gone.contains("\"crontabs.stable.example.com\" deleted"), "{gone}");
        let error = lab.fails(1, "kubectl get crontabs");
        // Who asks again what there is, and who remembers it.
        let told = ["the server doesn't have a resource type", "could not find the requested resource"];
        assert!(told.iter().any(|words| error.contains(words)), "{error}");
    }
}

fn everyday(lab: &Lab, old: bool) {
    let made = lab.ok(1, "kubectl apply -f /root/definition.yaml");
    assert_eq!(made, "customresourcedefinition.apiextensions.k8s.io/crontabs.stable.example.com created\n");
    lab.ok(1, "kubectl wait --for condition=established --timeout 20s crd/crontabs.stable.example.com");
    // The other node knows it at once.
    lab.ok(2, "kubectl get crontabs");
    assert_eq!(lab.ok(1, "kubectl apply -f /root/object.yaml"), "crontab.stable.example.com/mine created\n");
    assert_eq!(
        lab.ok(1, "kubectl apply -f /root/object.yaml"),
        "crontab.stable.example.com/mine unchanged\n"
    );
    let shown = lab.ok(1, "kubectl get ct");
    assert!(
        shown
            .lines()
            .next()
            .is_some_and(|line| line.split_whitespace().eq(["NAME", "SPEC", "REPLICAS", "AGE"])),
        "{shown}"
    );
    assert!(shown.contains("* * * * */5"), "{shown}");
    assert!(lab.ok(1, "kubectl get all").contains("crontab.stable.example.com/mine"));
    let kinds = lab.ok(1, "kubectl api-resources --api-group=stable.example.com");
    assert!(kinds.contains("crontabs") && kinds.contains("CronTab"), "{kinds}");

    let error = lab.fails(1, "kubectl create -f /root/bad.yaml --validate=false");
    assert!(
        error.contains("spec.cronSpec: Invalid value: \"at noon\": spec.cronSpec in body should match"),
        "{error}"
    );
    let error = lab.fails(1, "kubectl scale ct mine --replicas=50");
    assert!(error.contains("spec.replicas in body should be less than or equal to 10"), "{error}");
    lab.ok(1, "kubectl scale ct mine --replicas=4");
    assert_eq!(lab.ok(1, "kubectl get ct mine -o jsonpath={.spec.replicas}"), "4");
    lab.ok(1, "kubectl patch ct mine --type merge -p '{\"spec\":{\"image\":\"other\"}}'");
    lab.ok(1, "kubectl label ct mine a=b");
    assert!(lab.ok(1, "kubectl get ct -l a=b -o name").contains("mine"));
    let told = lab.ok(1, "kubectl describe ct mine");
    assert!(told.contains("API Version:  stable.example.com/v1") && told.contains("other"), "{told}");
    if !old {
        let told = lab.ok(1, "kubectl explain crontab.spec.cronSpec");
        assert!(told.contains("When it runs."), "{told}");
    }
}

/// What an object owns goes with it, and what is in a namespace goes with that.
fn ownership(lab: &Lab) {
    let uid = lab.ok(1, "kubectl get ct mine -o jsonpath={.metadata.uid}");
    let owned = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: owned\n  ownerReferences:\n  - apiVersion: \
         stable.example.com/v1\n    kind: CronTab\n    name: mine\n    uid: {}\n",
        uid.trim()
    );
    lab.write("owned.yaml", &owned);
    lab.ok(1, "kubectl create -f /root/owned.yaml");
    lab.ok(1, "kubectl create namespace side");
    lab.ok(1, "kubectl -n side apply -f /root/object.yaml");
    lab.ok(1, "kubectl delete ct mine");
    lab.until("what it owned to go", 30, |lab| {
        lab.types(1, "kubectl get configmap owned").err.contains("NotFound").then_some(())
    });
    lab.ok(1, "kubectl delete namespace side --timeout 30s");
    assert_eq!(lab.ok(1, "kubectl get ct -A -o name"), "");
    lab.ok(1, "kubectl apply -f /root/object.yaml");
}
