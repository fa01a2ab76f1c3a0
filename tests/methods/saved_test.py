"""Configs written and read again."""

import json

from absl.testing import parameterized
import chex
import method_contract_test

from jaxrl_llm import methods
from jaxrl_llm.methods import base, saved
from jaxrl_llm.training import experiment, loop

VARIANTS = method_contract_test.VARIANTS


class SavedTest(chex.TestCase):
  @parameterized.named_parameters((name, name) for name in VARIANTS)
  def test_a_config_comes_back_from_json_as_it_was(self, name):
    config = VARIANTS[name]
    text = json.dumps(saved.to_plain(config))
    self.assertEqual(saved.from_plain(json.loads(text)), config)

  def test_a_run_saves_its_method_so(self):
    config = experiment.Experiment(method=VARIANTS["correction_twice"])
    plain = json.loads(json.dumps(loop.describe(config)))
    self.assertEqual(saved.from_plain(plain["method"]), config.method)

  def test_what_is_left_out_has_its_default(self):
    self.assertEqual(
      saved.from_plain({"name": "Opsm", "method": {"name": "Dapo"}}),
      methods.Opsm(method=methods.Dapo()),
    )

  def test_a_method_of_ones_own_can_be_written(self):
    class Mine(base.MethodConfig):
      def build(self):
        return methods.Grpo().build()

    self.assertEqual(saved.to_plain(Mine()), {"name": "Mine"})
    with self.assertRaisesRegex(ValueError, "got 'Mine'"):
      saved.from_plain({"name": "Mine"})

  def test_an_unknown_field_is_refused(self):
    with self.assertRaisesRegex(ValueError, "Grpo has no field 'clip'"):
      saved.from_plain({"name": "Grpo", "clip": 0.2})
