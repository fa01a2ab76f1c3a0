"""report.html: what a run did, on one page that needs nothing else.

Read from the run's own files (metrics.jsonl, evaluations.jsonl, config.json,
evaluation_samples.jsonl), so it can be written again at any time.
"""

from collections.abc import Mapping, Sequence
import html
import json
import os
import pathlib
from typing import Any

from jaxrl_llm.training import metrics, plots

_SHOWN = 12  # problems in the table of completions
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
  color: #1f2328; background: #fff; max-width: 1080px; margin: 2.5rem auto;
  padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; }
p.sub, .note { color: #59636e; margin: 0 0 1.2rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.6rem 0; }
.card { flex: 1 1 150px; border: 1px solid #d8dee4; border-radius: 8px;
  padding: .7rem .9rem; }
.card b { display: block; font-size: 1.5rem; font-weight: 600; }
.card span { color: #59636e; font-size: .85rem; display: block; }
.plots { display: flex; flex-wrap: wrap; gap: 1.2rem 1rem; }
.plots > div { flex: 0 1 346px; min-width: 280px; }
.plots svg, .wide svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; color: #59636e; font-weight: 600; }
th, td { padding: .45rem .6rem; border-bottom: 1px solid #d8dee4;
  vertical-align: top; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 24rem;
  font: .82rem/1.45 ui-monospace, SFMono-Regular, Menlo, monospace; }
.right { color: #116329; } .wrong { color: #a40e26; }
pre { background: #f6f8fa; border-radius: 8px; padding: 1rem; overflow: auto;
  font: .82rem/1.45 ui-monospace, SFMono-Regular, Menlo, monospace; }
summary { cursor: pointer; font-weight: 600; }
"""


def write_report(run_dir: str | os.PathLike) -> pathlib.Path:
  """Writes report.html and learning_curve.png into a run's folder.

  Args:
    run_dir: folder with metrics.jsonl or evaluations.jsonl.

  Returns:
    Path of report.html.

  Raises:
    FileNotFoundError: if the folder holds no run.
  """
  folder = pathlib.Path(run_dir)
  steps = metrics.read(folder / metrics.METRICS)
  evaluations = _last_of_each_step(metrics.read(folder / metrics.EVALUATIONS))
  if not steps and not evaluations:
    raise FileNotFoundError(
      f"no run in {folder}: metrics.jsonl and evaluations.jsonl are missing"
      " or empty."
    )
  samples = metrics.read(folder / metrics.EVALUATION_SAMPLES)
  config = folder / "config.json"
  plain = json.loads(config.read_text()) if config.exists() else {}
  (folder / "learning_curve.png").write_bytes(
    plots.learning_curve(steps, evaluations, form="png")
  )
  path = folder / "report.html"
  scratch = path.with_name("report.html.new")
  scratch.write_text(
    render(plain, steps, evaluations, samples, name=folder.name),
    encoding="utf-8",
  )
  os.replace(scratch, path)
  return path


def render(
  config: Mapping[str, Any],
  steps: Sequence[Mapping[str, Any]],
  evaluations: Sequence[Mapping[str, Any]],
  samples: Sequence[Mapping[str, Any]],
  *,
  name: str,
) -> str:
  """The page as text.

  Args:
    config: of the run, as plain data.
    steps: lines of metrics.jsonl.
    evaluations: lines of evaluations.jsonl, in order.
    samples: lines of evaluation_samples.jsonl.
    name: of the run.
  """
  curve = plots.learning_curve(steps, evaluations, form="svg").decode()
  small = "\n".join(
    f"<div>{plot.decode()}</div>" for plot in plots.panels(steps)
  )
  title = html.escape(name)
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p class="sub">{html.escape(_subtitle(config))}</p>
<div class="cards">{_cards(steps, evaluations)}</div>
<h2>Learning curve</h2>
<p class="note">Points: held-out accuracy with its 95 % interval. Line: mean
reward of the training rollouts.</p>
<div class="wide">{curve}</div>
<h2>The run, step by step</h2>
<div class="plots">{small}</div>
{_completions(samples)}
<h2>Configuration</h2>
<details><summary>config.json</summary>
<pre>{html.escape(json.dumps(config, indent=2, ensure_ascii=False))}</pre>
</details>
</body></html>
"""


def _last_of_each_step(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
  """A step evaluated again after a resume counts once."""
  by_step = {row["step"]: row for row in rows}
  return [by_step[step] for step in sorted(by_step)]


def _subtitle(config: Mapping[str, Any]) -> str:
  """Model, task, method and batch in one sentence."""
  if not config:
    return "no config.json in this folder"
  return (
    f"{config['model']['name']} on {config['data']['source']} with"
    f" {config['method'].get('name', 'a method')}:"
    f" {config['prompts_per_step']} prompts x {_each(config)} a step, at most"
    f" {config['completion_length']} tokens each"
  )


def _each(config: Mapping[str, Any]) -> str:
  """What answers every prompt of a step."""
  if "population" in config["method"]:
    return f"{config['method']['population']} members"
  return f"{config['group_size']} completions"


def _cards(steps, evaluations) -> str:
  """The headline numbers."""
  cards = []
  for label, row in zip(
    ("before", "after"), _first_and_last(evaluations), strict=False
  ):
    value = f"{row['accuracy']:.3f}"
    cards.append((value, f"accuracy {label}", _interval(row)))
  if len(evaluations) > 1:
    gain = evaluations[-1]["accuracy"] - evaluations[0]["accuracy"]
    cards.append((f"{gain:+.3f}", "change", "after minus before"))
  seconds = [row["time/step"] for row in steps if row.get("time/step")]
  if seconds:
    middle = sorted(seconds)[len(seconds) // 2]
    total = sum(seconds)
    cards.append((f"{middle:.2f} s", "median step", f"{_clock(total)} in all"))
  if steps:
    cards.append((str(steps[-1]["step"]), "steps", ""))
  return "".join(
    f"<div class='card'><span>{html.escape(label)}</span>"
    f"<b>{html.escape(value)}</b><span>{html.escape(note)}</span></div>"
    for value, label, note in cards
  )


def _first_and_last(rows: Sequence[Any]) -> list[Any]:
  return [rows[0], rows[-1]] if len(rows) > 1 else list(rows)


def _interval(row: Mapping[str, Any]) -> str:
  if row.get("accuracy_low") is None:
    return ""
  return (
    f"95 %: {row['accuracy_low']:.3f} to {row['accuracy_high']:.3f},"
    f" {row.get('problems', 0):.0f} problems"
  )


def _clock(seconds: float) -> str:
  """ "4 min 03 s"."""
  minutes, second = divmod(round(seconds), 60)
  return f"{minutes} min {second:02} s" if minutes else f"{second} s"


def _completions(samples: Sequence[Mapping[str, Any]]) -> str:
  """The same problems before and after, first those that changed."""
  if not samples:
    return ""
  first = min(row["step"] for row in samples)
  last = max(row["step"] for row in samples)
  before = {r["id"]: r for r in samples if r["step"] == first}
  after = {r["id"]: r for r in samples if r["step"] == last}
  both = [key for key in before if key in after]
  changed = [k for k in both if _right(before[k]) != _right(after[k])]
  same = [k for k in both if k not in set(changed)]
  most = _SHOWN * 2 // 3
  shown = (changed[:most] + same + changed[most:])[:_SHOWN]
  rows = "\n".join(_row(before[key], after[key]) for key in shown)
  return f"""<h2>Completions before and after</h2>
<p class="note">The same held-out problems after {first} and after {last}
steps; {len(changed)} of {len(both)} changed between right and wrong, and some
of those come first here.</p>
<table><thead><tr><th>prompt</th><th>answer</th><th>before</th><th>after</th>
</tr></thead><tbody>
{rows}
</tbody></table>"""


def _row(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
  return (
    f"<tr><td class='text'>{html.escape(before['prompt'])}</td>"
    f"<td class='text'>{html.escape(str(before['answer']))}</td>"
    f"{_cell(before)}{_cell(after)}</tr>"
  )


def _cell(row: Mapping[str, Any]) -> str:
  """The first completion of a problem, with a mark that is not only colour."""
  kind, mark = ("right", "\u2713") if _right(row) else ("wrong", "\u2717")
  text = html.escape(row["completions"][0].strip("\n") or "(empty)")
  return f"<td class='text'><span class='{kind}'>{mark}</span> {text}</td>"


def _right(row: Mapping[str, Any]) -> bool:
  return bool(row["correct"][0])
