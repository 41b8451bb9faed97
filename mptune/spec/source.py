"""Reads a spec file: YAML with line numbers, search dimensions, and errors that point at a line.

A leaf of `model`, `policy` or `training` may be a dimension:

    {choice: [a, b, c]}            one of these, each a value or a whole sub-tree
    {float: [low, high]}           with `log: true` or `step: 0.1`
    {int: [low, high]}             with `log: true` or `step: 2`

A dimension inside one option of a choice exists only where that option is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mptune import plugins
from mptune.artifacts import SECRET_QUERY
from mptune.errors import InputError, cut_line, did_you_mean, input_errors
from mptune.spec.schema import (
    MODEL_KEYS,
    PLUGIN_SECTIONS,
    SearchSpec,
    build,
    is_searchable,
    nested,
    plugin_name,
)

Scalar = str | int | float | bool | None
Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Choice:
    """One of several options, each with a label that names it in Optuna's storage."""

    options: tuple[Node, ...]
    labels: tuple[Scalar, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.labels))}"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: float | None = None

    def __str__(self) -> str:
        low, high = (str(int(v)) if v == int(v) else f"{v:g}" for v in (self.low, self.high))
        return f"{low} to {high}{', log scale' * self.log}"


@dataclass(frozen=True)
class Node:
    """A value of the file and its place: `"quickstart.yaml:14"`."""

    value: Scalar | dict[str, Node] | list[Node] | Choice | Range
    origin: str


Pick = Callable[[str, Choice | Range], Any]
"""Decides a dimension: (its dotted name, the dimension) -> an option's label, or a number."""


# --- YAML to nodes -----------------------------------------------------------------------------


MOST_BYTES = 10_000_000
MOST_NODES = 20_000
"""Of one file; an alias counts as all that it stands for."""
MOST_OPTIONS = 1000


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 does."""

    nodes = 0


_Loader.yaml_implicit_resolvers = {
    k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _origin(node: yaml.Node, source: str) -> str:
    # The text of an override is one line.
    return source if source.startswith("--") else f"{source}:{node.start_mark.line + 1}"


def _to_node(loader: _Loader, node: yaml.Node, source: str) -> Node:
    origin = _origin(node, source)
    loader.nodes += 1
    if loader.nodes > MOST_NODES:
        raise InputError(f"{source}: more than {MOST_NODES} values, with those of aliases")
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        return Node(_mapping(loader, node, source), origin)
    if isinstance(node, yaml.SequenceNode):
        return Node([_to_node(loader, child, source) for child in node.value], origin)
    try:
        return Node(loader.construct_object(node), origin)
    except ValueError as error:
        raise InputError(f"{origin}: {cut_line(node.value, 40)!r}: {error}") from None


def _mapping(loader: _Loader, node: yaml.MappingNode, source: str) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        line = _origin(key_node, source)
        if not isinstance(key, str):
            raise InputError(f"{line}: {key!r} is not a key; keys are text, put it in quotes")
        if key in found:
            raise InputError(f"{line}: {key} is given twice; first at {found[key].origin}")
        value = _to_node(loader, value_node, source)
        # An empty or nested value starts on another line; errors name the key's line.
        found[key] = Node(value.value, line)
    return found


def parse_yaml(text: str, source: str) -> Node:
    """Parse YAML text into nodes that know their line.

    Raises:
        InputError: not YAML, a duplicate key, or a key that is not text.
    """
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return Node({}, f"{source}:1") if root is None else _to_node(loader, root, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise InputError(f"{source}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}:1: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def plain(node: Node) -> Any:
    """The node as it was written, dimensions included."""
    value = node.value
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, Choice):
        return {"choice": [plain(o) for o in value.options]}
    if isinstance(value, Range):
        ends = [int(v) if value.integer else v for v in (value.low, value.high)]
        extra: dict[str, float] = {"log": True} if value.log else {}
        extra |= {"step": value.step} if value.step is not None else {}
        return {"int" if value.integer else "float": ends, **extra}
    return value


# --- dimensions --------------------------------------------------------------------------------


def _find_dimensions(node: Node, path: str) -> Node:
    """Replace every mapping that describes a dimension by the dimension."""
    value = node.value
    if isinstance(value, list):
        return Node([_find_dimensions(v, f"{path}.{i}") for i, v in enumerate(value)], node.origin)
    if not isinstance(value, dict):
        return node
    kinds = [k for k in ("choice", "float", "int") if k in value]
    if not kinds:
        return Node({k: _find_dimensions(v, f"{path}.{k}") for k, v in value.items()}, node.origin)
    if kinds == ["choice"]:
        return Node(_choice(node, value, path), node.origin)
    return Node(_range(node, value, path, kinds), node.origin)


def _refuse_other_keys(
    node: Node, value: Mapping[str, Node], path: str, allowed: Sequence[str]
) -> None:
    for key in value:
        if key not in allowed:
            raise InputError(
                f"{value[key].origin}: {path}.{key}: unknown key in a dimension; "
                f"allowed: {', '.join(allowed)}{did_you_mean(key, allowed)}"
            )


def _choice(node: Node, value: Mapping[str, Node], path: str) -> Choice:
    _refuse_other_keys(node, value, path, ("choice",))
    options = value["choice"].value
    if not isinstance(options, list) or not options:
        raise InputError(f"{node.origin}: {path}: choice must be a list with at least one option")
    if len(options) > MOST_OPTIONS:
        raise InputError(
            f"{node.origin}: {path}: {len(options)} options; at most {MOST_OPTIONS}, or a range"
        )
    labels = _labels(options)
    found = tuple(
        _find_dimensions(o, f"{path}.{label}") for o, label in zip(options, labels, strict=True)
    )
    for option in found:
        if isinstance(option.value, Choice | Range):
            raise InputError(f"{option.origin}: {path}: an option cannot be another dimension")
    return Choice(found, labels)


def _labels(options: Sequence[Node]) -> tuple[Scalar, ...]:
    """Labels of options: a scalar itself; a sub-tree's kind or family, and values that differ."""
    plain_labels = [_label(option) for option in options]
    labels: list[Scalar] = []
    for option, label in zip(options, plain_labels, strict=True):
        twins = [o for o, other in zip(options, plain_labels, strict=True) if other == label]
        label = " ".join([str(label), *_apart(option, twins)]) if len(twins) > 1 else label
        same = sum(str(other).split("#")[0] == str(label) for other in labels)
        labels.append(f"{label}#{same + 1}" if same else label)
    return tuple(labels)


def _apart(option: Node, twins: Sequence[Node]) -> Iterator[str]:
    """`width=64` for each plain value in which the options of one kind differ."""
    values = [t.value if isinstance(t.value, dict) else {} for t in twins]
    for key, node in option.value.items() if isinstance(option.value, dict) else ():
        differs = any(key not in v or v[key].value != node.value for v in values)
        if differs and isinstance(node.value, Scalar):
            yield f"{key}={node.value}"


def _use_checkpoints(sections: dict[str, Node], folder: Path) -> None:
    """Make the folders of `model.from` absolute; the first one's tokenizer is the default of text.

    Relative folders start at the spec, as those of the data do.
    """
    found: list[Node] = []

    def absolute(node: Node, of_from: bool) -> Node:
        value = node.value
        if isinstance(value, dict):
            for key, item in value.items():
                value[key] = absolute(item, key == "from" or (of_from and key == "choice"))
        elif isinstance(value, list):
            value[:] = [absolute(item, of_from) for item in value]
        elif of_from and isinstance(value, str):
            path = folder / value
            node = Node(str(path) if path.is_dir() else value, node.origin)
            found.append(node)
        return node

    for section in sections.values():
        absolute(section, False)
    data = sections["data"].value if "data" in sections else None
    if found and isinstance(data, dict) and plain(sections["data"]).get("kind") == "text":
        data.setdefault("tokenizer", found[0])


def _label(option: Node) -> Scalar:
    value = option.value
    if isinstance(value, dict):
        named = [value[k].value for k in ("kind", *MODEL_KEYS, "family") if k in value]
        return re.split("[:/]", named[0])[-1] if named and isinstance(named[0], str) else "option"
    if isinstance(value, list):
        return str([plain(v) for v in value])
    assert not isinstance(value, Choice | Range)
    return value


def _range(node: Node, value: Mapping[str, Node], path: str, kinds: Sequence[str]) -> Range:
    if len(kinds) > 1:
        raise InputError(f"{node.origin}: {path}: a dimension is one of {', '.join(kinds)}")
    kind = kinds[0]
    _refuse_other_keys(node, value, path, (kind, "log", "step"))
    ends = plain(value[kind])
    number = int if kind == "int" else (int, float)
    if not (
        isinstance(ends, list)
        and len(ends) == 2
        and all(isinstance(e, number) and not isinstance(e, bool) for e in ends)
        and ends[0] <= ends[1]
    ):
        raise InputError(
            f"{node.origin}: {path}: {kind} must be [low, high] with low <= high, not {ends!r}"
        )
    log = plain(value["log"]) if "log" in value else False
    if not isinstance(log, bool):
        raise InputError(f"{value['log'].origin}: {path}.log: {log!r} must be true or false")
    step = plain(value["step"]) if "step" in value else None
    if log and (ends[0] <= 0 or step is not None):
        raise InputError(f"{node.origin}: {path}: log needs low > 0 and no step")
    if step is not None and not (isinstance(step, int | float) and step > 0):
        raise InputError(f"{value['step'].origin}: {path}.step: {step!r} must be greater than 0")
    return Range(ends[0], ends[1], integer=kind == "int", log=log, step=step)


def _dimension_values(dimension: Choice | Range) -> tuple[Any, ...]:
    """The values to check: every option of a choice, both ends of a range."""
    if isinstance(dimension, Choice):
        return dimension.labels
    ends = (dimension.low, dimension.high)
    return tuple(int(e) for e in ends) if dimension.integer else ends


def _concretise(
    node: Node, name: str, at: Location, pick: Pick, origins: dict[Location, str]
) -> Any:
    """`node` as plain values, every dimension decided by `pick`."""
    origins[at] = node.origin
    value = node.value
    if isinstance(value, Choice):
        label = pick(name, value)
        option = value.options[value.labels.index(label)]
        inner = f"{name}.{label}" if isinstance(option.value, dict) else name
        return _concretise(option, inner, at, pick, origins)
    if isinstance(value, Range):
        return pick(name, value)
    if isinstance(value, dict):
        return {
            k: _concretise(v, f"{name}.{k}" if name else k, (*at, k), pick, origins)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_concretise(v, f"{name}.{i}", (*at, i), pick, origins) for i, v in enumerate(value)]
    return value


@dataclass(frozen=True)
class Concrete:
    """A spec with a value in place of every dimension, and the place of each value in the file."""

    tree: dict[str, Any]
    origins: Mapping[Location, str] = field(repr=False)

    def origin(self, at: Location) -> str:
        """The place of a value, or of the nearest section around it that is in the file."""
        while at and at not in self.origins:
            at = at[:-1]
        return self.origins[at]


# --- errors ------------------------------------------------------------------------------------


def _model_at(model: type[BaseModel] | None, at: Location) -> type[BaseModel] | None:
    of_entries: type[BaseModel] | None = None
    for part in at:
        if of_entries is not None:  # this part is a key of a mapping, chosen by the user
            model, of_entries = of_entries, None
            continue
        field = model.model_fields.get(str(part)) if model else None
        annotation = field.annotation if field else None
        model = nested(annotation)
        if get_origin(annotation) is dict:
            of_entries = nested(get_args(annotation)[1])
    return model


def _problems(
    error: ValidationError, model: type[BaseModel], prefix: Location, concrete: Concrete
) -> Iterator[str]:
    """One line per problem: where, which key, the value, the rule, the nearest known name."""
    for problem in error.errors():
        at = (*prefix, *problem["loc"])
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):
            yield from _problems(cause, model, at, concrete)
        else:
            yield _line(concrete, at, _rule(dict(problem), model, prefix, at))


def _line(concrete: Concrete, at: Location, rule: str) -> str:
    line = f"{concrete.origin(at)}: {'.'.join(map(str, at))}: {rule}"
    # It shows no password.
    return re.sub(rf"(?i)(://[^:/@\s]*:).*(?=@)|({SECRET_QUERY})[^&\s']+", r"\1\2...", line)


def _rule(problem: dict[str, Any], model: type[BaseModel], prefix: Location, at: Location) -> str:
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        owner = _model_at(model, at[len(prefix) : -1])
        known = list(owner.model_fields) if owner else []
        return f"unknown key; allowed: {', '.join(known)}{did_you_mean(at[-1], known)}"
    if kind == "missing":
        return "is missing"
    if kind == "too_short" and not isinstance(value, str):
        return f"name at least {problem['ctx']['min_length']} {at[-1]}"
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "must")
    message = message[0].lower() + message[1:] if message[:1].isupper() else message
    shown = isinstance(value, str | int | float | bool) or value is None
    return f"{cut_line(repr(value))} {message}" if shown else message


# --- the file ----------------------------------------------------------------------------------


SpecSource: TypeAlias = Path | str | Mapping[str, Any] | SearchSpec
"""What a spec may be given as: the path of a file, plain values, or a `SearchSpec`."""


@dataclass(frozen=True)
class SpecFile:
    """A spec as it was written: nodes with their lines, dimensions included."""

    path: Path
    root: Node
    text: str

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> SpecFile:
        """Read a spec and apply `--set` overrides (`"training.budget_tokens=2e6"`).

        Raises:
            InputError: the file is missing or is not a YAML mapping; one line says where.
        """
        return cls._parse(path, _read_text(path), overrides)

    @classmethod
    def of(cls, spec: SpecSource, overrides: Sequence[str] = ()) -> SpecFile:
        """The spec of a path, of plain values as YAML has them, or of a `SearchSpec`.

        Relative paths in plain values start from the current folder, and errors name lines of the
        YAML that the values give.

        Raises:
            InputError: see `read`.
        """
        if isinstance(spec, Path | str):
            return cls.read(Path(spec), overrides)
        values = spec.model_dump(mode="json") if isinstance(spec, SearchSpec) else dict(spec)
        return cls._parse(Path("spec"), yaml.safe_dump(values, sort_keys=False), overrides)

    @classmethod
    def _parse(cls, path: Path, text: str, overrides: Sequence[str]) -> SpecFile:
        root = parse_yaml(text, path.name)
        for override in overrides:
            root = _override(root, override)
        if not isinstance(root.value, dict):
            raise InputError(f"{root.origin}: a spec is a mapping of sections, see `mptune init`")
        _use_checkpoints(root.value, path.absolute().parent)
        sections = {k: _find_dimensions(v, k) for k, v in root.value.items()}
        return cls(path, Node(sections, root.origin), text)

    def concretise(self, pick: Pick) -> Concrete:
        """Decide every dimension with `pick`; nothing is validated."""
        origins: dict[Location, str] = {}
        return Concrete(_concretise(self.root, "", (), pick, origins), origins)

    def probes(self) -> Iterator[Concrete]:
        """Concrete specs that together take every option and both ends of every range once."""
        return self._probes({})

    def _probes(self, found: dict[str, Choice | Range]) -> Iterator[Concrete]:
        """The probes; adds every dimension to `found` when a probe decides it first."""
        pending: list[dict[str, Any]] = [{}]
        for decided in pending:
            met: dict[str, Choice | Range] = {}
            yield self.concretise(lambda name, dim: _probe(name, dim, decided, met))  # noqa: B023
            for name, dimension in met.items():
                if name not in found:
                    found[name] = dimension
                    values = _dimension_values(dimension)
                    pending += [{**decided, name: v} for v in values[1:]]

    @cached_property
    def dimensions(self) -> dict[str, Choice | Range]:
        """Every dimension by its dotted name, conditional ones included."""
        found: dict[str, Choice | Range] = {}
        for _ in self._probes(found):
            pass
        return found

    def arms(self, section: str) -> dict[str, Node]:
        """The named arms of `search` or `compare`, as nodes."""
        assert isinstance(self.root.value, dict)
        owner = self.root.value.get(section)
        arms = owner.value.get("arms") if owner and isinstance(owner.value, dict) else None
        return dict(arms.value) if arms and isinstance(arms.value, dict) else {}

    def validate(self, *, data_is_here: bool = True) -> SearchSpec:
        """Check all that can be checked without torch, ray or the data's contents.

        With `data_is_here` false, the data's files need not exist: a launched search has its own.

        Returns the spec with every dimension at its first value.

        Raises:
            InputError: one line per problem, each naming file, line, key, value and rule.
        """
        self._refuse_misplaced_dimensions()
        problems: dict[str, None] = {}
        first: SearchSpec | None = None
        seen: list[Any] = []  # sections whose files were looked for: there can be many probes
        for probe in self.probes():
            data = probe.tree.get("data")
            spec, found = check(probe, self.path, data_is_here and data not in seen)
            seen.append(data)
            problems.update(dict.fromkeys(found))
            first = first or spec
        for name, arm in self.arms("compare").items() if not problems else ():
            probe = merge_arm(next(self.probes()), plain(arm), arm.origin)
            found = check(probe, self.path, data_is_here and probe.tree.get("data") not in seen)[1]
            problems.update(dict.fromkeys(f"{p} (arm {name!r})" for p in found))
        if problems or first is None:
            raise InputError(problems)
        return first

    def _refuse_misplaced_dimensions(self) -> None:
        for name in self.dimensions:
            section, known = name.partition(".")[0], tuple(SearchSpec.model_fields)
            if section not in known:
                raise InputError(
                    f"{self.origin_of(section)}: {section}: unknown key; allowed: "
                    f"{', '.join(known)}{did_you_mean(section, known)}"
                )
            if not is_searchable(name.split(".")):
                under = ", ".join(s for s in known if is_searchable([s]))
                raise InputError(
                    f"{self.origin_of(name)}: {name}: must be the same for every trial of a study, "
                    f"so it cannot be a dimension; dimensions go under {under}"
                )

    def origin_of(self, name: str) -> str:
        """The place of a dotted name, or of the nearest key around it that is in the file."""
        node = self.root
        for part in name.split("."):
            if not isinstance(node.value, dict) or part not in node.value:
                break
            node = node.value[part]
        return node.origin

    def resolved(self, spec: SearchSpec) -> dict[str, Any]:
        """The file as plain values with every default written out, dimensions kept."""
        return _filled(plain(self.root), spec.model_dump(mode="json"))


def _probe(
    name: str, dimension: Choice | Range, decided: Mapping[str, Any], met: dict[str, Choice | Range]
) -> Any:
    met[name] = dimension
    return decided.get(name, _dimension_values(dimension)[0])


def _filled(written: Any, full: Any) -> Any:
    """`written` with the keys of `full` that it lacks; dimensions are left as they are."""
    if not isinstance(written, dict) or not isinstance(full, dict):
        return written
    if any(k in written for k in ("choice", "float", "int")):
        options = written.get("choice", ())
        filled = [_filled_option(o) for o in options]
        return {**written, "choice": filled} if filled else written
    return {k: _filled(written.get(k, v), v) for k, v in full.items()} | {
        k: v for k, v in written.items() if k not in full
    }


def _filled_option(option: Any) -> Any:
    """An option of a choice, with the defaults of the plugin that it names, if any."""
    for group, key in PLUGIN_SECTIONS.values():
        name = plugin_name(key, option) if isinstance(option, dict) else None
        if isinstance(name, str) and name in plugins.modules(group):
            fields = plugins.load(group, name).model_fields
            defaults = {
                k: f.get_default(call_default_factory=True)
                for k, f in fields.items()
                if not f.is_required()
            }
            return {**option, **{k: v for k, v in defaults.items() if k not in option}}
    return option


def merge_arm(base: Concrete, arm: Mapping[str, Any], origin: str) -> Concrete:
    """`base` with an arm's changes; a section with its own kind or family replaces the whole."""
    origins = {**base.origins}
    tree = _merged(base.tree, arm, (), origins, origin)
    return Concrete(tree, origins)


def _merged(base: Any, change: Any, at: Location, origins: dict[Location, str], origin: str) -> Any:
    origins[at] = origin if at else origins[at]
    names_plugin = isinstance(change, Mapping) and bool(
        {"kind", "family", *MODEL_KEYS} & set(change)
    )
    if not isinstance(change, Mapping) or not isinstance(base, Mapping) or names_plugin:
        return change
    return {
        **base,
        **{k: _merged(base.get(k), v, (*at, k), origins, origin) for k, v in change.items()},
    }


def check(
    concrete: Concrete, path: Path, data_is_here: bool = True
) -> tuple[SearchSpec | None, list[str]]:
    """Validate one concrete spec: (the spec, or None; one line per problem)."""
    folder = path.absolute().parent if data_is_here else None
    given: list[Location] = [
        (s,) for s in PLUGIN_SECTIONS if isinstance(concrete.tree.get(s), dict)
    ]
    tracked = concrete.tree.get("track")
    if isinstance(tracked, list):
        given += [("track", n) for n, values in enumerate(tracked) if isinstance(values, dict)]
    problems = [p for at in given for p in plugin_problems(at, concrete, folder)]
    try:
        spec = SearchSpec.model_validate(concrete.tree)
    except ValidationError as error:
        return None, [*_problems(error, SearchSpec, (), concrete), *problems]
    base, tokenizer = spec.model.get("from"), spec.data.get("tokenizer")
    base = base if isinstance(base, str) else None  # another is a problem already
    if base is not None and spec.training.pack:
        rule = "a checkpoint cannot be trained on packed rows; leave it out"
        problems.append(_line(concrete, ("training", "pack"), rule))
    if base is not None and tokenizer in (None, "bytes", "characters", "bpe"):
        rule = "a checkpoint goes on with text in its own tokenizer only"
        problems.append(_line(concrete, ("model", "from"), f"{rule}: data.tokenizer: {base}"))
    if base is not None and folder is not None and (missing := checkpoint_problem(base)):
        problems.append(_line(concrete, ("model", "from"), missing))
    if {*MODEL_KEYS} & {*spec.model} and spec.training.optimizer.width_rule != "none":
        rule = "the width of a model.class or a model.from is not known; leave it out"
        problems.append(_line(concrete, ("training", "optimizer", "width_rule"), rule))
    domains = ["heldout", *(spec.data.get("domains") or {})]
    if domains.count("heldout") > 1:
        named: Location = ("data", "domains", "heldout")
        problems.append(_line(concrete, named, "is the name of the held-out data themselves"))
    at: Location
    if (context := spec.training.context) is not None:
        with suppress(ValueError, InputError):  # of data that are a problem already
            data = build("data", spec.data)
            at = ("training", "context", "length")
            if data.kind != "text":
                problems.append(_line(concrete, at, f"sequences of {data.kind} cannot be cut"))
            elif data.length % context.length:
                rule = f"data.length {data.length} is not a multiple of {context.length}"
                problems.append(_line(concrete, at, rule))
    given_domains = (spec.data.get("domains") or {}).items()
    trained = [n for n, d in given_domains if isinstance(d, dict) and d.get("heldout")]
    for name in [n for n in spec.training.mix if n not in trained]:
        rule = f"no text of {name} to train on: data.domains.{name} needs heldout, the fraction "
        rule += f"of its documents that is only scored{did_you_mean(name, trained)}"
        problems.append(_line(concrete, ("training", "mix", name), rule))
    weights = spec.search.choose_by
    for name in () if isinstance(weights, str) else [n for n in weights if n not in domains]:
        rule = f"no such domain; data.domains and heldout are: {', '.join(domains)}"
        here: Location = ("search", "choose_by", name)
        problems.append(_line(concrete, here, rule + did_you_mean(name, domains)))
    workers = {gang.workers for gang in spec.resources.gangs()}
    for uneven in sorted(n for n in workers if spec.training.batch_size % n):
        rule = f"{spec.training.batch_size} sequences cannot be shared by {uneven} workers"
        at = ("training", "batch_size")
        problems.append(_line(concrete, at, f"{rule}; give a multiple"))
    return spec, problems


def checkpoint_problem(name: str) -> str | None:
    """What a folder lacks to be a checkpoint; None for a name that may be of the hub."""
    path = Path(name)
    if path.exists():
        wanted = ("config.json", "tokenizer.json")
        missing = [file for file in wanted if not (path / file).is_file()]
        return f"{name} is no checkpoint: it has no {missing[0]}" if missing else None
    is_path = path.is_absolute() or name.count("/") > 1 or name.startswith(".")
    return f"{name}: no such folder" if is_path else None


def read_plugin(path: Path, group: str, key: str) -> Any:
    """A plugin object from a YAML file of its own, e.g. a launcher profile.

    Raises:
        InputError: one line per problem, each naming file, line, key, value and rule.
    """
    root = parse_yaml(_read_text(path), path.name)
    origins: dict[Location, str] = {}
    values = _concretise(root, "", (), lambda name, dimension: None, origins)
    concrete = Concrete({"": values}, origins)
    name = plugin_name(key, values) if isinstance(values, dict) else None
    if name is None:
        raise InputError(
            f"{root.origin}: needs {key!r}, one of {', '.join(plugins.modules(group))}"
        )
    with input_errors(f"{concrete.origin((key,))}: ", InputError):
        plugin = plugins.load(group, str(name))
    try:
        return plugin.model_validate(values)
    except ValidationError as error:
        raise InputError(_problems(error, plugin, (), concrete)) from None


def plugin_problems(at: Location, concrete: Concrete, folder: Path | None = None) -> Iterator[str]:
    """One line per problem of a section that a plugin reads; with a folder, of its files, too.

    Args:
        at: the section, and its place in a list of sections.
    """
    section, values = str(at[0]), concrete.tree[str(at[0])]
    values = values[at[1]] if len(at) > 1 else values
    group, key = PLUGIN_SECTIONS[section]
    try:
        plugin = build(section, values)
        if section == "data" and folder is not None:
            plugin.resolved(folder).check()
        if section == "track" and folder is not None:
            plugin.check()
    except ValidationError as error:
        yield from _problems(error, plugins.load(group, plugin_name(key, values)), at, concrete)
    except InputError as error:
        yield from (_line(concrete, (*at, key), p) for p in error.problems)
    except (ValueError, OSError) as error:
        yield _line(concrete, at, str(error))


def _read_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is not a file")
        if path.exists() and path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: larger than {MOST_BYTES // 10**6} MB")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        names = [p.name for p in folder.glob("*.y*ml")]
        raise InputError(f"{path}: no such file{did_you_mean(path.name, names)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _override(root: Node, override: str) -> Node:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: must be KEY=VALUE, e.g. training.budget_tokens=2e6")
    return _replaced(root, key.split("."), parse_yaml(text, f"--set {override}"), override)


def _replaced(node: Node, keys: Sequence[str], value: Node, override: str) -> Node:
    if not keys:
        return value
    children = {} if node.value is None else node.value
    if not isinstance(children, dict):
        raise InputError(f"--set {override}: {keys[0]!r} is not inside a mapping")
    child = children.get(keys[0], Node({}, value.origin))
    return Node({**children, keys[0]: _replaced(child, keys[1:], value, override)}, node.origin)
