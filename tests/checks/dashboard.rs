//! The Grafana dashboard against the code: its queries use only metrics and labels that the broker and the relay expose.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use mail_token_broker::metrics::Metrics;
use mailtoken_testkit::process;
use serde_json::{Value, json};

type Labels = BTreeSet<String>;

/// Labels that Prometheus adds to each series of a scrape.
const OF_THE_SCRAPE: [&str; 2] = ["job", "instance"];

/// Returns the code of a file up to its unit tests. Replaces each run of whitespace by one space, and removes spaces
/// after a bracket.
fn code(file: &str) -> String {
    let text = fs::read_to_string(process::root().join(file)).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(")
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// Returns the fields of a struct and their types.
fn fields<'a>(code: &'a str, name: &str) -> BTreeMap<&'a str, &'a str> {
    let body = code.split(&format!("struct {name} {{ ")).nth(1).unwrap_or_else(|| panic!("no struct {name}"));
    let parts: Vec<_> = body.split(" }").next().unwrap().split(": ").collect();
    let mut fields = BTreeMap::new();
    let mut field = parts[0];
    for (at, part) in parts.iter().enumerate().skip(1) {
        // The text before a colon has the type of one field and the name of the next field.
        let (of, next) = part.rsplit_once(", ").filter(|_| at + 1 < parts.len()).unwrap_or((part, ""));
        fields.insert(field, of);
        field = next;
    }
    fields
}

fn insert(exposed: &mut BTreeMap<String, Labels>, name: &str, of: &str, labels: Labels) {
    if of.contains("Histogram") {
        let with_le = labels.iter().cloned().chain(["le".to_owned()]).collect();
        exposed.insert(format!("{name}_bucket"), with_le);
        exposed.insert(format!("{name}_count"), labels.clone());
        exposed.insert(format!("{name}_sum"), labels);
    } else if of.contains("Counter") {
        exposed.insert(format!("{name}_total"), labels);
    } else {
        exposed.insert(name.to_owned(), labels);
    }
}

/// Returns the labels of a field of `Metrics` whose series have arrays of labels: the array in the code that counts.
fn counted_with(code: &str, field: &str) -> Labels {
    let call = format!("metrics.{field}.get_or_create(&");
    let code = code.replace("self.metrics.", "metrics.").replace("self.", "metrics.");
    let (before, after) = code.split_once(&call).unwrap_or_else(|| panic!("nothing counts {field}"));
    let array = if after.starts_with("labels)") { before.rsplit("let labels = [").next().unwrap() } else { after };
    labels_in(array.split(']').next().unwrap())
}

/// Adds the metrics that a file registers in its struct `Metrics`.
fn registered(file: &str, prefix: &str, exposed: &mut BTreeMap<String, Labels>) {
    let code = code(file);
    let metrics = fields(&code, "Metrics");
    for call in code.split(".register(").skip(1) {
        let name = format!("{prefix}_{}", call.split('"').nth(1).unwrap());
        if call.split(';').next().unwrap().contains("Info::new") {
            exposed.insert(format!("{name}_info"), labels_in(call.split(';').next().unwrap()));
            continue;
        }
        let field = call.split(".clone()").next().unwrap().rsplit(' ').next().unwrap();
        let of = metrics.get(field).unwrap_or_else(|| panic!("{file}: Metrics has no field {field}"));
        let labels = match of.strip_prefix("Family<") {
            Some(of) if of.starts_with("Labels<") => counted_with(&code, field),
            Some(of) => fields(&code, identifier(of)).into_keys().map(str::to_owned).collect(),
            None => Labels::new(),
        };
        insert(exposed, &name, of, labels);
    }
}

/// Returns the labels in code: `("label", …)`, and the results of the functions `labels` and `provider_labels`.
fn labels_in(code: &str) -> Labels {
    let literals = code.split("(\"").skip(1).filter_map(|rest| Some(rest.split_once("\",")?.0));
    let mut labels: Labels = literals.filter(|literal| !literal.is_empty()).map(str::to_owned).collect();
    for call in code.split("labels(").skip(1) {
        match call.split_once("key, \"") {
            Some((before, rest)) if before.len() < 3 => {
                labels.extend(["kind", "namespace", identifier(rest)].map(str::to_owned));
            }
            _ => labels.extend(["namespace", "name"].map(str::to_owned)),
        }
    }
    labels
}

/// Adds the metrics of objects. The code before or after the name has their labels.
fn of_objects(exposed: &mut BTreeMap<String, Labels>) {
    let code = code("src/metrics/objects.rs");
    let code = code.split("type Label ").next().unwrap();
    let calls = ["gauge(\"", "gauges(encoder, \"", "single(&mut encoder, \"", "encode_descriptor(\""];
    let mut found: Vec<_> =
        calls.iter().flat_map(|call| code.match_indices(call).map(|(at, _)| (at, at + call.len(), *call))).collect();
    found.sort_unstable();
    let mut before = 0;
    for (at, start, call) in found {
        let name = identifier(&code[start..]);
        let (labels, of) = match call {
            "gauge(\"" => (["namespace", "name"].map(str::to_owned).into(), "Gauge"),
            "gauges(encoder, \"" => (labels_in(&code[before..at]), "Gauge"),
            "single(&mut encoder, \"" => (Labels::new(), "Gauge"),
            _ => (labels_in(&code[start..]), "Counter"),
        };
        insert(exposed, &format!("mailtoken_{name}"), of, labels);
        before = start;
    }
}

/// Returns the names of all metrics, as Prometheus stores them, with their labels.
fn exposed() -> BTreeMap<String, Labels> {
    let mut exposed = BTreeMap::new();
    registered("src/metrics.rs", "mailtoken", &mut exposed);
    registered("crates/relay/src/metrics.rs", "mailtoken_relay", &mut exposed);
    of_objects(&mut exposed);
    for line in Metrics::new().text().unwrap().lines() {
        if let Some((name, of)) = line.strip_prefix("# TYPE process_").and_then(|rest| rest.split_once(' ')) {
            let of = if of == "counter" { "Counter" } else { "Gauge" };
            insert(&mut exposed, &format!("process_{name}"), of, Labels::new());
        }
    }
    exposed
}

/// Returns the errors of a query: unknown metrics, and labels that its metrics do not have.
fn findings(query: &str, exposed: &BTreeMap<String, Labels>) -> Vec<String> {
    let mut findings = vec![];
    let mut all: Labels = OF_THE_SCRAPE.map(str::to_owned).into();
    let mut metrics = 0;
    // Every second part is a string literal.
    let outside = query.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    for (at, _) in outside.match_indices(|c: char| c.is_ascii_alphabetic()) {
        let is_start = !outside[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$');
        let name = identifier(&outside[at..]);
        if !is_start || !(name.starts_with("mailtoken_") || name.starts_with("process_")) {
            continue;
        }
        metrics += 1;
        let Some(labels) = exposed.get(name) else {
            findings.push(format!("no metric {name}"));
            continue;
        };
        all.extend(labels.iter().cloned());
        let selector = outside[at + name.len()..].strip_prefix('{').and_then(|rest| rest.split('}').next());
        for matcher in selector.unwrap_or_default().split(',').map(|matcher| identifier(matcher.trim())) {
            if !matcher.is_empty() && !labels.contains(matcher) && !OF_THE_SCRAPE.contains(&matcher) {
                findings.push(format!("{name} has no label {matcher}"));
            }
        }
    }
    for keyword in ["by (", "on (", "group_left (", "ignoring (", "without ("] {
        for list in outside.split(keyword).skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let unknown = list.split(',').map(str::trim).filter(|label| !all.contains(*label));
            findings.extend(unknown.map(|label| format!("no metric of the query has a label {label}")));
        }
    }
    if metrics == 0 {
        findings.push("no metric".to_owned());
    }
    findings
}

pub(super) fn dashboard() -> Value {
    let file = process::root().join("charts/mail-token-broker/files/dashboard.json");
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn strings(values: &Value) -> impl Iterator<Item = &Value> {
    values.as_array().into_iter().flatten()
}

/// Returns the panels, with their titles and queries.
fn queries(dashboard: &Value) -> Vec<(&Value, &Value, &str)> {
    let targets =
        strings(&dashboard["panels"]).flat_map(|panel| strings(&panel["targets"]).map(move |target| (panel, target)));
    targets.map(|(panel, target)| (panel, target, target["expr"].as_str().unwrap())).collect()
}

#[test]
fn the_dashboard_asks_for_metrics_and_labels_that_exist() {
    let exposed = exposed();
    let dashboard = dashboard();
    let queries = queries(&dashboard);
    assert!(queries.len() >= 40 && exposed.len() >= 40, "{} queries, {} metrics", queries.len(), exposed.len());
    for (panel, target, query) in &queries {
        let title = &panel["title"];
        assert_eq!(findings(query, &exposed), [""; 0], "{title}: {query}");
        // Legends and columns may name only labels of the result.
        let legend = target["legendFormat"].as_str().unwrap();
        let in_legend = legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap());
        let columns = panel.pointer("/transformations/0/options/renameByName").and_then(Value::as_object);
        let columns = columns.into_iter().flatten().map(|(column, _)| column.as_str()).filter(|name| *name != "Value");
        for label in in_legend.chain(columns) {
            let outer = query.split([')', '(']).any(|list| list.split(',').any(|word| word.trim() == label));
            assert!(outer || OF_THE_SCRAPE.contains(&label), "{title}: {label} is not in {query}");
        }
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{title}");
    }
    for variable in strings(&dashboard["templating"]["list"]).filter(|variable| variable["type"] == "query") {
        let query = variable["query"]["query"].as_str().unwrap();
        let (series, label) =
            query.strip_prefix("label_values(").unwrap().trim_end_matches(')').split_once(", ").unwrap();
        assert_eq!(findings(&format!("sum by ({label}) ({series})"), &exposed), [""; 0], "{query}");
    }
}

#[test]
fn the_metrics_in_the_code_are_read_and_a_query_that_is_wrong_is_found() {
    let exposed = exposed();
    for (name, labels) in [
        ("mailtoken_token_requests_total", "grant outcome preset"),
        ("mailtoken_token_request_duration_seconds_bucket", "le preset"),
        ("mailtoken_token_request_errors_total", "kind name namespace reason"),
        ("mailtoken_credential_info", "grant name namespace preset provider provider_kind"),
        ("mailtoken_credential_not_ready", "name namespace reason"),
        ("mailtoken_client_credential_expiration_timestamp_seconds", "kind namespace provider"),
        ("mailtoken_provider_ready", "kind name namespace"),
        ("mailtoken_mailbox_authorized", "name namespace"),
        ("mailtoken_events_dropped_total", ""),
        ("mailtoken_leader", ""),
        ("mailtoken_build_info", "version"),
        ("mailtoken_relay_logins_total", "mailbox outcome protocol"),
        ("mailtoken_relay_token_expiration_timestamp_seconds", "mailbox"),
        ("process_cpu_seconds_total", ""),
    ] {
        let labels: Labels = labels.split_whitespace().map(str::to_owned).collect();
        assert_eq!(exposed.get(name), Some(&labels), "{name}");
    }
    for (query, said) in [
        ("max(mailtoken_leaders)", "no metric mailtoken_leaders"),
        ("mailtoken_token_requests", "no metric mailtoken_token_requests"),
        ("mailtoken_leader{job=\"a\", namespace=\"b\"}", "mailtoken_leader has no label namespace"),
        ("sum by (job, provider) (mailtoken_token_requests_total)", "no metric of the query has a label provider"),
        ("sum(1)", "no metric"),
    ] {
        assert_eq!(findings(query, &exposed), [said]);
    }
}

/// A histogram has one row, with its name without a suffix.
#[test]
fn the_readme_lists_each_metric_of_the_broker_with_its_labels() {
    let exposed = exposed().into_iter().filter(|(name, _)| {
        let part = name.ends_with("_bucket") || name.ends_with("_sum");
        name.starts_with("mailtoken_") && !name.starts_with("mailtoken_relay_") && !part
    });
    let exposed: BTreeMap<_, _> =
        exposed.map(|(name, labels)| (name.trim_end_matches("_count").to_owned(), labels)).collect();
    let page = fs::read_to_string(process::root().join("README.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `mailtoken_")).map(|row| {
        let mut columns = row.split('|').skip(1).map(|column| column.split('`').skip(1).step_by(2).map(str::to_owned));
        let (mut name, labels) = (columns.next().unwrap(), columns.next().unwrap());
        (name.next().unwrap(), labels.collect::<Labels>())
    });
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), exposed);
}

/// promtool parses the queries as recording rules.
#[test]
fn the_queries_of_the_dashboard_are_promql() {
    let dashboard = dashboard();
    let rule = |(at, (_, _, query)): (usize, &(&Value, &Value, &str))| {
        let expr = query.replace("$__rate_interval", "5m");
        json!({"record": format!("dashboard:{at}"), "expr": expr})
    };
    let rules: Vec<_> = queries(&dashboard).iter().enumerate().map(rule).collect();
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard-queries.yaml");
    fs::write(&file, serde_yaml::to_string(&groups).unwrap()).unwrap();
    process::output(Command::new("promtool").args(["check", "rules", "--lint=none"]).arg(file));
}

/// Each replica exports all credentials. promtool evaluates the queries of these panels on the series of two replicas.
#[test]
fn a_credential_counts_once_although_each_replica_exports_it() {
    let credential = |name: &str| format!("job=\"j\", namespace=\"shop\", name=\"{name}\"");
    let of_one = |name: &str, labels: &str, value: i64| (name.to_owned(), labels.to_owned(), value);
    let about = "provider_kind=\"MailProvider\", provider=\"m365\", preset=\"microsoft\", grant=\"clientCredentials\"";
    let mut series = vec![
        of_one("credential_ready", &credential("billing"), 1),
        of_one("credential_ready", &credential("bad"), 0),
        of_one("credential_ready", &credential("off"), 0),
        of_one("credential_suspended", &credential("off"), 1),
        of_one("token_expiration_timestamp_seconds", &credential("billing"), 3600),
        of_one("provider_ready", "job=\"j\", kind=\"ClusterMailProvider\", name=\"m365\"", 0),
        of_one("mailbox_authorized", &credential("billing"), 0),
    ];
    for (name, reason) in [("bad", "InvalidClient"), ("off", "Expired")] {
        series.push(of_one("credential_not_ready", &format!("{}, reason=\"{reason}\"", credential(name)), 1));
    }
    for name in ["billing", "bad", "off"] {
        series.push(of_one("credential_info", &format!("{}, {about}", credential(name)), 1));
    }
    let replicas = ["0", "1"].into_iter().flat_map(|replica| {
        let with_replica = series.iter().map(move |(name, labels, value)| (name, labels, replica, *value));
        with_replica.map(|(name, labels, replica, value)| {
            json!({"series": format!("mailtoken_{name}{{{labels}, instance=\"{replica}\"}}"), "values": format!("{value}x10")})
        })
    });
    let leaders = [("0", 1), ("1", 0)].map(|(replica, value)| {
        let series = format!("mailtoken_leader{{job=\"j\", instance=\"{replica}\"}}");
        json!({"series": series, "values": format!("{value}x10")})
    });
    let input: Vec<_> = replicas.chain(leaders).collect();

    let dashboard = dashboard();
    let queries = queries(&dashboard);
    let tests = [
        ("Ready", "{}", 1),
        ("Not ready", "{}", 1),
        ("Suspended", "{}", 1),
        ("Expired tokens", "{}", 0),
        ("Shortest remaining life", "{}", 3300),
        ("Mailboxes refused", "{}", 1),
        ("Providers not ready", "{}", 1),
        ("Leaders", "{}", 1),
        ("Tokens that expire first", &format!("{{namespace=\"shop\", name=\"billing\", {about}}}"), 3300),
        (
            "Credentials that are not ready",
            "{namespace=\"shop\", name=\"bad\", reason=\"InvalidClient\", provider=\"m365\", preset=\"microsoft\", \
             grant=\"clientCredentials\"}",
            1,
        ),
        ("Refused mailboxes", "{namespace=\"shop\", name=\"billing\"}", 0),
    ]
    .map(|(title, labels, value)| {
        let (_, _, query) = queries.iter().find(|(panel, ..)| panel["title"] == title).unwrap();
        let query = query.replace("$job", ".*").replace("$namespace", ".*");
        json!({"expr": query, "eval_time": "5m", "exp_samples": [{"labels": labels, "value": value}]})
    });
    let test = json!({"tests": [{"interval": "1m", "input_series": input, "promql_expr_test": tests}]});
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard.test.yaml");
    fs::write(&file, serde_yaml::to_string(&test).unwrap()).unwrap();
    process::output(Command::new("promtool").args(["test", "rules"]).arg(file));
}

#[test]
fn panels_have_ids_of_their_own_and_do_not_overlap() {
    let dashboard = dashboard();
    let panels: Vec<_> = strings(&dashboard["panels"]).collect();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut taken = BTreeMap::new();
    for panel in panels {
        let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24, "{}", panel["title"]);
                let other = taken.insert((x, y), &panel["title"]);
                assert!(other.is_none(), "{} overlaps {other:?}", panel["title"]);
            }
        }
    }
}

/// `tools/dashboard` writes the picture.
#[test]
fn the_picture_in_the_docs_has_each_panel() {
    let picture = fs::read_to_string(process::root().join("docs/dashboard.svg")).unwrap();
    for panel in strings(&dashboard()["panels"]) {
        let title = panel["title"].as_str().unwrap();
        assert!(picture.contains(&format!(">{title}</text>")), "{title}");
    }
}
