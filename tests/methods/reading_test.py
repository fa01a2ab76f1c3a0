"""What is read out of a method's file, on lines small enough for the eye."""

from absl.testing import parameterized
import chex

from jaxrl_llm import methods
from jaxrl_llm.methods import describe, reading

PAGE = """NAME: a sentence.

    A    = r - mean
    loss = -A * x
           + beta * KL

Against GRPO it changes:
  advantage  centred, as in
             the paper
  nothing    of the kind
  weighting  by token

Traps: the first; the
second.

Somebody 2024, arXiv:2402.00001; and 2025, arXiv:2501.00002.
"""


class ResolvedTest(chex.TestCase):
  @parameterized.parameters(
    ("clip(r, 1 - low, 1 + high) A", "clip(r, 0.8, 1.28) A"),
    ("clip(d, -low, high)", "clip(d, -0.2, 0.28)"),
    ("quantile_{1 - low}(H)", "quantile_{0.8}(H)"),
    ("clip(v, old - low, old + high)", "clip(v, old - 0.2, old + 0.28)"),
    ("std + eps", "std + 1e-06"),
    ("x - zero * H_t] / M", "x] / M"),
    ("x - zero (a_t - b_t)\ny = 1", "x\ny = 1"),
    ("x\n  - zero sum_t (a b) / max(c, 1)", "x"),
    ("x - zero k_i    in the loss", "x    in the loss"),
    ("- one * max(a, b) + one one A_{t+1}", "- max(a, b) + A_{t+1}"),
    ("-r A + held one |x|", "-r A + held |x|"),
    ("(r - mean) / one,  b", "(r - mean),  b"),
    ("x = one if A > 0 else low", "x = 1 if A > 0 else 0.2"),
    ("zero = zero one (x)", "zero = 0 (x)"),
    ("mean of its G - 1 siblings, 1 / M", "mean of its G - 1 siblings, 1 / M"),
    (
      "low_i and low' and f(low) and low(x)",
      "low_i and low' and f(0.2) and low(x)",
    ),
  )
  def test_names_become_numbers(self, general, special):
    values = {"low": 0.2, "high": 0.28, "eps": 1e-6, "zero": 0.0, "one": 1}
    self.assertEqual(reading.resolved(general, values), special)


class TextTest(chex.TestCase):
  def test_the_parts_of_a_page(self):
    self.assertEqual(
      reading.equations(PAGE),
      "A    = r - mean\nloss = -A * x\n       + beta * KL",
    )
    self.assertEqual(list(reading.changes(PAGE)), ["advantage", "weighting"])
    self.assertEqual(reading.traps(PAGE), "the first; the second.")
    self.assertEqual(reading.papers(PAGE), ["2402.00001", "2501.00002"])
    self.assertEqual(reading.traps("no such thing"), "")

  @parameterized.parameters(
    ("up; positive (TRL epsilon_high, verl clip_ratio_high)",
     ("TRL epsilon_high", "verl clip_ratio_high")),
    ("(TRL epsilon_high; verl: 1 + clip_ratio_high)",
     ("TRL epsilon_high", "verl clip_ratio_high")),
    ("(verl kl_loss_coef and kl_ctrl.kl_coef)",
     ("verl kl_loss_coef", "verl kl_ctrl.kl_coef")),
    ("(verl rollout_is_threshold 2, TRL clip_max 3, IcePop and OpenRLHF 5)",
     ("verl rollout_is_threshold", "TRL clip_max")),
    ("(verl kl_ctrl.kl_coef, used there only if use_kl)",
     ("verl kl_ctrl.kl_coef",)),
    ("(TRL beta); 0: none", ("TRL beta",)),
    ("(NeMo RL ratio_clip_c)", ("NeMo RL ratio_clip_c",)),
    ("(1, as TRL and verl) or over G (TRL 1e-4)", ()),
    ("as TRL does, and verl", ()),
  )  # fmt: skip
  def test_names_elsewhere(self, text, names):
    self.assertEqual(reading.aliases(text), names)

  def test_a_text_without_them(self):
    text = "positive (TRL epsilon_high, verl x); 0: none (not at all)"
    self.assertEqual(
      reading.without_aliases(text), "positive; 0: none (not at all)"
    )


class ExplainTest(chex.TestCase):
  def test_equations_have_the_numbers_of_the_defaults(self):
    self.assertIn("clip(r, 0.8, 1.28) A)", describe.explain("dapo"))
    self.assertIn("(std_g + 0.0001)", describe.explain("grpo"))

  def test_a_method_around_another_shows_both(self):
    text = describe.explain("m2po")
    self.assertIn("mean_kept d^2 < 0.04", text)
    self.assertIn("with method = Grpo():\n    A_i", text)

  @parameterized.parameters(
    ("grpo", ("ref_logprobs",)),
    ("dr_grpo", ()),
    ("remax", ("ref_logprobs", "greedy_rewards")),
    ("ppo", ("old_scores", "values")),
    ("dynamic_sampling", ("ref_logprobs", "rounds")),
    ("aspo", ("annotated",)),
    ("top_entropy_mask", ("ref_logprobs", "old_scores", "entropy")),
  )
  def test_it_says_what_is_computed_besides(self, name, needs):
    self.assertEqual(describe.describe(name).needs, needs)

  def test_a_field_in_the_words_of_grpo_has_its_names(self):
    (field,) = (
      f for f in describe.describe("rloo").fields if f.name == "clip_high"
    )
    self.assertEqual(
      field.aliases, ("TRL epsilon_high", "verl clip_ratio_high")
    )
    (own,) = (f for f in describe.describe("rloo").fields if f.name == "beta")
    self.assertEqual(own.aliases, ("TRL beta",))

  def test_known_traps_are_told_where_they_lie(self):
    for name, words in (
      ("grpo", ("k1 as a loss", "with G = 2", "top-k")),
      ("kl_and_aggregation", ("k1 as a loss",)),
      ("gpg", ("top-k",)),
    ):
      traps = " ".join(describe.describe(name).traps)
      for each in words:
        self.assertIn(each, traps)
    self.assertNotIn("with G = 2", " ".join(describe.describe("gpg").traps))

  @parameterized.parameters(*methods.METHODS)
  def test_nothing_of_the_reading_is_left_in_the_text(self, name):
    text = describe.explain(name)
    self.assertNotIn("\x01", text)
    self.assertNotRegex(describe.describe(name).equation, r"1 - 0\.|\* 1\b")
