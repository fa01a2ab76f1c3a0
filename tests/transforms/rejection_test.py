"""Rules that drop tokens and rows: properties, verl's trap, its two options."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import rejection

each_rule = parameterized.parameters(*rejection.RULES)
RATIOS = jnp.array([[2.0, 0.5, 4.0], [1.0, 0.25, 7.0]])
MASK = jnp.array([[True, True, True], [True, True, False]])
OLD = jnp.full((2, 3), -1.0)
SAMPLED = OLD - jnp.log(RATIOS)


def _mask(*rules, old=OLD, sampled=SAMPLED, mask=MASK):
  return rejection.rejection_mask(old, sampled, mask, rules=rules)


def _random(scale=0.5):
  rollout = rollouts.make_rollout(length=8)
  noise = jax.random.normal(jax.random.key(3), rollout.mask.shape)
  return {
    "old": rollout.old_logprobs,
    "sampled": rollout.old_logprobs + scale * noise,
    "mask": rollout.mask,
  }


def _narrow(name):
  """A rule that some tokens fail and some pass on the random batch."""
  if name.endswith(("k2", "k3")):
    return rejection.Rule(name, high=0.05)
  return rejection.Rule(name, low=0.8, high=1.25)


class RejectionMaskTest(chex.TestCase):
  @each_rule
  def test_equal_policies_lose_nothing(self, name):
    same = _random() | {"sampled": _random()["old"]}
    np.testing.assert_array_equal(_mask(_narrow(name), **same), same["mask"])

  @each_rule
  def test_it_only_takes_away_and_takes_rows_whole(self, name):
    batch = _random()
    keep = np.asarray(_mask(_narrow(name), **batch))
    mask = np.asarray(batch["mask"])
    self.assertTrue((mask | ~keep).all())
    self.assertLess(keep.sum(), mask.sum())
    if name.startswith("seq"):
      whole = (keep == mask).all(axis=1) | ~keep.any(axis=1)
      self.assertTrue(whole.all())

  @each_rule
  def test_padding_may_hold_anything(self, name):
    batch = _random()
    clean = _mask(_narrow(name), **batch)
    for junk in (jnp.nan, jnp.inf, -jnp.inf):
      dirty = batch | {
        "old": jnp.where(batch["mask"], batch["old"], junk),
        "sampled": jnp.where(batch["mask"], batch["sampled"], 0.0),
      }
      np.testing.assert_array_equal(clean, _mask(_narrow(name), **dirty))

  @each_rule
  def test_no_tokens_is_no_error_and_jit_changes_nothing(self, name):
    batch = _random()
    empty = jnp.zeros_like(batch["mask"])
    self.assertFalse(_mask(_narrow(name), **batch | {"mask": empty}).any())
    plain = _mask(_narrow(name), **batch)
    compiled = jax.jit(lambda batch: _mask(_narrow(name), **batch))(batch)
    np.testing.assert_array_equal(plain, compiled)

  @parameterized.parameters(
    ("token_ratio", 0.4, 2.1, [[1, 1, 0], [1, 0, 0]]),
    ("seq_sum_ratio", 0.4, 4.1, [[1, 1, 1], [0, 0, 0]]),
    ("seq_mean_ratio", 0.6, 2.0, [[1, 1, 1], [0, 0, 0]]),
    ("seq_max_ratio", 0.0, 2.0, [[0, 0, 0], [1, 1, 0]]),
    ("token_k2", 0.0, 0.5, [[1, 1, 0], [1, 0, 0]]),
    ("seq_max_k2", 0.0, 0.97, [[1, 1, 1], [1, 1, 0]]),
    ("seq_max_k2", 0.0, 0.95, [[0, 0, 0], [0, 0, 0]]),
    ("seq_sum_k3", 0.0, 1.0, [[0, 0, 0], [1, 1, 0]]),
  )
  def test_an_example_for_the_eye(self, name, low, high, expected):
    keep = _mask(rejection.Rule(name, low, high))
    np.testing.assert_array_equal(keep, expected)

  @parameterized.parameters("token", "seq_sum", "seq_mean")
  def test_k1_bounds_the_inverse_ratio(self, level):
    """The trap: trainer over sampler is kept in [1 / high, 1 / low]."""
    batch = _random()
    asked = _mask(rejection.Rule(f"{level}_k1", 0.8, 2.0), **batch)
    meant = _mask(rejection.Rule(f"{level}_ratio", 1 / 2.0, 1 / 0.8), **batch)
    other = _mask(rejection.Rule(f"{level}_ratio", 0.8, 2.0), **batch)
    np.testing.assert_array_equal(asked, meant)
    self.assertFalse(np.array_equal(asked, other))

  def test_a_chain_is_the_and_of_its_rules(self):
    batch = _random()
    rules = [_narrow("token_k1"), _narrow("seq_mean_k3")]
    both = _mask(*rules, **batch)
    alone = [np.asarray(_mask(rule, **batch)) for rule in rules]
    np.testing.assert_array_equal(both, alone[0] & alone[1])
    np.testing.assert_array_equal(_mask(**batch), batch["mask"])

  def test_no_gradient_goes_through(self):
    count = lambda old: _mask(_narrow("token_k3"), old=old).sum() + 0.0
    np.testing.assert_array_equal(jax.grad(count)(OLD), 0.0)


class ParseTest(chex.TestCase):
  @parameterized.parameters(
    ("", "", ()),
    ("token_k1", "0.5_2", (("token_k1", 0.5, 2.0),)),
    ("token_k1", 4.0, (("token_k1", 0.25, 4.0),)),
    ("token_ratio", "4", (("token_ratio", 0.25, 4.0),)),
    ("seq_max_k3", 0.3, (("seq_max_k3", 0.0, 0.3),)),
    (
      "token_k1, seq_mean_k3",
      "0.5_2, 0.1",
      (("token_k1", 0.5, 2.0), ("seq_mean_k3", 0.0, 0.1)),
    ),
    (
      "seq_sum_k2,seq_mean_k2",
      0.1,
      (("seq_sum_k2", 0.0, 0.1), ("seq_mean_k2", 0.0, 0.1)),
    ),
  )
  def test_the_two_options_of_verl(self, names, thresholds, expected):
    self.assertEqual(rejection.parse(names, thresholds), expected)

  @parameterized.parameters(
    ("token_k4", "2", "'token_k4'"),
    ("binary", "2", "'binary'"),
    ("token_k1,token_k2", "1,2,3", "one or 2"),
    ("token_k1", "a_b", "'a_b'"),
    ("token_k1", "0", "'0'"),
    ("token_k1", "", "one or 1"),
    ("token_k1", "3_2", "low 3.0 and high 2.0"),
    ("token_k2", "0.1_0.2", "no lower bound"),
    ("token_k2", "-1", "high -1.0"),
  )
  def test_nonsense_is_one_clear_line(self, names, thresholds, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      rejection.parse(names, thresholds)
    self.assertNotIn("\n", str(caught.exception))
