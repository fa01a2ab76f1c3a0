"""Experiments from Python files with get_config(), by path or by name."""

import difflib
import importlib.util
import pathlib
import sys

from jaxrl_llm.training import experiment

_BESIDE_PACKAGE = pathlib.Path(__file__).parents[2] / "configs"


def load(name: str) -> experiment.Experiment:
  """The Experiment of a config file.

  Args:
    name: path of a .py file, or the bare name of one in configs/.

  Returns:
    What its get_config() returns.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it cannot be imported, or has no get_config().
    TypeError: get_config() does not return an Experiment.
  """
  path = _find_config(name)
  sys.path.insert(0, str(path.parent))  # a config may import its neighbour
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    config = get_config() if callable(get_config) else None
  except Exception as error:  # whatever a user's file may raise
    raise ValueError(
      f"{path} cannot be used: {type(error).__name__}: {error}"
    ) from error
  finally:
    sys.path.remove(str(path.parent))
  if get_config is None:
    raise ValueError(
      f"{path} has no get_config(); it must define one that returns an"
      " Experiment."
    )
  if not isinstance(config, experiment.Experiment):
    raise TypeError(
      f"get_config() of {path} must return an Experiment, got"
      f" {type(config).__name__}."
    )
  return config


def _find_config(name: str) -> pathlib.Path:
  """Looks at the path itself, then in configs/ here and beside the package."""
  folders = [pathlib.Path("configs"), _BESIDE_PACKAGE]
  path = pathlib.Path(name)
  if path.suffix == ".py" and path.is_file():
    return path
  if path.name == name:  # a bare name
    for folder in folders:
      found = folder / f"{name.removesuffix('.py')}.py"
      if found.is_file():
        return found
  known = sorted({path.stem for f in folders for path in f.glob("*.py")})
  raise FileNotFoundError(
    f"no config {name!r}{did_you_mean(path.stem, known)}; give a .py file"
    f" or one of: {', '.join(known) or 'none found in configs/'}."
  )


def did_you_mean(name: str, known) -> str:
  """ " (did you mean 'x'?)", or "" if nothing known is near."""
  near = difflib.get_close_matches(name, list(known), 1)
  return f" (did you mean {near[0]!r}?)" if near else ""
