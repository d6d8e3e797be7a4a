"""Response formats that cost much to compile or to follow, and some that libraries write and few compilers like.

`FORMS` are the hostile ones, `ODD` those of libraries; both by name, as a client sends them. `varied` makes another one
of the same kind, for what was refused is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

Form: TypeAlias = dict[str, Any]


def regex(pattern: str) -> Form:
    return {"type": "regex", "pattern": pattern}


def schema(value: Form) -> Form:
    return {"type": "json_schema", "schema": value}


def grammar(text: str) -> Form:
    return {"type": "grammar", "grammar": text}


def chain(kind: str, length: int = 60) -> Form:
    """Definitions of which each names the next one twice."""
    links: Form = {f"a{i}": {kind: [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(length)}
    return {"$defs": {**links, f"a{length}": {"type": "null"}}, "$ref": "#/$defs/a0"}


def doubled(depth: int = 8) -> Form:
    value: Form = {"type": "null"}
    for _ in range(depth):
        value = {"anyOf": [value, {"type": "array", "items": value}]}
    return value


def terms(numbers: Sequence[int]) -> list[str]:
    return [f"/.*a.{{{i}}}b.*/" for i in numbers]


CHOICES = [
    {"anyOf": [{"properties": {f"k{i}{j}": {"type": "integer"}}, "required": [f"k{i}{j}"]} for j in range(3)]}
    for i in range(14)
]
REPEATED = {
    "nested repetitions": "((a{0,99}){0,99}){0,99}",
    "three of them": "(((a|b){1,50}c?){1,50}d?){1,50}",
    "a thousand million": "a{1000000000}",
    "a million": "a{1000000}",
    "costly masks": "a{100000}",
    "a thousand times a thousand": "(.{1000}){1000}",
    "a letter 200 ago": "(a|b)*a(a|b){200}",
    "a letter 2000 ago": "(a|b)*a(a|b){2000}",
    "any, then 3000": ".*a.{3000}b",
    "900 alternatives": "|".join(f"(.*a{i}.*)" for i in range(900)),
    "many anys": f"({'.*'.join('abcdefghij')}|{'.*x.{30}' * 30})",
    "backtracking": "(a+)+$",
    "classes": r"(\p{L}|\p{N}|\p{P}){1,4000}x",
    "nine thousand": "(?s:.{0,9000})end",
    "any case": "(?i)" + "(straße|\u017f|\u212a){1,800}" * 5,
    "deep": "(" * 5000 + "a" + ")" * 5000,
}
SCHEMAS: dict[str, Form] = {
    "maxLength": {"type": "string", "maxLength": 10**9},
    "minLength": {"type": "string", "minLength": 10**9},
    "minItems": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "maxItems": {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9},
    "items": {"type": "array", "items": {"type": "string"}, "minItems": 10**5, "maxItems": 2 * 10**5},
    "minProperties": {"type": "object", "minProperties": 10**6},
    "itself": {"$ref": "#"},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "all of itself": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "any of itself": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"type": "null"}]},
    "doubling any": chain("anyOf"),
    "doubling all": chain("allOf"),
    "all of any": {"allOf": CHOICES},
    "all of ranges": {"allOf": [{"anyOf": [{"minimum": i * 10 + j} for j in range(4)]} for i in range(20)]},
    "37 patterns": {"type": "string", "allOf": [{"pattern": f".*a.{{{i}}}b.*"} for i in range(3, 40)]},
    "names": {
        "type": "object",
        "patternProperties": {f".*{c}.{{20}}x": {"type": "integer"} for c in "abcdefghijklmno"},
    },
    "2300 values": {"enum": [f"{i:x}" for i in range(2300)]},
    "a long value": {"enum": ["a" * 15_000]},
    "multipleOf": {"type": "number", "multipleOf": 1e-9, "minimum": 1e-300, "maximum": 1e300},
    "multiples": {"type": "integer", "multipleOf": 999_983},
    "more multiples": {"type": "integer", "multipleOf": 99_999_989, "maximum": 2**60},
    "a wide range": {"type": "integer", "minimum": -(2**62), "maximum": 2**62},
    "1400 properties": {"type": "object", "properties": {f"k{i}": {} for i in range(1400)}},
    "700 of itself": {"properties": {f"k{i}": {"$ref": "#"} for i in range(700)}},
    "doubled": doubled(),
}
GRAMMARS = {
    "ambiguous": 'start: e\ne: e e | e e e | "a" | ""',
    "left recursion": "start: start",
    "empty": 'start: (x*)*\nx: "a"? y?\ny: x?',
    "repetitions": 'start: x{0,100000}\nx: "a"',
    "nested": 'start: a{1,300}\na: b{1,300}\nb: c{1,300}\nc: "x"',
    "and": "start: T\nT: " + " & ".join(terms(range(3, 30))),
    "not": "start: T\nT: ~(" + " | ".join(terms(range(3, 60))) + ")",
    "350 terms": "\n".join(
        ["start: " + "|".join(f"t{i}" for i in range(350)), *(f"t{i}: /.*a.{{{i}}}b/" for i in range(350))]
    ),
    "a schema in it": 'start: x\nx: %json {"type":"string","maxLength":100000}',
    "lazy": 'start: (/(.|\\n)*/ "a"){1,2000}',
    "not not": "start: T\nT: " + "~" * 8000 + "/a/",
    "parentheses": "start: " + "(" * 7000 + '"a"' + ")" * 7000,
    "a chain": "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(1100)) + 'r1100: "a"',
}
FORMS: dict[str, Form] = {
    **{f"regex: {name}": regex(pattern) for name, pattern in REPEATED.items()},
    **{f"schema: {name}": schema(value) for name, value in SCHEMAS.items()},
    **{f"grammar: {name}": grammar(text) for name, text in GRAMMARS.items()},
}

BOOLEAN = {"type": "boolean"}
ODD: dict[str, Form] = {
    name: schema(value)
    for name, value in {
        "pydantic's optional": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "A"},
        "anchors": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}$"},
        "no anchors": {"type": "string", "pattern": "[0-9]", "maxLength": 6},
        "an unknown format": {"type": "string", "format": "phone-number", "maxLength": 4},
        "values of other scripts": {"enum": ["größe", "漢字", "👍"]},
        "values of all types": {"enum": [1, "a", None, True]},
        "a constant": {"const": {"a": [1]}},
        "open bounds": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 2},
        "names that clash": {
            "properties": {"s": {"type": "integer"}},
            "patternProperties": {"^s$": {"type": "integer"}},
            "required": ["s"],
        },
        "not": {"not": {"type": "string"}},
        "if": {"if": {"type": "string"}, "then": {"maxLength": 2}},
        "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
        "nothing": {},
        "prefixItems": {"type": "array", "prefixItems": [BOOLEAN, {"type": "null"}], "items": False, "minItems": 2},
        "items as a list": {"type": "array", "items": [BOOLEAN, {"type": "null"}]},
        "elsewhere": {"$ref": "https://example.com/x.json"},
        "fractions as bounds": {"type": "integer", "minimum": 1.0, "maximum": 3.5},
        "large numbers": {"type": "integer", "minimum": 0, "maximum": 18446744073709551616},
        "odd names": {
            "properties": {'a"b\n\u00e9': BOOLEAN},
            "required": ['a"b\n\u00e9'],
            "additionalProperties": False,
        },
        "not in properties": {"properties": {}, "required": ["zz"], "additionalProperties": BOOLEAN},
    }.items()
}


def varied(form: Form, number: int) -> Form:
    """Return a form of the same cost that is not the same."""
    if form["type"] == "regex":
        return regex(f"({form['pattern']})|q{number}")
    if form["type"] == "grammar":
        return grammar(f'{form["grammar"]}\nunused{number}: "q"')
    return schema({**form["schema"], "$comment": str(number)})
