"""The register C: papers and released codes of methods other than EGUP."""

from __future__ import annotations

from expunge.run.differences.entry import Difference, Form
from expunge.run.differences.inputs import KNOWN, SHORT, START

TOFU_FAMILY = ("losses_tofu", "losses_npo", "losses_closer_look")

CODES: tuple[Difference, ...] = (
    Difference(
        mark="C-01",
        topic="which retain row goes with a forget row",
        paper="Not said.",
        plain=Form(
            who="Expunge",
            does="one permutation of the retain set after the other, so that all of it is used",
            settings=("data.retain_pairing=shuffled",),
        ),
        others=(
            Form(
                who="TOFU, open-unlearning",
                does="a fresh draw for every visit",
                settings=("data.retain_pairing=random",),
            ),
            Form(
                who="NPO, Closer Look",
                does="seeded by the forget index: the same retain row, and the same rejection, in "
                "every epoch; the seeding also resets the random state of the process",
                settings=("data.retain_pairing=fixed_by_index",),
            ),
            Form(
                who="MUSE",
                does="by position, index modulo the size of the retain set",
                settings=("data.retain_pairing=modulo",),
            ),
        ),
        why="With `fixed_by_index` at most as many retain rows are ever seen as there are forget "
        "rows: 40 of 3960 on forget01, whatever the number of epochs. It acts on the order of "
        "the data, not on a loss, so the fixtures cannot show it.",
        shows=("data.retain_pairing",),
    ),
    Difference(
        mark="C-02",
        topic="what a KL retain term is averaged over, and in which form",
        paper="KL(reference || model) of the predictions, over the tokens of retain rows "
        "(arXiv:2401.06121, section 4).",
        plain=Form(
            who="papers",
            does="mean over the real tokens, question and answer",
            notation="KL",
        ),
        others=(
            Form(
                who="TOFU, NPO, Closer Look, open-unlearning, ULD",
                does="mean over all positions of the padded batch, the last one included",
                notation="KL(positions=all)",
                golden=(*TOFU_FAMILY, "losses_open_unlearning", "losses_uld_and_empirical"),
            ),
            Form(
                who="no source; the narrowest reading",
                does="mean over the positions that predict an answer token",
                notation="KL(positions=labels)",
            ),
            Form(
                who="LLMU",
                does="cross-entropy to the reference over all positions: the same gradient as "
                "KL(positions=all), another value",
                notation="KL(form=cross_entropy, positions=all)",
            ),
            Form(
                who="MUSE",
                does="the formula of KL on raw logits instead of log-probabilities, divided by the "
                "number of rows: no divergence, no minimum at the reference",
                notation="KL-MUSE",
                golden=("losses_muse",),
            ),
        ),
        why="The weight of KL against the forget term should not depend on how a batch is padded. "
        "With rows padded to a fixed 500 tokens most averaged positions are padding.",
        shows=("KL", "KL-MUSE"),
        padded=True,
        inputs=(START,),
    ),
    Difference(
        mark="C-03",
        topic='what "NPO" means',
        paper="The forget loss alone; with a retain term the name has an addition "
        "(arXiv:2404.05868).",
        plain=Form(
            who="NPO, MUSE, Closer Look",
            does="forget loss alone",
            notation="NPO",
            golden=("losses_npo", "losses_closer_look"),
        ),
        others=(
            Form(
                who="open-unlearning",
                does="with a retain NLL of weight 1, the default of its configuration",
                notation="NPO+GD",
                golden=("losses_open_unlearning", "losses_npo", "losses_closer_look"),
            ),
        ),
        why="A retain term is always written out here, so that two tables with NPO in them mean "
        "the same.",
        shows=("NPO",),
    ),
    Difference(
        mark="C-04",
        topic="what NPO compares with the reference",
        paper="Sequence log-likelihoods (arXiv:2404.05868, equation 3).",
        plain=Form(
            who="NPO, Closer Look, open-unlearning, ULD",
            does="one log-ratio per sequence",
            notation="NPO",
            golden=("losses_npo", "losses_closer_look", "losses_open_unlearning"),
        ),
        others=(
            Form(
                who="MUSE, SimNPO (its MUSE part)",
                does="raw logits of reference and model, one by one over vocabulary, positions and "
                "padding; at the start the gradient is the same for every logit, which changes no "
                "probability",
                notation="NPO-MUSE",
                golden=("losses_muse",),
            ),
            Form(
                who="SimNPO (its WMDP part)",
                does="one ratio of token means for the whole batch",
                notation="NPO-WMDP",
                measured="NPO-WMDP(beta=0.1)",
            ),
        ),
        why="Compared at one beta of 0.1. The gradient of the released MUSE form is orthogonal to "
        "that of NPO, and next to none of it changes a probability; at the start none does. "
        "Numbers for NPO on MUSE come from two different functions: the baselines of MUSE and "
        "of SimNPO use logits, open-unlearning uses sequences.",
        shows=("NPO", "NPO-MUSE", "NPO-WMDP"),
        padded=True,
        inputs=(START,),
    ),
    Difference(
        mark="C-04",
        topic="what SimNPO is computed on",
        paper="Token means (arXiv:2410.07163, equation 4).",
        plain=Form(
            who="SimNPO (its TOFU part), open-unlearning",
            does="the token mean of every sequence",
            notation="SimNPO",
            measured="SimNPO(beta=0.7)",
            golden=("losses_simnpo", "losses_open_unlearning"),
        ),
        others=(
            Form(
                who="SimNPO (its MUSE part)",
                does="raw logits one by one, pushed down whatever the token",
                notation="SimNPO-MUSE",
                measured="SimNPO-MUSE(beta=0.7)",
                golden=("losses_simnpo_muse",),
            ),
            Form(
                who="SimNPO (its WMDP part)",
                does="one token mean for the whole batch",
                notation="SimNPO-WMDP",
                measured="SimNPO-WMDP(beta=0.7)",
            ),
        ),
        why="Compared at beta 0.7, the value for MUSE News.",
        shows=("SimNPO", "SimNPO-MUSE", "SimNPO-WMDP"),
        padded=True,
    ),
    Difference(
        mark="C-05",
        topic="where SimNPO's margin stands",
        paper="Outside the factor beta (arXiv:2410.07163, equation 4).",
        plain=Form(
            who="SimNPO, open-unlearning",
            does="inside, as delta; 0 in every published setting, where both agree",
            notation="SimNPO(delta=0.5)",
            measured="SimNPO(beta=0.7, delta=0.5)",
            golden=("losses_simnpo", "losses_open_unlearning"),
        ),
        others=(
            Form(
                who="paper",
                does="outside, as gamma, which equals beta times delta",
                notation="SimNPO(gamma=0.5)",
                measured="SimNPO(beta=0.7, gamma=0.5)",
            ),
        ),
        why="Compared at beta 0.7. Both can be given under names of their own. The code calls its "
        "inner margin gamma: a gamma taken from the paper means another loss there.",
        inputs=(KNOWN,),
        shows=("SimNPO",),
    ),
    Difference(
        mark="C-06",
        topic="direction of the divergence in ME",
        paper="KL(model || uniform), the largest entropy (arXiv:2410.08109, section 3.2).",
        plain=Form(
            who="paper",
            does="KL(model || uniform); its gradient hardly touches unlikely tokens",
            notation="ME",
        ),
        others=(
            Form(
                who="Closer Look",
                does="KL(uniform || model); its gradient p - 1/V keeps pushing every tail token up",
                notation="ME(direction=uniform_to_model)",
                golden=("losses_closer_look",),
            ),
        ),
        why="Published numbers of ME come from the code. Its recipes (`closer_look/`) name both "
        "options.",
        inputs=(KNOWN,),
        shows=("ME",),
    ),
    Difference(
        mark="C-07",
        topic="positions that ME is averaged over",
        paper="Question and answer (arXiv:2410.08109, section 3.2).",
        plain=Form(who="paper", does="all real tokens, question and answer", notation="ME"),
        others=(
            Form(
                who="Closer Look with mask=false, its setting for ME",
                does="the whole padded row, up to 500 positions",
                notation="ME(positions=all)",
            ),
            Form(
                who="Closer Look with mask=true",
                does="the answer alone",
                notation="ME(positions=labels)",
            ),
            Form(
                who="Closer Look, ME as released (with C-06)",
                does="KL(uniform || model) over the whole padded row",
                notation="ME(direction=uniform_to_model, positions=all)",
            ),
        ),
        why="A short row padded to 500 positions would otherwise be unlearned mostly on padding, "
        "which a model never has to predict.",
        shows=("ME",),
        padded=True,
    ),
    Difference(
        mark="C-08",
        topic="weight of ME beside GD",
        paper="0.1 on TOFU.",
        plain=Form(
            who="Closer Look, TOFU script",
            does="0.1",
            notation="ME+GD",
            golden=("losses_closer_look",),
        ),
        others=(
            Form(
                who="Closer Look, real-world script",
                does="0.5, where a comment in the configuration says 0.1",
                notation="ME(weight=0.5)+GD",
            ),
            Form(who="Closer Look, continual script", does="1.0", notation="ME(weight=1.0)+GD"),
        ),
        why="The recipes `closer_look/real_world_me_gd` and `closer_look/continual_me_gd_*` have "
        "the weights of their scripts.",
        shows=("ME",),
    ),
    Difference(
        mark="C-09",
        topic="weights of SatImp's two terms",
        paper="A ratio of 10 between forget and retain term (arXiv:2505.11953).",
        plain=Form(
            who="paper, class signature and README of open-unlearning",
            does="1.0 on the forget, 0.1 on the retain side",
            notation="SatImp+GD",
            golden=("losses_open_unlearning",),
        ),
        others=(
            Form(
                who="the configuration shipped with open-unlearning",
                does="0.1 on the forget, 1.0 on the retain side",
                notation="SatImp(weight=0.1)+GD(weight=1.0)",
            ),
        ),
        why="On random logits the weights of SatImp are close to 0, since no token is likely, and "
        "only the retain term is left; `A_qa known` shows both. The recipe "
        "`open_unlearning/tofu_satimp_gd_config_llama32_1b` has the shipped weights.",
        inputs=(KNOWN,),
        shows=("SatImp",),
    ),
    Difference(
        mark="C-10",
        topic="positions and tokens of UNDIAL",
        paper="Cross-entropy to the reference with the logit of the true token lowered "
        "(arXiv:2402.10052, equation 5).",
        plain=Form(who="paper", does="the tokens that carry a label", notation="UNDIAL"),
        others=(
            Form(
                who="open-unlearning",
                does="all positions, prompt and padding too; there the label -100 counts from the "
                "end of the vocabulary, so token V - 100 is held down instead of the true one",
                notation="UNDIAL-OU",
                golden=("losses_open_unlearning",),
            ),
        ),
        why="The released form distils mostly on positions that have nothing to forget. At "
        "positions without a label the fixture with 128 tokens shows the token it holds down.",
        shows=("UNDIAL", "UNDIAL-OU"),
        padded=True,
    ),
    Difference(
        mark="C-11",
        topic="how RMU averages over tokens and rows",
        paper="Mean over the tokens of a text, then over texts (arXiv:2403.03218, equation 1).",
        plain=Form(who="paper", does="mean over rows of their token means", notation="RMU"),
        others=(
            Form(
                who="open-unlearning",
                does="divides row sums [B] by lengths [B, 1]: mean of the sums times mean of the "
                "inverse lengths, right only for equal lengths",
                notation="RMU(average=broadcast)",
                golden=("losses_open_unlearning",),
            ),
            Form(
                who="WMDP",
                does="mean over all positions of the batch, padding included",
                notation="RMU(positions=all, average=tokens)",
            ),
        ),
        why="The retain side `ACT` takes the same options. On rows of equal length the paper's "
        "form and open-unlearning's are one.",
        shows=("RMU", "ACT"),
        padded=True,
    ),
    Difference(
        mark="C-12",
        topic="which logits PDU flattens",
        paper="The predictions of forget tokens (arXiv:2506.05314, section 4).",
        plain=Form(who="paper", does="the position that predicts a labelled token", notation="PDU"),
        others=(
            Form(
                who="open-unlearning",
                does="the position that holds a labelled token: one too late, the first answer "
                "token is never flattened and the prediction behind the last one is",
                notation="PDU(positions=unshifted)",
                golden=("losses_open_unlearning",),
            ),
        ),
        why="The multiplier is a second difference: open-unlearning moves it in every "
        "micro-batch, so accumulation multiplies the number of dual steps; here it moves once "
        "per optimizer step.",
        shows=("PDU",),
    ),
    Difference(
        mark="C-13",
        topic="IDK with a retain term",
        paper="The sum of two losses (arXiv:2401.06121, section 4).",
        plain=Form(
            who="paper, Closer Look",
            does="the sum of two means",
            notation="IDK+GD",
            golden=("losses_closer_look",),
        ),
        others=(
            Form(
                who="TOFU, NPO",
                does="rejections and retain rows in one batch with one mean over the tokens of "
                "both; rejections are short, so retain tokens dominate",
                notation="IDK-TOFU",
                golden=("losses_tofu", "losses_npo"),
            ),
        ),
        why="Two terms have two weights; in one mean the lengths of the answers decide. In the "
        "fixtures rejections and retain answers have as many tokens in total, which makes the "
        "union half of the sum; `A_qa short rejections` shows what real lengths do.",
        inputs=(SHORT,),
        shows=("IDK", "IDK-TOFU"),
    ),
    Difference(
        mark="C-14",
        topic="factor in front of DPO",
        paper="1 in DPO (arXiv:2305.18290, equation 7).",
        plain=Form(
            who="NPO, open-unlearning, Closer Look, ULD",
            does="2/beta",
            notation="DPO",
            golden=("losses_npo", "losses_closer_look", "losses_open_unlearning"),
        ),
        others=(
            Form(
                who="TOFU (its branch for DPO cannot run as published)",
                does="1, with beta fixed at 0.1",
                notation="DPO(scale=1)",
            ),
        ),
        why="AdamW makes a common factor nearly irrelevant alone, but not beside a retain term.",
        shows=("DPO",),
    ),
    Difference(
        mark="C-15",
        topic="gradient ascent per token or per sample",
        paper="An average over the forget set (arXiv:2401.06121, section 4).",
        plain=Form(
            who="TOFU, NPO, MUSE, Closer Look, open-unlearning, ULD",
            does="mean over all answer tokens of a step: long answers weigh more",
            notation="GA",
            golden=(*TOFU_FAMILY, "losses_muse", "losses_open_unlearning"),
        ),
        others=(
            Form(
                who="wrappers that weigh samples (EGU, EGUP, PROXY, EMPIRICAL), LLMU",
                does="mean over rows of their token means",
                notation="GA(average=rows)",
            ),
        ),
        why="A weight per sample needs a value per sample, so inside EGU, EGUP, PROXY and "
        "EMPIRICAL the second form is used without being asked for. With several micro-batches "
        "the codes average the means of the micro-batches; here all tokens of a step count alike.",
        shows=("GA",),
    ),
    Difference(
        mark="C-16",
        topic="the end-of-sequence token",
        paper="Not said.",
        plain=Form(
            who="TOFU, NPO, Closer Look, open-unlearning",
            does="carries a label in training; token-level measures leave it out",
        ),
        others=(
            Form(
                who="a metric over all tokens",
                does="token-level measures count it too (an argument of the metrics in Python and "
                "of benchmark presets)",
                settings=("drop_last=False",),
            ),
        ),
        why="In a loss the end of an answer is part of what was learned. In exact memorisation, "
        "extraction strength and Min-K it is a token that nearly every model gets right.",
        shows=("exact_memorization", "extraction_strength"),
    ),
    Difference(
        mark="C-17",
        topic="parameters that RMU moves",
        paper="A few layers around the steered block (arXiv:2403.03218, section 4).",
        plain=Form(
            who="WMDP, the WMDP experiment of open-unlearning",
            does="the down-projections of the block and of the two before it",
            settings=("training.trainable=auto",),
        ),
        others=(
            Form(
                who="open-unlearning, default",
                does="all parameters",
                settings=("training.trainable=all",),
            ),
        ),
        why="It changes which parameters a gradient reaches, not the loss, so the fixtures cannot "
        "show it.",
        shows=("RMU", "training.trainable"),
    ),
    Difference(
        mark="C-18",
        topic="the answer marker of Phi-1.5",
        paper="Not said.",
        plain=Form(
            who="TOFU",
            does="`Answer: ` is trained on, and not shown when answers are generated",
            settings=("template.answer_marker=trained",),
        ),
        others=(
            Form(
                who="open-unlearning; Closer Look at generation",
                does="part of the prompt: masked in training, shown when answers are generated",
                settings=("template.answer_marker=prompted",),
            ),
        ),
        why="The checkpoints of TOFU were made with the first form. A model trained with the "
        "second and asked without the marker has to write what it was never trained to write.",
        shows=("template.answer_marker", "phi"),
    ),
)
