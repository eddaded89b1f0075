"""The invalid fields of a request, as `{field, value, message}`: what the client sent, and what is expected.

Rewrites pydantic's errors: paths follow the body as it was sent, including short forms, and messages are made from the
JSON schema, so that they name the bounds. Every value and message is bounded in size and safe for JSON.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from replaceme_core.wording import json_safe, shorten

MOST_PROBLEMS = 20
_LONGEST_VALUE = 200  # characters, as JSON
_KINDS = {"string": "a string", "boolean": "true or false", "object": "an object", "null": "null"}
# pydantic describes these in terms of Python or without the bounds; the schema has both
_FROM_SCHEMA = (
    *("float_type", "int_type", "bool_type", "string_type", "tuple_type", "dict_type", "finite_number"),
    *("model_type", "model_attributes_type", "is_instance_of"),
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal", "literal_error", "missing"),
    *("string_too_short", "string_too_long", "string_pattern_mismatch", "string_unicode"),
)

Schema = Mapping[str, object]


class Problem(TypedDict):
    """One entry of `errors`."""

    field: str
    value: object
    message: str


def problem(field: str, value: object, message: str) -> Problem:
    """One entry of `errors`; long texts are shortened."""
    return {"field": shorten(field), "value": bounded(value), "message": shorten(message)}


def problems(errors: Iterable[Mapping[str, object]], *, sent: object, schema: Schema) -> list[Problem]:
    """The entries for pydantic's `errors` about `sent`, a value whose JSON schema is `schema`."""
    return [_problem(error, sent=sent, schema=schema) for error in errors]


def parameter_problem(error: Mapping[str, object], *, default: str) -> Problem:
    """The entry for one of pydantic's errors about query parameters; `default` is the field where it names none."""
    location, context, value = error["loc"], error.get("ctx"), error.get("input")
    assert isinstance(location, tuple)
    named = context.get("field") if isinstance(context, dict) else None
    field = str(named or ".".join(map(str, location)) or default)
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "expected", 1)
    return problem(field, value.get(field) if isinstance(value, dict) else value, message)


def _problem(error: Mapping[str, object], *, sent: object, schema: Schema) -> Problem:
    location, kind, context = error["loc"], str(error["type"]), error.get("ctx")
    assert isinstance(location, tuple)
    if isinstance(context, dict) and isinstance(context.get("field"), str):
        location = (*location, context["field"])
    is_key = _is_about_key(location, sent)
    path = location[:-1] if is_key else _as_sent(location, sent)
    field = ".".join(str(part) for part in path)
    if is_key:
        expected = describe(_of_keys(schema, path[:-1]))
        return problem(field, path[-1], f"invalid name: expected {expected}")
    value = _at(path, sent)
    message = str(error["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = ", ".join(_properties(schema, path[:-1]))
        message = f"unknown field; the known ones are {known}"
    elif kind in _FROM_SCHEMA:
        expected = describe(_below(schema, path))
        message = f"required: {expected}" if kind == "missing" else f"expected {expected}, got {_text_of(value)}"
    return problem(field or "body", value, message)


def _is_about_key(location: tuple[object, ...], sent: object) -> bool:
    """pydantic appends "[key]" to the path of an invalid name; a client may also send a field of that name."""
    if location[-1:] != ("[key]",):
        return False
    holder = _at(location[:-1], sent)
    return not (isinstance(holder, dict) and "[key]" in holder)


def _as_sent(location: tuple[object, ...], sent: object) -> tuple[object, ...]:
    """The part of `location` that the client sent: fields below a short form exist only in the long form.

    A list may be the short form of an object that has it in a field; that field stays in the path.
    """
    for depth, part in enumerate(location):
        if isinstance(sent, list) and isinstance(part, str):
            continue
        if isinstance(sent, dict):
            sent = sent.get(part)  # of a missing field, the last part
        elif isinstance(sent, list) and isinstance(part, int) and part < len(sent):
            sent = sent[part]
        else:
            return location[:depth]
    return location


def _at(path: Sequence[object], sent: object) -> object:
    for part in path:
        if isinstance(sent, dict):
            sent = sent.get(part)
        elif isinstance(sent, list) and isinstance(part, int):
            sent = sent[part]
    return sent


def describe(schema: object) -> str:
    """What a JSON schema accepts, in words.

    >>> describe({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})
    'a number greater than 0 and less than 1'
    """
    if not isinstance(schema, Mapping):
        return "something else"
    if "enum" in schema:
        return f"one of {', '.join(map(str, _list(schema['enum'])))}"
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        choices = [describe(choice) for choice in _list(schema["anyOf"]) if choice != {"type": "null"}]
        return " or ".join(dict.fromkeys(choices))
    match schema.get("type"):
        case "number" | "integer" as kind:
            return " ".join(["a number" if kind == "number" else "a whole number", *_bounds(schema)])
        case "array":
            return f"a list of {describe(schema.get('items')).removeprefix('a ').replace('number', 'numbers', 1)}"
        case "string" if "maxLength" in schema:
            form = f" matching {schema['pattern']}" if "pattern" in schema else ""
            return f"a string of {schema.get('minLength', 0)} to {schema['maxLength']} characters{form}"
        case "string" if "pattern" in schema:
            return f"a string matching {schema['pattern']}"
        case str(kind):
            return _KINDS.get(kind, kind)
    return "an object" if "$ref" in schema else "something else"


def _bounds(schema: Schema) -> list[str]:
    if "minimum" in schema and "maximum" in schema:
        return [f"from {schema['minimum']} to {schema['maximum']}"]
    words = {"exclusiveMinimum": "greater than", "minimum": "of at least"}
    words |= {"exclusiveMaximum": "less than", "maximum": "of at most"}
    bounds = [f"{word} {schema[key]}" for key, word in words.items() if key in schema]
    return [" and ".join(bounds)] if bounds else []


def _below(schema: Schema, path: Sequence[object]) -> object:
    """The schema of the value at `path`, with references resolved."""
    here: object = schema
    for part in path:
        options = [_resolved(option, schema) for option in _options(here)]
        here = next((found for option in options if (found := _child(option, part)) is not None), None)
    if not isinstance(here, Mapping):
        return here
    if "anyOf" in here:
        return {"anyOf": [_resolved(choice, schema) for choice in _options(here)]}
    return _resolved(here, schema)


def _child(schema: Schema, part: object) -> object:
    if isinstance(part, int):
        return schema.get("items")
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        return properties.get(part)
    patterns = schema.get("patternProperties")
    if isinstance(patterns, Mapping):
        return next(iter(patterns.values()), None)
    return schema.get("additionalProperties")


def _properties(schema: Schema, path: Sequence[object]) -> list[str]:
    for option in _options(_below(schema, path)):
        properties = _resolved(option, schema).get("properties")
        if isinstance(properties, Mapping):
            return [str(name) for name in properties]
    return []


def _of_keys(schema: Schema, path: Sequence[object]) -> object:
    options = _options(_below(schema, path))
    if not options:
        return None
    names = options[0].get("propertyNames")
    patterns = options[0].get("patternProperties")
    if isinstance(patterns, Mapping):
        pattern = {"type": "string", "pattern": next(iter(patterns))}
        return {**pattern, **names} if isinstance(names, Mapping) else pattern
    return names


def _options(schema: object) -> list[Schema]:
    if not isinstance(schema, Mapping):
        return []
    choices = _list(schema["anyOf"]) if "anyOf" in schema else [schema]
    return [choice for choice in choices if isinstance(choice, Mapping)]


def _resolved(schema: Schema, root: Schema) -> Schema:
    reference, definitions = schema.get("$ref"), root.get("$defs")
    if isinstance(reference, str) and isinstance(definitions, Mapping):
        found = definitions[reference.rpartition("/")[2]]
        assert isinstance(found, Mapping)
        return found
    return schema


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def bounded(value: object) -> object:
    """`value` made safe for JSON; the beginning of its text if it is long."""
    plain = json_safe(value)
    text = json.dumps(plain, ensure_ascii=False)
    return plain if len(text) <= _LONGEST_VALUE else shorten(plain if isinstance(plain, str) else text, _LONGEST_VALUE)


def _text_of(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(json_safe(value))
    return "nothing" if value is None else shorten(json.dumps(json_safe(value), ensure_ascii=False), 60)
