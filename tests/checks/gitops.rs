//! Runs the health checks and actions for Argo CD in a Lua interpreter with the libraries that Argo CD allows.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use mail_token_broker::api::{self, ConditionType, MailCredential, MailProvider, Reason};
use mailtoken_testkit::*;
use serde_json::{Value, json};

use super::docs;

const KINDS: [&str; 3] = ["MailCredential", "MailProvider", "ClusterMailProvider"];

/// Argo CD opens the libraries base, package and table, and an os library that has only date and time. The time is
/// fixed here.
const SANDBOX: &str = r#"
local format, gsub, write = string.format, string.gsub, io.write
local function json(value)
  if type(value) == "string" then
    return '"' .. gsub(gsub(value, '[\\"]', '\\%0'), "\n", "\\n") .. '"'
  elseif type(value) ~= "table" then
    return type(value) == "number" and format("%.14g", value) or tostring(value)
  end
  local parts = {}
  for _, item in ipairs(value) do
    parts[#parts + 1] = json(item)
  end
  if #parts > 0 then
    return "[" .. table.concat(parts, ",") .. "]"
  end
  for key, item in pairs(value) do
    parts[#parts + 1] = json(key) .. ":" .. json(item)
  end
  return "{" .. table.concat(parts, ",") .. "}"
end
local safe = {
  date = function(shape)
    assert(shape == "!%Y-%m-%dT%XZ", shape)
    return "2026-11-30T08:30:00Z"
  end,
}
getmetatable("").__index = nil
string, io, math, coroutine, debug, os = nil, nil, nil, nil, nil, safe
package.loaded.os = safe
"#;

/// Formats a value as a Lua expression. As in Argo CD, null becomes nil.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => format!("[==[{text}]==]"),
        Value::Array(items) => format!("{{{}}}", items.iter().map(lua).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| format!("[ [==[{key}]==] ] = {}", lua(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Runs a script with the global `obj`, and returns its result.
fn run(script: &str, object: &Value) -> Value {
    let program =
        format!("{SANDBOX}\nobj = {}\nlocal function script()\n{script}\nend\nwrite(json(script()))\n", lua(object));
    // The interpreter is Debian's package lua5.1, which `tools/setup checks` installs. Argo CD uses Lua 5.1.
    let mut command = Command::new("lua5.1");
    let mut lua = command.arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    lua.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
    let done = lua.wait_with_output().unwrap();
    assert!(done.status.success(), "{program}");
    serde_json::from_slice(&done.stdout).unwrap()
}

pub(super) fn folder(kind: &str) -> PathBuf {
    process::root().join("gitops/argocd/mailtoken.dev").join(kind)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(super) fn yaml(path: &Path) -> Value {
    serde_yaml::from_str(&text(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the status by the health check of the object's kind.
pub(super) fn health(object: &Value) -> String {
    let script = text(&folder(object["kind"].as_str().unwrap()).join("health.lua"));
    run(&script, object)["status"].as_str().unwrap().to_owned()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// Returns the object that a test names.
fn input(folder: &Path, test: &Value, field: &str) -> Value {
    yaml(&folder.join(test[field].as_str().unwrap()))
}

#[test]
fn each_recorded_object_has_its_health() {
    for kind in KINDS {
        let folder = folder(kind);
        let script = text(&folder.join("health.lua"));
        let tests = yaml(&folder.join("health_test.yaml"));
        let tests = items(&tests["tests"]);
        let recorded = fs::read_dir(folder.join("testdata")).unwrap().count();
        assert!(tests.len() >= 6 && tests.len() == recorded, "{kind}: {} tests, {recorded} objects", tests.len());
        for test in tests {
            let object = input(&folder, test, "inputPath");
            assert_eq!(object["kind"], kind);
            assert_eq!(run(&script, &object), test["healthStatus"], "{kind} {}", test["inputPath"]);
        }
    }
}

#[test]
fn a_credential_can_be_renewed_suspended_and_resumed() {
    let folder = folder("MailCredential").join("actions");
    let tests = yaml(&folder.join("action_test.yaml"));
    let discovery = text(&folder.join("discovery.lua"));
    for test in items(&tests["discoveryTests"]) {
        let offered = run(&discovery, &input(&folder, test, "inputPath"));
        let expected = items(&test["result"]).iter().map(|action| {
            let name = action["name"].as_str().unwrap().to_owned();
            (name, json!({"disabled": action["disabled"]}))
        });
        assert_eq!(offered, Value::Object(expected.collect()), "{}", test["inputPath"]);
    }
    for test in items(&tests["actionTests"]) {
        let action = test["action"].as_str().unwrap();
        let script = text(&folder.join(action).join("action.lua"));
        let changed = run(&script, &input(&folder, test, "inputPath"));
        assert_eq!(changed, input(&folder, test, "expectedOutputPath"), "{action}");
    }
}

/// The API server accepts these objects, and they have conditions and reasons of the broker.
#[test]
fn the_recorded_objects_are_objects_of_the_api() {
    for kind in KINDS {
        let folders = [folder(kind).join("testdata"), folder(kind).join("actions/testdata")];
        let files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        for file in files.map(|entry| entry.unwrap().path()) {
            let object = yaml(&file);
            let unknown = docs::unknown_fields(docs::schema(kind).unwrap(), &object, "");
            assert!(unknown.is_empty(), "{}: {unknown:?}", file.display());
            assert_eq!(object["apiVersion"], format!("{}/{}", api::GROUP, api::VERSION));
            for condition in object["status"]["conditions"].as_array().into_iter().flatten() {
                let (of, reason) = (condition["type"].as_str().unwrap(), condition["reason"].as_str().unwrap());
                let known = [
                    ConditionType::Ready,
                    ConditionType::Renewed,
                    ConditionType::Stalled,
                    ConditionType::Reconciling,
                    ConditionType::MailboxAuthorized,
                ];
                assert!(known.iter().any(|known| known.as_str() == of), "{}: {of}", file.display());
                assert!(Reason::parse(reason).is_some(), "{}: {reason}", file.display());
            }
        }
    }
}

/// The patch for Argo CD's ConfigMap contains the same scripts. `UPDATE_GOLDEN=1` writes the patch.
#[test]
fn the_patch_of_argocd_cm_has_these_scripts() {
    let indented = |text: &str, by: usize| -> String {
        text.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("{:by$}{line}\n", "") }).collect()
    };
    let mut patch = "# Health checks and actions of mail-token-broker for Argo CD. Apply:\n\
                     #   kubectl -n argocd patch configmap argocd-cm --patch-file argocd-cm.yaml\ndata:\n"
        .to_owned();
    for kind in KINDS {
        let health = text(&folder(kind).join("health.lua"));
        patch += &format!("  resource.customizations.health.mailtoken.dev_{kind}: |\n{}", indented(&health, 4));
        let actions = folder(kind).join("actions");
        if !actions.exists() {
            continue;
        }
        let discovery = indented(&text(&actions.join("discovery.lua")), 6);
        patch +=
            &format!("  resource.customizations.actions.mailtoken.dev_{kind}: |\n    discovery.lua: |\n{discovery}");
        patch += "    definitions:\n";
        for action in ["reissue", "suspend", "resume"] {
            let script = indented(&text(&actions.join(action).join("action.lua")), 10);
            patch += &format!("      - name: {action}\n        action.lua: |\n{script}");
        }
    }
    let file = process::root().join("gitops/argocd/argocd-cm.yaml");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &patch).unwrap();
    }
    assert!(text(&file) == patch, "{} differs: set UPDATE_GOLDEN=1 and run this test", file.display());
    let data = yaml(&file)["data"].clone();
    assert_eq!(
        data["resource.customizations.health.mailtoken.dev_MailProvider"],
        text(&folder("MailProvider").join("health.lua"))
    );
    let actions = data["resource.customizations.actions.mailtoken.dev_MailCredential"].as_str().unwrap();
    let actions: Value = serde_yaml::from_str(actions).unwrap();
    assert_eq!(
        actions["definitions"][1],
        json!({"name": "suspend", "action.lua": "obj.spec.suspend = true\nreturn obj\n"})
    );
}

/// The scripts must also handle the objects of a running broker, not only the recorded objects.
#[tokio::test]
async fn objects_of_a_running_broker_have_the_health_of_their_conditions() {
    let Fixture { ns, idp, broker: _broker } = Fixture::new().await;
    let live = async |name: &str| serde_json::to_value(ns.get::<MailCredential>(name).await).unwrap();
    let script = text(&folder("MailCredential").join("health.lua"));
    let health = async |name: &str| run(&script, &live(name).await);
    let act = async |name: &str, action: &str| {
        let script = folder("MailCredential").join("actions").join(action).join("action.lua");
        let changed = run(&text(&script), &live(name).await);
        let annotations = &changed["metadata"]["annotations"];
        let patch = json!({"metadata": {"annotations": annotations}, "spec": {"suspend": changed["spec"]["suspend"]}});
        ns.patch::<MailCredential>(name, patch).await;
    };
    ns.apply(credential("billing")).await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    assert_eq!(health("billing").await["status"], "Healthy");
    ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
    let provider = serde_json::to_value(ns.get::<MailProvider>("idp").await).unwrap();
    assert_eq!(run(&text(&folder("MailProvider").join("health.lua")), &provider)["status"], "Healthy");

    idp.answer(Answer::error("invalid_scope"));
    act("billing", "reissue").await;
    ns.condition::<MailCredential>("billing", "Renewed", "InvalidScope").await;
    let renewal_failed = health("billing").await;
    assert_eq!(renewal_failed["status"], "Healthy", "the token is still valid");
    assert!(renewal_failed["message"].as_str().unwrap().contains(". The last renewal failed: "), "{renewal_failed}");

    act("billing", "suspend").await;
    ns.condition::<MailCredential>("billing", "Renewed", "Suspended").await;
    assert_eq!(health("billing").await["status"], "Suspended");
    act("billing", "resume").await;
    ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
    assert_eq!(health("billing").await["status"], "Healthy");

    ns.apply(credential("refused")).await;
    ns.condition::<MailCredential>("refused", "Stalled", "InvalidScope").await;
    assert_eq!(health("refused").await["status"], "Degraded");
}

/// Merges as `kubectl apply` and Argo CD's default comparison do: a merge patch replaces lists as a whole.
fn merge(live: &mut Value, manifest: &Value) {
    match (live, manifest) {
        (Value::Object(live), Value::Object(manifest)) => {
            for (key, value) in manifest {
                merge(live.entry(key).or_insert(Value::Null), value);
            }
        }
        (live, manifest) => *live = manifest.clone(),
    }
}

/// Returns the fields that Argo CD and Flux compare: all except the two that change with each write.
fn content(mut object: Value) -> Value {
    for field in ["managedFields", "resourceVersion"] {
        object["metadata"].as_object_mut().unwrap().remove(field);
    }
    object
}

/// Neither client-side nor server-side apply finds a difference between an example and the stored object.
#[tokio::test]
async fn an_applied_example_has_no_permanent_diff() {
    let ns = Cluster::shared().namespace().await;
    for (number, (page, mut manifest)) in docs::examples().into_iter().enumerate() {
        // Two examples may have the same name.
        manifest["metadata"]["name"] = json!(format!("{}-{number}", ns.name));
        if manifest["kind"] != "ClusterMailProvider" {
            manifest["metadata"]["namespace"] = json!(ns.name);
        }
        let live = serde_json::to_value(ns.apply(manifest.clone()).await).unwrap();
        let mut merged = live.clone();
        merge(&mut merged, &manifest);
        assert_eq!(merged, live, "client-side apply, {}", page.display());
        let again = serde_json::to_value(ns.apply(manifest.clone()).await).unwrap();
        assert_eq!(content(again), content(live), "server-side apply, {}", page.display());
        if manifest["kind"] == "ClusterMailProvider" {
            ns.remove(&manifest.into()).await;
        }
    }
}
