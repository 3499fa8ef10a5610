"""How a YAML file and key=value overrides become a config: a key that is not declared is an error, in one sentence."""

import difflib
import json
import typing
from pathlib import Path
from typing import Annotated

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from yaml import YAMLError

from mfmd import Error, whole


class ConfigError(Error):
    """The config cannot be used; names the file, the key, what was found and what is allowed."""


class Section(BaseModel):
    """A part of a config: a key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]


def _expanded(path):
    try:
        return path.expanduser()
    except RuntimeError:
        raise PydanticCustomError("home", "there is no such user, whose home it would be") from None


HomePath = Annotated[Path, AfterValidator(_expanded)]  # ~ is the user's home
NotNegative = Annotated[float, Field(ge=0)]


def load(path, schema, overrides=()):
    """The config of a YAML file with `key=value` overrides, such as "train.epochs=10".

    Raises
    ------
    ConfigError : the file is missing or no YAML, a key is unknown or its value not allowed.
    """
    try:
        tree = OmegaConf.load(path)
        if not OmegaConf.is_dict(tree):
            raise ConfigError(f"{path}: a config is a mapping of keys ({', '.join(schema.model_fields)}), and this file holds none")
        for override in overrides:
            key, sign, _ = override.partition("=")
            if not sign or not key:
                raise ConfigError(f"{override!r} is not an override; write key=value, such as train.epochs=10")
            OmegaConf.update(tree, _numbered(tree, key), OmegaConf.select(OmegaConf.from_dotlist([override]), key))
        tree = OmegaConf.to_container(tree, resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except ConfigError:
        raise
    except (YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable YAML config ({' '.join(str(error).split())})") from None
    return parse(tree, path, schema)


def _numbered(tree, key):
    """The key of an override, in which a stage may be named."""
    section, _, rest = key.partition(".")
    name, _, rest = rest.partition(".")
    if section != "stages" or not name or name.isdigit() or not OmegaConf.is_list(tree.get("stages")):
        return key
    names = [stage.get("name") if OmegaConf.is_dict(stage) else stage for stage in tree.stages]
    if name not in names:
        raise ConfigError(f"{key}: there is no stage {name!r} in the config; there are {', '.join(map(str, names))}")
    return ".".join(part for part in (section, str(names.index(name)), rest) if part)


def parse(tree, origin, schema):
    """The config of nested dicts; `origin` names them in messages. ConfigError as in `load`."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        found = error.errors()
        common = [(e["loc"], e["input"]) for e in found if e["loc"][:1] == ("train",)]  # what every stage has taken over
        found = [e for e in found if e["loc"][:1] != ("stages",) or (e["loc"][2:], e["input"]) not in common]
        raise ConfigError("; ".join(f"{origin}: {_sentence(e, schema)}" for e in found)) from None


def _sentence(error, schema):
    """One pydantic error: the key, what was found, what is allowed."""
    where = [
        str(part)
        for part in error["loc"]
        if "[" not in str(part) and str(part) not in ("constrained-float", "constrained-int", "float", "int")
    ]
    key = ".".join(where)
    if error["type"] == "extra_forbidden":
        unknown = str(error["loc"][-1])
        parents = where[:-1] if where and where[-1] == unknown else where
        key, allowed = ".".join([*parents, unknown]), _keys(parents, schema)
        close = difflib.get_close_matches(unknown, allowed, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{key}: unknown key{hint} (allowed here: {', '.join(allowed)})"
    if error["type"] == "missing":
        return f"{key}: this key is required"
    if error["type"] == "value_error":
        return ".".join([*where, str(error["ctx"]["error"])])
    return f"{key}: found {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(where, schema):
    """Keys allowed in the section at `where`; names and numbers on the way that are no key lead into a mapping or a list."""
    for part in where:
        if part in schema.model_fields:
            schema = next(t for t in _types(schema.model_fields[part].annotation) if isinstance(t, type) and issubclass(t, BaseModel))
    return [field.alias or name for name, field in schema.model_fields.items()]


def _types(annotation):
    yield annotation
    for argument in typing.get_args(annotation):
        yield from _types(argument)


def write_json(path, content):
    """Write what a run began with, all of it or nothing."""
    with whole.writing(path, text=True) as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
