//! Expressions and their values.

use super::{Budget, Cel, Error, Program};
use crate::custom::Schema;
use proptest::prelude::*;
use serde_json::{Value, json};

fn run(text: &str, object: &Value) -> Result<String, String> {
    let program = Program::compile(text, &[("self", None)]).map_err(|e| format!("compile: {e}"))?;
    let variables = [("self", Cel::of(object, None))];
    let value = program.run(&variables, &mut Budget::default()).map_err(|e| e.to_string())?;
    Ok(super::strings::shown(&value))
}

fn object() -> Value {
    json!({"a": 3, "b": 2.5, "s": "hello", "l": [1, 2, 3], "m": {"x": 1, "y-z": 2}, "n": null,
        "items": [{"name": "one", "v": 1}, {"name": "two", "v": 2}], "namespace": "home"})
}

#[test]
fn expressions_have_values() {
    for (text, expected) in [
        ("1 + 2 * 3 - -4", "11"),
        ("7 / 2 + 7 % 2", "4"),
        ("(1 + 2) * 3 == 9 && !false", "true"),
        ("self.a > 2 ? 'big' : 'small'", "big"),
        ("self.a < self.b", "false"),
        ("has(self.a) && !has(self.zz)", "true"),
        ("self.l.all(x, x > 0) && self.l.exists(x, x == 2) && self.l.exists_one(x, x == 3)", "true"),
        ("self.l.map(x, x * 2).filter(x, x > 2)", "[4, 6]"),
        ("self.l.map(x, x > 1, x * 10)", "[20, 30]"),
        ("self.m.all(k, self.m[k] > 0)", "true"),
        ("self.m['x'] + self.m.y__dash__z", "3"),
        ("self.__namespace__", "home"),
        ("self.items.filter(i, i.name.startsWith('t'))[0].v", "2"),
        ("2 in self.l && 'x' in self.m && !('q' in self.m)", "true"),
        ("self.s.size() + size(self.l)", "8"),
        ("self.s.matches('^h.*o$') && self.s.contains('ell')", "true"),
        ("self.s.substring(1, 3) + self.s.charAt(0).upperAscii()", "elH"),
        ("'a,b,c'.split(',').join('-').replace('b', 'x')", "a-x-c"),
        ("'%s has %d'.format([self.s, self.a])", "hello has 3"),
        ("self.l.sum() == 6 && self.l.max() == 3 && self.l.isSorted()", "true"),
        ("[3, 1, 2].sort() == [1, 2, 3]", "true"),
        ("{'a': 1} == {'a': 1} && {'a': 1} != {'a': 2}", "true"),
        ("duration('1h') + duration('30m') == duration('90m')", "true"),
        ("timestamp('2026-01-02T03:04:05Z').getFullYear()", "2026"),
        ("timestamp('2026-01-02T00:00:00Z') - timestamp('2026-01-01T00:00:00Z') == duration('24h')", "true"),
        ("quantity('1Gi').isGreaterThan(quantity('500Mi'))", "true"),
        ("url('https://example.com:80/a?b=c').getPort()", "80"),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3') && ip('::1').family() == 6", "true"),
        ("int('5') + int(2.9)", "7"),
        ("type(self.a) == int && string(5) == '5'", "true"),
        ("self.?zz.orValue('none')", "none"),
        ("self.?m.?x.orValue(0)", "1"),
        ("self[?'zz'].hasValue()", "false"),
        ("optional.of(3).value()", "3"),
        ("cel.bind(x, self.a * 2, x + x)", "12"),
        ("sets.contains([1, 2, 3], [2]) && sets.intersects([1], [1, 2])", "true"),
        ("math.greatest(1, 5, 3)", "5"),
        // One side decides although the other has no value.
        ("true || self.zz > 1", "true"),
        ("self.zz > 1 || true", "true"),
        ("self.n == null", "true"),
        ("'\\u00e9\\n'.size() == 2 && r'\\d' == '\\\\d'", "true"),
        ("0x10 + 1", "17"),
        ("1u + 2u == 3u && 1.5e3 == 1500.0", "true"),
    ] {
        assert_eq!(run(text, &object()).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn faults_are_told() {
    for (text, expected) in [
        ("self.zz", "no such key: zz"),
        ("self.l[9]", "index out of bounds: 9"),
        ("1 / 0", "division by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("self.s > 1", "no such overload"),
        ("self.a && true", "no such overload"),
    ] {
        assert_eq!(run(text, &object()), Err(expected.to_owned()), "{text}");
    }
    let refused = |text: &str| run(text, &object()).expect_err(text);
    assert_eq!(
        refused("self.a + other"),
        "compile: ERROR: <input>:1:10: undeclared reference to 'other' (in container '')\n | self.a + other\n | .........^"
    );
    assert!(refused("self.a +").contains("Syntax error: mismatched input '<EOF>'"));
    assert!(refused("self.a )").contains("Syntax error: extraneous input ')'"));
    assert!(refused(&"(".repeat(10_000)).contains("recursion limit exceeded"));
    assert!(refused(&format!("{}1", "-".repeat(10_000))).contains("recursion limit exceeded"));
    assert!(refused(&format!("1{}", "+1".repeat(5000))).contains("recursion limit exceeded"));
}

#[test]
fn schemas_give_types_and_refuse_fields() {
    let schema = Schema::read(&json!({"type": "object", "properties": {
        "n": {"type": "number"}, "when": {"type": "string", "format": "date-time"},
        "for": {"type": "string", "format": "duration"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer"}}}}}}));
    let object = json!({"n": 1, "when": "2026-01-01T00:00:00Z", "for": "90m", "list": [{"a": 1}]});
    let compile = |text: &str| Program::compile(text, &[("self", Some(&schema))]);
    for text in [
        "type(self.n) == double",
        "self.when < timestamp('2027-01-01T00:00:00Z')",
        "self.__for__ > duration('1h')",
        "self.list.all(x, x.a > 0)",
    ] {
        let program = compile(text).expect(text);
        let value = program.run(&[("self", Cel::of(&object, Some(&schema)))], &mut Budget::default());
        assert!(matches!(value, Ok(Cel::Bool(true))), "{text} {value:?}");
    }
    let told = compile("self.list.all(x, x.b > 0)").expect_err("no such field");
    assert!(told.starts_with("ERROR: <input>:1:19: undefined field 'b'"), "{told}");
    assert!(compile("self.zz").is_err());
}

#[test]
fn everything_is_paid_for() {
    let big: Vec<u64> = (0..1000).collect();
    let object = json!({ "l": big, "s": "x".repeat(10_000) });
    for text in [
        "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c >= 0)))",
        "self.l.map(a, self.l.map(b, self.l)).size() > 0",
        "self.l.all(a, self.s + self.s + self.s + self.s != '')",
        "self.l.all(a, self.l.all(b, self.s.matches('(x+x+)+y') || true))",
        "self.l.all(a, self.l == self.l && self.l.all(b, self.l == self.l))",
    ] {
        let program = Program::compile(text, &[("self", None)]).expect(text);
        let mut budget = Budget::default();
        let result = program.run(&[("self", Cel::of(&object, None))], &mut budget);
        assert!(matches!(result, Err(Error::TooCostly)), "{text}");
        // One call cannot spend all that there is.
        assert!(!budget.is_spent());
    }
}

proptest! {
    #[test]
    fn never_panics(text in r#"([a-d]|self|[0-9]{1,3}|[-+*/%!?:.,<>=&|()\[\]{}'" ]|all|has|map|in|size|"x"|'\\n'){0,24}"#) {
        let _ = run(&text, &object());
    }
}
