//! `mail-token-broker run` and `mail-token-broker crds`.
fn main() {
    for crd in mail_token_broker::api::crds() {
        print!("---\n{}", serde_yaml::to_string(&crd).unwrap());
    }
}
