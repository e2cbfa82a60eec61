# SPDX-License-Identifier: Apache-2.0
"""Attacks: the named ones, and the parts that they are composed of."""

from __future__ import annotations

from monai_smia.attacks.apgd import APGD
from monai_smia.attacks.attack import Attack, GradientAttack
from monai_smia.attacks.auto_attack import AutoAttack
from monai_smia.attacks.bias_field import BiasField
from monai_smia.attacks.bpda import BPDA, straight_through_round
from monai_smia.attacks.clinical import ClinicalGoal, Erase, Insert, ShiftVolume
from monai_smia.attacks.criteria import Criterion, DiceBelow, Misclassification, Not
from monai_smia.attacks.cw import CW
from monai_smia.attacks.dag import DAG
from monai_smia.attacks.ddn import DDN
from monai_smia.attacks.deepfool import DeepFool
from monai_smia.attacks.dense import CosPGD, SegPGD
from monai_smia.attacks.detection import DetectionDivergence, DetectionLoss, DetectorHeads, HeadOutputs
from monai_smia.attacks.detection_criteria import BoxesMissed, FalsePositives
from monai_smia.attacks.diversity import RandomResize
from monai_smia.attacks.ensembles import Restarts, WorstOf
from monai_smia.attacks.expectation import EoT, Expectation
from monai_smia.attacks.fmn import FMN
from monai_smia.attacks.freezing import frozen
from monai_smia.attacks.gradients import AtIterate, Gradient
from monai_smia.attacks.grading import CrossGrade, GradeDistance
from monai_smia.attacks.hunt import Hunt, Setting
from monai_smia.attacks.loop import Recipe, ascend
from monai_smia.attacks.margins import DLR, CrossEntropy, JensenShannon, Margin, MaskedCrossEntropy
from monai_smia.attacks.minimum_norm import MinimumNormAttack
from monai_smia.attacks.named import BIM, DIFGSM, FGSM, MIFGSM, NIFGSM, PGD, TIFGSM, VMIFGSM, GaussianNoise
from monai_smia.attacks.objectives import Deviation, Objective
from monai_smia.attacks.random_views import RandomPreprocessing
from monai_smia.attacks.regions import Ball
from monai_smia.attacks.result import AttackResult, GoalResult
from monai_smia.attacks.smia import SMIA
from monai_smia.attacks.smooth_perturbations import SAP
from monai_smia.attacks.smoothing import Gaussian
from monai_smia.attacks.square import Square
from monai_smia.attacks.steps import Chain, Largest, Momentum, Normalize, Scale, Sign, Smooth, Step, steepest
from monai_smia.attacks.threat_models import LpBall, ThreatModel
from monai_smia.attacks.towards import Towards
from monai_smia.attacks.tpgd import TPGD
from monai_smia.attacks.transfer import Transfer
from monai_smia.attacks.trial import Trial
from monai_smia.attacks.universal import UniversalAttack, UniversalPerturbation
from monai_smia.attacks.universal_fit import UAP
from monai_smia.attacks.vafa import VAFA
from monai_smia.attacks.volumes import PresenceLoss, VolumeLoss

__all__ = [
    "APGD",
    "BIM",
    "BPDA",
    "CW",
    "DAG",
    "DDN",
    "DIFGSM",
    "DLR",
    "FGSM",
    "FMN",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "SAP",
    "SMIA",
    "TIFGSM",
    "TPGD",
    "UAP",
    "VAFA",
    "VMIFGSM",
    "AtIterate",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "Ball",
    "BiasField",
    "BoxesMissed",
    "Chain",
    "ClinicalGoal",
    "CosPGD",
    "Criterion",
    "CrossEntropy",
    "CrossGrade",
    "DeepFool",
    "DetectionDivergence",
    "DetectionLoss",
    "DetectorHeads",
    "Deviation",
    "DiceBelow",
    "EoT",
    "Erase",
    "Expectation",
    "FalsePositives",
    "Gaussian",
    "GaussianNoise",
    "GoalResult",
    "GradeDistance",
    "Gradient",
    "GradientAttack",
    "HeadOutputs",
    "Hunt",
    "Insert",
    "JensenShannon",
    "Largest",
    "LpBall",
    "Margin",
    "MaskedCrossEntropy",
    "MinimumNormAttack",
    "Misclassification",
    "Momentum",
    "Normalize",
    "Not",
    "Objective",
    "PresenceLoss",
    "RandomPreprocessing",
    "RandomResize",
    "Recipe",
    "Restarts",
    "Scale",
    "SegPGD",
    "Setting",
    "ShiftVolume",
    "Sign",
    "Smooth",
    "Square",
    "Step",
    "ThreatModel",
    "Towards",
    "Transfer",
    "Trial",
    "UniversalAttack",
    "UniversalPerturbation",
    "VolumeLoss",
    "WorstOf",
    "ascend",
    "frozen",
    "steepest",
    "straight_through_round",
]
