"""The parts of a run that the checks look at, made when first asked for."""

from collections.abc import Callable, Sequence
import functools

import jax

from jaxrl_llm.data import sources
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.models import api, families
from jaxrl_llm.models.weights import assemble, resolve
from jaxrl_llm.training import absent, experiment, setup
from jaxrl_llm.training import layout as layouts


class Subject:
  """A run that has not begun.

  A part that cannot be made raises, one line, as setup.build would.

  Attributes:
    config: the experiment, validated.
    say: told what takes long.
  """

  def __init__(self, config: experiment.Experiment, say: Callable[[str], None]):
    """Nothing is made yet."""
    self.config, self.say = config, say

  @functools.cached_property
  def shape(self) -> api.ModelConfig:
    """Of the model; reads no weights."""
    return resolve.shape(self.config.model.name)

  @functools.cached_property
  def layout(self) -> layouts.Layout:
    """The mesh and the parameters' places on it."""
    made = layouts.Layout(self.config)
    made.parameters(self.shape, assemble.abstract(self.shape))
    return made

  @functools.cached_property
  def absent(self) -> absent.AbsentRun:
    """State and programs, without arrays."""
    return absent.AbsentRun(self.config, jax.devices())

  @functools.cached_property
  def loaded(self) -> resolve.Loaded:
    """Weights, shape and tokenizer."""
    self.say(f"loading {self.config.model.name}")
    return resolve.load(
      self.config.model.name,
      seed=self.config.seed,
      sharding=self.layout.parameters,
    )

  @functools.cached_property
  def functions(self) -> setup.Functions:
    """What the run computes."""
    return setup.functions(self.config, self.loaded.config, self.layout.mesh)

  @functools.cached_property
  def training(self) -> Sequence[sources.Problem]:
    """Problems that are trained on."""
    return setup.problems(self.config, self.config.data.split)

  @functools.cached_property
  def held_out(self) -> Sequence[sources.Problem]:
    """Problems of the evaluation."""
    found = setup.problems(self.config, self.config.data.eval_split)
    return found[: self.config.evaluation.examples]

  @property
  def row_shares(self) -> int:
    """Devices that cut the rows."""
    return meshes.row_shares(self.layout.mesh)

  def exact_model(self) -> api.LanguageModel:
    """The model with float32 products, nothing recomputed."""
    return families.build(self.loaded.config)
