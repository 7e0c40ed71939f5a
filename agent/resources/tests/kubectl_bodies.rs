//! What kubectl 1.37 sends, byte for byte, is read as what it means.
//!
//! `kubectl-bodies.txt` holds blocks of three lines: the command, the body in base64, the object.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

#[test]
fn bodies_of_kubectl_are_read() {
    let blocks = include_str!("kubectl-bodies.txt").split("\n\n");
    let mut read = 0;
    for block in blocks {
        let mut lines = block.trim().lines();
        let (command, body, object) = (lines.next(), lines.next(), lines.next());
        let command = command.expect("a command");
        let body = STANDARD.decode(body.expect("a body")).expect("base64");
        let expected: Value = serde_json::from_str(object.expect("an object")).expect("JSON");
        let mut decoded =
            resources::protobuf::decode(&body).unwrap_or_else(|error| panic!("{command}: {error}"));
        assert_eq!(decoded, expected, "{command}: {decoded}");
        let found = resources::schema::conform(&mut decoded).expect("known kind");
        assert_eq!(found, resources::schema::Findings::default(), "{command}");
        read += 1;
    }
    assert_eq!(read, 18);
}
