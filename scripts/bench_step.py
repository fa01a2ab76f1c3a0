"""Times GRPO steps on a tiny random Qwen3 (no network, no checkpoint).

By default the stop id lies outside the vocabulary, so every completion has
exactly --completion-len tokens and every step is the same work. The parts are
those of `jaxrl train`: the collector and the train step. Prints one JSON line:
seconds a step after warm-up (median and best) by phase, and for each phase the
floor that the machine sets (operations over the matmul rate and bytes over the
copy rate, both measured in this run).

    python scripts/bench_step.py --prompts 4 --group 8 --prompt-len 64 \
        --completion-len 128 --layers 2 --dim 128 --vocab 4096 --beta 0
"""

import argparse
import json
import os
import resource
import statistics
import time

from jaxrl_llm import heap


def parse() -> argparse.Namespace:
  """The arguments; sizes as in the output."""
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  whole = lambda name, default, text="": p.add_argument(  # noqa: E731
    f"--{name}", type=int, default=default, help=text
  )
  whole("prompts", 4, "prompts per step")
  whole("group", 4, "completions per prompt")
  whole("prompt-len", 32)
  whole("completion-len", 32)
  whole("layers", 2)
  whole("dim", 128)
  whole("ffn", 0, "0: 3 x dim")
  whole("heads", 4)
  whole("kv-heads", 0, "0: heads // 2")
  whole("head-dim", 0, "0: dim // heads")
  whole("vocab", 512)
  whole("steps", 6, "timed + warm-up steps")
  whole("warmup", 2)
  p.add_argument("--beta", type=float, default=0.04, help="0: no reference")
  p.add_argument("--lr", type=float, default=1e-4)
  whole("micro", 0, "prompts per training micro-batch; 0: all")
  remat = ["none", "dots", "full"]
  p.add_argument("--remat", default="dots", choices=remat)
  p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  p.add_argument("--eos", action="store_true", help="completions end early")
  p.add_argument("--learn", action="store_true", help="reward: even tokens")
  p.add_argument("--untied", action="store_true", help="separate output head")
  p.add_argument("--device-mesh", default="1,1", help="fsdp,tp; only 1,1")
  args = p.parse_args()
  if args.device_mesh != "1,1":
    p.error(f"--device-mesh must be 1,1, got {args.device_mesh}.")
  if args.warmup >= args.steps:
    p.error(f"--warmup must be below --steps = {args.steps}.")
  return args


class IntTokenizer:
  """Text is space-separated integers."""

  def __init__(self, vocab: int, stop: int):
    """Pads with 0 and stops at `stop`."""
    self.vocab_size, self.pad_id, self.stop_ids = vocab, 0, (stop,)

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    return [int(word) for word in text.split()]

  def decode(self, ids) -> str:
    """Text of ids."""
    return " ".join(str(int(i)) for i in ids)


def build(args):
  """Model, collector, compiled-on-demand train step and first state."""
  import jax
  import jax.numpy as jnp
  import optax

  from jaxrl_llm import methods
  from jaxrl_llm.distributed import mesh
  from jaxrl_llm.models import api, families
  from jaxrl_llm.training import collectors, experiment, score, state, step

  config = api.ModelConfig(
    family="qwen3",
    vocab_size=args.vocab,
    width=args.dim,
    depth=args.layers,
    heads=args.heads,
    kv_heads=args.kv_heads or max(1, args.heads // 2),
    head_dim=args.head_dim or args.dim // args.heads,
    mlp_width=args.ffn or 3 * args.dim,
    norm_eps=1e-6,
    tied=not args.untied,
    rope_theta=1_000_000.0,
    qk_norm=True,
  )
  model = families.build(config, dtype=jnp.dtype(args.dtype), remat=args.remat)
  method = methods.Grpo(beta=args.beta).build()
  optimizer = optax.adamw(args.lr)
  train_step = step.make_train_step(
    score.make_score(model, needs=method.needs | {"entropy"}),
    method,
    optimizer,
    micro_batches=args.prompts // (args.micro or args.prompts),
  )
  params = mesh.replicate(jax.jit(model.init)(jax.random.key(0)), None)
  collector = collectors.make_collector(
    model,
    IntTokenizer(args.vocab, 2 if args.eos else args.vocab + 7),
    experiment.Sampling(),
    prompt_length=args.prompt_len,
    completion_length=args.completion_len,
    group_size=args.group,
    key=jax.random.key(1),
  )
  first = jax.jit(lambda params: state.init_state(params, method, optimizer))(
    params
  )
  return (
    params,
    collector,
    jax.jit(
      train_step,
      donate_argnums=0,
    ),
    first,
  )


def rewards(args, texts):
  """Length modulo 7, or the share of even tokens."""
  import numpy as np

  if not args.learn:
    return np.array([float(len(text) % 7) for text in texts], np.float32)
  rows = [[int(word) % 2 == 0 for word in text.split()] for text in texts]
  return np.array([np.mean(row or [0]) for row in rows], np.float32)


def main():
  """Runs the steps and prints the JSON line."""
  args = parse()
  heap.use_large_pages()
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  start = time.perf_counter()
  import floors
  import jax
  import numpy as np

  from jaxrl_llm.data import sources
  from jaxrl_llm.training import ahead

  import_seconds = time.perf_counter() - start
  params, collector, train_step, state = build(args)
  reference = params if args.beta else None
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  shapes = ahead.example_rollout(
    args.prompts, args.group, args.prompt_len, args.completion_len
  )
  rng = np.random.default_rng(0)
  laps = {name: [] for name in ("rollout", "train", "wall", "tokens")}
  means = []
  compiled = None
  for index in range(args.steps):
    words = rng.integers(3, args.vocab, (args.prompts, args.prompt_len - 1))
    problems = [
      sources.Problem(id=i, prompt=" ".join(map(str, row)), answer="0")
      for i, row in enumerate(words)
    ]
    t0 = time.perf_counter()
    if compiled is None:
      compiled = ahead.compile_ahead(train_step, state, shapes, reference)
    samples = collector(state.params, problems, index)
    t1 = time.perf_counter()
    reward = rewards(args, samples.texts)
    t2 = time.perf_counter()
    state, metrics = compiled.result()(
      state, samples.rollout(reward), reference
    )
    jax.block_until_ready((state, metrics))
    t3 = time.perf_counter()
    laps["rollout"].append(t1 - t0)
    laps["train"].append(t3 - t2)
    laps["wall"].append(t3 - t0)
    laps["tokens"].append(int(samples.generation.mask.sum()))
    means.append(float(reward.mean()))
  line = summary(args, laps, means, size, import_seconds)
  measured = {"rollout": line["rollout_s"], "train": line["train_s"]}
  print(json.dumps(line | {"floor": floors.step_floors(args, measured)}))


def summary(args, laps, means, size, import_seconds):
  """The JSON keys that the peers' script prints."""
  import jax

  def middle(xs):
    return round(statistics.median(xs[args.warmup :]), 5)

  def best(xs):
    return round(min(xs[args.warmup :]), 5)

  total, rollout, train = (
    middle(laps[k]) for k in ("wall", "rollout", "train")
  )
  rows = args.prompts * args.group
  sizes = "prompts group prompt_len completion_len layers dim heads vocab steps"
  return {
    "system": "jaxrl_llm",
    "jax": jax.__version__,
    "backend": jax.default_backend(),
    "devices": 1,
    "params": size,
    "sizes": {
      k: getattr(args, k)
      for k in (sizes + " warmup beta micro remat dtype").split()
    },
    "seconds_per_step": total,
    "rollout_s": rollout,
    "ref_s": 0.0,  # the reference's forward is part of the train program
    "train_s": train,
    "other_s": round(total - rollout - train, 5),
    "best": {
      "seconds_per_step": best(laps["wall"]),
      "rollout_s": best(laps["rollout"]),
      "ref_s": 0.0,
      "train_s": best(laps["train"]),
    },
    "gen_tokens_per_step": middle(laps["tokens"]),
    "gen_tokens_per_s": round(middle(laps["tokens"]) / rollout, 1),
    "train_tokens_per_s": round(
      rows * (args.prompt_len + args.completion_len) / train, 1
    ),
    "peak_rss_mib": round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ),
    "first_step_s": round(laps["wall"][0], 3),
    "import_s": round(import_seconds, 2),
    "all_steps_s": [round(x, 4) for x in laps["wall"]],
    "mean_reward": [round(x, 4) for x in (means if args.learn else means[-1:])],
  }


if __name__ == "__main__":
  main()
