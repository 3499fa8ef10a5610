"""Sphinx directive `config-keys`: the keys of a config, each with its type, default and words, from the pydantic schema that reads it.

The words are the comments beside or above a field; a field without any is an error, so that no key goes unexplained.
"""

import ast
import inspect
import textwrap
import typing
from importlib import import_module

from pydantic import BaseModel
from sphinx.util.docutils import SphinxDirective


def comments(schema):
    """{field: words} of one class: what stands in its source behind a field or, where nothing does, in the lines right above it."""
    lines = textwrap.dedent(inspect.getsource(schema)).splitlines()
    found = {}
    for node in ast.parse("\n".join(lines)).body[0].body:
        if isinstance(node, ast.AnnAssign):
            behind = [_comment(line) for line in lines[node.lineno - 1 : node.end_lineno]]
            above = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                above.insert(0, _comment(line))
            found[node.target.id] = " ".join(filter(None, behind if any(behind) else above))
    return found


def _comment(line):
    """What stands behind the first # that is in no string."""
    quote = None
    for k, char in enumerate(line):
        if quote or char in "\"'":
            quote = None if char == quote else quote or char
        elif char == "#":
            return line[k + 1 :].strip()
    return ""


def words_of(schema, field):
    """The words of a field, from the class that declares it."""
    return next(
        (w for cls in schema.__mro__ if issubclass(cls, BaseModel) and cls is not BaseModel and (w := comments(cls).get(field))), ""
    )


def below(annotation):
    """The schemas that an annotation leads into, each with what stands between its key and theirs."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [("", annotation)]
    between = {dict: ".<name>", list: "[…]"}.get(typing.get_origin(annotation), "")
    return [(between + more, schema) for part in typing.get_args(annotation) for more, schema in below(part)]


def kind(field):
    """What may be written, in words; field : of a JSON schema."""
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(kind(part) for part in field["anyOf"] if part.get("type") != "null"))
    if "$ref" in field:
        return "keys below"
    if field["type"] == "array":
        return {"path": "paths", "text": "names"}.get(of := kind(field["items"]), f"list: {of}")
    if field["type"] == "object":
        values = field.get("additionalProperties") or next(iter(field["patternProperties"].values()))
        return f"{kind(values)} by name"
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (
            ("exclusiveMinimum", ">"),
            ("minimum", "≥"),
            ("exclusiveMaximum", "<"),
            ("maximum", "≤"),
            ("multipleOf", "a multiple of"),
        )
        if key in field
    ]
    words = {"integer": "integer", "number": "number", "boolean": "`true` or `false`", "string": "text"}[field["type"]]
    return " ".join(["path" if field.get("format") == "path" else words, ", ".join(bounds)]).strip()


def default(field):
    """What holds where nothing is written; "" where the words say it."""
    if field.is_required():
        return "required"
    if field.default_factory or field.default in (None, "", []) or isinstance(field.default, BaseModel):
        return ""
    return f"default `{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def described(schema, prefix=""):
    """Yield (keys before, schema, [(key, type and default, words)]) of a schema and of those it leads into."""
    properties = schema.model_json_schema(by_alias=True)["properties"]
    rows, deeper = [], []
    for name, field in schema.model_fields.items():
        key, inner, words = field.alias or name, below(field.annotation), words_of(schema, name)
        if not words:
            raise ValueError(f"{schema.__module__}.{schema.__name__}.{name} has no words: write a comment beside it")
        deeper += [(f"{prefix}{key}{between}.", other) for between, other in inner]
        held = "" if "by default" in words else default(field)
        rows.append((key, ", ".join(filter(None, [kind(properties[key]), held])), words))
    yield prefix.rstrip("."), schema, rows
    for keys, other in deeper:
        yield from described(other, keys)


class ConfigKeys(SphinxDirective):
    """`config-keys` module.Class"""

    required_arguments = 1

    def run(self):
        module, _, name = self.arguments[0].rpartition(".")
        schema, lines = getattr(import_module(module), name), []
        self.env.note_dependency(inspect.getfile(schema))
        for prefix, part, rows in described(schema):
            self.env.note_dependency(inspect.getfile(part))
            lines += [
                f"## `{prefix}`" if prefix else "## At the top",
                "",
                inspect.cleandoc(part.__doc__) if "__doc__" in vars(part) and part.__doc__ else "",
                "",
            ]
            for key, about, words in rows:
                lines += [f"`{key}` – {about}", f": {_sentence(words)}", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _sentence(words):
    """Words with a capital and a point."""
    words = words.replace("<", r"\<").replace("*", r"\*")
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "…")) else ".")


def setup(app):
    app.add_directive("config-keys", ConfigKeys)
    return {"parallel_read_safe": True}
