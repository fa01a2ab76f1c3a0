"""What a person decides about a run, every field explained.

A file in configs/ builds an `Experiment` in get_config(); the command line
overrides single fields of it. Nothing here reaches the mathematics: the loop
turns each part into functions before the first step.
"""

import dataclasses
import math
import operator
from typing import Literal

from jaxrl_llm import methods
from jaxrl_llm.methods import base
from jaxrl_llm.models import lora as low_rank
from jaxrl_llm.optimizers import anchored
from jaxrl_llm.training import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """Which weights, and how they are computed with."""

  name: str = "smollm2-135m"
  """an alias (smollm2-135m, tiny), a Hugging Face folder or hub id, or a .gguf
  file"""
  dtype: Literal["float32", "bfloat16"] = "float32"
  """dtype of matrix products; trained parameters and optimizer stay float32"""
  remat: Literal["none", "dots", "full"] = "dots"
  """what the backward pass recomputes: nothing, all but matrix products and
  attention (on a CPU also the fastest), or everything (least memory)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
  """Low-rank adapters instead of all parameters; the base stays as loaded."""

  rank: int = 0
  """width of the two small matrices beside each target; 0: no adapters"""
  alpha: float = 32.0
  """the adapters' product is multiplied by alpha / rank; for rank-stabilised
  LoRA take alpha = a * sqrt(rank)"""
  targets: tuple[str, ...] = low_rank.TARGETS
  """matrices of each block: q, k, v, o, gate, up, down"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Where prompts and answers come from."""

  source: str = "addition"
  """addition, multiplication, countdown, gsm8k, or a .jsonl file"""
  path: str = ""
  """folder with local files of the source (gsm8k: train.jsonl, test.jsonl);
  empty: through tensorflow-datasets"""
  split: str = "train"
  """split that is trained on"""
  eval_split: str = "test"
  """split that is evaluated on"""
  template: str = "{prompt}"
  """text around each prompt; {prompt} is replaced"""
  chat: bool = False
  """wraps the prompt as a user turn with the tokenizer's chat template"""
  answer_template: str = "{answer}"
  """jaxrl sft: text around each answer; {answer} is replaced"""
  epochs: int = 0
  """jaxrl sft: passes over the training split, in place of `steps`; 0: `steps`
  batches of prompts_per_step examples"""
  digits: int = 2
  """generators: decimal digits of each number"""
  few_shot: bool = True
  """generators: puts two solved examples before the question"""
  size: int = 4000
  """generators: number of different training problems"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How tokens are drawn. The trainer scores with the same distribution."""

  temperature: float = 1.0
  """divides the logits; positive"""
  top_k: int = 0
  """keeps the k likeliest tokens; 0 keeps all"""
  top_p: float = 1.0
  """keeps the smallest set of likeliest tokens with this mass; (0, 1]"""
  min_p: float = 0.0
  """drops tokens less likely than this share of the likeliest; [0, 1)"""
  greedy: bool = False
  """takes the likeliest token; temperature and truncation must be left alone"""
  stop: tuple[str, ...] = ()
  """texts of single tokens that end a completion, besides the model's own
  end-of-text ids"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """AdamW and its learning rate."""

  learning_rate: float = 1e-6
  """peak learning rate"""
  schedule: Literal["constant", "linear", "cosine"] = "constant"
  """shape of the decay after warm-up, to zero at the last step"""
  warmup_steps: int = 0
  """steps of linear rise from zero"""
  b1: float = 0.9
  """decay of the first moment"""
  b2: float = 0.999
  """decay of the second moment"""
  eps: float = 1e-8
  """added to the root of the second moment"""
  weight_decay: float = 0.0
  """decoupled weight decay, times the learning rate"""
  max_grad_norm: float = 1.0
  """global norm that gradients are clipped to; 0 does not clip"""
  anchor: float = 0.0
  """anchored weight decay, times the learning rate: pulls what is trained to
  where it started, not to 0, against forgetting; 0: none. 10 in l2, 0.01 in l1
  (arXiv:2605.30148); tune it downwards. The start is kept beside the
  parameters"""
  anchor_norm: anchored.Norm = "l1"
  """l1: drift shrinks by learning rate * anchor, and a smaller one to exactly
  0; l2: by that share of itself; l1_sign: l1 by its subgradient"""
  anchor_dtype: Literal["float32", "bfloat16"] = "float32"
  """that the start is kept in; bfloat16 takes half the memory and pulls to the
  rounded start"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Measured before, during and after training, with its own sampling."""

  every: int = 0
  """steps between evaluations during training; 0: only before and after"""
  examples: int = 200
  """held-out problems"""
  samples: int = 1
  """completions per problem; pass@k is reported for k up to this"""
  batch: int = 50
  """problems generated at once"""
  sampling: Sampling = Sampling(greedy=True)
  """rule for evaluation; greedy by default"""
  dtype: Literal["as trained", "float32", "bfloat16"] = "as trained"
  """dtype of matrix products in evaluation; float32 agrees with what another
  library finds for the export"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """What survives a kill."""

  every: int = 50
  """steps between saves, written while the run goes on; 0: only at the end
  and when told to stop, which wait until all is on disk"""
  keep: int = 2
  """newest checkpoints kept; an older one is deleted when a newer one is on
  disk"""
  keep_period: int = 0
  """checkpoints of steps that are a multiple of it are kept for good; a
  multiple of checkpoint.every, 0: none"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
  """Where numbers go besides metrics.jsonl and the terminal."""

  tensorboard: bool = True
  """writes TensorBoard events"""
  wandb: str = ""
  """Weights & Biases project; empty: off (needs the [wandb] extra)"""
  samples: int = 4
  """completions written to samples.jsonl at each step"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """How the devices share the work."""

  data: int = 0
  """devices that cut the rows of a batch; 0: all that are left"""
  fsdp: int = 0
  """devices that cut rows, parameters and optimizer state; 0: as few as hold
  them, or all that are left where `data` is given"""
  tensor: int = 1
  """devices that cut heads, MLPs and the vocabulary"""
  rollout: int = 0
  """of all devices, so many for the sampler alone, `tensor` of them for each
  copy of the parameters; the rest train. 0: all devices do both in turn.
  Without rollout_ahead one part waits for the other; one process only"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """One training run. Batches are stated as prompts x group."""

  name: str = "run"
  """folder under `runs` that everything is written to"""
  runs: str = "runs"
  """parent folder"""
  seed: int = 0
  """of sampling noise, data order and random weights"""
  steps: int = 100
  """rollouts, each followed by epochs * mini_batches optimizer steps"""
  prompts_per_step: int = 8
  """B, prompts in one rollout"""
  group_size: int = 8
  """G, completions of each prompt"""
  prompt_length: int = 256
  """S, tokens; a longer prompt is refused, a shorter one padded on the left"""
  completion_length: int = 256
  """T, tokens"""
  micro_batches: int = 1
  """pieces that a train step's batch is cut into, to save memory; the update
  is the same"""
  mini_batches: int = 1
  """optimizer steps per pass over a rollout"""
  epochs: int = 1
  """passes over a rollout (the mu of GRPO)"""
  pack: bool = False
  """sequence packing: a train step feeds the tokens that were sampled, not
  completion_length of each completion; the update is the same. The step is
  compiled anew, within the run, for each of a few sizes that it meets"""
  old_logprobs: Literal["trainer", "sampler"] = "trainer"
  """whose log-probs are pi_old in the ratio: the trainer's own before the
  first update, or those the sampler returned"""
  rollout_ahead: int = 0
  """0: a step trains on what its own policy sampled. k: up to k rollouts are
  sampled ahead, beside the train steps, by a policy up to k steps older. The
  ratio corrects for the age, with the sampler's log-probs as pi_old; a method
  without a ratio does not. Takes memory for k copies of the parameters where
  the sampler is; one process only"""
  mesh: Mesh = Mesh()
  model: Model = Model()
  lora: Lora = Lora()
  data: Data = Data()
  sampling: Sampling = Sampling()
  reward: tuple[str, ...] = ("exact_integer",)
  """verifiers by name, or file.py:function; several are summed"""
  reward_weights: tuple[float, ...] = ()
  """factor of each reward; empty: all 1"""
  reward_timeout: float = 10.0
  """seconds for one completion before it counts as unscorable"""
  reward_workers: int = 2
  """processes that score; 0 scores in the main process, without a timeout"""
  method: methods.MethodConfig = dataclasses.field(default_factory=methods.Grpo)
  optimizer: Optimizer = Optimizer()
  evaluation: Evaluation = Evaluation()
  checkpoint: Checkpoint = Checkpoint()
  logging: Logging = Logging()
  export: bool = True
  """writes export/, a folder that transformers loads, at the end"""


def validate(config: Experiment) -> None:
  """Raises ValueError, one line, for the first field that cannot be.

  The line names the field, what it had, what is legal and what to do.
  """
  positive = (
    "steps prompts_per_step prompt_length completion_length micro_batches"
    " mini_batches epochs evaluation.examples evaluation.samples"
    " evaluation.batch checkpoint.keep"
  )
  natural = (
    "reward_workers evaluation.every checkpoint.every checkpoint.keep_period"
    " logging.samples rollout_ahead mesh.rollout data.epochs"
  )
  for names, least in ((positive, 1), (natural, 0)):
    for name in names.split():
      value = operator.attrgetter(name)(config)
      if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
  method = config.method.build()
  if config.pack:
    base.check_packed(method.needs)
  if isinstance(method, base.Evolution):
    checks.evolution(config)
  if config.data.epochs and not method.supervised:
    raise ValueError(
      "data.epochs must be 0 where samples are learnt from, got"
      f" {config.data.epochs}: it is for `jaxrl sft`; set steps."
    )
  least = method.min_group_size
  if config.group_size < least:
    why = ": a method that compares siblings learns nothing from a group of one"
    raise ValueError(
      f"group_size must be at least {least}, got {config.group_size}"
      f"{why if least > 1 else ''}."
    )
  rows = config.prompts_per_step * config.group_size
  pieces = config.mini_batches * config.micro_batches
  if rows % pieces:
    raise ValueError(
      f"mini_batches * micro_batches = {pieces} must divide prompts_per_step"
      f" * group_size = {rows}; try {math.gcd(rows, pieces)}."
    )
  checks.sampling("sampling", config.sampling)
  checks.sampling("evaluation.sampling", config.evaluation.sampling)
  if config.sampling.greedy:
    raise ValueError(
      "sampling.greedy must be False for training: equal completions give"
      " no signal; use evaluation.sampling.greedy."
    )
  checks.optimizer(config.optimizer)
  checks.checkpoint(config.checkpoint)
  checks.lora(config.lora)
  if not config.reward:
    raise ValueError(
      "reward must name at least one verifier or file.py:function, got"
      " none; see `jaxrl train --help`."
    )
  if config.reward_weights and len(config.reward_weights) != len(config.reward):
    raise ValueError(
      f"reward_weights has {len(config.reward_weights)} values for"
      f" {len(config.reward)} rewards; give one for each, or none."
    )
  if config.evaluation.samples > 1 and config.evaluation.sampling.greedy:
    raise ValueError(
      "evaluation.samples must be 1 when evaluation.sampling.greedy is True,"
      f" got {config.evaluation.samples}: greedy samples are all equal."
    )
