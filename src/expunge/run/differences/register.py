"""The whole register, and the public codes it was made from."""

from __future__ import annotations

from expunge.run.differences.codes import CODES
from expunge.run.differences.egup import EGUP
from expunge.run.differences.entry import Difference, Form, Source

__all__ = ["DIFFERENCES", "SOURCES", "Difference", "Form", "Source"]

DIFFERENCES: tuple[Difference, ...] = (*CODES, *EGUP)
_NONE = "no licence file found"

SOURCES: tuple[Source, ...] = (
    Source(
        name="TOFU",
        project="locuslab/tofu",
        commit="bdc209ea7c6cc2e7079ea1afb6468d3ddcc65f8e",
        licence="MIT",
        golden=("losses_tofu",),
        cases=12,
    ),
    Source(
        name="NPO",
        project="licong-lin/negative-preference-optimization",
        commit="1207bbe9a1abf502bc2d7b43a0a467d9524b4036",
        licence=_NONE,
        golden=("losses_npo",),
        cases=45,
    ),
    Source(
        name="Closer Look",
        project="sail-sg/closer-look-LLM-unlearning",
        commit="b622294965f8b40feb5383c9e93dbdb26a76b6b3",
        licence=_NONE,
        golden=("losses_closer_look",),
        cases=72,
    ),
    Source(
        name="open-unlearning",
        project="locuslab/open-unlearning",
        commit="d3d7cf9e6b3c125d16687d4232680d8d83548f1a",
        licence="MIT",
        golden=("losses_open_unlearning",),
        cases=57,
    ),
    Source(
        name="MUSE",
        project="jaechan-repo/muse_bench",
        commit="54719c51f07221dcfbfbe8ae76bb091df77433b2",
        licence=_NONE,
        golden=("losses_muse",),
        cases=26,
    ),
    Source(
        name="SimNPO",
        project="OPTML-Group/Unlearn-Simple",
        commit="f1a355d3cb16cdaa2dfbda163a2e954c67886a4c",
        licence="MIT",
        golden=("losses_simnpo", "losses_simnpo_muse"),
        cases=24,
    ),
    Source(
        name="ULD",
        project="UCSB-NLP-Chang/ULD",
        commit="858608c960819a8002cc60cc3788bbbd57f4a913",
        licence="MIT",
        golden=("losses_uld_and_empirical",),
        cases=21,
    ),
    Source(
        name="empirical weights",
        project="K1nght/Unified-Unlearning-w-Remain-Geometry",
        commit="36bb7f6f897a2db751877f00071042c44709a89c",
        licence=_NONE,
        golden=("losses_uld_and_empirical",),
        cases=4,
    ),
)
