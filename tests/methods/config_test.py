"""Configs: refused hyper-parameters, needs, names, descriptions."""

import dataclasses
import typing
from typing import Literal

from absl.testing import parameterized
import chex
import jax.numpy as jnp

from jaxrl_llm import methods, types
from jaxrl_llm.methods import base, describe
from jaxrl_llm.objectives import weighting

NAN = float("nan")
each_method = parameterized.parameters(*methods.METHODS)


class BuildTest(chex.TestCase):
  @parameterized.parameters(
    (methods.Grpo(clip_low=0.0), "clip_low"),
    (methods.Grpo(clip_high=-0.2), "clip_high"),
    (methods.Grpo(beta=-0.1), "beta"),
    (methods.Grpo(beta=NAN), "beta"),
    (methods.Grpo(kl="k4"), "kl must be one of exact, k3"),
    (methods.Grpo(entropy_coef=-1.0), "entropy_coef"),
    (methods.Grpo(ddof=2), "ddof"),
    (methods.Grpo(eps=0.0), "eps"),
    (methods.DrGrpo(clip_low=2.0), "clip_low"),
    (methods.DrGrpo(beta=0.1, kl="k9"), "kl must be one of"),
    (methods.MaxRl(beta=0.1, kl="k9"), "kl must be one of"),
    (methods.DrGrpo(beta=float("inf")), "beta"),
    (methods.DrGrpo(max_length=0), "max_length"),
    (methods.Dapo(clip_high=0.0), "clip_high"),
    (methods.Dapo(buffer=-1), "buffer"),
    (methods.Dapo(buffer=20, max_length=10), "buffer"),
    (methods.Dapo(buffer=1, overlong_factor=-1.0), "factor"),
    (methods.Dapo(eps=NAN), "eps"),
    (methods.OffPolicyCorrection(level="row"), "level must be one of token"),
    (methods.OffPolicyCorrection(mode="clip"), "mode must be one of"),
    (methods.OffPolicyCorrection(high=0.9), "high at least 1"),
    (methods.OffPolicyCorrection(low=-0.1), "low must be in"),
    (methods.OffPolicyCorrection(variation=NAN), "variation"),
    (methods.OffPolicyCorrection(reject="k1"), "a rule must be one of"),
    (methods.OffPolicyCorrection(denominator=""), "denominator must be one"),
    (methods.OffPolicyCorrection(method=methods.Grpo(eps=0.0)), "eps"),
    (methods.DecoupledPpo(cap=0.5), "cap must be 1 or more"),
    (methods.M2po(tau=0.0), "tau must be positive"),
    (methods.M2po(denominator="all"), "denominator must be one"),
    (methods.Opsm(delta=-1.0), "delta must be 0 or more"),
    (methods.Bypass(form="ppo"), "form must be one of ppo_clip, reinforce"),
    (methods.Bypass(high=0.5), "high at least 1"),
    (methods.Dapo(dynamic_sampling=True, max_rounds=0), "max_rounds"),
    (methods.DynamicSampling(max_rounds=0), "max_rounds must be at least 1"),
    (methods.DynamicSampling(metric="acc"), "one of reward, accuracy"),
    (methods.DynamicSampling(low=0.8, high=0.2), "low must be below high"),
    (methods.DynamicSampling(min_std=-1.0), "min_std"),
    (methods.DynamicSampling(max_age=-1), "max_age"),
    (methods.DynamicSampling(method=methods.Grpo(eps=0.0)), "eps"),
    (methods.SoftOverlong(buffer=-1), "buffer"),
    (methods.SoftOverlong(buffer=20, max_length=10), "buffer"),
    (methods.SoftOverlong(buffer=0, bounded=False), "buffer"),
    (methods.SoftOverlong(factor=NAN), "factor"),
    (methods.SoftOverlong(stop_properly=NAN), "stop-properly coef"),
    (methods.SoftOverlong(filter="mask"), "one of off, loss, rows"),
    (methods.Remax(clip_low=0.0), "clip_low"),
    (methods.Remax(beta=-1.0), "beta"),
    (methods.Remax(weigh="rows"), "one of token_mean, sequence_sum"),
    (methods.Grpo(scale="rows"), "scale must be one of group, batch, none"),
    (methods.Rloo(beta=-1.0), "beta"),
    (methods.Rloo(ratio="row"), "ratio must be one of sequence, token"),
    (methods.Rloo(eps=0.0), "eps"),
    (methods.ReinforcePp(gamma=1.1), "gamma"),
    (methods.ReinforcePp(gamma=0.9, baseline=True), "gamma must be 1"),
    (methods.ReinforcePp(variance="max"), "variance must be add or at_least"),
    (methods.ReinforcePp(ddof=3), "ddof"),
    (methods.ReinforcePp(beta=NAN), "beta"),
    (methods.Opo(clip_low=0.0), "clip_low"),
    (methods.Gpg(divisor=0.0), "divisor"),
    (methods.Gpg(count="all"), "count must be mixed_groups or nonzero_reward"),
    (methods.PasskAdvantage(eps=-1.0), "eps"),
    (methods.PasskAdvantage(clip_high=0.0), "clip_high"),
    (methods.Gdpo(rescale="batch"), "rescale must be rows or tokens"),
    (methods.Gdpo(ddof=2), "ddof"),
    (methods.MaxRl(beta=-0.5), "beta"),
    (methods.Rl2ml(q=-1.0), "q must be 0 or more"),
    (methods.Rl2ml(baseline="mean"), "one of loo, score, score_drop, none"),
    (methods.Rl2ml(pass_at=0), "pass_at must be at least 1"),
    (methods.Canon(metric="width"), "metric must be one of entropy, length"),
    (methods.Canon(mu=1.5), "mu must be in"),
    (methods.Canon(alpha=0.0), "alpha must be positive"),
    (methods.Canon(schedule="linear"), "one of none, accuracy, cosine"),
    (methods.Canon(warmup=149), "got 149, 3 and 150"),
    (methods.Canon(dual_clip=1.2), "dual_clip must be above"),
    (methods.Adora(weighting="both"), "one of amplify, attenuate_vlm"),
    (methods.Adora(amplified=-1.0), "amplified must be 0 or more"),
    (methods.Adora(tau=1.5), "tau must be in"),
    (methods.Adora(baseline="rloo"), "one of group_std, group_mean, loo"),
    (methods.Progrpo(alpha=-0.1), "alpha must be 0 or more"),
    (methods.Progrpo(fraction=1.1), "fraction must be in"),
    (methods.NoveltyGspo(coef=-0.2), "coef must be 0 or more"),
    (methods.NoveltyGspo(kind="mean"), "kind must be one of rank, zscore, raw"),
    (methods.Copo(k=-1.0), "k must be 0 or more"),
    (methods.Copo(blend="hard"), "blend must be one of soft_with_zero"),
    (methods.Copo(answer="number"), "answer must be one of math"),
    (methods.Gspo(clip_low=0.0), "clip_low"),
    (methods.GspoToken(clip_high=-1.0), "clip_high"),
    (methods.Cispo(ratio_low=1.2), "ratio_low"),
    (methods.Cispo(ratio_high=0.28), "ratio_high"),
    (methods.Sapo(tau_pos=0.0), "tau_pos"),
    (methods.Sapo(tau_neg=NAN), "tau_neg"),
    (methods.Sapo(level="row"), "level"),
    (methods.Gmpo(clip_low=0.0), "clip_low"),
    (methods.Gmpo(clip_high=NAN), "clip_high"),
    (methods.DualClip(dual_clip=1.1), "dual_clip must be above .* 1.2"),
    (methods.Vespo(k_neg=-1.0), "k_neg"),
    (methods.Vespo(lambda_pos=0.0), "lambda_pos"),
    (methods.Vespo(rollout_level="row"), "rollout_level"),
    (methods.Luspo(clip_low=2.0), "clip_low"),
    (methods.Dppo(divergence="js"), "divergence must be one of tv, kl"),
    (methods.Dppo(bound_high=0.0), "bound_high"),
    (methods.Dppo(truncation=0.5), "truncation"),
    (methods.Dro(beta=0.0), "beta"),
    (methods.ClipCov(fraction=0.0), "fraction"),
    (methods.ClipCov(cov_low=6.0), "cov_high"),
    (methods.KlCov(fraction=1.5), "fraction"),
    (methods.KlCov(coef=-0.1), "coef"),
    (methods.Drpo(lam=0.0), "lam must be positive"),
    (methods.Drpo(tau=float("inf")), "tau must be positive and finite"),
    (methods.Drpo(beta=-1.0), "beta"),
    (methods.Drpo(delta=NAN), "delta"),
    (methods.Drpo(kl_type="k3"), "kl_type must be kl or low_var_kl"),
    (methods.Drpo(max_length=0), "max_length"),
    (methods.Drpo(report="value"), "report must be formula or code"),
    (methods.Hdpo(marker="("), "marker must be a regular expression"),
    (methods.Hdpo(marker="x*"), "marker must not match an empty text"),
    (methods.Hdpo(w_tool=-1.0), "w_tool must be 0 or more"),
    (methods.Hdpo(aggregation="mean"), "aggregation must be one of token_mean"),
    (methods.Awm(score="token"), "score must be mean or sum"),
    (methods.Awm(std="batch"), "std must be global or prompt"),
    (methods.Awm(clip=1.5), "clip must be in"),
    (methods.Awm(ema_max=1.0), "ema_max must be in"),
    (methods.Gcpo(top=0.9), "top and mass must be shares"),
    (methods.Gcpo(ties="first"), "ties must be mean or order"),
    (methods.Gcpo(weights="softmax"), "weights must be rank or linear"),
    (methods.Gcpo(negative="blank"), "negative must be instruction or empty"),
    (methods.Gcpo(instruction=" "), "instruction must say something"),
    (methods.Gcpo(room=-1), "room must be 0"),
    (methods.Gcpo(low=1.0), "low must be below high"),
    (methods.Gcpo(entropy_penalty=-0.1), "entropy_penalty"),
    (methods.Gcpo(dual_clip=1.0), "dual_clip must be above .* 1.28"),
    (methods.Ppo(gamma=1.1), "gamma"),
    (methods.Ppo(lam=-0.1), "lam"),
    (methods.Ppo(clip_low=0.0), "clip_low"),
    (methods.Ppo(value_clip=0.0), "value_clip"),
    (methods.Ppo(value_coef=-1.0), "value_coef"),
    (methods.Ppo(beta=NAN), "beta"),
    (methods.Ppo(entropy_coef=-1.0), "entropy_coef"),
    (methods.Ppo(trunk_gradient=2.0), "trunk_gradient"),
    (methods.Ppo(critic_rate=0.0), "critic_rate"),
    (methods.Occ(mtp="no"), "mtp"),
    (methods.Occ(lam0=-0.1), "lam0"),
    (methods.Occ(calibration="mean"), "calibration"),
    (methods.Occ(warmup=-1), "warmup"),
    (methods.Occ(mtp_rate=0.0), "mtp_rate"),
    (methods.Occ(dual_clip=1.2), "dual_clip"),
    (methods.Cme(clip_low=0.0), "clip_low"),
    (methods.Cme(rows=0), "rows"),
    (methods.KlAndAggregation(beta=-1.0), "beta"),
    (methods.KlAndAggregation(kl="k4"), "kl must be one of exact, k3"),
    (methods.KlAndAggregation(placement="both"), "one of loss, reward"),
    (
      methods.KlAndAggregation(placement="reward", kl="k3+"),
      "kl in the reward must be one of exact, k1",
    ),
    (methods.KlAndAggregation(coefficient="x"), "one of fixed, adaptive"),
    (methods.KlAndAggregation(coefficient="adaptive", target=0.0), "target"),
    (methods.KlAndAggregation(coefficient="adaptive", horizon=NAN), "horizon"),
    (methods.KlAndAggregation(coefficient="adaptive", beta=0.0), "beta"),
    (methods.KlAndAggregation(aggregation="mean"), "one of token_mean"),
    (methods.KlAndAggregation(length=8), "for aggregation fixed_length alone"),
    (
      methods.KlAndAggregation(method=methods.Grpo()),
      "Grpo has a KL to the reference already: set its beta to 0",
    ),
    (
      methods.KlAndAggregation(
        method=methods.TopEntropyMask(
          method=methods.Grpo(beta=0.0), entropy_coef=0.1
        )
      ),
      "put TopEntropyMask around KlAndAggregation",
    ),
    (methods.TopEntropyMask(rho=1.1), "rho"),
    (methods.EsAwd(sigma=0.0), "sigma must be positive"),
    (methods.EsAwd(alpha=NAN), "alpha must be positive"),
    (methods.EsAwd(lam=-1.0), "strength must be 0 or more"),
    (methods.EsAwd(alpha=0.5, norm="l2"), r"below 1, got 0.5 \* 10"),
    (methods.EsAwd(norm="l3"), "norm must be one of"),
    (methods.EsAwd(population=0), "population must be at least 1"),
    (methods.EsAwd(members_at_once=4), "must divide population = 30, got 4"),
    (methods.EsAwd(weights="float16"), "weights must be float32 or bfloat16"),
    (methods.TopEntropyMask(entropy_coef=-0.1), "entropy_coef"),
    (methods.TopEntropyMask(adaptive=True, entropy_target=0.0), "target"),
    (methods.TopEntropyMask(adaptive=True, entropy_delta=NAN), "delta"),
    (methods.TopEntropyMask(adaptive=True, entropy_min=0.5), "low <= init"),
    (
      methods.TopEntropyMask(
        method=methods.Grpo(entropy_coef=0.1), entropy_coef=0.1
      ),
      "Grpo has an entropy bonus already",
    ),
    (methods.Bnpo(max_value=0.0), "min_value must be below max_value"),
    (methods.Bnpo(dual_clip=1.0), "dual_clip must be above"),
    (methods.Bnpo(ranges="0_1"), "for decompose; got '0_1'"),
    (methods.Bnpo(decompose=True, ranges="0_1,3"), "got '3'"),
    (methods.Bnpo(decompose=True, ranges="1_0"), "got 1.0 and 0.0"),
    (methods.Ngrpo(n_virtual=-1), "n_virtual must be 0 or more"),
    (methods.Ngrpo(entropy_coef=-1.0), "entropy_coef"),
    (methods.AGrae(alpha=0.0), "alpha must be in"),
    (methods.AGrae(credit="rloo"), "credit must be one of grpo, dr_grpo"),
    (methods.AGrae(easy_factor="both"), "easy_factor must be paper or code"),
    (methods.Hpo(alpha=1.1), "alpha must be in"),
    (methods.Hpo(alpha_min=-0.1), "alpha_min must be in"),
    (methods.Pearl(edges="0.5_0.2"), "edges must rise"),
    (methods.Pearl(edges="1/0"), "edges must be numbers"),
    (methods.Pearl(levels="0_1"), "one more than edges .two, at thirds"),
    (methods.Pearl(edges="1_2,1_2", levels="0_1_2,0_1"), "must be one more"),
    (methods.Pearl(edges="1_2,1_2,3", levels="0_1_2,0_1"), "must be one more"),
    (methods.Aspo(k=-1.0), "k must be 0 or more"),
    (methods.Aspo(marker="("), "must be a regular expression, got '\\('"),
    (methods.Aspo(marker="a*"), "must not match an empty text"),
  )
  def test_a_bad_hyper_parameter_is_one_clear_line(self, config, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      config.build()
    self.assertNotIn("\n", str(caught.exception))

  @parameterized.parameters(
    (methods.Grpo(), {"ref_logprobs"}),
    (methods.Grpo(beta=0.0), set()),
    (methods.Grpo(entropy_coef=0.1), {"ref_logprobs", "entropy"}),
    (methods.DrGrpo(), set()),
    (methods.DrGrpo(beta=0.1), {"ref_logprobs"}),
    (methods.Dapo(), set()),
    (methods.OffPolicyCorrection(), {"ref_logprobs", "old_scores"}),
    (methods.M2po(method=methods.Dapo()), {"old_scores"}),
    (methods.Opsm(method=methods.Dapo()), set()),
    (methods.Bypass(method=methods.Dapo()), set()),
    (methods.Rloo(), {"ref_logprobs"}),
    (methods.Rloo(beta=0.0), set()),
    (methods.ReinforcePp(), {"ref_logprobs"}),
    (methods.ReinforcePp(beta=0.0), set()),
    (methods.Gdpo(), set()),
    (methods.MaxRl(beta=0.1), {"ref_logprobs"}),
    (methods.Progrpo(), {"old_scores", "prompt_logprobs"}),
    (methods.NoveltyGspo(), {"ref_logprobs"}),
    (methods.Copo(), set()),
    (methods.Canon(), {"old_scores", "entropy"}),
    (methods.Canon(metric="length"), set()),
    (methods.Ngrpo(), {"entropy"}),
    (methods.Ngrpo(entropy_coef=0.0), set()),
    (methods.AGrae(), {"entropy"}),
    (methods.Hpo(adaptive=True), set()),
    (methods.Aspo(), set()),
    (methods.Ppo(), {"values", "old_scores"}),
    (methods.Ppo(beta=0.1), {"values", "old_scores", "ref_logprobs"}),
    (methods.KlAndAggregation(), {"ref_logprobs"}),
    (methods.KlAndAggregation(beta=0.0), set()),
    (
      methods.KlAndAggregation(method=methods.Grpo(), beta=0.0),
      {"ref_logprobs"},
    ),
    (methods.TopEntropyMask(), {"ref_logprobs", "entropy", "old_scores"}),
    (methods.TopEntropyMask(rho=1.0), {"ref_logprobs"}),
    (
      methods.TopEntropyMask(rho=1.0, entropy_coef=0.1),
      {"ref_logprobs", "entropy"},
    ),
  )
  def test_needs_only_what_is_used(self, config, needs):
    self.assertEqual(config.build().needs, needs)

  def test_an_unknown_need_is_refused(self):
    with self.assertRaisesRegex(ValueError, "'logits'"):
      base.Method(
        advantage=lambda rollout: rollout.rewards,
        weighting=weighting.token_mean,
        objective=lambda *args: (jnp.zeros(()), {}),
        needs=frozenset({"logits"}),
      )

  def test_a_config_without_build_cannot_be_made(self):
    with self.assertRaises(TypeError):
      base.MethodConfig()

  def test_nothing_goes_around_a_method_without_gradients(self):
    for wrapper in (methods.Opsm, methods.DynamicSampling, methods.Bypass):
      with self.assertRaisesRegex(ValueError, "of which EsAwd has none"):
        wrapper(method=methods.EsAwd())

  @parameterized.parameters(*methods.BY_GRADIENT)
  def test_parts_obey_the_protocols(self, name):
    method = methods.METHODS[name]().build()
    self.assertIsInstance(method.transform, types.RolloutTransform)
    for part in (method.advantage, method.weighting, method.objective):
      self.assertTrue(callable(part))

  @each_method
  def test_configs_are_frozen_keyword_only_and_hashable(self, name):
    config = methods.METHODS[name]
    self.assertEqual(hash(config()), hash(config()))
    self.assertTrue(all(f.kw_only for f in dataclasses.fields(config)))
    with self.assertRaises(dataclasses.FrozenInstanceError):
      config().clip_low = 0.1


# What makes every field of a method count.
ACTIVE = {
  "dapo": {"buffer": 2},
  "offpolicy_correction": {"reject": "token_k1"},
  "bypass": {"reject": "token_k1"},
  "kl_and_aggregation": {"coefficient": "adaptive"},
  "top_entropy_mask": {"adaptive": True},
}
# Values that look wrong and are not.
LEGAL = {
  ("dynamic_sampling", "low", -5): "a reward may be negative",
  ("dynamic_sampling", "high", -5): "a reward may be negative",
  ("soft_overlong", "stop_properly", -5.0): "it then is the reward itself",
  ("clip_cov", "cov_low", -5.0): "a covariance may be negative",
  ("rl2ml", "threshold", -5.0): "a reward may be negative",
  ("canon", "beta", -5.0): "the lower half may be the favoured one",
  ("adora", "threshold", -5.0): "a reward may be negative",
  ("progrpo", "threshold", -5.0): "a reward may be negative",
  ("novelty_gspo", "threshold", -5.0): "a reward may be negative",
  ("copo", "b", -5.0): "no entropy is below it: the sigmoid is near 1",
  ("clip_cov", "seed", -5): "any number seeds",
  ("hdpo", "marker", "nonsense"): "any words mark",
  ("gcpo", "instruction", "nonsense"): "any words instruct",
  ("gcpo", "low", -5.0): "a reward may be negative",
  ("bnpo", "min_value", -5.0): "a reward may be negative",
  ("ngrpo", "r_max", -5.0): "a reward may be negative",
  ("a_grae", "success", -5.0): "a reward may be negative",
  ("aspo", "correct", -5.0): "a reward may be negative",
  ("aspo", "delta", -5.0): "earlier is better",
  ("aspo", "marker", "nonsense"): "any word may mark a call",
  ("decs", "kappa_min", -5.0): "kappa may be left unclipped",
  ("decs", "words", "nonsense"): "any word may be one of doubt",
  ("cme", "floor", -5.0): "log-probs are negative",
  ("cme", "verifier", "nonsense"): "models are looked for in the first step",
  ("corver", "absent", -5.0): "a penalty is negative",
  ("corver", "corpus", "nonsense"): "files are looked for before a run",
  ("corver", "counter", "nonsense"): "files are looked for before a run",
  ("corver", "extractor", "nonsense"): "files are looked for before a run",
}


def _wrong_values():
  """(method, field, value) that no paper means, from the fields' types."""
  for name, config in methods.METHODS.items():
    types_of = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
      kind = types_of[field.name]
      values = {
        float: (NAN, -5.0),
        int: (-5,),
        int | None: (-5,),
        float | None: (NAN,),
        str: ("nonsense",),
      }.get(kind, ())
      if typing.get_origin(kind) is Literal:
        values = ("nonsense",)
      for value in values:
        if (name, field.name, value) not in LEGAL:
          yield name, field.name, value


class EveryFieldTest(chex.TestCase):
  @parameterized.named_parameters(
    (f"{name}_{field}_{value}", name, field, value)
    for name, field, value in _wrong_values()
  )
  def test_a_wrong_value_is_refused_in_one_line(self, name, field, value):
    knobs = ACTIVE.get(name, {}) | {field: value}
    with self.assertRaises(ValueError) as caught:
      methods.METHODS[name](**knobs).build()
    self.assertNotIn("\n", str(caught.exception))
    self.assertRegex(str(caught.exception), r"got\b")


class NamesTest(chex.TestCase):
  @each_method
  def test_a_name_finds_its_config(self, name):
    self.assertIs(methods.get(name), methods.METHODS[name])

  def test_a_method_may_have_another_name(self):
    self.assertIs(methods.get("ppo_gae"), methods.Ppo)
    self.assertIs(methods.get("a_hpo"), methods.Hpo)
    self.assertIs(methods.get("es"), methods.EsAwd)

  @parameterized.parameters(
    ("grop", "grpo"),
    ("Dr.GRPO", "dr_grpo"),
    ("dr-grpo", "dr_grpo"),
    ("DAPO", "dapo"),
    ("dpao", "dapo"),
    ("gdpo_multi_reward", "gdpo"),
    ("pass@k", "passk_advantage"),
  )
  def test_a_misspelt_name_gets_the_nearest(self, spelled, meant):
    with self.assertRaisesRegex(ValueError, f"Did you mean '{meant}'"):
      methods.get(spelled)

  @parameterized.parameters(
    ("vespo_luspo", "'vespo' or 'luspo'"),
    ("clip_cov_kl_cov", "'clip_cov' or 'kl_cov'"),
    ("cov", "'clip_cov' or 'kl_cov'"),
    ("gspo_token_mean", "'gspo_token'"),
  )
  def test_a_name_of_several_gets_them_all(self, spelled, meant):
    with self.assertRaisesRegex(ValueError, rf"Did you mean {meant}\?"):
      methods.get(spelled)

  def test_a_strange_name_is_told_where_the_list_is(self):
    with self.assertRaises(ValueError) as caught:
      methods.get("zzz")
    self.assertIn("that `jaxrl methods` lists", str(caught.exception))
    self.assertNotIn("Did you mean", str(caught.exception))


class DescribeTest(chex.TestCase):
  @each_method
  def test_every_file_says_what_a_reader_looks_for(self, name):
    item = describe.describe(name)
    self.assertRegex(item.paper, r"^\d{4}\.\d{5}$")
    self.assertTrue(item.summary.endswith("."))
    self.assertEqual(bool(item.changes), name != "grpo")
    for field in item.fields:
      self.assertTrue(field.help, f"{name}.{field.name} has no docstring")

  @each_method
  def test_explain_holds_equation_needs_and_defaults(self, name):
    text = describe.explain(name)
    loss = "loss =" if name in methods.BY_GRADIENT else "theta ="
    for part in (loss, "arXiv:", "Needs"):
      self.assertIn(part, text)
    for field in describe.describe(name).fields:
      self.assertIn(f"\n  {field.name} = {field.default}\n", text)
      self.assertNotIn("MISSING", field.default)

  def test_the_table_has_a_line_for_each(self):
    lines = describe.table().splitlines()
    self.assertLen(lines, 1 + len(methods.METHODS))
    for name, line in zip(methods.METHODS, lines[1:], strict=True):
      self.assertTrue(line.startswith(f"{name} "))

  def test_changes_are_read_from_the_file(self):
    changes = describe.describe("dapo").changes
    self.assertEqual(changes, ("transform", "weighting", "objective", "plan"))

  def test_the_page_has_every_method(self):
    page = describe.markdown()
    for name in methods.METHODS:
      self.assertIn(f"| `{name}` |", page)

  def test_an_unknown_name_is_refused(self):
    with self.assertRaisesRegex(ValueError, "Did you mean 'grpo'"):
      describe.explain("grp")
