"""A method's config as plain data, as in config.json, and back."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxrl_llm.methods import base, registry


def to_plain(config: base.MethodConfig) -> dict[str, Any]:
  """Names and numbers that json can write; a method inside likewise.

  Args:
    config: of a method, in METHODS or not.

  Returns:
    The class's name as "name", then every field.
  """
  plain = {"name": type(config).__name__}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    inside = isinstance(value, base.MethodConfig)
    plain[field.name] = to_plain(value) if inside else value
  return plain


def from_plain(plain: Mapping[str, Any]) -> base.MethodConfig:
  """The config that to_plain was given.

  Args:
    plain: "name", and fields; what is left out has its default.

  Raises:
    ValueError: no row of METHODS has that class, or it has no such field.
  """
  classes = {config.__name__: config for config in registry.METHODS.values()}
  name = plain.get("name")
  if name not in classes:
    raise ValueError(
      f"a method's name must be one of {', '.join(classes)}; got {name!r}."
    )
  known = {field.name for field in dataclasses.fields(classes[name])}
  values = {key: plain[key] for key in plain if key != "name"}
  for key, value in values.items():
    if key not in known:
      raise ValueError(
        f"{name} has no field {key!r}; its fields: {', '.join(sorted(known))}."
      )
    if isinstance(value, Mapping):
      values[key] = from_plain(value)
    elif isinstance(value, list):  # json has no tuples
      values[key] = tuple(value)
  return classes[name](**values)
