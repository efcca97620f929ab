"""The register E: what the text of EGUP leaves open. No code was released."""

from __future__ import annotations

from expunge.run.differences.entry import Difference, Form

READ = "reading taken"

EGUP: tuple[Difference, ...] = (
    Difference(
        mark="E-01",
        topic="more or less effort for samples close to the retain set",
        paper="Less in the method section and the algorithm (exp(-sim)); more in the abstract and "
        "the prose of the ablation.",
        plain=Form(
            who="method section",
            does="less",
            notation="EGU(GA, direction=entangled_less)",
        ),
        others=(Form(who="abstract", does="more", notation="EGU(GA, direction=entangled_more)"),),
        why="Only the method section has a formula and a derivation: a model that never saw the "
        "sample would predict it well anyway.",
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-02",
        topic="whether the temperature k multiplies or divides",
        paper="Called a temperature, which divides; the summary writes softmax(k exp(-sim)) and "
        "says that a higher k sharpens, which multiplies.",
        plain=Form(
            who="summary",
            does="multiplies",
            notation="EGU(GA, temperature=multiply)",
            measured="EGU(GA, k=2)",
        ),
        others=(
            Form(
                who="the word",
                does="divides",
                notation="EGU(GA, temperature=divide)",
                measured="EGU(GA, k=2, temperature=divide)",
            ),
        ),
        why="Compared at k = 2; at the default of 1 both are one. The published grid {0.5, 1, 2} "
        "is its own inverse, so published sweeps cannot tell.",
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-03",
        topic="one exponential or two",
        paper="softmax(k exp(-sim)), where the inner exponential may be the softmax's own.",
        plain=Form(who="as written", does="two", notation="EGU(GA, transform=double_exp)"),
        others=(
            Form(
                who="shorter reading",
                does="one, softmax(-k sim)",
                notation="EGU(GA, transform=single_exp)",
            ),
        ),
        why="Either way the weights spread little, see the table of weights above.",
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-04",
        topic="weighted losses summed or averaged once more",
        paper="Weights that sum to 1; nothing about the reduction.",
        plain=Form(who=READ, does="summed", notation="EGU(GA, reduce=sum)"),
        others=(
            Form(
                who="other reading",
                does="averaged, which divides by the batch size once more",
                notation="EGU(GA, reduce=mean)",
            ),
        ),
        why="With equal weights the sum is the base method; the mean would be the base method at "
        "1/B of its weight.",
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-05",
        topic="rows that share one softmax",
        paper="A batch of 16 (Phi) or 8 (LLaMA) on 4 GPUs; per device or in total is not said.",
        plain=Form(
            who=READ,
            does="the optimizer step, over all micro-batches and processes",
            notation="EGU(GA, scope=step)",
        ),
        others=(
            Form(
                who="per device",
                does="one micro-batch of one process; with one row in it every weight is 1",
                notation="EGU(GA, scope=micro_batch)",
            ),
            Form(
                who="whole forget set",
                does="the forget set, from stored similarities, scaled to mean 1",
                notation="EGU(GA, scope=dataset)",
            ),
        ),
        why="`scope=step` does not depend on how a step is split. The five rows are split 2 + 3 "
        "for `micro_batch`; its weights sum to 1 in each part, and the step is the mean of the "
        "parts. `dataset` takes the embeddings of the past.",
        shows=("EGU", "EGUP"),
        micro_batches=(2, 3),
    ),
    Difference(
        mark="E-06",
        topic="gradient through the weights",
        paper="Not said.",
        plain=Form(
            who=READ,
            does="none, weights are constants",
            notation="EGU(GA, weight_grad=false)",
            measured="EGU(GA, scope=micro_batch)",
        ),
        others=(
            Form(
                who="other reading",
                does="flows (with scope=micro_batch)",
                notation="EGU(GA, scope=micro_batch, weight_grad=true)",
            ),
        ),
        why="Compared on one micro-batch; otherwise only the small drift term reaches the hidden "
        "states. The loss then also falls by moving effort to samples "
        "that are already forgotten.",
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-07",
        topic="one coefficient for drift term and penalty, or two",
        paper="mu stands before both in the summary; the paper tunes one penalty weight in "
        "{0.001, 0.005} and shows none for the drift term.",
        plain=Form(
            who="summary",
            does="lambda_c follows mu",
            notation="EGUP(GA)",
        ),
        others=(
            Form(who="two knobs", does="ten times mu", notation="EGUP(GA, lambda_c=0.01)"),
            Form(who="two knobs", does="without a small factor", notation="EGUP(GA, lambda_c=1)"),
        ),
        why="Tied is the only formula written down. The drift term alone reaches the hidden "
        "states here, so its weight scales that gradient.",
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-08",
        topic="scale of the NLL in the proxy penalty",
        paper='"Loss" of the answer and of the proxy.',
        plain=Form(who=READ, does="token mean", notation="EGUP(GA, penalty_nll=mean)"),
        others=(
            Form(
                who="losses of sequences",
                does="sequence sum",
                notation="EGUP(GA, penalty_nll=sum)",
            ),
            Form(
                who="base objective",
                does="value of the base loss",
                notation="EGUP(GA, penalty_nll=objective)",
            ),
        ),
        why="Proxies and answers differ in length, so only means make a fair threshold; for GA "
        "the base loss is the same mean. At mu 0.001 the penalty is small either way.",
        shows=("EGUP", "PROXY"),
    ),
    Difference(
        mark="E-09",
        topic="penalties summed or averaged",
        paper='"Accumulate a penalty".',
        plain=Form(who="as written", does="summed", notation="EGUP(GA, penalty_reduce=sum)"),
        others=(
            Form(
                who="other reading",
                does="averaged over the rows of a step",
                notation="EGUP(GA, penalty_reduce=mean)",
            ),
        ),
        why="A sum grows with the batch, unlike the weighted losses, whose weights sum to 1.",
        shows=("EGUP", "PROXY"),
    ),
    Difference(
        mark="E-10",
        topic="gradient through the proxy side",
        paper="Not said.",
        plain=Form(who=READ, does="none, it is a boundary", notation="EGUP(GA, proxy_grad=false)"),
        others=(Form(who="other reading", does="flows", notation="EGUP(GA, proxy_grad=true)"),),
        why="A gradient would raise the NLL of proxies: it would unlearn plausible answers.",
        shows=("EGUP", "PROXY"),
    ),
    Difference(
        mark="E-11",
        topic="proxy loss of the current or of the initial model",
        paper="The step text speaks of present losses for both.",
        plain=Form(who="step text", does="current", notation="EGUP(GA, proxy_loss=current)"),
        others=(
            Form(
                who="cheaper reading",
                does="initial, one pass, stored",
                notation="EGUP(GA, proxy_loss=initial)",
            ),
        ),
        why="Both agree until the first update, so one step cannot tell them apart.",
        first_step_same=True,
        shows=("EGUP", "PROXY"),
    ),
    Difference(
        mark="E-12",
        topic="how often the retain centre is recomputed",
        paper="At every iteration over the whole retain set (algorithm); one stored vector, cheap "
        "when cached (summary).",
        plain=Form(
            who="between the two",
            does="at the start of every epoch",
            notation="EGU(GA, centre_refresh=epoch)",
        ),
        others=(
            Form(who="summary", does="once", notation="EGU(GA, centre_refresh=static)"),
            Form(
                who="between the two",
                does="every refresh_every steps",
                notation="EGU(GA, centre_refresh=every_n)",
            ),
            Form(who="algorithm", does="every step", notation="EGU(GA, centre_refresh=step)"),
            Form(
                who="cheaper reading",
                does="a moving average over retain batches",
                notation="EGU(GA, centre_refresh=batch_ema)",
            ),
        ),
        why="The literal text runs the whole retain set once per step: at 5% forgetting 3800 "
        "forward passes, about 240 times the forward work of a step of 16. All agree in the "
        "first step.",
        first_step_same=True,
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-13",
        topic='what "previous iteration" means',
        paper="The embedding at iteration t - 1.",
        plain=Form(
            who=READ,
            does="the last visit of the sample, at first the start model",
            notation="EGU(GA, previous=last_visit)",
        ),
        others=(
            Form(
                who="literal",
                does="the model one optimizer step before",
                notation="EGU(GA, previous=previous_step)",
            ),
            Form(
                who="fixed point",
                does="the start model",
                notation="EGU(GA, previous=initial)",
            ),
        ),
        why="The Phi runs have one epoch, in which no sample is visited twice: without filling "
        "the past from the start model the drift term would be undefined there.",
        first_step_same=True,
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-14",
        topic="which similarity stands in the drift term",
        paper='A bare "sim" in the summary.',
        plain=Form(who=READ, does="that with the retain centre, as in the weights"),
        why="No other reading suggests itself, so there is no option.",
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-15",
        topic="drift term averaged or summed over the batch",
        paper="Not said.",
        plain=Form(who=READ, does="mean", notation="EGU(GA, contrast_reduce=mean)"),
        others=(Form(who="other reading", does="sum", notation="EGU(GA, contrast_reduce=sum)"),),
        why="A mean keeps the meaning of lambda_c when the batch size changes.",
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-16",
        topic="main table and ablation tables disagree",
        paper="Phi, 10%, NPO+GD: forget quality 0.3958 and utility 0.4209 in the main table; in "
        "the ablation that is the row of EGU, and EGUP has 0.3417 and 0.4244. LLaMA, 1%, NPO: "
        "0.9900 and 0.9188. LLaMA, 5%, retrained model: utility 0.6245 and 0.6083.",
        plain=Form(
            who=READ,
            does="published numbers are ranges: utilities closer than about 0.02 are not told "
            "apart",
        ),
        why="A question of results, not of a loss, so there is no option.",
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-17",
        topic="whether the published EGU rows contain the drift term",
        paper="They equal, to 0.0002, the best rows of the temperature tables, made with the first "
        "version, which has no such term.",
        plain=Form(who="second version", does="kept, small by E-07", notation="EGU(GA)"),
        others=(Form(who="first version", does="left out", notation="EGU(GA, lambda_c=0)"),),
        why="To compare with the published EGU rows, expect lambda_c near 0.",
        shows=("EGU", "EGUP"),
    ),
    Difference(
        mark="E-18",
        topic="settings the text leaves out",
        paper="No learning rate, beta of NPO, rank or alpha of LoRA; its dropout of 0.05 is given.",
        plain=Form(
            who="settings of the TOFU family",
            does="learning rate 2e-5 (Phi) and 1e-5 (LLaMA), beta 0.1, rank 8, alpha 32; the "
            "recipes in `egup/` say so",
            settings=("training.learning_rate=1e-5", "lora.r=8", "lora.alpha=32"),
        ),
        why="Any other value is a key of the configuration or an option of NPO.",
        shows=("EGU", "EGUP"),
    ),
)
