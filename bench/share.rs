//! The API server's share of the cost: the cost of a MailCredential compared with an object of a kind without a schema,
//! for the same requests.

use std::time::Duration;

use http::Request;
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams},
};
use mailtoken_testkit::{credential, until};
use serde_json::{Value, json};

use crate::{
    Plan,
    lab::Lab,
    report::{Figure, Report, Target, count},
    usage,
};

/// The kinds to compare. Both have the same fields.
const KINDS: [Kind; 2] = [Kind::Credential, Kind::Minimal];
/// Number of objects of one kind before the next kind. It is so large that the API server collects the garbage of one
/// kind before the next begins.
const BLOCK: usize = 1_000;
/// The group of the kind without a schema.
const GROUP: &str = "bench.example.org";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Credential,
    /// A kind without a schema.
    Minimal,
}

/// The cost of one object for the API server.
#[derive(Clone, Copy)]
struct Cost {
    /// CPU time in milliseconds.
    cpu: f64,
    /// Allocated memory in KiB.
    allocated: f64,
}

pub async fn run(plan: &Plan, report: &mut Report) {
    let block = if plan.quick { 20 } else { BLOCK };
    let lab = Lab::start().await;
    define(&lab).await;
    let mut costs = KINDS.map(|_| (vec![], vec![]));
    for round in 0..=plan.rounds {
        for turn in 0..KINDS.len() {
            let at = (turn + round) % KINDS.len();
            let (create, status) = serve(&lab, KINDS[at], block, &format!("share-{round}")).await;
            // The first round only warms up the API server.
            if round > 0 {
                costs[at].0.push(create);
                costs[at].1.push(status);
            }
        }
    }
    report_costs(&costs, report);
}

fn report_costs(costs: &[(Vec<Cost>, Vec<Cost>); 2], report: &mut Report) {
    let [(created, reported), (least_created, least_reported)] = costs;
    let cpu = |costs: &[Cost]| costs.iter().map(|cost| cost.cpu).collect::<Vec<_>>();
    let allocated = |costs: &[Cost]| costs.iter().map(|cost| cost.allocated).collect::<Vec<_>>();
    let both = |a: Vec<f64>, b: Vec<f64>| a.into_iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
    let share = |what: &str| format!("the API server's share: {what}");
    let row = |name: &str, unit: &'static str, value: Vec<f64>, floor: Vec<f64>| {
        Figure::new(share(name), unit, value).over(floor)
    };
    report.add(row("create, CPU", "ms", cpu(created), cpu(least_created)));
    report.add(row("a status, CPU", "ms", cpu(reported), cpu(least_reported)));
    let life = both(cpu(created), cpu(reported));
    report.add(row("both, CPU", "ms", life, both(cpu(least_created), cpu(least_reported))).target(Target::Ratio(1.35)));
    let life = both(allocated(created), allocated(reported));
    let floor = both(allocated(least_created), allocated(least_reported));
    report.add(row("both, allocated", "KiB", life, floor));
}

/// Creates a block of objects, and writes the status of each.
async fn serve(lab: &Lab, kind: Kind, block: usize, prefix: &str) -> (Cost, Cost) {
    let api = api(lab, kind);
    let mut objects = vec![];
    let meter = Meter::start(lab).await;
    for number in 0..block {
        let object = object(kind, &format!("{prefix}-{number}"));
        objects.push(api.create(&PostParams::default(), &object).await.unwrap());
    }
    let create = meter.end(lab, block).await;
    // As the broker does, the status writer omits the spec.
    for object in &mut objects {
        object.data = json!({"status": status(object.metadata.generation.unwrap())});
        object.metadata.managed_fields = None;
    }
    let meter = Meter::start(lab).await;
    for object in &objects {
        let name = object.metadata.name.as_ref().unwrap();
        api.replace_status(name, &PostParams::default(), object).await.unwrap();
    }
    let status = meter.end(lab, block).await;
    api.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    (create, status)
}

fn api(lab: &Lab, kind: Kind) -> Api<DynamicObject> {
    let (group, version, kind) = match kind {
        Kind::Credential => ("mailtoken.dev", "v1alpha1", "MailCredential"),
        Kind::Minimal => (GROUP, "v1", "Minimal"),
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(lab.ns.client.clone(), &lab.ns.name, &resource)
}

fn object(kind: Kind, name: &str) -> DynamicObject {
    let mut object = credential(name).0;
    if kind != Kind::Credential {
        object["apiVersion"] = json!(format!("{GROUP}/v1"));
        object["kind"] = json!("Minimal");
    }
    serde_json::from_value(object).unwrap()
}

/// Returns a status as the broker writes it after an issue.
fn status(generation: i64) -> Value {
    let time = "2026-11-29T20:00:00Z";
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": time,
            "observedGeneration": generation,
        })
    };
    let valid = "the token is valid until 2026-11-29T21:00:00Z; it will be renewed at 2026-11-29T20:48:00Z";
    json!({
        "observedGeneration": generation,
        "conditions": [
            condition("Ready", "True", "TokenValid", valid),
            condition("Renewed", "True", "RenewalSucceeded", "the last token request succeeded"),
        ],
        "secretName": "mailbox-00000",
        "secretResourceVersion": "123456",
        "token": {
            "issuedAt": time, "expiresAt": "2026-11-29T21:00:00Z", "renewalTime": "2026-11-29T20:48:00Z",
            "scopes": ["https://mail.example.org/.default"], "fingerprint": "sha256:0123456789abcdef", "length": 1_400,
        },
        "client": {"method": "clientSecret", "index": 0},
        "failedAttempts": 0,
    })
}

/// Creates the kind without a schema, and waits until the API server serves it.
async fn define(lab: &Lab) {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("minimals.{GROUP}")},
        "spec": {
            "group": GROUP, "scope": "Namespaced",
            "names": {"kind": "Minimal", "plural": "minimals", "singular": "minimal"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    });
    lab.ns.apply(crd).await;
    let api = api(lab, Kind::Minimal);
    until("the kind without a schema is served", async || {
        api.list(&ListParams::default()).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

/// The API server's use of CPU and memory since its start.
struct Meter {
    cpu: Duration,
    allocated: f64,
    /// Memory that one read of the API server's metrics allocates.
    reading: f64,
}

impl Meter {
    async fn start(lab: &Lab) -> Self {
        let first = allocated(lab).await;
        let allocated = allocated(lab).await;
        Self { cpu: usage::cpu(lab.api_server()), allocated, reading: allocated - first }
    }

    /// Returns the cost of one object, as the average over `objects`.
    async fn end(self, lab: &Lab, objects: usize) -> Cost {
        let cpu = (usage::cpu(lab.api_server()) - self.cpu).as_secs_f64() * 1_000.0;
        let allocated = allocated(lab).await - self.allocated - self.reading;
        Cost { cpu: cpu / count(objects), allocated: allocated / 1_024.0 / count(objects) }
    }
}

/// Returns the bytes that the API server has allocated since its start.
async fn allocated(lab: &Lab) -> f64 {
    let request = Request::get("/metrics").body(vec![]).unwrap();
    let metrics = lab.ns.client.request_text(request).await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix("go_memstats_alloc_bytes_total "));
    line.unwrap().parse().unwrap()
}
