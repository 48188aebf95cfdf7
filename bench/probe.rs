//! The cost of the probe: one login at a mail server for each credential, with its own connection and TLS handshake.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mailtoken_testkit::{
    hostile::{Authority, Validity},
    hostile_mail::{HostileMail, script},
    wait::until_in,
};
use serde_json::json;

use crate::{
    Plan,
    lab::{Lab, leads},
    provider,
    report::{Figure, Report, Target},
    usage,
    view::View,
};

/// The target: number of credentials, and seconds in which the broker probes each of them once.
const GOAL: (f64, f64) = (10_000.0, 6.0 * 3600.0);
/// Time after a start until the broker is idle.
const SETTLED: Duration = Duration::from_secs(5);
/// Time limit of all probes of a run.
const PATIENCE: Duration = Duration::from_secs(900);

const LOGIN: &str = "TLS\nS: 220 mail\nC: EHLO [\nS: 250-mail\nS: 250 AUTH XOAUTH2\nC: AUTH XOAUTH2\nS: 334 \nC: \n\
                     S: 235 2.7.0 welcome\nC: QUIT\nS: 221 bye";

pub async fn run(plan: &Plan, report: &mut Report) {
    let number = *plan.sizes.first().unwrap();
    let lab = Lab::start().await;
    let authority = Authority::new();
    let tls = authority.issue(&["localhost"], Validity::Present);
    let server = HostileMail::start("127.0.0.1", tls, script(LOGIN)).await;
    let bundle = lab.provider.ca() + &String::from_utf8(authority.bundle()).unwrap();
    let bundle = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "idp-ca"}, "data": {"ca.crt": bundle},
    });
    lab.ns.apply(bundle).await;
    let mut spec = provider::spec("idp", &lab.provider.token_url());
    spec["servers"] = json!({"smtp": {"host": "localhost", "port": server.port(), "security": "TLS"}});
    let object = json!({
        "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": "idp"}, "spec": spec,
    });
    lab.ns.apply(object).await;

    let mut broker = lab.launch().env("MTB_PROBE", "false").start().await;
    leads(&broker).await;
    let view = View::start(lab.ns.api()).await;
    lab.create("mailbox", number, |manifest| manifest.set("spec.probe", json!({}))).await;
    view.ready("mailbox", number, Timestamp::UNIX_EPOCH).await;
    let (mut cpu, mut memory, mut rest) = (vec![], vec![], vec![]);
    for _ in 0..plan.rounds {
        let mut spent = [0.0; 2];
        let (mut peak, mut settled) = ([0.0; 2], [0.0; 2]);
        for (probes, enabled) in [(0, "false"), (number, "true")] {
            broker.kill();
            broker.set("MTB_PROBE", Some(enabled));
            broker.again().await;
            leads(&broker).await;
            until_in(PATIENCE, "all credentials are probed", async || {
                let made = broker.metric("mailtoken_probes_total", "").await.unwrap_or_default();
                if made >= probes as f64 { Ok(()) } else { Err(made.to_string()) }
            })
            .await;
            tokio::time::sleep(SETTLED).await;
            let at = usize::from(probes > 0);
            (spent[at], peak[at]) = (usage::cpu(broker.id()).as_secs_f64(), usage::peak_memory(&broker));
            settled[at] = usage::memory(&broker);
        }
        cpu.push((spent[1] - spent[0]) / number as f64);
        memory.push((peak[1] - peak[0]).max(0.0));
        rest.push((settled[1] - settled[0]).max(0.0));
        // Without probes, the broker removes their results. So the next round probes again.
        broker.kill();
        broker.set("MTB_PROBE", Some("false"));
        broker.again().await;
        leads(&broker).await;
        tokio::time::sleep(SETTLED).await;
    }
    let (credentials, seconds) = GOAL;
    let share = cpu.iter().map(|cpu| cpu * credentials / seconds * 100.0).collect::<Vec<_>>();
    let milliseconds = cpu.iter().map(|cpu| cpu * 1000.0);
    report.add(Figure::new(format!("probe of {number}: CPU each"), "ms", milliseconds));
    report.add(Figure::new("probes of 10,000 every 6 h: CPU of a core", "%", share).target(Target::AtMost(1.0)));
    report.add(Figure::new(format!("probe of {number} at once: peak memory above a start without"), "MiB", memory));
    report.add(Figure::new(format!("probe of {number} at once: memory at rest above a start without"), "MiB", rest));
}
