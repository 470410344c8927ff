"""The base of every configuration: a frozen, typed object in which an unknown key is an error.

Defaults < YAML file < ``--set key=value`` (OmegaConf dot-lists). The resolved object is what
``--dry-run`` prints, what the fingerprint is made from, and what is saved with the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab.files import is_path

AnyConfig = TypeVar("AnyConfig", bound="Config")


class InputError(ValueError):
    """Something the user gave can't be used. One line: field, value, problem, remedy. Exit code 2."""

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        shown = str(value) if isinstance(value, str) or is_path(value) else repr(value)
        shown = shown if len(shown) <= 160 else shown[:157] + "..."
        super().__init__(" ".join(f"{field}: {shown}: {problem}; {remedy}".split()))
        self._parts = field, value, problem, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it comes back whole from another process."""
        return type(self), self._parts


ALIKE = 0.7
"""How much of an unknown key a known one must share to be named as the one that may be meant."""


def placement(default: Any = ..., **kwargs: Any) -> Any:
    """A field that says where or how fast the work runs, never what comes out: it stays out of the fingerprint."""
    return Field(default, json_schema_extra={"identity": False}, **kwargs)


class Config(BaseModel):
    """Base of all configurations: frozen, unknown keys fail, the doc string stands under the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    def identity(self) -> dict[str, Any]:
        """The recipe as plain JSON values: every field that changes the result, none that only places the work."""
        fields = type(self).model_fields.items()
        return {name: _plain(getattr(self, name)) for name, info in fields if not _is_placement(info)}

    def dump_yaml(self) -> str:
        """The resolved configuration as YAML that ``--config`` takes back."""
        import yaml

        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _is_placement(info: Any) -> bool:
    extra = info.json_schema_extra
    return isinstance(extra, dict) and extra.get("identity") is False


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # a default may be written 1 and read back 1.0: they are one recipe
    return str(value) if is_path(value) else value


def load(cls: type[AnyConfig], path: Path | None = None, overrides: Sequence[str] = ()) -> AnyConfig:
    """Build a configuration from its defaults, a YAML file and ``key=value`` overrides, in this order.

    Raises:
        InputError: the file is missing or no YAML mapping, an override isn't ``key=value``, or a value doesn't fit.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise InputError("--set", item, "is not key=value", "write it as --set section.key=value")
    try:
        merged = OmegaConf.merge(OmegaConf.create(_read_yaml(path)), OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise InputError("--set", " ".join(overrides), str(error), "check the keys and the quoting") from error
    try:
        return cls.model_validate(_with_default_types(cls, values))
    except ValidationError as error:
        raise _first_problem(cls, error, path) from None


def _with_default_types(cls: type[Config], values: Any) -> Any:
    """Name the default variant of each union where the user left ``type`` out."""
    if not isinstance(values, dict):
        return values
    named = dict(values)
    for name, info in cls.model_fields.items():
        if isinstance(info.default, Config) and isinstance(named.get(name), dict):
            variant = getattr(info.default, "type", None)
            given = {"type": variant, **named[name]} if variant else named[name]
            same = given.get("type") == variant
            named[name] = _with_default_types(type(info.default), given) if same else given
    return named


def _read_yaml(path: Path | None) -> dict[str, Any]:
    import yaml

    if path is None:
        return {}
    if not path.is_file():
        raise InputError("--config", path, "no such file", "give the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError("--config", path, f"is not YAML ({error})", "mend the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError("--config", path, "is not a mapping of keys to values", "see jobs/configs/ for examples")
    return values


def _first_problem(cls: type[Config], error: ValidationError, path: Path | None) -> InputError:
    problems = error.errors(include_url=False)
    problem = next((item for item in problems if item["type"] == "extra_forbidden"), problems[0])
    own = [str(part) for part in problem["loc"] if part not in _variants(cls)]
    field = ".".join(part for part in own if "[" not in part) or cls.__name__  # a bracket: pydantic's name of a variant
    where = f" (in {path})" if path else ""
    if problem["type"] == "extra_forbidden":
        near = _near_names(cls, own)
        return InputError(field, problem["input"], f"unknown key{where}", near or "remove it; --dry-run shows the keys")
    if problem["type"] == "missing":
        return InputError(field, "missing", f"a value is needed{where}", f"add it to the file or --set {field}=...")
    remedy = problem.get("ctx", {}).get("remedy", "give a value that fits")
    return InputError(field, problem["input"], f"{problem['msg']}{where}", remedy)


def _near_names(cls: type[Config], own: Sequence[str]) -> str:
    """A known key that an unknown one is like: by its name where it stands beside it, else by its whole path."""
    from difflib import get_close_matches

    paths, beside = list(_key_paths(cls)), tuple(part for part in own[:-1] if not part.isdecimal())
    siblings = {path[-1]: path[-1] for path in paths if path[:-1] == beside}
    elsewhere = {path[-1]: ".".join(path) for path in reversed(paths)}
    for names in (siblings, elsewhere):
        if close := get_close_matches(own[-1], names, n=1, cutoff=ALIKE):
            return f"did you mean {names[close[0]]}?"
    return ""


def _key_paths(cls: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of a configuration and of those below it, each with the keys above it."""
    from typing import get_args

    if isinstance(cls, type) and issubclass(cls, Config):
        for name, info in cls.model_fields.items():
            yield (*above, name)
            yield from _key_paths(info.annotation, (*above, name))
    for part in get_args(cls):
        yield from _key_paths(part, above)


def _variants(cls: type[Config]) -> set[Any]:
    """Values of ``type`` below a class: pydantic puts them into a problem's location, the user's key has none."""
    return {config.model_fields["type"].default for config in _config_classes(cls) if "type" in config.model_fields}


def _config_classes(cls: type[Config]) -> list[type[Config]]:
    from typing import get_args

    found: list[type[Config]] = []
    todo: list[Any] = [cls]
    while todo:
        current = todo.pop()
        if isinstance(current, type) and issubclass(current, Config):
            found.append(current)
            todo.extend(info.annotation for info in current.model_fields.values())
        else:
            todo.extend(get_args(current))
    return found
