"""What every method must satisfy: a new method is tested by its row."""

import dataclasses

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts

# Besides its defaults, each method with everything that it can switch on.
VARIANTS = {name: config() for name, config in methods.BY_GRADIENT.items()} | {
  "grpo_k3_entropy": methods.Grpo(kl="k3", entropy_coef=0.01, ddof=0),
  "grpo_no_reference": methods.Grpo(beta=0.0, clip_high=0.28),
  "dr_grpo_reference": methods.DrGrpo(beta=0.1, max_length=10),
  "dapo_overlong": methods.Dapo(buffer=2, overlong_factor=0.5),
  "dapo_dynamic": methods.Dapo(dynamic_sampling=True),
  "correction_all": methods.OffPolicyCorrection(
    method=methods.Dapo(),
    level="sequence",
    normalize=True,
    reject="token_ratio,seq_max_k2",
    reject_threshold="0.85_1.22,0.05",
    variation=0.2,
  ),
  "correction_original": methods.OffPolicyCorrection(
    mode="mask",
    low=0.5,
    high=1.5,
    reject="token_k1",
    reject_threshold="0.82_1.17",
    denominator="original",
  ),
  "correction_twice": methods.OffPolicyCorrection(
    method=methods.M2po(method=methods.Opsm(delta=0.1), tau=0.016)
  ),
  "bypass_reinforce": methods.Bypass(
    form="reinforce",
    level="sequence",
    reject="token_k3",
    reject_threshold="0.1",
  ),
  "dynamic_remax": methods.DynamicSampling(method=methods.Remax()),
  "soft_overlong_all": methods.SoftOverlong(
    method=methods.Dapo(), buffer=2, stop_properly=0.5, filter="loss"
  ),
  "soft_overlong_rows": methods.SoftOverlong(
    method=methods.DrGrpo(), factor=0.0, filter="rows"
  ),
  "soft_overlong_roomy": methods.SoftOverlong(max_length=40, filter="off"),
  "remax_sum": methods.Remax(beta=0.0, weigh="sequence_sum"),
  "grpo_batch_scale": methods.Grpo(beta=0.0, scale="batch"),
  "grpo_no_scale": methods.Grpo(beta=0.0, scale="none"),
  "rloo_tokens": methods.Rloo(ratio="token", beta=0.0, normalize=True),
  "reinforce_pp_baseline": methods.ReinforcePp(baseline=True),
  "reinforce_pp_nemo": methods.ReinforcePp(
    beta=0.0, ddof=0, variance="at_least"
  ),
  "gpg_verl": methods.Gpg(count="nonzero_reward", divisor=2.0),
  "passk_plain": methods.PasskAdvantage(normalize=False, beta=0.1),
  "gdpo_tokens": methods.Gdpo(rescale="tokens", eps=1e-6),
  "max_rl_reference": methods.MaxRl(beta=0.1),
  "rl2ml_chosen": methods.Rl2ml(q=None, pass_at=8, baseline="score_drop"),
  "canon_length": methods.Canon(
    metric="length", mu=0.5, schedule="accuracy", order="inter_first"
  ),
  "canon_cosine": methods.Canon(schedule="cosine", warmup=0),
  "adora_images": methods.Adora(
    weighting="attenuate_vlm", baseline="loo", beta=0.0
  ),
  "progrpo_correct": methods.Progrpo(skip_all_correct=True, correct_only=True),
  "novelty_unsolved": methods.NoveltyGspo(kind="zscore", bonus_on_solved=False),
  "novelty_raw": methods.NoveltyGspo(kind="raw", bonus_on_solved=False, ddof=0),
  "copo_paper": methods.Copo(consistency=True, normalize=False),
  "cispo_both_caps": methods.Cispo(ratio_low=0.8, ratio_high=1.28),
  "sapo_sequence": methods.Sapo(level="sequence", tau_pos=2.0, tau_neg=4.0),
  "vespo_sequence": methods.Vespo(rollout_level="sequence", k_pos=1.0),
  "dppo_kl": methods.Dppo(divergence="kl", bound_low=0.05, bound_high=0.05),
  "clip_cov_many": methods.ClipCov(fraction=0.5, cov_low=0.1, seed=3),
  "kl_cov_many": methods.KlCov(fraction=0.5, coef=0.1),
  "ppo_all": methods.Ppo(
    lam=0.95, beta=0.1, entropy_coef=0.01, whiten=False, trunk_gradient=0.5
  ),
  "ppo_discounted": methods.Ppo(gamma=0.9, value_clip=float("inf")),
  "kl_reward_adaptive": methods.KlAndAggregation(
    placement="reward", coefficient="adaptive", aggregation="fixed_length"
  ),
  "kl_loss_adaptive": methods.KlAndAggregation(
    coefficient="adaptive", kl="k3+", aggregation="method"
  ),
  "kl_around_gspo": methods.KlAndAggregation(
    method=methods.Gspo(), kl="ratio_k3", aggregation="sequence_sum"
  ),
  "aggregation_alone": methods.KlAndAggregation(
    method=methods.Grpo(), beta=0.0, aggregation="token_sum"
  ),
  "cme_plain": methods.Cme(beta=0.0, ddof=0, chat=False, floor=-5.0),
  "occ_trained": methods.Occ(warmup=0),
  "occ_code": methods.Occ(
    warmup=0, calibration="elementwise_mean", lam0=0.1, mtp_rate=3.0
  ),
  "occ_policy": methods.Occ(warmup=0, mtp="policy", lam0=0.5),
  "top_entropy_bonus": methods.TopEntropyMask(
    method=methods.DrGrpo(), entropy_coef=0.01
  ),
  "drpo_sharp": methods.Drpo(
    tau=0.5, kl_type="low_var_kl", max_length=10, threshold=None, report="code"
  ),
  "oisd_predictions": methods.Oisd(
    method=methods.Dapo(), lam_attn=0.0, lam_think=0.5, layer=1, flow=True
  ),
  "hista_all": methods.Hista(
    alpha=0.5,
    debias=False,
    mean_window=2,
    min_interval=2,
    min_d=0.01,
    max_k=4,
    min_k=2,
    lam=0.9,
    exclude_self=True,
    credit_last=False,
    scale="none",
    beta=0.01,
  ),
  "hista_nodes": methods.Hista(
    min_interval=2, min_d=0.1, max_k=6, min_k=2, mean_window=1
  ),
  "verl_rank_all": methods.VerlRank(
    method=methods.Dapo(),
    stride=1,
    max_length=4,
    kappa=1.5,
    dynamic=True,
    explore=(0.2, 0.3, 0.5),
    spread="last",
    start="first",
  ),
  "numca_unscaled": methods.Numca(lam=0.5, scale="none"),
  "decs_paper": methods.Decs(
    redundant_base="paper", beta_len=0.3, max_length=10, curriculum=False
  ),
  "corver_unscaled": methods.Corver(scale="none", beta=0.0),
  "corver_official": methods.Corver(min_std=0.0, kl="k3"),
  "numca_official": methods.Numca(min_std=0.0),
  "hdpo_all": methods.Hdpo(
    scale=False, aggregation="sequence_mean", beta=0.1, entropy_coef=0.01
  ),
  "hdpo_accuracy": methods.Hdpo(w_tool=0.0),
  "awm_sum": methods.Awm(
    score="sum", std="prompt", clip=0.5, adv_clip=1.0, beta=0.0, kl="k3"
  ),
  "gcpo_linear": methods.Gcpo(
    weights="linear", entropy_penalty=0.0, negative="empty", low=-1e9, high=1e9
  ),
  "entropy_adaptive": methods.TopEntropyMask(rho=1.0, adaptive=True),
  "bnpo_decomposed": methods.Bnpo(decompose=True, ranges="0_2"),
  "eksft_official": methods.Eksft(official=True, adjust=True, ratio=0.3),
  "eksft_lasting": methods.Eksft(
    adjust=True, combine="intersection", ratio=0.6
  ),
  "ngrpo_no_virtual": methods.Ngrpo(n_virtual=0, filter_groups=False),
  "a_grae_code": methods.AGrae(
    alpha=0.5, easy_factor="code", credit="dr_grpo", success=0.5
  ),
  "hpo_adaptive": methods.Hpo(adaptive=True),
  "pearl_lists": methods.Pearl(edges="1/3", levels="-1_1", batch_renorm=True),
  "aspo_aggressive": methods.Aspo(delta=-2.5, k=0.9, filter_groups=False),
}

# Checks that a method cannot pass, and the mathematics of why.
_BEST_ONLY = "only the best of a group has credit: the others have 0"
_LENGTH = "the reward falls with the length: equal ones are then not equal"
_TRUNCATED = "truncated rows are left out: theirs is no gradient"
_DROPPED = "a completion may lose all of its tokens: it is not pushed"
_LOW_ENTROPY = "a completion may have no token of high entropy: not pushed"
_HALVES = "a row that earns what the other half does has no credit"
_SOLVED = "where all is right, what is unusual is still worth more"
_RARE = "where all is right, what is rare still gets more credit"
_BETWEEN = "wrong rows have the credit of their prompt, which may be a good one"
_DIVIDED = "a prompt whose answers differ earns less, equal rewards or not"
_FADES = "the check's critic says the constant, a discounted one fades"
_FAILURES = "equal failures teach: they are compared with a success"
_SPARED = "of equal right answers the one with fewer tools is better"
_SAMPLED = "its entropy penalty raises the log-prob of whatever was sampled"
EXEMPT = {
  ("ngrpo", "equal_rewards_teach_nothing"): _FAILURES,
  ("canon", "rewards_push_the_right_way"): _HALVES,
  ("novelty_gspo", "equal_rewards_teach_nothing"): _SOLVED,
  ("progrpo", "equal_rewards_teach_nothing"): _RARE,
  ("copo", "rewards_push_the_right_way"): _BETWEEN,
  ("copo_paper", "rewards_push_the_right_way"): _BETWEEN,
  ("copo_paper", "equal_rewards_teach_nothing"): _DIVIDED,
  ("hdpo", "equal_rewards_teach_nothing"): _SPARED,
  ("hdpo_all", "equal_rewards_teach_nothing"): _SPARED,
  ("gcpo", "equal_rewards_teach_nothing"): _SAMPLED,
  ("top_entropy_mask", "rewards_push_the_right_way"): _LOW_ENTROPY,
  ("top_entropy_bonus", "rewards_push_the_right_way"): _LOW_ENTROPY,
  ("ppo_discounted", "equal_rewards_teach_nothing"): _FADES,
  ("soft_overlong", "equal_rewards_teach_nothing"): _LENGTH,
  ("soft_overlong", "rewards_push_the_right_way"): _LENGTH,
  ("soft_overlong_all", "equal_rewards_teach_nothing"): _LENGTH,
  ("soft_overlong_all", "rewards_push_the_right_way"): _TRUNCATED,
  ("soft_overlong_rows", "rewards_push_the_right_way"): _TRUNCATED,
  ("passk_advantage", "rewards_push_the_right_way"): _BEST_ONLY,
  ("passk_plain", "rewards_push_the_right_way"): _BEST_ONLY,
  ("clip_cov_many", "rewards_push_the_right_way"): _DROPPED,
}


class MethodContractTest(chex.TestCase):
  @parameterized.named_parameters(
    (f"{name}_{check.__name__}", config, check)
    for name, config in VARIANTS.items()
    for check in contract.checks(config.build())
    if (name, check.__name__) not in EXEMPT
  )
  def test(self, config, check):
    check(config.build())


class DifferencesTest(chex.TestCase):
  """What tells the three apart, seen in numbers."""

  def _gradient(self, config, rollout):
    scores = rollouts.make_scores(rollout, scale=0.0)
    return np.asarray(
      contract.evaluate(config.build(), scores, rollout)[2].logprobs
    )

  def test_dapo_gives_every_token_of_a_row_and_of_its_sibling_one_share(self):
    rollout = rollouts.make_rollout()
    grad = self._gradient(methods.Dapo(), rollout)
    mask = np.asarray(rollout.mask)
    rewarded = np.asarray(rollout.rewards)[:4] == 1
    same = grad[:4][rewarded][mask[:4][rewarded]]
    np.testing.assert_allclose(same, same[0], rtol=1e-5)

  def test_grpo_gives_every_row_one_share(self):
    rollout = rollouts.make_rollout()
    grad = self._gradient(methods.Grpo(beta=0.0), rollout).sum(axis=1)
    rewarded = np.asarray(rollout.rewards)[:4] == 1
    np.testing.assert_allclose(
      grad[:4][rewarded], grad[:4][rewarded][0], rtol=1e-5
    )

  def test_dr_grpo_is_linear_in_the_reward(self):
    rollout = rollouts.make_rollout()
    triple = rollout.replace(rewards=3.0 * rollout.rewards)
    config = methods.DrGrpo()
    np.testing.assert_allclose(
      self._gradient(config, triple),
      3.0 * self._gradient(config, rollout),
      rtol=1e-5,
    )

  def test_dapo_leaves_uniform_groups_out_of_the_denominator(self):
    rollout = rollouts.make_rollout(groups=2, group_size=4)
    rewards = rollout.rewards.at[4:].set(1.0)
    both = self._gradient(methods.Dapo(), rollout.replace(rewards=rewards))
    only = rollouts.make_rollout(groups=2, group_size=4)
    first = dataclasses.replace(
      only, weights=jnp.where(jnp.arange(8) < 4, 1.0, 0.0)
    )
    np.testing.assert_array_equal(both, self._gradient(methods.Dapo(), first))
    self.assertGreater(np.abs(both[:4]).max(), 0.0)
