"""PPO's clipped loss with its KL term, as sums over the tokens of each row."""

from pallas_kernels.policy_loss.api import RowSums, policy_loss_sums
from pallas_kernels.policy_loss.token_terms import KL_NAMES

__all__ = ["KL_NAMES", "RowSums", "policy_loss_sums"]
