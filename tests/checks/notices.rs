//! Checks the licences of the crates that the binaries contain.

use std::{fs, path::Path, process::Command};

use mailtoken_testkit::process;

/// No user may distribute an image with a crate whose licence text is missing.
#[test]
fn the_notices_have_the_licences_of_all_crates_of_each_binary() {
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("notices");
    process::output(Command::new(process::tool("notices")).arg(&made));
    for program in ["mail-token-broker.txt", "mail-token-relay.txt"] {
        let stored = fs::read_to_string(process::root().join("notices").join(program)).unwrap();
        let now = fs::read_to_string(made.join(program)).unwrap();
        assert!(now == stored, "notices/{program} is out of date: run tools/notices, and commit the file");
        assert!(now.contains("Apache License") && now.contains("Permission is hereby granted"), "{program}");
    }
}
