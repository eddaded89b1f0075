"""The invalid fields of a request, as `{field, value, message}`: what the client sent, and what is expected.

Rewrites pydantic's errors: paths follow the body as it was sent, including short forms, and messages are made from the
JSON schema, so that they name the bounds. Every value and message is bounded in size and safe for JSON.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from replaceme_core.wording import json_safe, shorten

MOST_PROBLEMS = 20
_LONGEST_VALUE = 200  # characters, as JSON
_KINDS = {"string": "a string", "boolean": "true or false", "null": "null"}
# pydantic describes these in terms of Python or without the bounds; the schema has both
_FROM_SCHEMA = (
    *("float_type", "int_type", "bool_type", "string_type", "tuple_type", "list_type", "dict_type", "finite_number"),
    *("model_type", "model_attributes_type", "is_instance_of"),
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal", "literal_error", "missing"),
    *("string_too_short", "string_too_long", "string_pattern_mismatch", "string_unicode", "too_short", "too_long"),
)

_OF_PYDANTIC = {
    "Value error, ": "",
    "Input should be a valid tuple": 'expected a list such as ["a", "b"]',
    "Input should be": "expected",
    "String should match pattern": "expected a text that matches",
    "String should have": "expected",
    "Tuple should have": "expected",
}
Schema = Mapping[str, Any]


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
    whole = _inlined(schema, schema.get("$defs", {}))
    return [_problem(error, sent=sent, schema=whole) for error in errors]


def parameter_problem(error: Mapping[str, object], *, default: str) -> Problem:
    """The entry for one of pydantic's errors about query parameters; `default` is the field where it names none."""
    location, context, value = error["loc"], error.get("ctx"), error.get("input")
    assert isinstance(location, tuple)
    named = context.get("field") if isinstance(context, dict) else None
    field = str(named or ".".join(map(str, location)) or default)
    return problem(field, value.get(field) if isinstance(value, dict) else value, in_plain_words(str(error["msg"])))


def in_plain_words(message: str) -> str:
    """One of pydantic's messages about a value that has no schema.

    >>> in_plain_words("Input should be a valid integer")
    'expected a valid integer'
    """
    for words, plain in _OF_PYDANTIC.items():
        message = message.replace(words, plain, 1)
    return message


def _problem(error: Mapping[str, object], *, sent: object, schema: Schema) -> Problem:
    location, kind, context = error["loc"], str(error["type"]), error.get("ctx")
    assert isinstance(location, tuple)
    if isinstance(context, dict) and isinstance(context.get("field"), str):
        location = (*location, context["field"])
    is_key = _is_about_key(location, sent)
    path, value = (location[:-1], None) if is_key else _as_sent(location, sent)
    field = ".".join(str(part) for part in path)
    if is_key:
        expected = describe(_of_keys(schema, path[:-1]))
        return problem(field, path[-1], f"invalid name: expected {expected}")
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
    _, holder = _as_sent(location[:-1], sent)
    return not (isinstance(holder, dict) and "[key]" in holder)


def _as_sent(location: tuple[object, ...], sent: object) -> tuple[tuple[object, ...], object]:
    """The part of `location` that the client sent, and what is there: fields below a short form are in the long one.

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
            return location[:depth], sent
    return location, sent


def describe(schema: Schema) -> str:
    """What a JSON schema without references accepts, in words.

    >>> describe({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})
    'a number greater than 0 and less than 1'
    """
    match schema:
        case {"enum": values}:
            return f"one of {', '.join(map(str, values))}"
        case {"const": value}:
            return str(value)
        case {"anyOf": choices}:
            choices = sorted(choices, key=lambda choice: choice.get("type") == "array")  # else it seems to go on
            return " or ".join(dict.fromkeys(describe(choice) for choice in choices if choice != {"type": "null"}))
        case {"type": "number" | "integer" as kind}:
            return " ".join(["a number" if kind == "number" else "a whole number", *_bounds(schema)])
        case {"type": "array"}:
            return f"a list{_size(schema, 'Items')}, each {describe(schema.get('items', {}))}"
        case {"type": "object"}:
            size = _size(schema, "Properties")
            return f"an object{size and f'{size} names'}"
        case {"type": "string", "maxLength": most}:
            form = f" matching {schema['pattern']}" if "pattern" in schema else ""
            return f"a string of {schema.get('minLength', 0)} to {most} characters{form}"
        case {"type": "string", "pattern": pattern}:
            return f"a string matching {pattern}"
        case {"type": str(kind)}:
            return _KINDS.get(kind, kind)
    return "something else"


def _size(schema: Schema, of: str) -> str:
    """How many items or properties there may be, where that has an upper limit."""
    least, most = schema.get(f"min{of}"), schema.get(f"max{of}")
    return "" if most is None else f" of {least} to {most}" if least else f" of up to {most}"


def _bounds(schema: Schema) -> list[str]:
    if "minimum" in schema and "maximum" in schema:
        return [f"from {schema['minimum']} to {schema['maximum']}"]
    words = {"exclusiveMinimum": "greater than", "minimum": "of at least"}
    words |= {"exclusiveMaximum": "less than", "maximum": "of at most"}
    bounds = [f"{word} {schema[key]}" for key, word in words.items() if key in schema]
    return [" and ".join(bounds)] if bounds else []


def _inlined(part: Any, definitions: Schema) -> Any:
    """A part of a schema, with definitions in place of the references to them."""
    if isinstance(part, list):
        return [_inlined(each, definitions) for each in part]
    if not isinstance(part, Mapping):
        return part
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(each, definitions) for name, each in part.items() if name != "$defs"}


def _below(schema: Schema, path: Sequence[object]) -> Schema:
    """The schema of the value at `path`; empty where there is none."""
    for part in path:
        found = (_child(option, part) for option in _options(schema))
        schema = next((child for child in found if isinstance(child, Mapping)), {})
    return schema


def _child(schema: Schema, part: object) -> object:
    if isinstance(part, int):
        return schema.get("items")
    if "properties" in schema:
        return schema["properties"].get(part)
    return next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties"))


def _properties(schema: Schema, path: Sequence[object]) -> Iterable[str]:
    return next((option["properties"] for option in _options(_below(schema, path)) if "properties" in option), ())


def _of_keys(schema: Schema, path: Sequence[object]) -> Schema:
    """The schema of the names in the object at `path`."""
    option = _options(_below(schema, path))[0]
    patterns = ({"type": "string", "pattern": pattern} for pattern in option.get("patternProperties", {}))
    return {**next(patterns, {}), **option.get("propertyNames", {})}


def _options(schema: Schema) -> Sequence[Schema]:
    options: Sequence[Schema] = schema.get("anyOf", (schema,))
    return options


def bounded(value: object) -> object:
    """`value` made safe for JSON; the beginning of its text if it is long."""
    plain = json_safe(value)
    text = json.dumps(plain, ensure_ascii=False)
    return plain if len(text) <= _LONGEST_VALUE else shorten(plain if isinstance(plain, str) else text, _LONGEST_VALUE)


def _text_of(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(json_safe(value))
    return "nothing" if value is None else shorten(json.dumps(json_safe(value), ensure_ascii=False), 60)
